"""The Triton kernels of local matching; what calls them is :mod:`gloria.matching.triton`.

With its neighbour in ``maxsim`` the only module that imports triton, itself imported when a kernel
is first needed. The symbols are
those of :func:`gloria.functional.local_similarity`; the design and its count are in ``triton.md``.

The real words of all texts stand in one list of *columns*. A *window* is a run of at most WIDTH
columns that one program takes. Where a softmax runs over the words of a text, a text begins at a
multiple of SLOT columns, what it leaves of its last slot is padding, and it lies in one window.
"""

from __future__ import annotations

import triton
import triton.language as tl

SLOT = tl.constexpr(8)
"""Columns that belong to one text: the width of a matrix instruction's accumulator."""

EPS = tl.constexpr(1e-8)
"""gloria.matching.problem.EPS; a kernel reads constexpr globals only."""

launched = triton.jit(
    do_not_specialize=[
        "first_image", "images", "regions", "texts", "words", "slots", "columns", "most_windows",
    ]
)  # fmt: skip
"""Of a kernel: sizes that come with a batch compile nothing anew."""


# Packing: where each real word goes, and the list of them.


@launched
def place_texts(
    counts_ptr, starts_ptr, windows_ptr, sizes_ptr, texts, most_windows,
    OVER_WORDS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First column of each text, first column of each window, and how many there are of each.

    One program. A window takes the next texts as long as they fit.
    """
    lanes = tl.arange(0, BLOCK)
    columns = 0
    for first in range(0, texts, BLOCK):
        real = first + lanes < texts
        length = tl.load(counts_ptr + first + lanes, mask=real, other=0)
        if OVER_WORDS:
            # a text without words takes a slot too: so a window holds at most WIDTH / SLOT texts
            length = tl.where(real, tl.maximum(tl.cdiv(length, SLOT), 1) * SLOT, 0)
        ends = columns + tl.cumsum(length, 0)
        tl.store(starts_ptr + first + lanes, ends - length, mask=real)
        columns += tl.sum(length, 0)
    columns = tl.cdiv(columns, SLOT) * SLOT
    tl.store(starts_ptr + texts, columns)
    windows = tl.cdiv(columns, WIDTH)
    if OVER_WORDS:
        tl.debug_barrier()  # the starts are read by other threads than wrote them
        following = tl.arange(0, WIDTH // SLOT)
        text = 0
        windows = 0
        while text < texts:
            start = tl.load(starts_ptr + text)
            ends = tl.load(
                starts_ptr + text + 1 + following,
                mask=text + following < texts,
                other=2147483647,
            )
            tl.store(windows_ptr + windows, start)
            text += tl.sum((ends - start <= WIDTH).to(tl.int32), 0)
            windows += 1
        for first in range(windows, most_windows + 1, BLOCK):
            tl.store(windows_ptr + first + lanes, columns, mask=first + lanes <= most_windows)
    tl.store(sizes_ptr, columns)
    tl.store(sizes_ptr + 1, windows)


@launched
def pack_words(
    words_ptr, mask_ptr, starts_ptr,
    packed_ptr, lengths_ptr, word_of_column_ptr, column_of_word_ptr,
    words, dim, packed_dim,
    WORDS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """The columns of one text: word vectors with zeros behind, their lengths, both tables."""
    text = tl.program_id(0)
    column = tl.load(starts_ptr + text)
    end = tl.load(starts_ptr + text + 1)
    lanes = tl.arange(0, WORDS)
    inner = tl.arange(0, DIM)
    for first in range(0, words, WORDS):
        inside = first + lanes < words
        word = text * words + first + lanes
        real = tl.load(mask_ptr + word, mask=inside, other=0) != 0
        columns = column + tl.cumsum(real.to(tl.int32), 0) - 1
        tl.store(column_of_word_ptr + word, tl.where(real, columns, -1), mask=inside)
        tl.store(word_of_column_ptr + columns, word, mask=real)
        source = words_ptr + word.to(tl.int64)[:, None] * dim
        target = packed_ptr + columns.to(tl.int64)[:, None] * packed_dim
        squares = tl.zeros((WORDS,), tl.float32)
        for d in range(0, packed_dim, DIM):
            at = d + inner[None, :]
            vector = tl.load(source + at, mask=real[:, None] & (at < dim), other=0.0)
            tl.store(target + at, vector, mask=real[:, None] & (at < packed_dim))
            vector = vector.to(tl.float32)
            squares += tl.sum(vector * vector, 1)
        tl.store(lengths_ptr + columns, tl.sqrt(squares), mask=real)
        column += tl.sum(real.to(tl.int32), 0)
    columns = column + tl.arange(0, SLOT)
    spare = columns < end
    tl.store(word_of_column_ptr + columns, -1, mask=spare)
    tl.store(lengths_ptr + columns, 0.0, mask=spare)
    target = packed_ptr + columns.to(tl.int64)[:, None] * packed_dim
    for d in range(0, packed_dim, DIM):
        at = d + inner[None, :]
        zeros = tl.zeros((SLOT, DIM), packed_ptr.dtype.element_ty)
        tl.store(target + at, zeros, mask=spare[:, None] & (at < packed_dim))


@launched
def unpack_word_gradient(
    packed_gradient_ptr, words_ptr, lengths_ptr, column_of_word_ptr,
    upstream_ptr, cosine_ptr, norm_ptr, gradient_ptr,
    images, texts, words, dim, packed_dim,
    WORDS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """``dT_i = Σ_bj ds_ji v_j - Σ_b dr_i r_i t_i / y_i²`` in the layout of the words."""
    text = tl.program_id(0)
    within = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    inside = within < words
    word = (text * words + within).to(tl.int64)
    column = tl.load(column_of_word_ptr + word, mask=inside, other=-1)
    real = column >= 0
    length = tl.load(lengths_ptr + column, mask=real, other=0.0)
    radial = tl.zeros((WORDS,), tl.float32)
    at = word
    for _ in range(images):
        slope = tl.load(upstream_ptr + at, mask=real, other=0.0)
        cosine = tl.load(cosine_ptr + at, mask=real, other=0.0)
        norm = tl.load(norm_ptr + at, mask=real, other=0.0)
        # where the clamp holds, the cosine does not see the length of the word
        radial += tl.where(norm * length < EPS, 0.0, slope * cosine)
        at += texts * words
    radial = tl.where(length > 0, radial / length / length, 0.0)
    inner = tl.arange(0, DIM)
    for d in range(0, dim, DIM):
        element = d + inner[None, :]
        some = real[:, None] & (element < dim)
        slope = tl.load(
            packed_gradient_ptr + column.to(tl.int64)[:, None] * packed_dim + element,
            mask=some,
            other=0.0,
        )
        vector = tl.load(words_ptr + word[:, None] * dim + element, mask=some, other=0.0)
        slope -= radial[:, None] * vector.to(tl.float32)
        tl.store(
            gradient_ptr + word[:, None] * dim + element,
            tl.where(real[:, None], slope, 0.0).to(gradient_ptr.dtype.element_ty),
            mask=inside[:, None] & (element < dim),
        )


# What the matching kernels share.


@triton.jit
def bounds(windows_ptr, window, columns, OVER_WORDS: tl.constexpr, WIDTH: tl.constexpr):
    """First column of a window, and the first behind it."""
    if OVER_WORDS:
        start = tl.load(windows_ptr + window)
        end = tl.load(windows_ptr + window + 1)
        # whole slots, said so that the compiler may use wide accesses
        start = start // SLOT * SLOT
        end = end // SLOT * SLOT
    else:
        start = window * WIDTH
        end = tl.minimum(start + WIDTH, columns)
    return start, end


@triton.jit
def pair_texts(word_of_column_ptr, start, end, words, WIDTH: tl.constexpr):
    """Which slots of a window belong to the same text, (slot, slot)."""
    SLOTS: tl.constexpr = WIDTH // SLOT
    head = start + SLOT * tl.arange(0, SLOTS)
    word = tl.load(word_of_column_ptr + head, mask=head < end, other=-1)
    text = tl.where(word < 0, -1, word // words)
    other = tl.trans(tl.broadcast_to(text[:, None], (SLOTS, SLOTS)))
    return text[:, None] == other


@triton.jit
def over_text(tile, same_text, MAXIMUM: tl.constexpr):
    """Sum or maximum over the words of each text, (region, slot); the same in all its slots."""
    SLOTS: tl.constexpr = tile.shape[1] // SLOT
    grouped = tl.reshape(tile, (tile.shape[0], SLOTS, SLOT))
    if MAXIMUM:
        slots = tl.max(grouped, 2)
        return tl.max(tl.where(same_text[None], slots[:, :, None], float("-inf")), 1)
    slots = tl.sum(grouped, 2)
    return tl.sum(tl.where(same_text[None], slots[:, :, None], 0.0), 1)


@triton.jit
def spread(slots):
    """(region, slot) to (region, column)."""
    REGIONS: tl.constexpr = slots.shape[0]
    SLOTS: tl.constexpr = slots.shape[1]
    columns = tl.broadcast_to(slots[:, :, None], (REGIONS, SLOTS, SLOT))
    return tl.reshape(columns, (REGIONS, SLOTS * SLOT))


@triton.jit
def softmax_over_words(scores, real_word, same_text):
    """``p_ji``, softmax over the words of each text; 0 in padding."""
    scores = tl.where(real_word[None, :], scores, float("-inf"))
    highest = over_text(scores, same_text, True)
    power = tl.exp(scores - spread(tl.where(highest == float("-inf"), 0.0, highest)))
    total = over_text(power, same_text, False)
    return power * spread(1 / tl.where(total == 0, 1.0, total))


@triton.jit
def attention_exponent(
    scores, real_word, same_text, inverse_temperature, OVER_WORDS: tl.constexpr
):  # fmt: skip
    """``x / τ``: of the scores, or of their softmax over words."""
    if OVER_WORDS:
        scores = softmax_over_words(scores, real_word, same_text)
    return scores * inverse_temperature


@triton.jit
def center_over_words(softmax, gradient, same_text):
    """Through the softmax: ``p (g - Σ p g)`` over the words of each text."""
    return softmax * (gradient - spread(over_text(softmax * gradient, same_text, False)))


@triton.jit
def score(
    regions_ptr, packed_ptr, rows, columns, dim,
    REGIONS: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``s_ji = <v_j, t_i>``, (region, column); dim is a multiple of DIM."""
    inner = tl.arange(0, DIM)
    region = regions_ptr + rows[:, None] * dim + inner[None, :]
    word = packed_ptr + columns.to(tl.int64)[:, None] * dim + inner[None, :]
    scores = tl.zeros((REGIONS, WIDTH), tl.float32)
    for _ in range(0, dim, DIM):
        scores = tl.dot(tl.load(region), tl.trans(tl.load(word)), scores, input_precision=PRECISION)
        region += DIM
        word += DIM
    return scores


@triton.jit
def halve(tile):
    """The rows 0-7, 16-23, ... of a tile and the others: the epilogues take one after the other.

    So half as many registers hold what an epilogue needs beside the accumulator. In the layout of
    a matrix instruction no element leaves its thread.
    """
    ROWS: tl.constexpr = tile.shape[0]
    WIDTH: tl.constexpr = tile.shape[1]
    first, second = tl.split(tl.permute(tl.reshape(tile, (ROWS // 16, 2, 8, WIDTH)), (0, 2, 3, 1)))
    return tl.reshape(first, (ROWS // 2, WIDTH)), tl.reshape(second, (ROWS // 2, WIDTH))


@triton.jit
def rows_of_half(block, half, ROWS: tl.constexpr):
    """The regions that a half of a block of regions holds."""
    lane = tl.arange(0, ROWS // 2)
    return block * ROWS + lane // 8 * 16 + half * 8 + lane % 8


@triton.jit
def real_regions(region_mask_ptr, image, row, regions, HAS_REGION_MASK: tl.constexpr):
    """Which rows of a block are regions to look at."""
    real = row < regions
    if HAS_REGION_MASK:
        real &= tl.load(region_mask_ptr + image * regions + row, mask=real, other=0) != 0
    return real


# Forward.


@launched
def attend(
    regions_ptr, region_mask_ptr, packed_ptr, word_of_column_ptr, windows_ptr,
    weights_ptr, partial_ptr,
    first_image, images, regions, words, slots, dim, inverse_temperature,
    HAS_REGION_MASK: tl.constexpr, OVER_WORDS: tl.constexpr, RUNNING_MAX: tl.constexpr,
    REGIONS: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Unnormalised attention ``e`` of one block of regions, and its part of the sums.

    One program per (block of regions, image, window). With ``x`` the scores or their softmax over
    words: ``e = exp((x - top) / τ)``; ``weights (image, region, column)`` gets e, ``partial
    (image, block, 3, column)`` gets Σ e s, Σ e and top / τ over the block. ``top`` is the block's
    maximum, or where x cannot be far below it, 1.
    """
    blocks = tl.cdiv(regions, REGIONS)
    program = tl.program_id(0)
    block = program % blocks
    local = (program // blocks % images).to(tl.int64)
    image = first_image + local
    columns_in_all = slots * SLOT
    start, end = bounds(
        windows_ptr, program // (blocks * images), columns_in_all, OVER_WORDS, WIDTH
    )
    if start < end:
        row = block * REGIONS + tl.arange(0, REGIONS)
        column = start + tl.arange(0, WIDTH)
        inside = column < end
        real_word = tl.load(word_of_column_ptr + column, mask=inside, other=-1) >= 0
        scores = score(
            regions_ptr + image * regions * dim, packed_ptr,
            tl.minimum(row, regions - 1),
            tl.minimum(column, columns_in_all - 1),
            dim, REGIONS, WIDTH, DIM, PRECISION,
        )  # fmt: skip
        if OVER_WORDS:
            same_text = pair_texts(word_of_column_ptr, start, end, words, WIDTH)
        else:
            same_text = 0
        halves = halve(scores)
        if RUNNING_MAX:
            top = tl.full((WIDTH,), float("-inf"), tl.float32)
            for half in tl.static_range(2):
                row = rows_of_half(block, half, REGIONS)
                real_region = real_regions(region_mask_ptr, image, row, regions, HAS_REGION_MASK)
                exponent = attention_exponent(
                    halves[half], real_word, same_text, inverse_temperature, OVER_WORDS
                )
                exponent = tl.where(real_region[:, None], exponent, float("-inf"))
                top = tl.maximum(top, tl.max(exponent, 0))
            shift = tl.where(top == float("-inf"), 0.0, top)
        else:
            top = tl.zeros((WIDTH,), tl.float32) + inverse_temperature
            shift = top
        product = tl.zeros((WIDTH,), tl.float32)
        total = tl.zeros((WIDTH,), tl.float32)
        for half in tl.static_range(2):
            row = rows_of_half(block, half, REGIONS)
            real_region = real_regions(region_mask_ptr, image, row, regions, HAS_REGION_MASK)
            exponent = attention_exponent(
                halves[half], real_word, same_text, inverse_temperature, OVER_WORDS
            )
            weights = tl.exp(exponent - shift[None, :])
            weights = tl.where(real_region[:, None] & real_word[None, :], weights, 0.0)
            product += tl.sum(weights * halves[half], 0)
            total += tl.sum(weights, 0)
            tl.store(
                weights_ptr
                + local * regions * columns_in_all
                + row[:, None] * columns_in_all
                + column[None, :],
                weights.to(weights_ptr.dtype.element_ty),
                mask=(row < regions)[:, None] & inside[None, :],
            )
        partial = partial_ptr + (local * blocks + block) * 3 * columns_in_all + column
        tl.store(partial, product, mask=inside)
        tl.store(partial + columns_in_all, total, mask=inside)
        tl.store(partial + 2 * columns_in_all, top, mask=inside)


@launched
def cosine(
    weights_ptr, partial_ptr, gram_ptr, lengths_ptr, word_of_column_ptr, windows_ptr,
    cosine_ptr, shift_ptr, norm_ptr,
    first_image, images, regions, texts, words, slots, gram_width,
    OVER_WORDS: tl.constexpr, RUNNING_MAX: tl.constexpr,
    REGIONS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``r = Σ e s / (y sqrt(eᵀ U e))`` of one (image, window); U is the Gram matrix, folded.

    ``gram (image, region, gram_width)`` is upper triangular: ``eᵀ G e = eᵀ U e`` with half the
    products. Writes, as (image, text, word): the cosine; ``shift`` such that
    ``a = exp(x / τ - shift)`` sums to 1 over the regions; ``norm``, the length of ``Σ_j a_j v_j``.
    """
    local = (tl.program_id(0) % images).to(tl.int64)
    columns_in_all = slots * SLOT
    start, end = bounds(windows_ptr, tl.program_id(0) // images, columns_in_all, OVER_WORDS, WIDTH)
    if start < end:
        blocks = tl.cdiv(regions, REGIONS)
        lanes = tl.arange(0, REGIONS)
        column = start + tl.arange(0, WIDTH)
        inside = column < end
        sums = partial_ptr + local * blocks * 3 * columns_in_all + column
        weights = weights_ptr + local * regions * columns_in_all + column[None, :]
        gram = gram_ptr + local * regions * gram_width
        top = tl.full((WIDTH,), float("-inf"), tl.float32)
        for block in range(blocks):
            tops = sums + (3 * block + 2) * columns_in_all
            top = tl.maximum(top, tl.load(tops, mask=inside, other=0.0))
        top = tl.where(top == float("-inf"), 0.0, top)
        product = tl.zeros((WIDTH,), tl.float32)
        total = tl.zeros((WIDTH,), tl.float32)
        square = tl.zeros((WIDTH,), tl.float32)
        for block in range(blocks):
            row = block * REGIONS + lanes
            folded = tl.zeros((REGIONS, WIDTH), tl.float32)
            for other in range(block, blocks):
                there = other * REGIONS + lanes
                left = tl.load(
                    gram + tl.minimum(row, regions - 1)[:, None] * gram_width + there[None, :]
                )
                right = tl.load(
                    weights + there[:, None] * columns_in_all,
                    mask=(there < regions)[:, None] & inside[None, :],
                    other=0.0,
                )
                if RUNNING_MAX:
                    tops = sums + (3 * other + 2) * columns_in_all
                    rescale = tl.exp(tl.load(tops, mask=inside, other=0.0) - top)
                    folded += rescale[None, :] * tl.dot(left, right, input_precision=PRECISION)
                else:
                    folded = tl.dot(left, right, folded, input_precision=PRECISION)
            own = tl.load(
                weights + row[:, None] * columns_in_all,
                mask=(row < regions)[:, None] & inside[None, :],
                other=0.0,
            )
            part = sums + 3 * block * columns_in_all
            tops = part + 2 * columns_in_all
            rescale = tl.exp(tl.load(tops, mask=inside, other=0.0) - top)
            product += rescale * tl.load(part, mask=inside, other=0.0)
            total += rescale * tl.load(part + columns_in_all, mask=inside, other=0.0)
            square += rescale * tl.sum(own.to(tl.float32) * folded, 0)
        total = tl.where(total == 0, 1.0, total)  # an image without a region
        norm = tl.sqrt(tl.where(square < 0, 0.0, square)) / total
        length = tl.load(lengths_ptr + column, mask=inside, other=0.0)
        divisor = tl.maximum(norm * length, EPS, propagate_nan=tl.PropagateNan.ALL)
        word = tl.load(word_of_column_ptr + column, mask=inside, other=-1)
        at = (first_image + local) * (texts * words) + word
        value = product / total / divisor
        # where regions cancel, rounding may leave too short a norm; no cosine is beyond 1
        value = tl.where(value > 1, 1.0, tl.where(value < -1, -1.0, value))
        tl.store(cosine_ptr + at, value, mask=word >= 0)
        tl.store(shift_ptr + at, top + tl.log(total), mask=word >= 0)
        tl.store(norm_ptr + at, norm, mask=word >= 0)


# Backward: e is the normalised attention here, for the forward left its shift.


@launched
def differentiate_cosine(
    upstream_ptr, cosine_ptr, shift_ptr, norm_ptr, lengths_ptr, word_of_column_ptr, terms_ptr,
    first_image, texts, words, columns, BLOCK: tl.constexpr,
):  # fmt: skip
    """What the matching kernels need to know of a word: ``terms (image, 5, column)``.

    ``shift``; ``dnum = dr / (‖c‖ y)``; ``num = <c, t>``; ``2 dq = -dr r / ‖c‖²``, or 0 where the
    clamp holds; ``q = ‖c‖²``. Padding gets no attention (an infinite shift) and no gradient.
    """
    local = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    word = tl.load(word_of_column_ptr + column, mask=inside, other=-1)
    real = word >= 0
    at = (first_image + local) * (texts * words) + word
    upstream = tl.load(upstream_ptr + at, mask=real, other=0.0)
    cosine = tl.load(cosine_ptr + at, mask=real, other=0.0)
    shift = tl.load(shift_ptr + at, mask=real, other=float("inf"))
    norm = tl.load(norm_ptr + at, mask=real, other=0.0)
    product = norm * tl.load(lengths_ptr + column, mask=inside, other=0.0)
    divisor = tl.maximum(product, EPS, propagate_nan=tl.PropagateNan.ALL)
    square = norm * norm
    curvature = tl.where(product < EPS, 0.0, -upstream * cosine / square)
    terms = terms_ptr + local * 5 * columns + column
    tl.store(terms, shift, mask=inside)
    tl.store(terms + columns, upstream / divisor, mask=inside)
    tl.store(terms + 2 * columns, cosine * divisor, mask=inside)
    tl.store(terms + 3 * columns, curvature, mask=inside)
    tl.store(terms + 4 * columns, square, mask=inside)


@launched
def attend_again(
    regions_ptr, region_mask_ptr, packed_ptr, word_of_column_ptr, windows_ptr, terms_ptr,
    weights_ptr, score_gradient_ptr, softmax_ptr,
    first_image, images, regions, words, slots, dim, inverse_temperature,
    HAS_REGION_MASK: tl.constexpr, OVER_WORDS: tl.constexpr,
    REGIONS: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention again, and the part of the scores' gradient that needs no Gram matrix.

    One program per (block of regions, image, window). The gradient of the attention is
    ``de = dnum (s - num) + 2 dq (G e - q)``: what is subtracted has no effect (e sums to 1) and
    keeps both parts small. The first part, through the softmaxes and together with ``dnum e``,
    goes to ``score_gradient``.
    """
    blocks = tl.cdiv(regions, REGIONS)
    program = tl.program_id(0)
    block = program % blocks
    local = (program // blocks % images).to(tl.int64)
    image = first_image + local
    columns_in_all = slots * SLOT
    start, end = bounds(
        windows_ptr, program // (blocks * images), columns_in_all, OVER_WORDS, WIDTH
    )
    if start < end:
        row = block * REGIONS + tl.arange(0, REGIONS)
        column = start + tl.arange(0, WIDTH)
        inside = column < end
        scores = score(
            regions_ptr + image * regions * dim, packed_ptr,
            tl.minimum(row, regions - 1),
            tl.minimum(column, columns_in_all - 1),
            dim, REGIONS, WIDTH, DIM, PRECISION,
        )  # fmt: skip
        # read where used and without a mask, which saves registers: what stands behind the end of
        # a window is another text's and not stored
        terms = terms_ptr + local * 5 * columns_in_all + column
        of_image = local * regions * columns_in_all
        weights_ptr += of_image
        score_gradient_ptr += of_image
        softmax_ptr += of_image
        kind = weights_ptr.dtype.element_ty
        if OVER_WORDS:
            same_text = pair_texts(word_of_column_ptr, start, end, words, WIDTH)
        halves = halve(scores)
        for half in tl.static_range(2):
            scores = halves[half]
            row = rows_of_half(block, half, REGIONS)
            real_region = real_regions(region_mask_ptr, image, row, regions, HAS_REGION_MASK)
            target = row[:, None] * columns_in_all + column[None, :]
            stored = (row < regions)[:, None] & inside[None, :]
            if OVER_WORDS:
                real_word = tl.load(terms) != float("inf")
                softmax = softmax_over_words(scores, real_word, same_text)
                tl.store(softmax_ptr + target, softmax.to(kind), mask=stored)
                exponent = softmax * inverse_temperature
            else:
                exponent = scores * inverse_temperature
            weights = tl.exp(exponent - tl.load(terms)[None, :])
            weights = tl.where(real_region[:, None], weights, 0.0)
            tl.store(weights_ptr + target, weights.to(kind), mask=stored)
            through = scores - tl.load(terms + 2 * columns_in_all)[None, :]
            through *= weights * tl.load(terms + columns_in_all)[None, :] * inverse_temperature
            tl.store(score_gradient_ptr + target, through.to(kind), mask=stored)


@launched
def score_gradient(
    weights_ptr, score_gradient_ptr, softmax_ptr, gram_ptr,
    word_of_column_ptr, windows_ptr, terms_ptr,
    images, regions, words, slots, gram_width, inverse_temperature,
    OVER_WORDS: tl.constexpr,
    REGIONS: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the part of the scores' gradient that goes through ``q = eᵀ G e``.

    One program per (block of regions, image, window). ``softmax`` is read where there is one, and
    then holds ``2 dq e``: what is left for the caller is ``dG = Σ_i dq_i e_i e_iᵀ``.
    """
    blocks = tl.cdiv(regions, REGIONS)
    program = tl.program_id(0)
    block = program % blocks
    local = (program // blocks % images).to(tl.int64)
    columns_in_all = slots * SLOT
    start, end = bounds(
        windows_ptr, program // (blocks * images), columns_in_all, OVER_WORDS, WIDTH
    )
    if start < end:
        row = block * REGIONS + tl.arange(0, REGIONS)
        column = start + tl.arange(0, WIDTH)
        inside = column < end
        inner = tl.arange(0, INNER)
        gram_ptr += local * regions * gram_width
        left = gram_ptr + tl.minimum(row, regions - 1)[:, None] * gram_width
        right = weights_ptr + local * regions * columns_in_all + column[None, :]
        attended = tl.zeros((REGIONS, WIDTH), tl.float32)
        for first in range(0, regions, INNER):
            there = first + inner
            attended = tl.dot(
                tl.load(left + there[None, :]),
                tl.load(
                    right + there[:, None] * columns_in_all,
                    mask=(there < regions)[:, None] & inside[None, :],
                    other=0.0,
                ),
                attended,
                input_precision=PRECISION,
            )
        terms = terms_ptr + local * 5 * columns_in_all + column
        of_image = local * regions * columns_in_all
        weights_ptr += of_image
        score_gradient_ptr += of_image
        softmax_ptr += of_image
        kind = weights_ptr.dtype.element_ty
        if OVER_WORDS:
            same_text = pair_texts(word_of_column_ptr, start, end, words, WIDTH)
        halves = halve(attended)
        for half in tl.static_range(2):
            row = rows_of_half(block, half, REGIONS)
            target = row[:, None] * columns_in_all + column[None, :]
            stored = (row < regions)[:, None] & inside[None, :]
            weights = tl.load(weights_ptr + target, mask=stored, other=0.0).to(tl.float32)
            folded = weights * tl.load(terms + 3 * columns_in_all)[None, :]
            gradient = tl.load(score_gradient_ptr + target, mask=stored, other=0.0).to(tl.float32)
            gradient += (halves[half] - tl.load(terms + 4 * columns_in_all)[None, :]) * (
                folded * inverse_temperature
            )
            if OVER_WORDS:
                softmax = tl.load(softmax_ptr + target, mask=stored, other=0.0).to(tl.float32)
                gradient = center_over_words(softmax, gradient, same_text)
            gradient += weights * tl.load(terms + columns_in_all)[None, :]
            tl.store(score_gradient_ptr + target, gradient.to(kind), mask=stored)
            tl.store(softmax_ptr + target, folded.to(kind), mask=stored)
