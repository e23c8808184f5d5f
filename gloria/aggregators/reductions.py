"""Reductions of one masked axis: sum, mean, max, log-sum-exp, log-mean-exp, first, last n.

One contract for all: ``reduce(values, mask, dim)`` removes axis ``dim``. ``mask`` is boolean, has
the rank of ``values`` and broadcasts to its shape (True = keep; None = keep all). What stands in a
masked position, NaN included, never reaches the output and gets a zero gradient. A slice without
any kept value reduces to 0 with a zero gradient. Half precision accumulates in float32 and returns
the dtype of ``values``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gloria.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_positive,
    check_same_device,
    check_same_size,
    check_temperature,
)
from gloria.errors import DtypeError, ShapeError


def masked_sum(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Sum of the kept values along ``dim``."""
    mask = check_reduction(values, mask, dim)
    return keep(values, mask, 0.0).sum(dim)


def masked_mean(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Arithmetic mean of the kept values along ``dim``."""
    mask = check_reduction(values, mask, dim)
    wide = widen(values)
    total = keep(wide, mask, 0.0).sum(dim)
    return (total / count(wide, mask, dim).clamp_min(1)).to(values.dtype)


def masked_max(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Highest kept value along ``dim``; equal maxima share the gradient."""
    mask = check_reduction(values, mask, dim)
    if values.shape[dim] == 0:
        return values.sum(dim)
    if mask is None:
        return values.amax(dim)
    highest = keep(values, mask, -math.inf).amax(dim)
    return highest.masked_fill(~mask.any(dim), 0.0)


def masked_logsumexp(
    values: Tensor, mask: Tensor | None, dim: int, temperature: float | Tensor = 1.0
) -> Tensor:
    """``temperature · log Σ exp(values / temperature)``, a soft maximum."""
    check_temperature("temperature", temperature)
    mask = check_reduction(values, mask, dim)
    if values.shape[dim] == 0:
        return values.sum(dim)
    scaled = widen(values) / temperature
    if mask is None:
        return (temperature * scaled.logsumexp(dim)).to(values.dtype)
    # an empty slice keeps zeros instead of -inf: its gradient would be NaN
    empty = ~mask.any(dim, keepdim=True)
    filled = keep(scaled, mask, -math.inf).masked_fill(empty, 0.0)
    total = (temperature * filled.logsumexp(dim)).masked_fill(empty.squeeze(dim), 0.0)
    return total.to(values.dtype)


def masked_logmeanexp(
    values: Tensor, mask: Tensor | None, dim: int, temperature: float | Tensor = 1.0
) -> Tensor:
    """``temperature · log mean exp(values / temperature)``: log-sum-exp without the length bias.

    In float32 it is rounded by about 1e-6 · temperature, ``temperature · log count`` being taken
    off a sum; from some hundred times the values' spread on, the mean is nearer to it.
    """
    wide = widen(values)
    total = masked_logsumexp(wide, mask, dim, temperature)
    kept = count(wide, mask, dim).clamp_min(1)
    return (total - temperature * kept.log()).to(values.dtype)


def masked_first(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """First kept value along ``dim`` ([CLS] pooling, the first piece of a word)."""
    mask = check_reduction(values, mask, dim)
    if mask is None:
        return values.select(dim, 0) if values.shape[dim] else values.sum(dim)
    full = mask.expand_as(values)
    first = full & (full.cumsum(dim) == 1)
    return keep(values, first, 0.0).sum(dim)


def last_n(values: Tensor, mask: Tensor | None, dim: int, n: int, reduction: str) -> Tensor:
    """Sum or mean of the last ``n`` kept values along ``dim`` (the last n hidden layers)."""
    check_integer("n", n, 1)
    check_choice("reduction", reduction, ("sum", "mean"))
    mask = check_reduction(values, mask, dim)
    if mask is None:
        size = values.shape[dim]
        values = values.narrow(dim, max(size - n, 0), min(n, size))
    else:
        full = mask.expand_as(values)
        from_the_end = full.flip(dim).cumsum(dim).flip(dim)
        mask = full & (from_the_end <= n)
    return (masked_sum if reduction == "sum" else masked_mean)(values, mask, dim)


class Sum(nn.Module):
    """Module twin of :func:`masked_sum`."""

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return masked_sum(values, mask, dim)


class Mean(nn.Module):
    """Module twin of :func:`masked_mean`."""

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return masked_mean(values, mask, dim)


class Max(nn.Module):
    """Module twin of :func:`masked_max`."""

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return masked_max(values, mask, dim)


class First(nn.Module):
    """Module twin of :func:`masked_first`."""

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return masked_first(values, mask, dim)


class LogSumExp(nn.Module):
    """Module twin of :func:`masked_logsumexp`; ``temperature`` divides the values."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return masked_logsumexp(values, mask, dim, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


class LogMeanExp(LogSumExp):
    """Module twin of :func:`masked_logmeanexp`; ``temperature`` divides the values."""

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return masked_logmeanexp(values, mask, dim, self.temperature)


class LastNSum(nn.Module):
    """Sum of the last ``n`` kept values: GLoRIA sums BERT's last four layers."""

    def __init__(self, n: int = 4) -> None:
        super().__init__()
        check_integer("n", n, 1)
        self.n = n

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return last_n(values, mask, dim, self.n, "sum")

    def extra_repr(self) -> str:
        return f"n={self.n}"


class LastNMean(LastNSum):
    """Mean of the last ``n`` kept values."""

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        return last_n(values, mask, dim, self.n, "mean")


# What the reductions and the poolings share.


def check_reduction(values: Tensor, mask: Tensor | None, dim: int) -> Tensor | None:
    """Check the contract; return the mask expanded along ``dim``."""
    check_floating("values", values)
    if not -values.dim() <= dim < values.dim():
        raise ShapeError(f"dim must name an axis of values {tuple(values.shape)}; got {dim}.")
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        raise DtypeError(f"mask must be boolean, True = keep; got dtype {mask.dtype}.")
    check_same_device("mask", mask, "values", values)
    hint = "Add axes of size 1, as in mask[..., None]."
    check_same_size("rank", "mask", mask.dim(), "values", values.dim(), hint)
    for ours, theirs in zip(mask.shape, values.shape, strict=True):
        if ours not in (1, theirs):
            raise ShapeError(
                f"mask must broadcast to values {tuple(values.shape)}; got {tuple(mask.shape)}."
            )
    sizes = [-1] * mask.dim()
    sizes[dim] = values.shape[dim]
    return mask.expand(sizes)


def keep(values: Tensor, mask: Tensor | None, fill: float) -> Tensor:
    """Values with ``fill`` wherever the mask is False."""
    return values if mask is None else values.masked_fill(~mask, fill)


def count(values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """How many values are kept along ``dim``, in the dtype of ``values``."""
    if mask is None:
        return values.new_tensor(values.shape[dim])
    return mask.sum(dim).to(values.dtype)


def widen(values: Tensor) -> Tensor:
    """Half precision as float32; other dtypes as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
