"""Poolings with a shape of their own: generalised mean, attention pooling, WELDON.

Same contract as :mod:`gloria.aggregators.reductions`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gloria.aggregators.reductions import check_reduction, count, keep, masked_mean, widen
from gloria.checks import check_integer, check_positive
from gloria.errors import OptionError, ShapeError


def masked_softmax(scores: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Softmax along ``dim`` over the kept scores; masked positions get exactly 0.

    A slice without any kept score is 0 throughout, with a zero gradient.
    """
    if mask is None:
        return scores.softmax(dim)
    lowest = torch.finfo(scores.dtype).min
    return keep(keep(scores, mask, lowest).softmax(dim), mask, 0.0)


def weldon(values: Tensor, mask: Tensor | None, dim: int, highest: int, lowest: int) -> Tensor:
    """Mean of the ``highest`` highest plus mean of the ``lowest`` lowest kept values.

    With fewer kept values than asked for, all of them are used. Source: Durand et al., WELDON
    (CVPR 2016); used by DSVE (Engilberge et al., CVPR 2018) with 15 and 15.
    """
    check_integer("highest", highest, 1)
    check_integer("lowest", lowest, 1)
    mask = check_reduction(values, mask, dim)
    return _mean_of_top(values, mask, dim, highest) - _mean_of_top(-values, mask, dim, lowest)


def gem(values: Tensor, mask: Tensor | None, dim: int, p: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised mean ``(mean x^p)^(1/p)`` of values clamped to at least ``eps``.

    ``p = 1`` is the mean of the positive parts, ``p → ∞`` the maximum. Source: Radenović et al.,
    Fine-tuning CNN image retrieval (TPAMI 2018), eq. 3.
    """
    mask = check_reduction(values, mask, dim)
    if values.shape[dim] == 0:
        return values.sum(dim)
    wide = keep(widen(values), mask, eps).clamp_min(eps)
    # divided by its maximum first, so that x^p cannot overflow
    top = wide.amax(dim, keepdim=True).detach()
    mean = masked_mean((wide / top).pow(p), mask, dim).clamp_min(torch.finfo(wide.dtype).tiny)
    pooled = mean.pow(1 / p) * top.squeeze(dim)
    if mask is not None:
        pooled = keep(pooled, mask.any(dim), 0.0)
    return pooled.to(values.dtype)


class Weldon(nn.Module):
    """Module twin of :func:`weldon`."""

    def __init__(self, highest: int = 15, lowest: int = 15) -> None:
        super().__init__()
        check_integer("highest", highest, 1)
        check_integer("lowest", lowest, 1)
        self.highest = highest
        self.lowest = lowest

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return weldon(values, mask, dim, self.highest, self.lowest)

    def extra_repr(self) -> str:
        return f"highest={self.highest}, lowest={self.lowest}"


class GeM(nn.Module):
    """Module twin of :func:`gem` with a learnable exponent ``p``, used at 1 or above."""

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        check_positive("p", p)
        if p < 1:
            raise OptionError(f"p must be at least 1; got {p}.")
        self.initial = float(p)
        # of one axis: fully_shard takes no parameter without
        self.p = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew, as after memory was given to what was made on the meta device."""
        self.p.fill_(self.initial)

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        # the bound lets the gradient through, so that a p pushed below it can come back
        p = (self.p + (self.p.clamp_min(1.0) - self.p).detach()).squeeze(0)
        return gem(values, mask, dim, p)


class AttentionPooling(nn.Module):
    """Softmax-weighted sum with one learned score per position.

    ``weights = softmax(values · w)`` along ``dim``, ``Σ weights · values``. The last axis of
    ``values`` is the feature axis of width ``width`` and cannot be the reduced one.
    Source: Ilse et al., Attention-based deep multiple instance learning (ICML 2018), eq. 7-8,
    with a linear score.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        check_integer("width", width, 1)
        self.score = nn.Linear(width, 1)

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        mask = check_reduction(values, mask, dim)
        if dim % values.dim() == values.dim() - 1:
            raise ShapeError("dim must not be the last axis: features are read from there.")
        if values.shape[-1] != self.score.in_features:
            raise ShapeError(
                f"values must have {self.score.in_features} features on the last axis; "
                f"got {tuple(values.shape)}."
            )
        values = keep(values, mask, 0.0)
        scores = widen(self.score(values))
        if mask is not None:
            mask = mask.any(-1, keepdim=True)
        weights = masked_softmax(scores, mask, dim)
        return (weights * values).sum(dim).to(values.dtype)


def _mean_of_top(values: Tensor, mask: Tensor | None, dim: int, k: int) -> Tensor:
    k = min(k, values.shape[dim])
    top = widen(keep(values, mask, -math.inf)).topk(k, dim).values
    kept = top != -math.inf  # and not ">", which would drop NaN
    mean = keep(top, kept, 0.0).sum(dim) / count(top, kept, dim).clamp_min(1)
    return mean.to(values.dtype)
