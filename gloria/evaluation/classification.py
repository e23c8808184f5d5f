"""Classification: how well scores tell classes apart, and which decisions they lead to.

Zero-shot and supervised classifiers share these figures. ``scores (image, class)`` may be
probabilities, logits or similarities: only their order within a class counts.

A figure that the data leave undefined is None, never 0: the AUROC of a class without a positive
image, say, or the PPV where nothing was called positive. Each figure names the classes it lacks,
and its mean is over the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gloria.checks import check_choice, check_finite, check_same_size, check_tensor, require
from gloria.errors import DataError, OptionError, ShapeError
from gloria.evaluation.retrieval import check_integers, check_labels


class ClassMetric(TypedDict):
    """One metric, class by class.

    Attributes:
        per_class: its value for each class; None where the data leave it undefined.
        mean: of the classes that have a value (macro average); None if none has.
        undefined: the numbers of the classes that have none.
    """

    per_class: list[float | None]
    mean: float | None
    undefined: list[int]


def multilabel_auroc(scores: Tensor, labels: Tensor) -> ClassMetric:
    """How well each class's scores tell its positive images from its negative ones.

    The area under the ROC curve: the chance that a positive image has a higher score than a
    negative one, equal scores counting half. An uncertain label leaves its image out of its class,
    and of no other.

    Args:
        scores: ``(image, class)``, of any range.
        labels: ``(image, class)`` integers: 1 positive, 0 negative, -1 uncertain.

    Returns:
        The AUROC of each class, their mean, and the classes that lack positive or negative images.

    Raises:
        ShapeError, DtypeError: the shapes differ, ``scores`` is not floating-point, or ``labels``
            not integer.
        OptionError: a label is not 1, 0 or -1.
        DataError: there is no image or no class, or a score is NaN.

    Counted in whole numbers, so it is exact. torchmetrics counts the AUROC of a class without
    positives as 0 in the mean, takes a sigmoid of all scores if one is outside [0, 1], in whose
    rounding scores become equal, and adds up in float32.

    Example:
        >>> scores = torch.tensor([[0.2, -1.0], [0.9, 3.0], [0.4, 2.0]])
        >>> multilabel_auroc(scores, torch.tensor([[0, 0], [1, 0], [1, -1]]))
        {'per_class': [1.0, None], 'mean': 1.0, 'undefined': [1]}
    """
    return _metric(auroc_of_some(scores, labels)(torch.arange(len(scores), device="cpu")))


def auroc_of_some(scores: Tensor, labels: Tensor) -> Callable[[Tensor], list[float | None]]:
    """:func:`multilabel_auroc` of some images at a time, for resampling: they are ranked once.

    Arguments and errors are the same.

    Returns:
        A function of ``index (image,)``, integers on the CPU in which an image may come several
        times, that gives the AUROC of each class; None where it is undefined.

    Example:
        >>> scores = torch.tensor([[0.2], [0.9], [0.4]])
        >>> auroc = auroc_of_some(scores, torch.tensor([[0], [1], [1]]))
        >>> auroc(torch.tensor([0, 1, 1])), auroc(torch.tensor([1, 2, 2]))
        ([1.0], [None])
    """
    scores, labels = _check_multilabel(scores, labels)
    ranks = [rank(column) for column in scores.T]

    def auroc(index: Tensor) -> list[float | None]:
        return [
            auroc_of_ranks(of_class[index], label[index])
            for of_class, label in zip(ranks, labels.T, strict=True)
        ]

    return auroc


def multilabel_metrics(
    scores: Tensor, labels: Tensor, thresholds: Thresholds | float
) -> dict[str, ClassMetric]:
    """What each class's scores and decisions are worth, for classes that do not exclude each other.

    An image is called positive for a class if its score is at least the class's threshold. With
    TP, FP, TN, FN the images of a class with a certain label: ``accuracy = (TP + TN) / all``,
    ``sensitivity = TP / (TP + FN)``, ``specificity = TN / (TN + FP)``, ``ppv = TP / (TP + FP)``,
    ``npv = TN / (TN + FN)``, ``f1 = 2 TP / (2 TP + FP + FN)``; and ``auroc``, which needs no
    threshold.

    Args:
        scores: ``(image, class)``.
        labels: ``(image, class)`` integers: 1 positive, 0 negative, -1 uncertain, which leaves the
            image out of that class. A binary task has one class.
        thresholds: of :func:`choose_thresholds`, on other images; or one number for all classes
            that was not chosen on any, such as 0.5 for probabilities.

    Returns:
        The seven names to their figures. A figure without a denominator is None, and so is what
        takes a decision in a class without a threshold.

    Raises what :func:`multilabel_auroc` raises, and:
        DtypeError, ShapeError, OptionError: ``thresholds`` are no finite number, such as a tensor
            of several.
        DataError: these are the very images that the thresholds were chosen on.

    Example:
        >>> scores = torch.tensor([[0.2], [0.9], [0.4]])
        >>> figures = multilabel_metrics(scores, torch.tensor([[0], [1], [1]]), 0.5)
        >>> figures["sensitivity"]["mean"], figures["ppv"]["mean"]
        (0.5, 1.0)
    """
    scores, labels = _check_multilabel(scores, labels)
    if not isinstance(thresholds, Thresholds):
        check_finite("thresholds", thresholds)
        thresholds = Thresholds(scores.new_full((scores.shape[1],), float(thresholds)))
    if thresholds.chosen_on is not None and _same(thresholds.chosen_on, _sort(scores, labels)):
        raise DataError(
            "thresholds were chosen on these very images; figures on them would flatter. Choose "
            "them on validation images, and score test images."
        )
    figures = _decision_metrics(thresholds.decide(scores), labels, thresholds.undefined)
    return {**figures, "auroc": multilabel_auroc(scores, labels)}


def multiclass_metrics(scores: Tensor, labels: Tensor) -> dict[str, Any]:
    """What scores and decisions are worth, for classes of which each image has exactly one.

    An image is called of the class with the highest score, the lower of equals; then each class
    stands against all others, as in :func:`multilabel_metrics`.

    Args:
        scores: ``(image, class)``.
        labels: ``(image,)`` integers, the true class.

    Returns:
        ``accuracy``, a number, of :func:`accuracy`; and ``sensitivity``, ``specificity``, ``ppv``,
        ``npv``, ``f1`` and ``auroc``, each a :class:`ClassMetric`.

    Raises what :func:`accuracy` raises.

    With as many images of each class the mean sensitivity is the accuracy. For decisions by a
    threshold of each class's own, give :func:`multilabel_metrics` the labels as
    ``torch.nn.functional.one_hot(labels, classes)``.

    Example:
        >>> figures = multiclass_metrics(torch.eye(3), torch.tensor([0, 1, 1]))
        >>> figures["accuracy"], figures["sensitivity"]["per_class"]
        (0.6666666666666666, [1.0, 0.5, None])
    """
    share = accuracy(scores, labels)
    truth, decided = (
        one_hot(each.cpu().long(), scores.shape[1]) for each in (labels, scores.argmax(1))
    )
    figures = _decision_metrics(decided == 1, truth, [])
    return {**figures, "accuracy": share, "auroc": multilabel_auroc(scores, truth)}


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The share of images whose highest score is that of their own class.

    Among equal scores the lower class wins.

    Args:
        scores: ``(image, class)``.
        labels: ``(image,)`` integers, the true class.

    Raises:
        ShapeError, DtypeError: the shapes do not fit, ``scores`` is not floating-point, or
            ``labels`` not integer.
        OptionError: a label is no class.
        DataError: there is no image, or ``scores`` holds NaN.

    Example:
        >>> accuracy(torch.tensor([[0.3, 0.5], [0.9, 0.1]]), torch.tensor([1, 1]))
        0.5
    """
    check_tensor("scores", scores, ("image", "class"))
    check_labels("labels", labels, "image")
    check_same_size("images", "scores", scores.shape[0], "labels", len(labels))
    if not len(labels):
        raise DataError("scores must hold at least one image; there is nothing to count.")
    check_no_nan("scores", scores)
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= scores.shape[1]:
        wrong = lowest if lowest < 0 else highest
        raise OptionError(f"labels must be from 0 to {scores.shape[1] - 1}; got {wrong}.")
    return float((scores.argmax(1).cpu() == labels.cpu()).double().mean())


