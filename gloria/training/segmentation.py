"""Training of segmentation models, on all masks or a share of them.

The weights with the best validation Dice are kept, in memory, and only they are tested. Everything
random depends on the seed and the step; on the CPU, a run can be repeated to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from gloria.checks import check_choice, check_integer
from gloria.data.loading import load_batches
from gloria.data.masked import stack_masked
from gloria.data.pairs import LabelledItems
from gloria.errors import DataError, DtypeError, ShapeError
from gloria.evaluation.segmentation import (
    FIGURES,
    THRESHOLDS,
    MaskedItems,
    Overlap,
    choose_mask_thresholds,
    measure_overlap,
    summarize_overlap,
)
from gloria.heads.segmentation import SegmentationModel, segmentation_model
from gloria.losses.segmentation import focal_log_dice
from gloria.registry import describe_target
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

Loss = Callable[[Tensor, Tensor], Tensor]


class MaskedImages(LabelledItems, MaskedItems, Protocol):
    """Images with masks: :class:`~gloria.data.SIIM`, :class:`~gloria.data.PhantomMasks`, yours."""

    def select(self, ids: Iterable[str], /) -> Self:
        """The images of an id list."""


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(AdamWRecipe):
    """How to train a segmentation model. Batch, rate and loss are the published ones.

    Attributes:
        loss: of logits and masks, ``(image, class, height, width)`` each:
            :func:`~gloria.losses.segmentation.focal_log_dice`,
            :func:`~gloria.losses.segmentation.dice_bce` or your own.
        augmentation: moves image and mask alike; None = none. One that crops trains on parts of
            the images; validated and tested are whole ones.
        choose_on: which images' Dice chooses weights and thresholds: ``"all"`` or ``"positives"``.
    """

    batch_size: int = 8
    learning_rate: float = 5e-4
    loss: Loss = focal_log_dice
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    choose_on: Literal["all", "positives"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("choose_on", self.choose_on, ("all", "positives"))


class SegmentationTraining(NamedTuple):
    """How a training went.

    Attributes:
        best_step: after which step the model has its weights.
        validation_dice: of these weights, the mean over classes.
        thresholds: of each class, chosen on the validation images.
        history: one record per step, counted from 1: ``step``, ``loss``, ``learning_rate``,
            ``gradient_norm``, and ``validation_dice`` where it was computed.
    """

    best_step: int
    validation_dice: float
    thresholds: tuple[float, ...]
    history: list[dict[str, float]]


def train_segmenter(
    model: SegmentationModel,
    train: MaskedItems,
    validation: MaskedItems,
    recipe: SegmentationRecipe | None = None,
    *,
    workers: int = 0,
    on_step: OnStep | None = None,
) -> SegmentationTraining:
    """Train a segmentation model, on the device it is on; it ends with its best weights.

    Nothing is written.

    Args:
        model: trained in place, its convolutions in the memory format ``channels_last``; in eval
            mode afterwards.
        train: images in [0, 1], all of one size, and their masks; normalised here.
        validation: images of other patients. The weights of the step with the highest mean Dice on
            them are kept, the first of equals, each class at the threshold that is best there.
        recipe: how; None = :class:`SegmentationRecipe`'s defaults.
        workers: processes that load images.
        on_step: called after every step with what was logged; ``on_step(record)``.

    Raises:
        DtypeError: ``model`` is no segmentation model, but an encoder, say; or what is trained of
            it is not in float32.
        DataError: there is no image, one without a mask, images differ in shape, the two sets name
            other classes or in another order, the model's output is NaN in validation, or Dice is
            chosen on positives and validation has none.
        ShapeError: the model has another number of classes than the masks.
        OptionError: a batch is one image, and the model's BatchNorms need more.
        NonFiniteLossError: the loss or the gradient is NaN or infinite.
    """
    if not isinstance(unwrapped(model), SegmentationModel):
        raise DtypeError(
            f"model must be a SegmentationModel; got {type(model).__name__}. "
            f"segmentation_model(encoder, classes) makes one of an image encoder."
        )
    recipe = recipe or SegmentationRecipe()
    check_integer("workers", workers, 0)
    for name, items in (("train", train), ("validation", validation)):
        if not len(items):
            raise DataError(f"{name} must hold at least one image.")
    check_named_classes(train, validation)

    def losses(batches: StepBatches) -> Iterator[Tensor]:
        loaded = load_batches(train, batches, stack_masked, workers=workers, seed=recipe.seed)
        for step, (images, masks) in enumerate(loaded):
            if recipe.augmentation is not None:
                generator = torch.Generator().manual_seed(derive_seed(recipe.seed, step, 1))
                images, masks = recipe.augmentation.with_masks(images, masks, generator)
            with isolated(recipe.seed, step, 2):
                logits = model(prepare(images, model.device, model.image_input))
            yield recipe.loss(logits, masks.to(model.device))

    best = fit(
        model,
        len(train),
        losses,
        lambda: _validate(model, validation, recipe, workers),
        recipe,
        name="validation_dice",
        on_step=on_step,
    )
    return SegmentationTraining(*best)


def segmentation_efficiency(
    rows: Mapping[str, ImageEncoder],
    train: MaskedImages,
    validation: MaskedImages,
    test: MaskedImages,
    *,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: Sequence[int] = (0, 1, 2),
    recipe: SegmentationRecipe | None = None,
    width: int = 256,
    workers: int = 0,
    progress: Callable[[int], Any] = lambda trained: None,
    on_overlap: Callable[[str, float, int, Overlap], Any] = lambda *overlap: None,
) -> dict[str, Any]:
    """Test Dice and IoU of U-Nets on image encoders, trained on shares of the masks.

    Args as in :func:`~gloria.training.label_efficiency`, of images with masks, and:
        recipe: of each model, but for its seed; None = :class:`SegmentationRecipe`'s defaults.
        width: as in :func:`~gloria.heads.segmentation_model`.
        on_overlap: called with the row, fraction and seed of each model and the counts of the test
            images, ``(image, class)``: for intervals over images, say.

    Returns:
        As there, for each of ``dice_positives``, ``dice_all``, ``iou_positives`` and ``iou_all``
        (None where no test image is positive); of each run ``validation_dice``, and under ``test``
        the figures of :func:`~gloria.evaluation.segmentation.evaluate_segmentation`, those
        ``per_class`` by name.

    Raises:
        OptionError: as there.
        DataError, ShapeError, NonFiniteLossError: as :func:`train_segmenter`; or the three sets
            have different classes, or not one mask for each of them.
    """
    check_runs(rows, fractions, seeds)
    classes = check_classes(train, validation=validation, test=test)
    counts = {
        name: _count_classes(name, items)
        for name, items in (("train", train), ("validation", validation), ("test", test))
    }
    if set(counts.values()) != {len(classes)}:
        raise ShapeError(
            f"masks must be of train's classes {classes} in each set; they have {counts}."
        )
    recipe = recipe or SegmentationRecipe()
    shares = draw_shares(train, fractions, seeds)

    def run(
        row: str, encoder: ImageEncoder, fraction: float, seed: int, share: Sequence[str]
    ) -> dict[str, Any]:
        model = _build(encoder, len(classes), width, seed)
        trained = train_segmenter(
            model, train.select(share), validation, replace(recipe, seed=seed), workers=workers
        )
        every = measure_overlap(
            model, test, trained.thresholds, batch_size=recipe.batch_size, workers=workers
        )
        overlap = every.at(range(len(classes)))
        on_overlap(row, fraction, seed, overlap)
        progress(1)
        summary = summarize_overlap(overlap)
        return {
            "best_step": trained.best_step,
            "validation_dice": trained.validation_dice,
            "test": {
                **summary,
                "per_class": dict(zip(classes, summary["per_class"], strict=True)),
                "thresholds": list(trained.thresholds),
            },
        }

    described = {**asdict(recipe), "loss": describe_target(recipe.loss)}
    return {
        "classes": classes,
        "width": width,
        "recipe": {name: value for name, value in described.items() if name != "seed"},
        "images": {"train": len(train), "validation": len(validation), "test": len(test)},
        "rows": {
            row: tabulate(shares, classes, FIGURES, partial(run, row, encoder))
            for row, encoder in rows.items()
        },
    }


def _count_classes(name: str, items: MaskedItems) -> int:
    """How many masks its images have, as the first of them says."""
    if not len(items):
        raise DataError(f"{name} must hold at least one image.")
    return stack_masked([items[0]])[1].shape[1]


def _validate(
    model: SegmentationModel, validation: MaskedItems, recipe: SegmentationRecipe, workers: int
) -> tuple[float, tuple[float, ...]]:
    """Mean Dice with each class at its best threshold, and these thresholds."""
    overlap = measure_overlap(
        model, validation, THRESHOLDS, batch_size=recipe.batch_size, workers=workers
    )
    thresholds = choose_mask_thresholds(overlap, THRESHOLDS, recipe.choose_on)
    chosen = overlap.at([THRESHOLDS.index(threshold) for threshold in thresholds])
    return summarize_overlap(chosen)[f"dice_{recipe.choose_on}"], thresholds


def _build(encoder: ImageEncoder, classes: int, width: int, seed: int) -> SegmentationModel:
    """A model on a copy of an encoder, where the encoder is."""
    with isolated(seed):
        model = segmentation_model(encoder, classes, width=width)
    return model.to(next(model.image_encoder.parameters()).device)
