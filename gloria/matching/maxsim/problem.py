"""What a backend of hard-maximum matching is asked to do."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

MaximumOver = Literal["regions", "words"]
MaximumReduction = Literal["mean", "sum"]

MAXIMA_OVER: tuple[str, ...] = get_args(MaximumOver)
MAXIMUM_REDUCTIONS: tuple[str, ...] = get_args(MaximumReduction)


class MaxSimInputs(NamedTuple):
    """The tensors of hard-maximum matching, checked, in one floating dtype.

    Every token of a query takes its best token of a key. Half precision reaches only a backend that
    takes it as it is.
    """

    queries: Tensor
    """(query, token, dim); masked positions hold zeros, or anything where no backend reads them"""
    keys: Tensor
    """(key, token, dim); masked positions hold zeros, or anything where no backend reads them"""
    query_mask: Tensor | None
    """(query, token) boolean, or None: all are real"""
    key_mask: Tensor | None
    """(key, token) boolean, or None: all are real"""

    def exchanged(self) -> MaxSimInputs:
        """Where every token of a key takes its best token of a query."""
        queries, keys, query_mask, key_mask = self
        return MaxSimInputs(keys, queries, key_mask, query_mask)


class MaxSimProblem(NamedTuple):
    """What a backend looks at to say whether it can run: sizes, never values."""

    queries: int
    query_tokens: int
    keys: int
    key_tokens: int
    dim: int
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor) -> MaxSimProblem:
        """The problem that these tensors pose."""
        return cls(
            queries=queries.shape[0],
            query_tokens=queries.shape[1],
            keys=keys.shape[0],
            key_tokens=keys.shape[1],
            dim=queries.shape[2],
            dtype=torch.promote_types(queries.dtype, keys.dtype),
            device=queries.device.type,
        )
