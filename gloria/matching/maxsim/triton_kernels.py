"""The Triton kernels of hard-maximum matching; what calls them is ``triton.py`` beside.

With its neighbour in ``gloria.matching`` the only module that imports triton, itself imported when
a kernel is first needed. Winners lie as ``(query, key, query token)``: the token of the key that
won, -1 where none did.
"""

from __future__ import annotations

import triton
import triton.language as tl

launched = triton.jit(
    do_not_specialize=[
        "queries", "keys", "rows", "query_tokens", "key_tokens", "token_blocks",
        "query_stride", "key_stride",
    ]
)  # fmt: skip
"""Of a kernel: sizes that come with a batch compile nothing anew."""


@triton.jit
def real_tokens(mask_ptr, token, tokens, MASKED: tl.constexpr):
    """Which tokens of an item there are to look at."""
    real = token < tokens
    if MASKED:
        real &= tl.load(mask_ptr + token, mask=real, other=0) != 0
    return real


@triton.jit
def last_real(mask_ptr, tokens, MASKED: tl.constexpr):
    """How many tokens of an item there are to look at, up to its last real one."""
    end = tokens
    if MASKED:
        end = tokens * 0
        for first in range(0, tokens, 256):
            token = first + tl.arange(0, 256)
            real = real_tokens(mask_ptr, token, tokens, MASKED)
            end = tl.maximum(end, tl.max(tl.where(real, token + 1, 0), 0))
    return end


