"""Hard-maximum matching in pure PyTorch: large matrix products, memory within a budget.

Forward: only real tokens are compared. Keys are taken a block of whole items at a time, items of
one length beside each other, and query tokens a block of rows at a time; one matrix product gives
the scores of such a tile, one maximum per length its maxima. Where both directions are asked for,
the maxima of rows and of columns are taken of the same tiles.

Backward: with ``w`` the upstream gradient of a pair and ``j*(i)`` the winners,
``dq_i = Σ_key w · k_j*(i)`` and ``dk_j = Σ over the i that chose j of w · q_i``. Both are weighted
sums of a few rows, the second after sorting by winner; neither needs a matrix product, nor
additions in an order that varies. The winners are kept from the forward if they take no more than
half of the budget (4 bytes per query token and key); otherwise the products are done again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from gloria.matching.maxsim.operator import (
    differentiable,
    room_for_gradient,
    room_for_scores,
    room_for_winners,
)
from gloria.matching.maxsim.problem import MaxSimProblem
from gloria.matching.problem import full_precision, why_only_the_definition

TAKES_HALF_PRECISION = False
READS_MASKED_TOKENS = False

TILE = 4 * 2**20
"""Bytes of scores in a tile, budget permitting: about a processor's cache."""

BYTES_PER_PAIR = 64
"""What the backward holds at once of a query token and a key: winner, weight, and their sorting."""


def reasons_not_supported(problem: MaxSimProblem) -> list[str]:
    """Why this backend cannot run the problem: no values, or a transform around it."""
    return why_only_the_definition(problem.device)