@dataclass(frozen=True)
class Thresholds:
    """From which score on an image is called positive, class by class.

    Attributes:
        values: ``(class,)``; NaN where a class has none.
        chosen_on: the scores and labels that :func:`choose_thresholds` saw, sorted, so that
            figures on the same images are refused; None = thresholds from elsewhere.

    Raises:
        DtypeError, ShapeError: the values are no vector of floating-point numbers.
    """

    values: Tensor
    chosen_on: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        check_tensor("values of Thresholds", self.values, ("class",))

    @property
    def undefined(self) -> list[int]:
        """The numbers of the classes that have no threshold."""
        return self.values.isnan().nonzero().flatten().tolist()

    def decide(self, scores: Tensor) -> Tensor:
        """Which images are called positive; none in a class without a threshold.

        Args:
            scores: ``(image, class)``, made as those that the thresholds were chosen on.

        Returns:
            ``(image, class)`` boolean.

        Raises:
            ShapeError: another number of classes.
        """
        check_tensor("scores", scores, ("image", "class"))
        check_same_size("classes", "scores", scores.shape[1], "thresholds", len(self.values))
        # in float64, which not every device has
        return (scores.cpu().double() >= self.values.cpu().double()).to(scores.device)


def choose_thresholds(
    validation_scores: Tensor,
    validation_labels: Tensor,
    *,
    maximize: Literal["f1", "youden"] = "f1",
) -> Thresholds:
    """For each class, the threshold that decides best **on validation images**.

    Thresholds that are chosen on the images which they are then scored on flatter the figures;
    :func:`multilabel_metrics` refuses that. Candidates are the scores themselves; of equally good
    ones the highest is taken, and then the middle between it and the next lower score, if there
    is one, so that rounding moves no image across.

    Args:
        validation_scores: ``(image, class)``.
        validation_labels: ``(image, class)`` integers: 1 positive, 0 negative, -1 uncertain, left
            out.
        maximize: ``"f1"``, or ``"youden"``: sensitivity + specificity - 1.

    Returns:
        A threshold for each class, to be given to :func:`multilabel_metrics` with test images. A
        class that lacks positive or negative images has none, and is in ``undefined``.

    Raises what :func:`multilabel_auroc` raises, and OptionError for an unknown ``maximize``.

    Example:
        >>> scores = torch.tensor([[0.1], [0.4], [0.6], [0.9]])
        >>> choose_thresholds(scores, torch.tensor([[0], [0], [1], [1]])).values
        tensor([0.5000], dtype=torch.float64)
    """
    check_choice("maximize", maximize, ("f1", "youden"))
    scores, labels = _check_multilabel(validation_scores, validation_labels)
    values = [
        _threshold(column[label >= 0], label[label >= 0], maximize)
        for column, label in zip(scores.T, labels.T, strict=True)
    ]
    return Thresholds(scores.new_tensor(values), _sort(scores, labels))


