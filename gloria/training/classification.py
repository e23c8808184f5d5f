"""Supervised classification: linear probes and fine-tuning, on all labels or a share of them.

The weights with the best validation AUROC are kept, in memory, and only they are tested. Everything
random depends on the seed and the step; on the CPU, a run can be repeated to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gloria.checks import check_integer, check_weight
from gloria.data.loading import HasImage, load_batches, stack_images
from gloria.data.pairs import LabelledItems
from gloria.errors import DataError, DtypeError, ShapeError
from gloria.evaluation.classification import ClassMetric, multilabel_auroc
from gloria.evaluation.features import evaluating, in_batches
from gloria.heads import ImageClassifier, multilabel_loss
from gloria.training.augmentation import Augmentation
from gloria.training.randomness import StepBatches, derive_seed, isolated
from gloria.training.shares import (
    check_classes,
    check_named_classes,
    check_runs,
    draw_shares,
    tabulate,
)
from gloria.training.steps import AdamWRecipe, OnStep, prepare
from gloria.training.supervised import fit
from gloria.types import ImageEncoder
from gloria.wrapping import unwrapped


class LabelledImages(LabelledItems, Protocol):
    """Images with labels: :class:`~gloria.data.Radiographs`, phantoms as pairs, or your own."""

    def __getitem__(self, index: int, /) -> HasImage:
        """One item."""


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe(AdamWRecipe):
    """How to train a classifier. The defaults are for a linear probe.

    Attributes:
        augmentation: None = none; a probe's features are computed only once then. One that crops
            decides which middle part of the images is validated and tested on.
    """

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-2
    augmentation: Augmentation | None = None


PROBE = ClassifierRecipe()
"""For a frozen encoder."""

FINE_TUNING = ClassifierRecipe(
    steps=500, batch_size=32, learning_rate=1e-3, augmentation=Augmentation()
)
"""For a small encoder that learns, too; large ones usually take a tenth of the learning rate."""


class ClassifierTraining(NamedTuple):
    """How a training went.

    Attributes:
        best_step: after which step the classifier has its weights.
        validation_auroc: of these weights, the mean over classes.
        history: one record per step, counted from 1: ``step``, ``loss``, ``learning_rate``,
            ``gradient_norm``, and ``validation_auroc`` where it was computed.
    """

    best_step: int
    validation_auroc: float
    history: list[dict[str, float]]


def train_classifier(
    classifier: ImageClassifier,
    train: LabelledImages,
    validation: LabelledImages,
    recipe: ClassifierRecipe | None = None,
    *,
    class_weight: Sequence[float] | None = None,
    pos_weight: Sequence[float] | None = None,
    workers: int = 0,
    on_step: OnStep | None = None,
) -> ClassifierTraining:
    """Train a classifier on labels, on the device it is on; it ends with its best weights.

    Nothing is written. A frozen encoder without augmentation encodes each image once.

    Args:
        classifier: trained in place; in eval mode afterwards, and its convolutions, where images
            go through them in every step, in the memory format ``channels_last``.
        train: images, normalised here. Uncertain labels have no influence.
        validation: images of other patients; the weights of the step with the highest mean AUROC
            on them are kept, the first of equals. Classes without positive or negative images here
            do not count.
        recipe: how; None = :data:`PROBE` for a frozen encoder, else :data:`FINE_TUNING`.
        class_weight: as in :func:`~gloria.heads.multilabel_loss`, one number for each class.
        pos_weight: likewise.
        workers: processes that load images.
        on_step: called after every step with what was logged; ``on_step(record)``.

    Raises:
        DtypeError: ``classifier`` is none, but an encoder, say; or what is trained of it is not in
            float32.
        ShapeError: labels or weights are not as many as images and classes.
        DataError: there is no image, a label is not 1, 0 or -1, none of ``train`` is certain,
            ``validation`` has no class with positive and negative images, or the two sets name
            other classes, or in another order.
        OptionError: a batch is one image, and the encoder's BatchNorms need more.
        NonFiniteLossError: the loss or the gradient is NaN or infinite.

    The published code tests the last weights; here the best are tested.

    Source: GLoRIA (Huang et al., ICCV 2021), section 4.3.

    Example:
        >>> from gloria.data import PhantomPairs
        >>> from gloria.data.phantom import PhantomDataset
        >>> from gloria.encoders import TimmImageEncoder
        >>> train, validation = (
        ...     PhantomPairs(PhantomDataset(split, count=20, size=32).draw())
        ...     for split in ("train", "val")
        ... )
        >>> encoder = TimmImageEncoder("resnet10t", in_chans=1)
        >>> classifier = ImageClassifier(encoder, len(train.classes), frozen=True)
        >>> recipe = ClassifierRecipe(steps=20, validate_every=10)
        >>> train_classifier(classifier, train, validation, recipe).best_step in (10, 20)
        True
    """
    _check_classifier(classifier)
    check_named_classes(train, validation)
    recipe = recipe or (PROBE if classifier.frozen else FINE_TUNING)
    loss = _weighted_loss(classifier, class_weight, pos_weight)
    examples = _examples("train", train, classifier, recipe, workers)
    watched = _examples("validation", validation, classifier, recipe, workers)
    _check_defined("validation", watched.labels)
    learner = _learner(classifier, examples, recipe)
    trained = _fit(learner, examples, watched, recipe, loss, on_step)
    classifier.eval()
    return trained


def evaluate_classifier(
    classifier: ImageClassifier,
    data: LabelledImages,
    *,
    augmentation: Augmentation | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> ClassMetric:
    """The AUROC of a classifier, in eval mode whatever mode it is in.

    Args:
        classifier: any; its modes are left as they were.
        data: images with labels; uncertain labels do not count.
        augmentation: of training; one that crops decides which middle part is seen.
        batch_size: images at a time; it does not change the result.
        workers: processes that load images.

    Returns:
        As :func:`~gloria.evaluation.classification.multilabel_auroc`.

    Raises what :func:`train_classifier` raises of its classifier and images.
    """
    _check_classifier(classifier)
    check_integer("batch_size", batch_size, 1)
    images = _Images("data", data, classifier, augmentation, workers)
    return multilabel_auroc(_scores(classifier, images, batch_size), images.labels)


def label_efficiency(
    rows: Mapping[str, ImageEncoder],
    train: LabelledImages,
    validation: LabelledImages,
    test: LabelledImages,
    *,
    frozen: bool = True,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: Sequence[int] = (0, 1, 2),
    recipe: ClassifierRecipe | None = None,
    class_weight: Sequence[float] | None = None,
    pos_weight: Sequence[float] | None = None,
    workers: int = 0,
    progress: Callable[[int], Any] = lambda trained: None,
    on_scores: Callable[[str, float, int, Tensor], Any] = lambda *scores: None,
) -> dict[str, Any]:
    """Test AUROC of classifiers on image encoders, trained on shares of the labels.

    A seed decides which patients are in the share, the first weights of the linear layer, and the
    order of images; it is the same for every row, so rows are compared on the same shares.

    Args:
        rows: what is compared, by name: the encoder of a trained GLoRIA, one with random weights,
            one that timm has pretrained. None of them is changed.
        train: the whole of the labels.
        validation: chooses each classifier's weights, whole for every share.
        test: of patients who are in neither of the others
            (:func:`~gloria.data.check_splits`); used once for each classifier.
        frozen: a linear probe; False = the encoders learn, too.
        fractions: shares of the training patients.
        seeds: one classifier is trained for each.
        recipe: of each classifier, but for its seed; None = :data:`PROBE` or :data:`FINE_TUNING`.
        class_weight, pos_weight, workers: as in :func:`train_classifier`.
        progress: called with the number of classifiers trained since the last call.
        on_scores: called with the row, fraction and seed of each classifier and its logits of the
            test images, ``(image, class)``: for intervals over images, say.

    Returns:
        What ``json.dumps`` takes. ``result["classes"]`` names them, and
        ``result["rows"][name]["10%"]`` has, for ``auroc``, the ``mean`` and ``sd`` over seeds
        (sample standard deviation; None for one seed) of the mean over classes, the same
        ``per_class`` by name (None where the test images lack positives or negatives), and
        ``runs``: each one's ``seed``, ``images``, ``share`` (the hash of its id list),
        ``best_step``, ``validation_auroc``, and under ``test`` its ``auroc``, that of each class
        ``per_class`` by name.

    Raises:
        OptionError: there is no row, fraction or seed, one comes twice, or a fraction is out of
            range; or a batch is one image, and BatchNorms that learn need more.
        ShapeError, DataError, NonFiniteLossError: as :func:`train_classifier`; or the three sets
            have different classes, or ``test`` no class with positive and negative images.
    """
    check_runs(rows, fractions, seeds)
    classes = check_classes(train, validation=validation, test=test)
    recipe = recipe or (PROBE if frozen else FINE_TUNING)
    number = {name: index for index, name in enumerate(train.ids)}
    shares = draw_shares(train, fractions, seeds)

    def compare(row: str, encoder: ImageEncoder) -> dict[str, Any]:
        # it encodes for every run of the row: they begin with the same encoder
        first = _build(encoder, len(classes), frozen, seed=0)
        loss = _weighted_loss(first, class_weight, pos_weight)
        everything, watched, tested = (
            _examples(name, data, first, recipe, workers)
            for name, data in (("train", train), ("validation", validation), ("test", test))
        )
        _check_defined("validation", watched.labels)
        _check_defined("test", tested.labels)

        def run(fraction: float, seed: int, share: Sequence[str]) -> dict[str, Any]:
            part = everything.take([number[name] for name in share])
            learner = _learner(_build(encoder, len(classes), frozen, seed), part, recipe)
            trained = _fit(learner, part, watched, replace(recipe, seed=seed), loss)
            scores = _scores(learner, tested, recipe.batch_size)
            on_scores(row, fraction, seed, scores)
            progress(1)
            figure = multilabel_auroc(scores, tested.labels)
            of_class = [{"auroc": value} for value in figure["per_class"]]
            return {
                "best_step": trained.best_step,
                "validation_auroc": trained.validation_auroc,
                "test": {
                    "auroc": figure["mean"],
                    "per_class": dict(zip(classes, of_class, strict=True)),
                },
            }

        return tabulate(shares, classes, ["auroc"], run)

    return {
        "classes": classes,
        "frozen": frozen,
        "recipe": {name: value for name, value in asdict(recipe).items() if name != "seed"},
        "images": {"train": len(train), "validation": len(validation), "test": len(test)},
        "rows": {row: compare(row, encoder) for row, encoder in rows.items()},
    }


class _Features(NamedTuple):
    """Inputs of a linear layer: the pooled vectors of images, computed once."""

    pooled: Tensor
    labels: Tensor

    def take(self, rows: Sequence[int]) -> _Features:
        """Those of some of the images."""
        return _Features(self.pooled[rows], self.labels[rows])

    def load(
        self, batches: Iterable[Sequence[int]], augmented: int | None = None
    ) -> Iterator[Tensor]:
        """Batches ``(image, dim)``; there is nothing to augment."""
        return (self.pooled[batch] for batch in batches)


class _Images:
    """Inputs of a classifier: images, read when they are asked for."""

    def __init__(
        self,
        name: str,
        data: LabelledImages,
        classifier: ImageClassifier,
        augmentation: Augmentation | None,
        workers: int,
    ) -> None:
        check_integer("workers", workers, 0)
        self.labels = _read_labels(name, data, classifier).to(classifier.head.weight.device)
        self._rows: Sequence[int] = range(len(data))
        self._data = data
        self._image_input = classifier.image_input
        self._augmentation = augmentation
        self._workers = workers

    def take(self, rows: Sequence[int]) -> _Images:
        """Some of the images."""
        part = copy.copy(self)
        part.labels, part._rows = self.labels[rows], [self._rows[row] for row in rows]
        return part

    def load(
        self, batches: Iterable[Sequence[int]], augmented: int | None = None
    ) -> Iterator[Tensor]:
        """Normalised batches ``(image, channel, height, width)``, on the classifier's device.

        ``augmented`` is a seed; None = not augmented, but as large as if they were.
        """
        rows = ([self._rows[index] for index in batch] for batch in batches)
        loaded = load_batches(
            self._data, rows, stack_images, workers=self._workers, seed=augmented or 0
        )
        for step, images in enumerate(loaded):
            if self._augmentation is not None and augmented is not None:
                generator = torch.Generator().manual_seed(derive_seed(augmented, step, 1))
                images = self._augmentation(images, generator)
            elif self._augmentation is not None:
                images = self._augmentation.center(images)
            yield prepare(images, self.labels.device, self._image_input)

    def encode(self, encoder: nn.Module, batch_size: int) -> _Features:
        """What an encoder in eval mode makes of them."""
        with evaluating(encoder):
            batches = self.load(in_batches(len(self.labels), batch_size))
            pooled = [encoder(images).pooled for images in batches]
        return _Features(torch.cat(pooled), self.labels)


_Examples = _Features | _Images


def _examples(
    name: str,
    data: LabelledImages,
    classifier: ImageClassifier,
    recipe: ClassifierRecipe,
    workers: int,
) -> _Examples:
    """Images; or features, where these never change."""
    images = _Images(name, data, classifier, recipe.augmentation, workers)
    if classifier.frozen and recipe.augmentation is None:
        return images.encode(classifier.image_encoder, recipe.batch_size)
    return images


def _learner(classifier: ImageClassifier, train: _Examples, recipe: ClassifierRecipe) -> nn.Module:
    """What learns from the examples: the classifier, or its linear layer if they are features.

    A frozen encoder's features are standardised here, by those of the training images.
    """
    if not (train.labels >= 0).any():
        raise DataError("every label of the training images is uncertain; nothing can be learned.")
    if not classifier.frozen:
        return classifier  # its features are about to change
    if isinstance(train, _Features):
        classifier.head.standardize(train.pooled)
        return classifier.head
    classifier.head.standardize(train.encode(classifier.image_encoder, recipe.batch_size).pooled)
    return classifier


def _fit(
    learner: nn.Module,
    train: _Examples,
    validation: _Examples,
    recipe: ClassifierRecipe,
    loss: Callable[[Tensor, Tensor], Tensor],
    on_step: OnStep | None = None,
) -> ClassifierTraining:
    """Train, and put the best weights back."""

    def losses(batches: StepBatches) -> Iterator[Tensor]:
        # dropout draws; a linear layer does not, and this would take as long as its step
        draws = isinstance(train, _Images)
        loaded = zip(batches, train.load(batches, recipe.seed), strict=True)
        for step, (batch, inputs) in enumerate(loaded):
            with isolated(recipe.seed, step, 2) if draws else nullcontext():
                logits = learner(inputs)
            yield loss(logits, train.labels[batch])

    def validate() -> tuple[float, tuple[float, ...]]:
        scores = _scores(learner, validation, recipe.batch_size)
        auroc = multilabel_auroc(scores, validation.labels)["mean"]
        assert auroc is not None  # a class is defined, as was checked
        return auroc, ()

    best = fit(
        learner,
        len(train.labels),
        losses,
        validate,
        recipe,
        name="validation_auroc",
        on_step=on_step,
    )
    return ClassifierTraining(best.step, best.figure, best.history)


def _scores(learner: nn.Module, examples: _Examples, batch_size: int) -> Tensor:
    """Logits of all images, ``(image, class)``, in eval mode; on the CPU."""
    with evaluating(learner):
        batches = examples.load(in_batches(len(examples.labels), batch_size))
        return torch.cat([learner(inputs) for inputs in batches]).cpu()


def _build(encoder: ImageEncoder, classes: int, frozen: bool, seed: int) -> ImageClassifier:
    """A classifier on a copy of an encoder, where the encoder is."""
    copied: Any = copy.deepcopy(encoder)
    with isolated(seed):
        classifier = ImageClassifier(copied, classes, frozen=frozen)
    return classifier.to(next(copied.parameters(), classifier.head.weight).device)


def _check_classifier(value: Any) -> None:
    if not isinstance(unwrapped(value), ImageClassifier):
        raise DtypeError(
            f"classifier must be an ImageClassifier; got {type(value).__name__}. "
            f"ImageClassifier(encoder, classes) makes one of an image encoder."
        )


def _weighted_loss(
    classifier: ImageClassifier,
    class_weight: Sequence[float] | None,
    pos_weight: Sequence[float] | None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss, with weights that are checked and on the classifier's device."""
    weights: dict[str, Tensor] = {}
    for name, given in (("class_weight", class_weight), ("pos_weight", pos_weight)):
        if given is None:
            continue
        if len(given) != classifier.classes:
            raise ShapeError(
                f"{name} must hold a number for each of the {classifier.classes} "
                f"classes; got {len(given)}."
            )
        for value in given:
            check_weight(name, value)
        weights[name] = torch.tensor(
            given, dtype=torch.float32, device=classifier.head.weight.device
        )
    return partial(multilabel_loss, **weights)


