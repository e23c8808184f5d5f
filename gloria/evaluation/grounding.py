"""Grounding: whether a word looks at what it names. Attention maps against masks.

Maps and masks are ``(..., height, width)`` on the image's pixels
(:func:`~gloria.geometry.upsample_attention` brings a map there), and each function returns one
figure per map, ``(...)``, on the CPU. Much of a high figure can be the usual place of a finding:
score the map of another image with the same finding against the mask too, and show both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from gloria.checks import check_floating
from gloria.errors import DataError, DtypeError, OptionError, ShapeError
from gloria.evaluation.classification import auroc_of_ranks, rank


def pointing_hit(maps: Tensor, mask: Tensor, tolerance: float = 0.0) -> Tensor:
    """Whether a map's peak lies in the mask, or within ``tolerance`` pixels of it.

    The peak is the pixel with the highest value. Where several pixels share it (to 1e-5 of the
    map's range; exactly, where that is infinite), the figure is the share of them that hit: what a
    peak drawn among them at random would reach. So a flat map gets the share of the image that the
    mask covers, and no figure depends on the order of pixels.

    Args:
        maps: ``(..., height, width)``.
        mask: boolean, same shape, True = the finding.
        tolerance: pixels, between the centres of the peak and the nearest pixel of the mask.

    Returns:
        ``(...)``, 0 to 1.

    Raises:
        ShapeError, DtypeError: the shapes differ, ``maps`` is not floating-point, or ``mask`` not
            boolean.
        OptionError: the tolerance is negative.
        DataError: a map holds NaN, or a mask is empty.

    Example:
        >>> attention = torch.tensor([[0.1, 0.2, 0.7]])
        >>> mask = torch.tensor([[True, False, False]])
        >>> pointing_hit(attention, mask).item(), pointing_hit(attention, mask, 2).item()
        (0.0, 1.0)
    """
    maps, mask = _check(maps, mask)
    if not tolerance >= 0:
        raise OptionError(f"tolerance must be a number of pixels, at least 0; got {tolerance}.")
    lowest, highest = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    rounding = 1e-5 * (highest - lowest)
    rounding = rounding.where(rounding.isfinite(), 0)  # of the log of a masked weight, it is not
    peaks = maps >= highest - rounding
    hits = peaks & _grow(mask, tolerance)
    return hits.sum((-2, -1)).double() / peaks.sum((-2, -1))


def attention_auroc(maps: Tensor, mask: Tensor) -> Tensor:
    """How well a map tells the mask's pixels from the others: area under the ROC curve.

    The chance that a pixel of the mask has a higher value than one outside, equal values counting
    half. It comes from ranks, exactly, and does not change under any increasing transform of a map.

    Args and errors as in :func:`pointing_hit`; besides, a mask that covers the image is a
    :class:`~gloria.errors.DataError`.

    Returns:
        ``(...)`` in float64; 0.5 is chance.

    Example:
        >>> attention = torch.tensor([[0.1, 0.2, 0.2, 0.7]])
        >>> attention_auroc(attention, torch.tensor([[False, False, True, True]])).item()
        0.875
    """
    maps, mask = _check(maps, mask)
    _check_outside(mask)
    pixels = maps.shape[-2:].numel()
    every = zip(maps.reshape(-1, pixels), mask.reshape(-1, pixels), strict=True)
    found = [auroc_of_ranks(rank(values), inside) for values, inside in every]
    return maps.new_tensor(found, dtype=torch.float64).reshape(maps.shape[:-2])


def contrast_to_noise(maps: Tensor, mask: Tensor) -> Tensor:
    """How far a map stands out in the mask: the contrast-to-noise ratio of phrase grounding.

    ``CNR = (mean inside - mean outside) / sqrt(variance inside + variance outside)``, over pixels.
    It needs no threshold and does not change when a map is shifted or scaled.

    Args and errors as in :func:`pointing_hit`; besides, a map that is not finite, and a mask that
    covers the image, are a :class:`~gloria.errors.DataError`.

    Returns:
        ``(...)`` in float64: 0 for a flat map, negative where the map is lower inside, infinite for
        one that has two values, one inside and one outside.

    Departure: published figures are mostly of the absolute ratio, which also rewards a map that
    looks everywhere but at the finding; take ``.abs()`` for those.

    Source: Boecking et al., Making the Most of Text Semantics to Improve Biomedical Vision-Language
    Processing (ECCV 2022), section 4, phrase grounding on MS-CXR.

    Example:
        >>> attention = torch.tensor([[0.0, 2.0, 4.0, 6.0]])
        >>> contrast_to_noise(attention, torch.tensor([[False, False, True, True]])).item()
        2.82842712474619
    """
    maps, mask = _check(maps, mask)
    if not maps.isfinite().all():
        raise DataError("maps must be finite; one holds infinity.")
    _check_outside(mask)
    values, inside = maps.double().flatten(-2), mask.flatten(-2)
    # from 0 to 1: a flat map's contrast is exactly 0, and no square of a small number is
    values = values - values.amin(-1, keepdim=True)
    values = values / values.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    mean_in, variance_in = _moments(values, inside)
    mean_out, variance_out = _moments(values, ~inside)
    contrast = mean_in - mean_out
    ratio = contrast / (variance_in + variance_out).sqrt()
    return ratio.where(contrast != 0, 0)


def correct_side(maps: Tensor, mask: Tensor) -> Tensor:
    """Whether most of a map's weight is on that half of the picture which holds the finding.

    The halves are left and right; the finding's is the one with more of its mask. Made for
    findings of one side: what it says of one in the middle is chance.

    Args and errors as in :func:`pointing_hit`; besides, a map that is negative or all zero, and a
    mask that is the same in both halves, are a :class:`~gloria.errors.DataError`.

    Returns:
        ``(...)``: 1 on the finding's side, 0 on the other, 0.5 exactly balanced.

    Example:
        >>> attention = torch.tensor([[0.6, 0.1, 0.1, 0.2]])
        >>> correct_side(attention, torch.tensor([[True, False, False, False]])).item()
        1.0
    """
    maps, mask = _check(maps, mask)
    finding = left_share(mask.double())
    if (finding == 0.5).any():
        raise DataError("mask must have a side; one covers the same in both halves.")
    towards = (left_share(maps) - 0.5) * (finding - 0.5).sign()
    return (towards.sign() + 1) / 2


def left_share(maps: Tensor) -> Tensor:
    """The share of a map's weight in the left half of the picture.

    That is the *patient's right* in a frontal radiograph as it is usually shown. In a map of odd
    width, half of the middle column counts.

    Args:
        maps: ``(..., height, width)``, not negative.

    Returns:
        ``(...)`` in float64, 0 to 1.

    Raises:
        ShapeError, DtypeError: ``maps`` has no height and width, or is not floating-point.
        DataError: a map is negative, NaN or all zero.

    Example:
        >>> left_share(torch.tensor([[3.0, 0.0, 0.0, 1.0]])).item()
        0.75
    """
    maps = _check_maps(maps)
    columns = maps.double().sum(-2)
    total = columns.sum(-1)
    if (maps < 0).any() or (total <= 0).any() or total.isinf().any():
        raise DataError("maps must be weights: finite, not negative, and not all 0.")
    width = maps.shape[-1]
    half = width // 2
    left = columns[..., :half].sum(-1)
    if width % 2:
        left = left + columns[..., half] / 2
    return left / total


def _moments(values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the chosen values of the last axis."""
    count = chosen.sum(-1)
    mean = (values * chosen).sum(-1) / count
    return mean, ((values - mean[..., None]).square() * chosen).sum(-1) / count


def _grow(mask: Tensor, tolerance: float) -> Tensor:
    """The pixels within ``tolerance`` of a mask: row by row of the disc around each of its own."""
    height, width = mask.shape[-2:]
    grown = mask.clone()
    counts = pad(mask.cumsum(-1, dtype=torch.int32), (1, 0))  # of pixels to the left
    column = torch.arange(width, device=mask.device)
    for down in range(height):
        if down > tolerance:
            break
        across = sum(math.hypot(down, step) <= tolerance for step in range(1, width))
        left, right = (column - across).clamp(min=0), (column + across + 1).clamp(max=width)
        wide = counts[..., right] > counts[..., left]
        grown[..., down:, :] |= wide[..., : height - down, :]
        grown[..., : height - down, :] |= wide[..., down:, :]
    return grown


def _check(maps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both, checked, on the CPU."""
    maps = _check_maps(maps)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise DtypeError(f"mask must be a boolean tensor, True = the finding; got {given}.")
    if mask.shape != maps.shape:
        raise ShapeError(
            f"mask must be of the shape of maps, {tuple(maps.shape)}; got {tuple(mask.shape)}. "
            f"Lay maps on the image first with upsample_attention."
        )
    mask = mask.cpu()
    if not mask.flatten(-2).any(-1).all():
        raise DataError("mask must hold a finding; one is empty.")
    return maps, mask


def _check_outside(mask: Tensor) -> None:
    if mask.flatten(-2).all(-1).any():
        raise DataError("mask must leave pixels outside the finding; one covers the whole image.")


def _check_maps(maps: Tensor) -> Tensor:
    """Maps, checked, on the CPU: float64 is there, and nothing waits for a device map by map."""
    check_floating("maps", maps)
    if maps.dim() < 2 or 0 in maps.shape[-2:]:
        raise ShapeError(f"maps must be (..., height, width); got {tuple(maps.shape)}.")
    maps = maps.cpu()
    if maps.isnan().any():
        raise DataError("maps holds NaN.")
    return maps
