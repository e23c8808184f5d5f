"""Hard-maximum matching in fused Triton kernels, for CUDA and ROCm.

Forward, one launch: a program owns a query and a key, so that nothing but their score leaves the
processor, and of each query token the winner if there is to be a backward. Tokens behind the last
real one of an item are not looked at. Half precision multiplies as it is and accumulates in
float32; float32 multiplies in float32, or in TF32 where ``torch.set_float32_matmul_precision``
allows it. Operations: ``2 · E · dim``, E being the pairs of tokens up to those last real ones.

Backward, two launches, and one more that lists the real query tokens if there is a mask. The
gradient of a query token gathers its winners, ``dim`` numbers per key; that of a key is the product
of who chose its tokens by the real query tokens, ``2 · real query token · key · token · dim``
operations (twice in half precision), at the rate of the matrix units, where sorting by winner would
take a dozen launches. Every number is owned by one program and added up in one order: equal inputs
give equal bits. A side that needs no gradient costs no launch.

The winners are kept if they take no more than half of the memory budget (4 bytes per query token
and key); otherwise they are found again, for as many keys at a time as the budget allows. Nothing
here waits for the device: masks are read by the kernels, launches depend on shapes only.

The counts, and what was considered instead, are at the end of ``gloria/matching/triton.md``.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from gloria.matching.maxsim.operator import (
    differentiable,
    room_for_gradient,
    room_for_scores,
    room_for_winners,
)
from gloria.matching.maxsim.problem import MaxSimProblem
from gloria.matching.triton_support import FUSED, ceil_div, multiply_precision, why_not_here

TAKES_HALF_PRECISION = True
READS_MASKED_TOKENS = False

GROUP = 16
"""Queries whose tokens stay in the cache while keys go by."""


def reasons_not_supported(problem: MaxSimProblem) -> list[str]:
    """Why the kernels cannot run the problem: machine, dtype or size."""
    reasons = why_not_here(problem.device, problem.dtype, kernels)
    for name, tokens in (
        ("query", problem.queries * problem.query_tokens),
        ("key", problem.keys * problem.key_tokens),
    ):
        if tokens >= 2**31:
            reasons.append(f"It counts {name} tokens in 32 bits; got {tokens}.")
    if max(problem.queries, GROUP) * max(problem.keys, GROUP) >= 2**31:
        reasons.append(
            f"It counts pairs in 32 bits; got {problem.queries} queries · {problem.keys} keys."
        )
    return reasons


def kernels() -> ModuleType:
    """The kernels; triton is imported here, when it is used."""
    from gloria.matching.maxsim import triton_kernels

    return triton_kernels


class Forward(NamedTuple):
    """A tile of :func:`triton_kernels.sum_maxima`, and how to arrange it."""

    WHOLE: bool
    ROWS: int
    TOKENS: int
    INNER: int
    STAGES: int
    num_warps: int

    @classmethod
    def of(
        cls, query_tokens: int, key_tokens: int, dim: int, dtype: torch.dtype, masked: bool
    ) -> Forward:
        """By shape buckets only, so that another batch compiles nothing.

        Two programs or more are to share a processor, as each mostly waits: that bounds the tile.
        Masked queries are mostly far shorter than their padding; so is their tile.
        """
        half = dtype != torch.float32
        rows = power_of_two(query_tokens, 16, 64 if half else 32)
        if masked:
            rows = min(rows, power_of_two(ceil_div(query_tokens, 4), 32, 64))
        inner = power_of_two(dim, 16, (256 if rows <= 32 else 128) if half else 32)
        whole = dim <= inner
        if half and not whole:
            inner = 64
        stages = 3 if half and inner <= 128 else 2
        tokens = power_of_two(key_tokens, 16, 64)
        return cls(whole, rows, tokens, inner, stages, num_warps=4 if rows <= 32 else 8)


class QueryGradient(NamedTuple):
    """How :func:`triton_kernels.query_gradient` runs: one warp, its sums hardly leave a thread."""

    KEYS: int
    INNER: int
    STAGES: int = 3
    num_warps: int = 1

    @classmethod
    def of(cls, dim: int) -> QueryGradient:
        """2,048 numbers at a time."""
        inner = power_of_two(dim, 16, 256)
        return cls(min(2048 // inner, 16), inner)


class KeyGradient(NamedTuple):
    """A tile of :func:`triton_kernels.key_gradient`."""

    TOKENS: int
    ROWS: int
    INNER: int
    STAGES: int
    num_warps: int

    @classmethod
    def of(cls, key_tokens: int, dim: int, dtype: torch.dtype) -> KeyGradient:
        """By shape buckets only."""
        half = dtype != torch.float32
        tokens = power_of_two(key_tokens, 16, 64 if half else 32)
        inner = power_of_two(dim, 16, 128 if half else 64)
        return cls(tokens, 32, inner, STAGES=3 if half else 2, num_warps=4)


def power_of_two(size: int, least: int, most: int) -> int:
    """The first that is no less than a size, within bounds."""
    return max(least, min(most, 1 << max(size - 1, 0).bit_length()))


def find_maxima(
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    keep_winners: bool,
) -> tuple[Tensor, Tensor]:
    """Scores ``(query, key)``, and the winners if they are to be kept."""
    scores = room_for_scores(queries, keys)
    winners = room_for_winners(queries, keys, keep_winners)
    count, query_tokens, dim = queries.shape
    masked = query_mask is not None
    launch = Forward.of(query_tokens, keys.shape[1], dim, queries.dtype, masked)
    kernels().sum_maxima[(count * len(keys),)](
        queries, keys,
        queries if query_mask is None else query_mask,
        keys if key_mask is None else key_mask,
        scores, winners, count, len(keys), query_tokens, keys.shape[1], dim,
        QUERIES_MASKED=masked, KEYS_MASKED=key_mask is not None,
        WITH_WINNERS=keep_winners, GROUP=GROUP, PRECISION=multiply_precision(queries.dtype),
        **launch._asdict(), **FUSED,
    )  # fmt: skip
    return scores, winners


def forward(
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    keep_winners: bool,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """:func:`find_maxima`, where there is anything to find them in."""
    if not queries.numel() or not keys.numel():
        winners = room_for_winners(queries, keys, keep_winners)
        return room_for_scores(queries, keys).zero_(), winners.fill_(-1)
    with torch.cuda.device_of(queries):
        return find_maxima(*contiguous(queries, keys, query_mask, key_mask), keep_winners)


def contiguous(
    queries: Tensor, keys: Tensor, query_mask: Tensor | None, key_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """What the kernels read, as they read it."""
    return (
        queries.contiguous(),
        keys.contiguous(),
        None if query_mask is None else query_mask.contiguous(),
        None if key_mask is None else key_mask.contiguous(),
    )


def backward(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    kept: Tensor,
    needs: list[bool],
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """Gradients for queries and keys."""
    for_queries, for_keys = map(room_for_gradient, (queries, keys), needs)
    if not queries.numel() or not keys.numel():
        return for_queries.zero_(), for_keys.zero_()
    queries, keys, query_mask, key_mask = contiguous(queries, keys, query_mask, key_mask)
    with torch.cuda.device_of(queries):
        listed = None if query_mask is None or not needs[1] else real_rows(query_mask)
        step, total = len(keys), for_queries
        if not kept.numel():
            # a winner and, as they come with them, as many scores at most
            rows = queries.shape[0] * queries.shape[1]
            step = max(min(memory_budget // (8 * rows), len(keys)), 1)
        if step < len(keys):  # what is added to must not be rounded
            total = for_queries.float()
        for first in range(0, len(keys), step):
            run = slice(first, first + step)
            part, mask = keys[run], None if key_mask is None else key_mask[run]
            winners = kept
            if not kept.numel():
                _, winners = find_maxima(queries, part, query_mask, mask, True)
            fill_gradients(
                gradient[:, run], queries, part, query_mask, mask, winners, listed,
                total, for_keys[run], add=first > 0,
            )  # fmt: skip
    return total.to(queries.dtype), for_keys


def real_rows(query_mask: Tensor) -> Tensor:
    """How many query tokens are real, then which, as int32 numbers."""
    listed = query_mask.new_empty(query_mask.numel() + 1, dtype=torch.int32)
    kernels().list_rows[(1,)](
        query_mask, listed, query_mask.numel(), BLOCK=1024, num_warps=4, **FUSED
    )
    return listed


def fill_gradients(
    upstream: Tensor,
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    winners: Tensor,
    listed: Tensor | None,
    for_queries: Tensor,
    for_keys: Tensor,
    add: bool = False,
) -> None:
    """Fill the gradients for these keys, and fill or add to those for all queries.

    A gradient without room is not asked for.
    """
    (count, query_tokens, dim), key_tokens = queries.shape, keys.shape[1]
    strides = upstream.stride()
    if for_queries.numel():
        of_queries = QueryGradient.of(dim)
        kernels().query_gradient[(count * query_tokens, ceil_div(dim, of_queries.INNER))](
            keys, keys if query_mask is None else query_mask, winners, upstream, for_queries,
            len(keys), query_tokens, key_tokens, dim, *strides,
            QUERIES_MASKED=query_mask is not None, ADD=add, **of_queries._asdict(), **FUSED,
        )  # fmt: skip
    if for_keys.numel():
        of_keys = KeyGradient.of(key_tokens, dim, queries.dtype)
        blocks = ceil_div(key_tokens, of_keys.TOKENS)
        kernels().key_gradient[(len(keys) * blocks, ceil_div(dim, of_keys.INNER))](
            queries, winners if listed is None else listed,
            queries if key_mask is None else key_mask, winners, upstream, for_keys,
            count, len(keys), query_tokens, key_tokens, dim, blocks, *strides,
            LISTED=listed is not None, KEYS_MASKED=key_mask is not None,
            PRECISION=multiply_precision(queries.dtype), **of_keys._asdict(), **FUSED,
        )  # fmt: skip


summed_maxima, both_summed_maxima = differentiable("maxsim_triton", forward, backward)