def _read_labels(name: str, data: LabelledImages, classifier: ImageClassifier) -> Tensor:
    """Labels ``(image, class)``, as many as images and as the classifier's classes."""
    labels = np.asarray(data.labels)
    shape = (len(data), classifier.classes)
    if labels.shape != shape:
        raise ShapeError(
            f"the labels of {name} must be {shape} = (image, class), as the images and the "
            f"classifier's classes; got {labels.shape}."
        )
    if not len(labels):
        raise DataError(f"{name} must hold at least one image.")
    wrong = ~np.isin(labels, (-1, 0, 1))  # NaN is in no set
    if wrong.any():
        image, column = np.argwhere(wrong)[0]
        raise DataError(
            f"the labels of {name} must be 1 (positive), 0 (negative) or -1 (uncertain); got "
            f"{labels[image, column]} at image {image}, class {column}."
        )
    return torch.from_numpy(labels.astype(np.int8))


def are_defined(labels: Any) -> Any:
    """Which classes have an AUROC, ``(class,)`` of labels ``(image, class)``."""
    return (labels == 1).any(0) & (labels == 0).any(0)


def _check_defined(name: str, labels: Tensor) -> None:
    """Require a class that has an AUROC."""
    if not are_defined(labels).any():
        raise DataError(
            f"{name} must have a class with positive and negative images; none of its "
            f"{labels.shape[1]} classes has both."
        )
