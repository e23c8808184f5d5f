"""The Triton kernels of hard-maximum matching; what calls them is in ``triton.py`` beside.

The only module here that imports triton, itself imported when a kernel is first needed.
"""
# Triton's language has no types, and its constants are written in capitals:
# mypy: ignore-errors
# ruff: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl


# numbers that change with the batch are no reason to compile again
@triton.jit(do_not_specialize=["row_blocks", "first_item", "items", "key_tokens"])
def row_maxima(
    queries_ptr, keys_ptr, rows_ptr, row_count_ptr, tokens_ptr, items_ptr, lengths_ptr,
    highest_ptr, winners_ptr,
    row_blocks, first_item, items, key_tokens, dim,
    WITH_WINNERS: tl.constexpr, ROWS: tl.constexpr, ITEMS: tl.constexpr, WIDTH: tl.constexpr,
    INNER: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Highest score of ROWS query tokens with each of ITEMS keys, and where it is.

    The columns of a tile are WIDTH tokens of each of the keys, so that short keys fill it too; keys
    come by length, so that they end together. Tokens are named by their position in the flattened
    batch, and only real ones are looked at.
    """
    # keys change slower than the row blocks of a group, whose queries so stay in the cache
    item_blocks = tl.cdiv(items, ITEMS)
    group = tl.program_id(0) // (GROUP * item_blocks)
    place = tl.program_id(0) % (GROUP * item_blocks)
    height = min(row_blocks - group * GROUP, GROUP)
    block = group * GROUP + place % height
    row_count = tl.load(row_count_ptr)
    if block * ROWS >= row_count:
        return

    row = block * ROWS + tl.arange(0, ROWS)
    real_row = row < row_count
    position = tl.load(rows_ptr + row, mask=real_row, other=0)
    query = queries_ptr + position.to(tl.int64) * dim

    slot = place // height * ITEMS + tl.arange(0, ITEMS)
    length = tl.load(lengths_ptr + first_item + slot, mask=slot < items, other=0)
    longest = tl.max(length, 0)
    column = tl.arange(0, ITEMS * WIDTH)
    column_slot = place // height * ITEMS + column // WIDTH
    real_slot = column_slot < items
    column_item = tl.load(items_ptr + first_item + column_slot, mask=real_slot, other=0)
    column_length = tl.load(lengths_ptr + first_item + column_slot, mask=real_slot, other=0)
    key_token = tokens_ptr + column_item.to(tl.int64) * key_tokens

    highest = tl.full((ROWS, ITEMS), float("-inf"), tl.float32)
    winner = tl.zeros((ROWS, ITEMS), tl.int32)
    for first in range(0, longest, WIDTH):
        token = first + column % WIDTH
        real = token < column_length
        key_position = tl.load(key_token + token, mask=real, other=0)
        key = keys_ptr + key_position.to(tl.int64) * dim
        scores = tl.zeros((ROWS, ITEMS * WIDTH), tl.float32)
        for start in range(0, dim, INNER):
            inner = start + tl.arange(0, INNER)
            q = tl.load(
                query[:, None] + inner[None, :],
                mask=real_row[:, None] & (inner < dim)[None, :],
                other=0.0,
            )
            k = tl.load(
                key[None, :] + inner[:, None],
                mask=real[None, :] & (inner < dim)[:, None],
                other=0.0,
            )
            scores = tl.dot(q, k, scores, input_precision=PRECISION)
        # a maximum would pass over NaN; infinity is as conspicuous
        scores = tl.where(scores == scores, scores, float("inf"))
        scores = tl.where(real[None, :], scores, float("-inf"))
        scores = tl.reshape(scores, (ROWS, ITEMS, WIDTH))
        if WITH_WINNERS:
            best, index = tl.max(scores, 2, return_indices=True)
            # strictly: of equal maxima the first one wins
            winner = tl.where(best > highest, first + index, winner)
        else:
            best = tl.max(scores, 2)
        highest = tl.maximum(highest, best)

    out = position.to(tl.int64)[:, None] * items + slot[None, :]
    written = real_row[:, None] & (slot < items)[None, :]
    highest = tl.where((length > 0)[None, :], highest, 0.0)
    tl.store(highest_ptr + out, highest, mask=written)
    if WITH_WINNERS:
        item = tl.load(items_ptr + first_item + slot, mask=slot < items, other=0).to(tl.int64)
        chosen = tokens_ptr + (item * key_tokens)[None, :] + winner
        tl.store(winners_ptr + out, tl.load(chosen, mask=written, other=0), mask=written)


@triton.jit
def weighted_sums(
    values_ptr, indices_ptr, weights_ptr, rows_ptr, starts_ptr, ends_ptr, sums_ptr, dim,
    ADD: tl.constexpr, PAIRS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """``sums[rows[r]] = Σ_p weights[p] · values[indices[p]]``, p from starts[r] to ends[r].

    One program owns INNER numbers of one row: no order of additions but that of p.
    """
    row = tl.program_id(0)
    inner = tl.program_id(1) * INNER + tl.arange(0, INNER)
    start = tl.load(starts_ptr + row)
    end = tl.load(ends_ptr + row)
    total = tl.zeros((INNER,), tl.float32)
    for first in range(start, end, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        weight = tl.load(weights_ptr + pair, mask=pair < end, other=0.0)
        index = tl.load(indices_ptr + pair, mask=pair < end, other=0).to(tl.int64)
        value = tl.load(
            values_ptr + index[:, None] * dim + inner[None, :],
            mask=(pair < end)[:, None] & (inner < dim)[None, :],
            other=0.0,
        )
        total += tl.sum(weight[:, None] * value.to(tl.float32), 0)
    out = sums_ptr + tl.load(rows_ptr + row).to(tl.int64) * dim + inner
    if ADD:
        total += tl.load(out, mask=inner < dim, other=0.0)
    tl.store(out, total.to(sums_ptr.dtype.element_ty), mask=inner < dim)