def _check_multilabel(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores in float64 and labels in int64, on the CPU, where sums have one order; checked."""
    check_tensor("scores", scores, ("image", "class"))
    check_integers("labels", labels)
    if labels.shape != scores.shape:
        raise ShapeError(
            f"labels must be of the shape of scores, {tuple(scores.shape)} = (image, class); "
            f"got {tuple(labels.shape)}."
        )
    if not scores.numel():
        raise DataError(
            f"scores must hold at least one image and one class; got {tuple(scores.shape)}."
        )
    check_no_nan("scores", scores)
    labels = labels.to("cpu", torch.int64)
    wrong = (labels < -1) | (labels > 1)
    if wrong.any():
        image, column = wrong.nonzero()[0].tolist()
        raise OptionError(
            f"labels must be 1 (positive), 0 (negative) or -1 (uncertain); "
            f"got {int(labels[image, column])} at image {image}, class {column}."
        )
    # one after the other: of MPS, torch 2.14 copies nothing into float64, and says nothing
    return scores.detach().cpu().double(), labels


def check_no_nan(name: str, values: Tensor) -> None:
    """Require that no image has a NaN."""
    if values.isnan().any():
        image = values.isnan().any(1).nonzero()[0].item()
        raise DataError(f"{name} holds NaN, first at image {image}.")


def rank(scores: Tensor) -> Tensor:
    """The rank of each score, from 0, the lowest; equals share one."""
    ranks: Tensor = scores.unique(return_inverse=True)[1]
    return ranks


def auroc_of_ranks(ranks: Tensor, labels: Tensor) -> float | None:
    """The share of (positive, negative) pairs in which the positive is ahead; equals are half.

    None where there is no pair. Labels are 1 and 0; what has another one is left out.
    """
    ranked = int(ranks.max()) + 1
    positive, negative = (ranks[labels == each].bincount(minlength=ranked) for each in (1, 0))
    pairs = int(positive.sum()) * int(negative.sum())
    ahead_twice = positive * (2 * negative.cumsum(0) - negative)
    return int(ahead_twice.sum()) / (2 * pairs) if pairs else None


def _decision_metrics(
    decided: Tensor, labels: Tensor, undefined: list[int]
) -> dict[str, ClassMetric]:
    """Every metric of decisions, ``(image, class)`` boolean; None in the ``undefined`` classes."""
    metrics = require("torchmetrics.functional.classification", "tasks")
    counts = metrics.multilabel_stat_scores(
        decided.int(),
        labels,
        num_labels=labels.shape[1],
        average=None,
        ignore_index=-1,
        validate_args=False,  # they would refuse a single class
    )
    figures: dict[str, list[float | None]] = {}
    for number, (tp, fp, tn, fn, _) in enumerate(counts.reshape(-1, 5).tolist()):
        ratios = {
            "accuracy": (tp + tn, tp + tn + fp + fn),
            "sensitivity": (tp, tp + fn),
            "specificity": (tn, tn + fp),
            "ppv": (tp, tp + fp),
            "npv": (tn, tn + fn),
            "f1": (2 * tp, 2 * tp + fp + fn),
        }
        for name, (part, whole) in ratios.items():
            # torchmetrics would make it 0 where there is nothing to divide by
            value = None if number in undefined or not whole else part / whole
            figures.setdefault(name, []).append(value)
    return {name: _metric(per_class) for name, per_class in figures.items()}


def _threshold(scores: Tensor, labels: Tensor, maximize: str) -> float:
    """That of one class, from the images whose label is certain; NaN if there is none."""
    if labels.unique().numel() < 2:
        return float("nan")
    values, place = scores.unique(return_inverse=True)  # rising
    # of images whose score is at least each value
    called = place.bincount().flip(0).cumsum(0).flip(0)
    found = place[labels == 1].bincount(minlength=len(values)).flip(0).cumsum(0).flip(0)
    positive = labels.sum()
    if maximize == "f1":
        gain = 2 * found / (called + positive).double()
    else:  # times both numbers of images: integers, so that equals are equal
        gain = found * (len(labels) - positive) - (called - found) * positive
    best = int((gain == gain.max()).nonzero()[-1])
    value, below = float(values[best]), float(values[max(best - 1, 0)])
    middle = (value + below) / 2
    return middle if middle > below else value


def _sort(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Each class's scores by label and value, and the labels: the same for images in any order."""
    scores, order = scores.sort(dim=0)
    labels, by_label = labels.gather(0, order).sort(dim=0, stable=True)
    return scores.gather(0, by_label), labels


def _same(these: tuple[Tensor, Tensor], those: tuple[Tensor, Tensor]) -> bool:
    """Whether both are of the same images, give or take the rounding of another batch or device."""
    tolerance = 1e-5 * float(these[0].abs().median())
    return torch.equal(these[1], those[1]) and torch.allclose(
        these[0], those[0], rtol=1e-5, atol=tolerance
    )


def _metric(per_class: list[float | None]) -> ClassMetric:
    defined = [value for value in per_class if value is not None]
    return {
        "per_class": per_class,
        "mean": sum(defined) / len(defined) if defined else None,
        "undefined": [number for number, value in enumerate(per_class) if value is None],
    }