class Packed(NamedTuple):
    """Which tokens of a batch are real: one item after the other, short ones first, none empty."""

    items: Tensor
    """(item,) index of the item in the batch"""
    lengths: list[int]
    """tokens of each item"""
    positions: Tensor
    """(token,) index of the token in the flattened batch"""
    first: int | None
    """the first of the positions, if they are consecutive numbers"""

    @classmethod
    def of(cls, batch: Tensor, mask: Tensor | None) -> Packed:
        """Of a batch ``(item, token, dim)``."""
        count, tokens = batch.shape[:2]
        positions = torch.arange(count * tokens, device=batch.device)
        if mask is None or mask.all():
            count = count if tokens else 0
            return cls(torch.arange(count, device=batch.device), [tokens] * count, positions, 0)
        lengths, items = mask.sum(1).sort(stable=True)
        items, lengths = items[lengths > 0], lengths[lengths > 0]
        positions = positions.view(mask.shape)[items][mask[items]]
        return cls(items, lengths.tolist(), positions, None)

    def blocks(self, most_items: int, most_tokens: int) -> Iterator[Block]:
        """Runs of consecutive items within both bounds, at least one item long."""
        first = start = 0
        while first < len(self.lengths):
            last, end = first + 1, start + self.lengths[first]
            while last < min(first + most_items, len(self.lengths)):
                if end + self.lengths[last] - start > most_tokens:
                    break
                end, last = end + self.lengths[last], last + 1
            run = slice(first, last)
            part = Packed(
                self.items[run],
                self.lengths[run],
                self.positions[start:end],
                None if self.first is None else self.first + start,
            )
            yield Block(run, slice(start, end), part)
            first, start = last, end

    def take(self, flat: Tensor, part: slice = slice(None)) -> Tensor:
        """The vectors of the tokens ``(token, dim)``, or of a part of them."""
        if self.first is None:
            return flat[self.positions[part]]
        return flat[self.first : self.first + len(self.positions)][part]

    def sums(self, values: Tensor) -> Tensor:
        """Of ``(token, any)`` the sum of each item, ``(item, any)``."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64, device=values.device)
        every_token = torch.arange(len(self.positions), device=values.device)
        return embedding_bag(every_token, values, lengths.cumsum(0) - lengths, mode="sum")


class Block(NamedTuple):
    """Some consecutive items of a packed batch, and where they stand in it."""

    items: slice
    tokens: slice
    packed: Packed


def write_maxima(scores: Tensor, block: Packed, highest: Tensor, winners: Tensor) -> None:
    """Of scores ``(row, token)`` of whole items the highest of each row and item, and where it is.

    Winners are int32 positions in the flattened batch of the items; without room for any the
    maximum is faster.
    """
    item = token = 0
    for length, group in groupby(block.lengths):
        count = len(list(group))
        end = token + count * length
        of_length = scores[:, token:end].unflatten(1, (count, length))
        items = slice(item, item + count)
        if winners.numel():
            highest[:, items], index = of_length.max(-1)
            index += torch.arange(token, end, length, device=index.device)
            winners[:, items] = block.positions[index]
        else:
            highest[:, items] = of_length.amax(-1)
        item, token = item + count, end


def blocks_of_keys(queries: Packed, keys: Packed, vector: int, budget: int) -> Iterator[Block]:
    """Keys in blocks whose pairs fit in half of the budget, and whose tiles are near to square.

    ``vector`` is the size of a token in bytes.
    """
    rows = max(len(queries.positions), 1)
    scores = min(TILE, budget // 4) // 4
    square = scores // min(rows, math.isqrt(scores) + 1)
    return keys.blocks(
        most_items=max(budget // (2 * BYTES_PER_PAIR * rows), 1),
        most_tokens=min(square, budget // (8 * max(vector, 1))),
    )


def maxima(
    queries: Tensor, keys: Tensor, rows: Packed, block: Packed, budget: int, with_winners: bool
) -> tuple[Tensor, Tensor]:
    """The highest score of each row with each key of a block, and where it is, ``(row, key)``.

    Queries and keys are ``(token, dim)``. The winners are int32 positions in ``keys``; without them
    the maximum is faster.
    """
    columns, height = block.take(keys), len(rows.positions)
    highest = queries.new_empty(height, len(block.lengths))
    winners = block.items.new_empty(highest.shape if with_winners else (0, 0), dtype=torch.int32)
    vector, row = queries[:1].nbytes, len(columns) * queries.element_size()
    step = max(min(min(TILE, budget // 4) // row, budget // (8 * max(vector, 1))), 1)
    tile = queries.new_empty(min(step, height), len(columns))
    for start in range(0, height, step):
        part = slice(start, start + step)
        chunk = rows.take(queries, part)
        scores = torch.mm(chunk, columns.T, out=tile[: len(chunk)])
        write_maxima(scores, block, highest[part], winners[part])
    return highest, winners


def forward(
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    keep_winners: bool,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """Scores ``(query, key)``, and the winners ``(query · token, key)`` if they are to be kept."""
    of_queries, of_keys = Packed.of(queries, query_mask), Packed.of(keys, key_mask)
    # some stay as they are: items without a real token, and tokens that are not real
    scores = room_for_scores(queries, keys).zero_()
    kept = room_for_winners(queries, keys, keep_winners).zero_()
    rows = len(of_queries.positions)
    flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1)
    vector = queries[:1, :1].nbytes
    for run, _, block in blocks_of_keys(of_queries, of_keys, vector, memory_budget):
        highest, winners = maxima(
            flat_queries, flat_keys, of_queries, block, memory_budget, keep_winners
        )
        scores[of_queries.items[:, None], block.items] = of_queries.sums(highest)
        if keep_winners:
            kept[:rows, run] = winners
    return scores, kept


def forward_both(
    queries: Tensor,
    keys: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    keep_winners: bool,
    memory_budget: int,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """:func:`forward`, and that of keys and queries exchanged, from the same products.

    A tile holds whole items of either side. Where the longest two do not fit into one, or the
    maxima not into the budget, there are products for each; and where there is no pair, none.
    """
    of_queries, of_keys = Packed.of(queries, query_mask), Packed.of(keys, key_mask)
    rows, columns = len(of_queries.positions), len(of_keys.positions)
    tall, wide = (max(side.lengths, default=1) for side in (of_queries, of_keys))
    results = rows * len(of_keys.lengths) + columns * len(of_queries.lengths)
    numbers = memory_budget // (8 * queries.element_size())
    tile = min(TILE // queries.element_size(), numbers)
    vectors = numbers // max(queries.shape[2], 1)
    if not results or tall * wide > tile or max(tall, wide) > vectors or results > numbers:
        given = keep_winners, memory_budget
        return (
            forward(queries, keys, query_mask, key_mask, *given),
            forward(keys, queries, key_mask, query_mask, *given),
        )
    wide = max(wide, min(tile // min(max(rows, tall), math.isqrt(tile)), vectors))
    tall = max(tall, min(tile // wide, vectors))
    kept = room_for_winners(queries, keys, keep_winners).zero_()
    kept_of_keys = room_for_winners(keys, queries, keep_winners).zero_()
    highest = queries.new_empty(rows, len(of_keys.lengths))
    highest_of_keys = queries.new_empty(columns, len(of_queries.lengths))
    flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1)
    for k_items, k_tokens, block in of_keys.blocks(columns, wide):
        taken = block.take(flat_keys)
        for q_items, q_tokens, run in of_queries.blocks(rows, tall):
            scores = run.take(flat_queries) @ taken.T
            here, there = (q_tokens, k_items), (k_tokens, q_items)
            write_maxima(scores, block, highest[here], kept[here])
            write_maxima(scores.T, run, highest_of_keys[there], kept_of_keys[there])
    sums = room_for_scores(queries, keys).zero_()
    sums[of_queries.items[:, None], of_keys.items] = of_queries.sums(highest)
    sums_of_keys = room_for_scores(keys, queries).zero_()
    sums_of_keys[of_keys.items[:, None], of_queries.items] = of_keys.sums(highest_of_keys)
    return (sums, kept), (sums_of_keys, kept_of_keys)


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
    rooms = map(room_for_gradient, (queries, keys), needs)
    for_queries, for_keys = (room.zero_() for room in rooms)
    of_queries, of_keys = Packed.of(queries, query_mask), Packed.of(keys, key_mask)
    rows = of_queries.positions
    flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1)
    of_rows = rows.div(max(queries.shape[1], 1), rounding_mode="floor")
    vector = queries[:1, :1].nbytes
    step = max(memory_budget // (4 * max(vector, 1)), 1)
    with full_precision(gradient):
        for run, _, block in blocks_of_keys(of_queries, of_keys, vector, memory_budget):
            if kept.numel():
                winners = kept[: len(rows), run].contiguous()
            else:
                _, winners = maxima(flat_queries, flat_keys, of_queries, block, memory_budget, True)
            weights = gradient[of_rows[:, None], block.items]
            for start in range(0, len(rows) if for_queries.numel() else 0, step):
                part = slice(start, start + step)
                for_queries.flatten(0, 1)[rows[part]] += embedding_bag(
                    winners[part], flat_keys, mode="sum", per_sample_weights=weights[part]
                )
            if not for_keys.numel():
                continue
            winner, order = winners.flatten().sort(stable=True)
            chosen, times = winner.unique_consecutive(return_counts=True)
            for_keys.flatten(0, 1)[chosen] = embedding_bag(
                rows[order // len(block.lengths)],
                flat_queries,
                times.cumsum(0) - times,
                mode="sum",
                per_sample_weights=weights.flatten()[order],
            )
    return for_queries, for_keys


summed_maxima, both_summed_maxima = differentiable(
    "maxsim_chunked", forward, backward, forward_both
)
