"""Segmentation: how much of a finding's mask was found, and how much else was marked.

A figure on *positives* is the mean over the images whose mask holds something. A figure on *all* is
the mean over every image, where an image with an empty mask counts 1 if nothing was marked and 0
otherwise, as the published code counts it: with many empty masks, as in SIIM, marking nothing at
all scores high. So both are given, each under its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from gloria.checks import check_choice, check_integer, check_mask, check_same_device, check_share
from gloria.data.images import normalize
from gloria.data.loading import load_batches
from gloria.data.masked import Masked, stack_masked
from gloria.errors import DataError, DtypeError, OptionError, ShapeError
from gloria.evaluation.features import evaluating, in_batches
from gloria.heads.segmentation import SegmentationModel

THRESHOLDS = tuple(step / 20 for step in range(1, 20))
"""What :func:`choose_mask_thresholds` is usually given to choose from: 0.05, 0.1, ... 0.95."""

FIGURES = ("dice_positives", "dice_all", "iou_positives", "iou_all")


class MaskedItems(Sized, Protocol):
    """Anything with a length and items that have an ``image`` and a ``mask``."""

    def __getitem__(self, index: int, /) -> Masked:
        """One item."""


class Overlap(NamedTuple):
    """Pixels, counted: in the predicted and the true mask, in the predicted, in the true one."""

    both: Tensor
    predicted: Tensor
    marked: Tensor

    @property
    def dice(self) -> Tensor:
        """``2 both / (predicted + marked)``, in float64 on the CPU; 1 where both are empty."""
        both, predicted, marked = self.cpu()
        total = predicted + marked
        return torch.where(total == 0, 1.0, 2 * both.double() / total.clamp_min(1))

    @property
    def iou(self) -> Tensor:
        """``both / either``, in float64 on the CPU; 1 where both masks are empty."""
        both, predicted, marked = self.cpu()
        either = predicted + marked - both
        return torch.where(either == 0, 1.0, both.double() / either.clamp_min(1))

    def cpu(self) -> Overlap:
        """The same counts on the CPU, where float64 is."""
        return Overlap(*(counts.cpu() for counts in self))

    def at(self, columns: Sequence[int]) -> Overlap:
        """Of counts ``(image, class, threshold)``, those of each class at its own threshold.

        Args:
            columns: which threshold, one per class.

        Returns:
            Counts, each ``(image, class)``.
        """
        classes = list(range(len(columns)))
        return Overlap(*(counts[:, classes, list(columns)] for counts in self))


def count_overlap(predicted: Tensor, masks: Tensor) -> Overlap:
    """Count the pixels of each mask.

    Args:
        predicted: boolean, ``(..., height, width)``.
        masks: boolean, same shape, the truth.

    Returns:
        Counts, each ``(...)``.

    Raises:
        ShapeError, DtypeError: the shapes differ, or one of them is not boolean.

    Example:
        >>> overlap = count_overlap(torch.tensor([[True, True, False]]), torch.ones(1, 3).bool())
        >>> overlap.dice.item(), round(overlap.iou.item(), 4)
        (0.8, 0.6667)
    """
    if not isinstance(predicted, Tensor) or predicted.dtype != torch.bool:
        raise DtypeError("predicted must be a boolean tensor; compare probabilities first.")
    if predicted.dim() < 2:
        raise ShapeError(f"predicted must be (..., height, width); got {tuple(predicted.shape)}.")
    axes = (*("...",) * (predicted.dim() - 2), "height", "width")
    check_mask("masks", masks, tuple(predicted.shape), axes)
    check_same_device("masks", masks, "predicted", predicted)
    return Overlap(*(each.sum((-2, -1)) for each in (predicted & masks, predicted, masks)))


def measure_overlap(
    model: SegmentationModel,
    items: MaskedItems,
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    batch_size: int = 16,
    workers: int = 0,
    progress: Callable[[int], Any] = lambda segmented: None,
) -> Overlap:
    """Segment every item, and count at several thresholds; nothing else is kept of an image.

    Args:
        model: any; evaluated in eval mode, its modes are left as they were.
        items: images and masks; normalised here.
        thresholds: a pixel is marked where its probability is above.
        batch_size: images segmented at a time; it does not change the result.
        workers: processes that load items.
        progress: called with the number of items done since the last call.

    Returns:
        Counts, each ``(image, class, threshold)``, on the CPU.

    Raises:
        DataError: there is no item, or an image comes out as NaN.
        ShapeError: the model has another number of classes than the items.
        OptionError: ``batch_size`` is below 1, or a threshold not in [0, 1].
    """
    check_integer("batch_size", batch_size, 1)
    if not len(thresholds):
        raise OptionError("thresholds must hold at least one; there is none.")
    for threshold in thresholds:
        check_share("a threshold", threshold)
    if not len(items):
        raise DataError("items must hold at least one image; there is nothing to segment.")
    parts: list[Tensor] = []
    batches = in_batches(len(items), batch_size)
    with evaluating(model):
        loaded = load_batches(items, batches, stack_masked, workers=workers)
        for batch, (images, masks) in zip(batches, loaded, strict=True):
            logits = model(normalize(images.to(model.device), model.image_input))
            if logits.isnan().any():
                raise DataError(f"the model's output is NaN, in items {batch[0]} and following.")
            probability, masks = logits.sigmoid(), masks.to(model.device)
            counts = [count_overlap(probability > threshold, masks) for threshold in thresholds]
            # one transfer for all: each would wait for the device
            parts.append(torch.stack([torch.stack(each) for each in counts], -1).cpu())
            progress(len(images))
    return Overlap(*torch.cat(parts, 1))


def choose_mask_thresholds(
    overlap: Overlap,
    thresholds: Sequence[float] = THRESHOLDS,
    on: Literal["all", "positives"] = "all",
) -> tuple[float, ...]:
    """The threshold of each class with the highest mean Dice; among equals, the nearest to 0.5.

    Choose on validation data; what is tested on must not choose.

    Args:
        overlap: of validation data, ``(image, class, threshold)``.
        thresholds: as given to :func:`measure_overlap`.
        on: which images count; see the module.

    Returns:
        One per class.

    Raises:
        ShapeError: the number of thresholds is not the overlap's.
        DataError: ``on="positives"``, and a class has none.
    """
    check_choice("on", on, ("all", "positives"))
    if overlap.both.dim() != 3 or overlap.both.shape[2] != len(thresholds):
        raise ShapeError(
            f"overlap must be (image, class, threshold) with {len(thresholds)} thresholds; got "
            f"{tuple(overlap.both.shape)}."
        )
    if not len(overlap.both):
        raise DataError("overlap must hold at least one image; there is nothing to choose on.")
    overlap = overlap.cpu()
    chosen = []
    for number in range(overlap.both.shape[1]):
        positive = overlap.marked[:, number, 0] > 0
        if on == "positives" and not positive.any():
            raise DataError(f"class {number} has no image with a mask to choose a threshold on.")
        used = positive if on == "positives" else torch.ones_like(positive)
        dice = overlap.dice[used, number].mean(0).tolist()
        best = max(range(len(dice)), key=lambda index: (dice[index], -abs(thresholds[index] - 0.5)))
        chosen.append(float(thresholds[best]))
    return tuple(chosen)


def summarize_overlap(overlap: Overlap) -> dict[str, Any]:
    """Mean Dice and IoU on positives and on all.

    Args:
        overlap: counts, each ``(image, class)``.

    Returns:
        JSON values: ``images``; ``dice_positives``, ``iou_positives``, ``dice_all``, ``iou_all``,
        each the mean over the classes that have it; and ``per_class``, the same with the number
        of ``positives`` for each class in order. A figure on positives is left out where there are
        none.

    Raises:
        ShapeError: the counts do not have two axes.
        DataError: there is no image.

    Example:
        >>> both, predicted = torch.tensor([[3], [0]]), torch.tensor([[3], [0]])
        >>> figures = summarize_overlap(Overlap(both, predicted, torch.tensor([[5], [0]])))
        >>> figures["dice_positives"], figures["dice_all"]
        (0.75, 0.875)
    """
    if overlap.both.dim() != 2:
        raise ShapeError(f"counts must be (image, class); got {tuple(overlap.both.shape)}.")
    if not len(overlap.both):
        raise DataError("overlap must hold at least one image; there is nothing to average.")
    overlap = overlap.cpu()
    per_class = []
    for number in range(overlap.both.shape[1]):
        positive = overlap.marked[:, number] > 0
        figures: dict[str, float] = {"positives": int(positive.sum())}
        for name, values in (("dice", overlap.dice[:, number]), ("iou", overlap.iou[:, number])):
            if positive.any():
                figures[f"{name}_positives"] = float(values[positive].mean())
            figures[f"{name}_all"] = float(values.mean())
        per_class.append(figures)
    summary: dict[str, Any] = {"images": len(overlap.both)}
    for name in FIGURES:
        known = [figures[name] for figures in per_class if name in figures]
        if known:
            summary[name] = sum(known) / len(known)
    return {**summary, "per_class": per_class}


def evaluate_segmentation(
    model: SegmentationModel,
    items: MaskedItems,
    thresholds: float | Sequence[float] = 0.5,
    *,
    batch_size: int = 16,
    progress: Callable[[int], Any] = lambda segmented: None,
) -> dict[str, Any]:
    """Dice and IoU of a model on a data set, on positives and on all.

    Args as in :func:`measure_overlap`, and:
        thresholds: of :func:`choose_mask_thresholds` on validation data, one per class; or one for
            all.

    Returns:
        As :func:`summarize_overlap`, and the ``thresholds``.

    Raises what :func:`measure_overlap` raises, and:
        OptionError: the number of thresholds is not that of the classes.
    """
    given = list(thresholds) if isinstance(thresholds, Iterable) else [thresholds]
    if len(given) not in (1, model.classes):
        raise OptionError(
            f"thresholds must be one, or one for each of {model.classes} classes; got {given}."
        )
    of_class = given if len(given) == model.classes else given * model.classes
    every = measure_overlap(model, items, of_class, batch_size=batch_size, progress=progress)
    chosen = every.at(range(model.classes))
    return {**summarize_overlap(chosen), "thresholds": [float(each) for each in of_class]}