@launched
def sum_maxima(
    queries_ptr, keys_ptr, query_mask_ptr, key_mask_ptr, scores_ptr, winners_ptr,
    queries, keys, query_tokens, key_tokens, dim,
    QUERIES_MASKED: tl.constexpr, KEYS_MASKED: tl.constexpr, WITH_WINNERS: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, INNER: tl.constexpr,
    GROUP: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The score of one query with one key, and the winners.

    A tile is TOKENS tokens of the key by ROWS of the query: keys have tokens enough to fill the
    matrix units. The maxima of a tile's columns are found once, after the last tile of the key.
    ``WHOLE``: INNER is all of dim.
    """
    # keys change slower than the queries of a group, which so stay in the cache
    group = tl.program_id(0) // (GROUP * keys)
    place = tl.program_id(0) % (GROUP * keys)
    height = min(queries - group * GROUP, GROUP)
    query = (group * GROUP + place % height).to(tl.int64)
    key = (place // height).to(tl.int64)
    pair = query * keys + key
    queries_ptr += query * query_tokens * dim
    keys_ptr += key * key_tokens * dim
    query_mask_ptr += query * query_tokens
    key_mask_ptr += key * key_tokens
    winners_ptr += pair * query_tokens

    inner = tl.arange(0, INNER)
    lane = tl.arange(0, TOKENS)
    query_end = last_real(query_mask_ptr, query_tokens, QUERIES_MASKED)
    key_end = last_real(key_mask_ptr, key_tokens, KEYS_MASKED)
    total = tl.zeros((ROWS,), tl.float32)
    for top in range(0, query_end, ROWS):
        row = top + tl.arange(0, ROWS)
        real_row = real_tokens(query_mask_ptr, row, query_end, QUERIES_MASKED)
        # where none is real any other is read, and what comes of it not looked at
        row_ptr = queries_ptr + tl.minimum(row, query_tokens - 1).to(tl.int64)[None, :] * dim
        if WHOLE:
            q = tl.load(row_ptr + inner[:, None], mask=(inner < dim)[:, None], other=0.0)
        best = tl.full((TOKENS, ROWS), float("-inf"), tl.float32)
        tile = tl.zeros((TOKENS, ROWS), tl.int32)
        for first in tl.range(0, key_end, TOKENS, num_stages=STAGES):
            token = first + lane
            real = real_tokens(key_mask_ptr, token, key_end, KEYS_MASKED)
            token_ptr = keys_ptr + tl.minimum(token, key_tokens - 1).to(tl.int64)[:, None] * dim
            scores = tl.zeros((TOKENS, ROWS), tl.float32)
            if WHOLE:
                k = tl.load(token_ptr + inner[None, :], mask=(inner < dim)[None, :], other=0.0)
                scores = tl.dot(k, q, scores, input_precision=PRECISION)
            else:
                for start in tl.range(0, dim, INNER, num_stages=STAGES):
                    part = start + inner
                    q = tl.load(row_ptr + part[:, None], mask=(part < dim)[:, None], other=0.0)
                    k = tl.load(token_ptr + part[None, :], mask=(part < dim)[None, :], other=0.0)
                    scores = tl.dot(k, q, scores, input_precision=PRECISION)
            # a maximum would pass over NaN; infinity is as conspicuous
            scores = tl.where(scores == scores, scores, float("inf"))
            scores = tl.where(real[:, None], scores, float("-inf"))
            if WITH_WINNERS:
                # strictly: of equal maxima the first one wins
                tile = tl.where(scores > best, first, tile)
            best = tl.maximum(best, scores)
        highest = tl.max(best, 0)
        if WITH_WINNERS:
            won = (best == highest[None, :]) & (best > float("-inf"))
            winner = tl.min(tl.where(won, tile + lane[:, None], 2147483647), 0)
            winner = tl.where(real_row & (winner < 2147483647), winner, -1)
            tl.store(winners_ptr + row, winner, mask=row < query_tokens)
        # a key without a real token scores 0
        total += tl.where(real_row & (key_end > 0), highest, 0.0)
    tl.store(scores_ptr + pair, tl.sum(total, 0))
    if WITH_WINNERS:
        for top in range(tl.cdiv(query_end, ROWS) * ROWS, query_tokens, ROWS):
            row = top + tl.arange(0, ROWS)
            tl.store(winners_ptr + row, tl.full((ROWS,), -1, tl.int32), mask=row < query_tokens)


@launched
def list_rows(mask_ptr, listed_ptr, rows, BLOCK: tl.constexpr):
    """How many rows are real, and behind that number which, in order; one program."""
    count = rows * 0
    for first in range(0, rows, BLOCK):
        row = first + tl.arange(0, BLOCK)
        real = real_tokens(mask_ptr, row, rows, True).to(tl.int32)
        # those before it are as many as its place
        tl.store(listed_ptr + count + tl.cumsum(real, 0), row, mask=real > 0)
        count += tl.sum(real, 0)
    tl.store(listed_ptr, count)


@launched
def query_gradient(
    keys_ptr, query_mask_ptr, winners_ptr, upstream_ptr, gradient_ptr,
    keys, query_tokens, key_tokens, dim, query_stride, key_stride,
    QUERIES_MASKED: tl.constexpr, ADD: tl.constexpr,
    KEYS: tl.constexpr, INNER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``dq_i (+)= Σ_key w · k_j*(i)`` of INNER numbers of one query token, KEYS keys at a time.

    ``w``, the upstream gradient, has any strides.
    """
    row = tl.program_id(0).to(tl.int64)
    query = row // query_tokens
    winners_ptr += query * keys * query_tokens + row % query_tokens
    inner = tl.program_id(1) * INNER + tl.arange(0, INNER)
    end = keys
    if QUERIES_MASKED:
        end = tl.where(tl.load(query_mask_ptr + row) != 0, keys, 0)
    total = tl.zeros((INNER,), tl.float32)
    for first in tl.range(0, end, KEYS, num_stages=STAGES):
        key = (first + tl.arange(0, KEYS)).to(tl.int64)
        winner = tl.load(winners_ptr + key * query_tokens, mask=key < keys, other=-1)
        weight = tl.load(
            upstream_ptr + query * query_stride + key * key_stride, mask=key < keys, other=0.0
        )
        value = tl.load(
            keys_ptr + (key * key_tokens + winner)[:, None] * dim + inner[None, :],
            mask=(winner >= 0)[:, None] & (inner < dim)[None, :],
            other=0.0,
        )
        weight = tl.where(winner >= 0, weight, 0.0)
        total += tl.sum(weight[:, None] * value.to(tl.float32), 0)
    out = gradient_ptr + row * dim + inner
    if ADD:
        total += tl.load(out, mask=inner < dim, other=0.0)
    tl.store(out, total.to(gradient_ptr.dtype.element_ty), mask=inner < dim)


@triton.jit
def largest_weight(upstream_ptr, queries, query_stride):
    """Of a key's upstream gradients the largest absolute one; 1 where all are 0."""
    largest = 0.0
    for first in range(0, queries, 256):
        query = first + tl.arange(0, 256)
        weight = tl.load(
            upstream_ptr + query.to(tl.int64) * query_stride, mask=query < queries, other=0.0
        )
        largest = tl.maximum(largest, tl.max(tl.abs(weight), 0))
    return tl.where(largest > 0, largest, 1.0)


@launched
def key_gradient(
    queries_ptr, listed_ptr, key_mask_ptr, winners_ptr, upstream_ptr, gradient_ptr,
    queries, keys, query_tokens, key_tokens, dim, token_blocks, query_stride, key_stride,
    LISTED: tl.constexpr, KEYS_MASKED: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """``dk_j = Σ over the i that chose j of w · q_i``, of TOKENS tokens of one key.

    As a product of matrices: who chose whom, w or 0, by the query tokens of all queries, ROWS at a
    time and only real ones. Half precision multiplies twice, a weight being the sum of two numbers:
    one would round each term as coarsely as the result. Those of float16, whose range is narrow,
    are shares of the largest.
    """
    key = (tl.program_id(0) // token_blocks).to(tl.int64)
    block = tl.program_id(0) % token_blocks * TOKENS
    token = block + tl.arange(0, TOKENS)
    inner = tl.program_id(1) * INNER + tl.arange(0, INNER)
    upstream_ptr += key * key_stride
    dtype: tl.constexpr = queries_ptr.dtype.element_ty
    end = queries * query_tokens
    if LISTED:
        end = tl.load(listed_ptr)
    if KEYS_MASKED:  # nobody chose what lies behind the last real token
        key_end = last_real(key_mask_ptr + key * key_tokens, key_tokens, True)
        end = tl.where(block < key_end, end, 0)
    unit = 1.0
    if dtype == tl.float16:
        unit = largest_weight(upstream_ptr, queries, query_stride)
    total = tl.zeros((TOKENS, INNER), tl.float32)
    for first in tl.range(0, end, ROWS, num_stages=STAGES):
        row = first + tl.arange(0, ROWS)
        inside = row < end
        if LISTED:
            row = tl.load(listed_ptr + 1 + row, mask=inside, other=0)
        query = (row // query_tokens).to(tl.int64)
        at = (query * keys + key) * query_tokens + row % query_tokens
        winner = tl.load(winners_ptr + at, mask=inside, other=-1)
        weight = tl.load(upstream_ptr + query * query_stride, mask=inside, other=0.0)
        value = tl.load(
            queries_ptr + row.to(tl.int64)[:, None] * dim + inner[None, :],
            mask=inside[:, None] & (inner < dim)[None, :],
            other=0.0,
        )
        chosen = winner[None, :] == token[:, None]
        if dtype == tl.float32:
            weight = tl.where(chosen, weight[None, :], 0.0)
            total = tl.dot(weight, value, total, input_precision=PRECISION)
        else:
            weight /= unit
            high = weight.to(dtype)
            low = (weight - high.to(tl.float32)).to(dtype)
            total = tl.dot(tl.where(chosen, high[None, :], 0.0).to(dtype), value, total)
            total = tl.dot(tl.where(chosen, low[None, :], 0.0).to(dtype), value, total)
    out = gradient_ptr + (key * key_tokens + token)[:, None] * dim + inner[None, :]
    tl.store(
        out,
        (total * unit).to(gradient_ptr.dtype.element_ty),
        mask=(token < key_tokens)[:, None] & (inner < dim)[None, :],
    )
