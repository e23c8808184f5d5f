"""Hard-maximum matching in fused Triton kernels, for CUDA and ROCm.

The scores of a tile never leave the processor: of each query token and key only the maximum does,
and the winner if there is to be a backward. Half precision multiplies as it is and accumulates in
float32; float32 multiplies in float32, or in TF32 where ``torch.set_float32_matmul_precision``
allows it.

Operations: ``2 · E · dim`` forward, with E the pairs of real tokens; the padding that is left is at
most 15 tokens of a key and one block of rows, and whatever keys of unlike length share a tile. The
backward needs no product of matrices: it is the weighted sums of ``chunked.py``, every number owned
by one program, so that equal inputs give equal bits; it moves ``2 · dim`` numbers per query token
and key.

Nothing here waits for the device: lengths stay there, launches depend on shapes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from gloria.matching.maxsim.operator import differentiable, room_for_scores, room_for_winners
from gloria.matching.maxsim.problem import MaxSimProblem
from gloria.matching.triton_support import multiply_precision, why_not_here

TAKES_HALF_PRECISION = True

BYTES_PER_PAIR = 64
"""What the backward holds at once of a query token and a key: winner, weight, and their sorting."""


def reasons_not_supported(problem: MaxSimProblem) -> list[str]:
    """Why the kernels cannot run the problem: machine, dtype or size."""
    reasons = why_not_here(problem.device, problem.dtype, kernels)
    for name, tokens in (
        ("query", problem.queries * problem.query_tokens),
        ("key", problem.keys * problem.key_tokens),
    ):
        if tokens >= 2**31:
            reasons.append(f"It counts {name} tokens in 32 bits; got {tokens}.")
    return reasons


def kernels() -> ModuleType:
    """The kernels; triton is imported here, when it is used."""
    from gloria.matching.maxsim import triton_kernels

    return triton_kernels


class Blocks(NamedTuple):
    """Sizes of a tile of :func:`triton_kernels.row_maxima`, and how to arrange it."""

    ROWS: int
    ITEMS: int
    WIDTH: int
    INNER: int
    GROUP: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, keys: int, dtype: torch.dtype) -> Blocks:
        """By shape buckets only, so that another batch compiles nothing.

        The largest that spill no register on any target; not tuned on a device.
        """
        items = min(1 << max(keys - 1, 0).bit_length(), 8)
        if dtype == torch.float32:
            return cls(64, items, 64 // items, 32, 16, num_warps=4, num_stages=2)
        return cls(128, items, 128 // items, 32, 8, num_warps=8, num_stages=3)


class Order(NamedTuple):
    """Where the real tokens of both sides are, on the device."""

    rows: Tensor
    """(query · token,) positions in the flattened queries, the real ones first"""
    row_count: Tensor
    """how many are real"""
    tokens: Tensor
    """(key, token) positions in the flattened keys, in each key the real ones first"""
    items: Tensor
    """(key,) by length"""
    lengths: Tensor
    """(key,) the length of each of ``items``"""

    @classmethod
    def of(
        cls, queries: Tensor, keys: Tensor, query_mask: Tensor | None, key_mask: Tensor | None
    ) -> Order:
        """Of two batches."""
        if query_mask is None:
            query_mask = queries.new_ones(queries.shape[:2], dtype=torch.bool)
        if key_mask is None:
            key_mask = keys.new_ones(keys.shape[:2], dtype=torch.bool)
        first = torch.arange(keys.shape[0], device=keys.device)[:, None] * keys.shape[1]
        lengths, items = key_mask.sum(1).sort(stable=True)
        return cls(
            rows=query_mask.flatten().logical_not().sort(stable=True).indices.int(),
            row_count=query_mask.sum().int(),
            tokens=(key_mask.logical_not().sort(dim=1, stable=True).indices + first).int(),
            items=items,
            lengths=lengths.int(),
        )


def runs_of_keys(queries: Tensor, keys: Tensor, pairs: int) -> Iterator[slice]:
    """Runs of keys, by length, of at most so many pairs with query tokens, at least a key each."""
    step = max(pairs // max(queries.shape[0] * queries.shape[1], 1), 1)
    step = step // 8 * 8 or step  # whole tiles
    return (slice(k, min(k + step, len(keys))) for k in range(0, len(keys), step))


def maxima(
    queries: Tensor, keys: Tensor, order: Order, run: slice, with_winners: bool
) -> tuple[Tensor, Tensor]:
    """Maxima of each query token with each key of a run ``(query · token, key)``, and winners.

    Winners are int32 positions in the flattened keys. Rows that are not real hold 0 and -1.
    """
    rows, items = len(order.rows), run.stop - run.start
    highest = torch.zeros(rows, items, device=queries.device)
    shape = (rows, items) if with_winners else (0, 0)
    winners = highest.new_full(shape, -1, dtype=torch.int32)
    blocks = Blocks.of(items, queries.dtype)
    row_blocks = -(-rows // blocks.ROWS)
    with torch.cuda.device_of(queries):
        kernels().row_maxima[(row_blocks * -(-items // blocks.ITEMS),)](
            queries,
            keys,
            order.rows,
            order.row_count,
            order.tokens,
            order.items,
            order.lengths,
            highest,
            winners,
            row_blocks,
            run.start,
            items,
            keys.shape[1],
            keys.shape[2],
            WITH_WINNERS=with_winners,
            PRECISION=multiply_precision(queries.dtype),
            **blocks._asdict(),
        )
    return highest, winners


def weighted_sums(
    values: Tensor,
    indices: Tensor,
    weights: Tensor,
    rows: Tensor,
    starts: Tensor,
    ends: Tensor,
    sums: Tensor,
    add: bool = False,
) -> None:
    """``sums[rows[r]] (+)= Σ weights[p] · values[indices[p]]``, p from starts[r] to ends[r].

    ``values (row, dim)``; ``sums (..., dim)``, contiguous, is written in place.
    """
    dim = values.shape[1]
    inner = min(max(1 << (dim - 1).bit_length(), 16), 256)
    with torch.cuda.device_of(values):
        kernels().weighted_sums[(len(rows), -(-dim // inner))](
            values, indices, weights, rows, starts, ends, sums, dim, ADD=add, PAIRS=16, INNER=inner
        )


def forward(
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    keep_winners: bool,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """Scores ``(query, key)``, and the winners ``(query · token, key)`` if they are to be kept."""
    scores = room_for_scores(queries, keys)
    kept = room_for_winners(queries, keys, keep_winners)
    if not queries.numel() or not keys.numel():
        return scores, kept
    order = Order.of(queries, keys, query_mask, key_mask)
    queries, keys = queries.contiguous(), keys.contiguous()
    for run in runs_of_keys(queries, keys, memory_budget // 16):
        highest, winners = maxima(queries, keys, order, run, keep_winners)
        scores[:, order.items[run]] = highest.view(*queries.shape[:2], -1).sum(1)
        if keep_winners:
            kept[:, run] = winners
    return scores, kept


def backward(
    gradient: Tensor,
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    kept: Tensor,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """Gradients for queries and keys."""
    for_queries = torch.zeros_like(queries, memory_format=torch.contiguous_format)
    for_keys = torch.zeros_like(keys, memory_format=torch.contiguous_format)
    if not queries.numel() or not keys.numel():
        return for_queries, for_keys
    order = Order.of(queries, keys, query_mask, key_mask)
    queries, keys = queries.contiguous(), keys.contiguous()
    flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1)
    runs = list(runs_of_keys(queries, keys, memory_budget // (2 * BYTES_PER_PAIR)))
    if len(runs) > 1:  # what is added to must not be rounded
        for_queries = for_queries.float()
    real = torch.arange(len(order.rows), device=queries.device) < order.row_count
    for run in runs:
        if kept.numel():
            winners = kept[:, run].contiguous()
        else:
            _, winners = maxima(queries, keys, order, run, with_winners=True)
        count = run.stop - run.start
        # a key without a real token has no winner
        weights = gradient[:, order.items[run]].float() * (order.lengths[run] > 0)
        weights = weights.repeat_interleave(queries.shape[1], 0, output_size=len(winners))
        starts = order.rows.long() * count
        weighted_sums(
            flat_keys,
            winners,
            weights,
            order.rows,
            starts,
            starts + count * real,
            for_queries,
            add=run.start > 0,
        )
        winner, pair = winners.flatten().sort(stable=True)
        tokens = order.tokens[order.items[run]].flatten()
        weighted_sums(
            flat_queries,
            pair // count,
            weights.flatten()[pair],
            tokens,
            torch.searchsorted(winner, tokens),
            torch.searchsorted(winner, tokens, right=True),
            for_keys,
        )
    return for_queries.to(queries.dtype), for_keys


summed_maxima = differentiable("maxsim_triton", forward, backward)
"""``Σ_i max_j <q_i, k_j>`` over real tokens, ``(query, key)``."""
