"""Classification: how well scores tell classes apart, and which decisions they lead to.

Zero-shot and supervised classifiers share these figures. ``scores (image, class)`` may be
probabilities, logits or similarities: only their order within a class counts.

A figure that the data leave undefined is None, never 0: the AUROC of a class without a positive
image, say, or the PPV where nothing was called positive. Each figure names the classes it lacks,
and its mean is over the others.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from gloria.checks import check_tensor, require
from gloria.errors import DataError, DtypeError, OptionError, ShapeError


class Figure(TypedDict):
    """One metric, class by class.

    Attributes:
        per_class: its value for each class; None where the data leave it undefined.
        mean: of the classes that have a value (macro average); None if none has.
        undefined: the numbers of the classes that have none.
    """

    per_class: list[float | None]
    mean: float | None
    undefined: list[int]


def multilabel_auroc(scores: Tensor, labels: Tensor) -> Figure:
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
        ShapeError: the shapes do not fit.
        DtypeError: ``scores`` is not floating-point, or ``labels`` not integer.
        OptionError: a label is not 1, 0 or -1.
        DataError: there is no image or no class, or a score is NaN.

    torchmetrics counts the AUROC of a class without positives as 0 in the mean, and takes a sigmoid
    of all scores if one is outside [0, 1], in whose rounding scores become equal. So each class is
    given to it alone, and as ranks.

    Example:
        >>> scores = torch.tensor([[0.2, -1.0], [0.9, 3.0], [0.4, 2.0]])
        >>> multilabel_auroc(scores, torch.tensor([[0, 0], [1, 0], [1, -1]]))
        {'per_class': [1.0, None], 'mean': 1.0, 'undefined': [1]}
    """
    labels = check_multilabel(scores, labels)
    return _figure([_auroc(*known) for known in _classes(scores, labels)])


def check_multilabel(scores: Tensor, labels: Tensor) -> Tensor:
    """Require scores and labels of images for classes.

    Returns:
        The labels as ``int64``, on the scores' device.

    Raises what :func:`multilabel_auroc` raises.
    """
    check_tensor("scores", scores, ("image", "class"))
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise DtypeError(f"labels must be a tensor of integers; got {given}.")
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
    labels = labels.to(scores.device, torch.int64)
    wrong = (labels < -1) | (labels > 1)
    if wrong.any():
        image, column = wrong.nonzero()[0].tolist()
        raise OptionError(
            f"labels must be 1 (positive), 0 (negative) or -1 (uncertain); "
            f"got {int(labels[image, column])} at image {image}, class {column}."
        )
    return labels


def check_no_nan(name: str, values: Tensor) -> None:
    """Require that no image has a NaN."""
    if values.isnan().any():
        image = values.isnan().any(1).nonzero()[0].item()
        raise DataError(f"{name} holds NaN, first at image {image}.")


def _classes(scores: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each class, the scores and labels of the images whose label is certain."""
    return [
        (column[known], label[known])
        for column, label, known in zip(scores.T, labels.T, labels.T >= 0, strict=True)
    ]


def _auroc(scores: Tensor, labels: Tensor) -> float | None:
    if labels.unique().numel() < 2:
        return None
    metrics = require("torchmetrics.functional.classification", "tasks")
    ranks = scores.unique(return_inverse=True)[1].double()  # equal scores share a rank
    return float(metrics.binary_auroc(ranks / ranks.max().clamp_min(1), labels))


def _figure(per_class: list[float | None]) -> Figure:
    defined = [value for value in per_class if value is not None]
    return {
        "per_class": per_class,
        "mean": sum(defined) / len(defined) if defined else None,
        "undefined": [number for number, value in enumerate(per_class) if value is None],
    }
