"""The Triton kernels of local matching; what calls them is :mod:`gloria.matching.triton`.

With its neighbour in ``maxsim`` the only module that imports triton, itself imported when a kernel
is first needed. The symbols are those of :func:`gloria.functional.local_similarity`; the design and
its count are in ``triton.md``.

The real words of all texts stand in one list of *columns*, text after text. What is of a pair
element lies as ``(column, image, region)``, the regions of an image padded to whole octets, so that
a thread reads 16 bytes at a time, and what runs over the words of a text never leaves a thread.
"""

from __future__ import annotations

import triton
import triton.language as tl

EPS = tl.constexpr(1e-8)
"""gloria.matching.problem.EPS; a kernel reads constexpr globals only."""

LOG2_E = tl.constexpr(1.4426950408889634)
"""The units compute powers of 2."""

launched = triton.jit(
    do_not_specialize=[
        "first_image", "images", "regions", "octets", "texts", "words", "columns", "blocks",
        "apart", "upstream_image", "upstream_text",
    ]
)  # fmt: skip
"""Of a kernel: sizes that come with a batch compile nothing anew."""


# Packing: where each real word goes, and the list of them.


@launched
def pack_words(
    words_ptr, mask_ptr, starts_ptr,
    packed_ptr, lengths_ptr, word_of_column_ptr, column_of_word_ptr,
    words, dim, packed_dim,
    WORDS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Columns of a block of words of one text: their vectors, their lengths, both tables."""
    text = tl.program_id(0)
    first = tl.program_id(1) * WORDS
    lanes = tl.arange(0, WORDS)
    column = tl.load(starts_ptr + text)
    for earlier in range(0, first, WORDS):
        column += tl.sum(tl.load(mask_ptr + text * words + earlier + lanes).to(tl.int32), 0)
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
        at = d + tl.arange(0, DIM)[None, :]
        vector = tl.load(source + at, mask=real[:, None] & (at < dim), other=0.0)
        tl.store(target + at, vector, mask=real[:, None] & (at < packed_dim))
        vector = vector.to(tl.float32)
        squares += tl.sum(vector * vector, 1)
    tl.store(lengths_ptr + columns, tl.sqrt(squares), mask=real)


@launched
def unpack_word_gradient(
    packed_gradient_ptr, words_ptr, lengths_ptr, column_of_word_ptr,
    upstream_ptr, cosine_ptr, square_ptr, gradient_ptr,
    images, texts, words, apart, dim, packed_dim,
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
    at, of_column = word, column.to(tl.int64)
    for _ in range(images):
        slope = tl.load(upstream_ptr + at, mask=real, other=0.0)
        cosine = tl.load(cosine_ptr + at, mask=real, other=0.0)
        norm = tl.sqrt(tl.load(square_ptr + of_column, mask=real, other=0.0))
        # where the clamp holds, the cosine does not see the length of the word
        radial += tl.where(norm * length < EPS, 0.0, slope * cosine)
        at += texts * words
        of_column += apart
    radial = tl.where(length > 0, radial / length / length, 0.0)
    for d in range(0, dim, DIM):
        element = d + tl.arange(0, DIM)[None, :]
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


# What the matching kernels share. A program takes one image, and the words of one text or a block
# of columns; all regions, or where nothing is summed over regions, a block of them.


@triton.jit
def locate(block, local, images, octets, REGIONS: tl.constexpr):
    """Which regions a program has; where they stand in a row; which do; and how long a row is."""
    region = block * REGIONS + tl.arange(0, REGIONS)
    width = octets * 8
    return region, local * width + region, region < width, (images * width).to(tl.int64)


@triton.jit
def read(pointer, word, end, row, at, stored):
    """A tile, (word, region) in float32; 0 where nothing stands."""
    tile = tl.load(
        pointer + word.to(tl.int64)[:, None] * row + at[None, :],
        mask=(word < end)[:, None] & stored[None, :],
        other=0.0,
    )
    return tile.to(tl.float32)


@triton.jit
def write(pointer, tile, word, end, row, at, stored):
    """The way back."""
    tl.store(
        pointer + word.to(tl.int64)[:, None] * row + at[None, :],
        tile.to(pointer.dtype.element_ty),
        mask=(word < end)[:, None] & stored[None, :],
    )


@triton.jit
def real_regions(region_mask_ptr, region, image, regions, MASKED: tl.constexpr):
    """Which regions of an image there are to look at."""
    real = region < regions
    if MASKED:
        real &= tl.load(region_mask_ptr + image * regions + region, mask=real, other=0) != 0
    return real


@triton.jit
def sum_over_words(
    scores_ptr, start, end, row, at, stored,
    WORDS: tl.constexpr, REGIONS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Of the softmax over a text's words, by region: the highest score, and 1 / Σ.

    Subtract before you scale: a compiler fuses the other order, and of large scores the rounding
    that then differs between the two terms overflows (1e15 squared did, on a device).
    """
    top = tl.full((REGIONS,), float("-inf"), tl.float32)
    total = tl.zeros((REGIONS,), tl.float32)
    for first in tl.range(start, end, WORDS, num_stages=STAGES):
        word = first + tl.arange(0, WORDS)
        scores = read(scores_ptr, word, end, row, at, stored)
        scores = tl.where((word < end)[:, None], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        power = tl.exp2((scores - higher[None, :]) * LOG2_E)
        total = total * tl.exp2((top - higher) * LOG2_E) + tl.sum(power, 0)
        top = higher
    return top, 1 / total


@triton.jit
def last_block(start, end, WORDS: tl.constexpr):
    """Where a second pass over a text's words begins: what was read last is still in the cache."""
    return start + (end - start - 1) // WORDS * WORDS


@triton.jit
def attention_exponent(scores, top, total, real, inverse_temperature, OVER_WORDS: tl.constexpr):
    """``x / τ`` in base 2, x being the scores or their softmax over words."""
    exponent = scores
    if OVER_WORDS:
        exponent = tl.exp2((scores - top[None, :]) * LOG2_E) * total[None, :]
    exponent *= inverse_temperature * LOG2_E
    return tl.where(real[None, :], exponent, float("-inf"))


# Forward.


@launched
def attend(
    scores_ptr, region_mask_ptr, starts_ptr, weights_ptr, product_ptr,
    first_image, images, regions, octets, apart, inverse_temperature,
    MASKED: tl.constexpr, OVER_WORDS: tl.constexpr, WORDS: tl.constexpr, REGIONS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Attention ``a`` of one text on one image, and of its words ``<c, t> = Σ_j a_j s_j``.

    That is ``(image, column)``, images ``apart`` numbers from each other.
    """
    local = tl.program_id(0) % images
    text = tl.program_id(0) // images
    start = tl.load(starts_ptr + text)
    end = tl.load(starts_ptr + text + 1)
    region, at, stored, row = locate(0, local, images, octets, REGIONS)
    image = (first_image + local).to(tl.int64)
    real = real_regions(region_mask_ptr, region, image, regions, MASKED)
    top, total = 0.0, 0.0
    if OVER_WORDS:
        top, total = sum_over_words(scores_ptr, start, end, row, at, stored, WORDS, REGIONS, STAGES)
    last = last_block(start, end, WORDS)
    for done in tl.range(0, end - start, WORDS, num_stages=STAGES):
        word = last - done + tl.arange(0, WORDS)
        scores = read(scores_ptr, word, end, row, at, stored)
        exponent = attention_exponent(scores, top, total, real, inverse_temperature, OVER_WORDS)
        highest = tl.max(exponent, 1)
        highest = tl.where(highest == float("-inf"), 0.0, highest)  # an image without a region
        weights = tl.exp2(exponent - highest[:, None])
        sums = tl.sum(weights, 1)
        sums = tl.where(sums == 0, 1.0, sums)
        # <c, t> of the weights as they are kept, as ‖c‖ is: else what rounding left between the
        # two would not cancel in a gradient, where 1 / τ multiplies it
        kept = (weights * (1 / sums)[:, None]).to(weights_ptr.dtype.element_ty)
        write(weights_ptr, kept, word, end, row, at, stored)
        product = tl.sum(kept * scores, 1)
        tl.store(product_ptr + image * apart + word, product, mask=word < end)


@launched
def cosine(
    weights_ptr, attended_ptr, lengths_ptr, word_of_column_ptr,
    product_ptr, square_ptr, cosine_ptr,
    first_image, images, octets, texts, words, columns, apart,
    WORDS: tl.constexpr, REGIONS: tl.constexpr,
):  # fmt: skip
    """``r = <c, t> / (y ‖c‖)`` of a block of columns, with ``‖c‖² = aᵀ (G a)``.

    ``attended (column, image, region)`` is ``G a``. Writes ``‖c‖²`` beside ``<c, t>``, and r
    ``(image, text, word)``.
    """
    local = tl.program_id(0) % images
    column = tl.program_id(0) // images * WORDS + tl.arange(0, WORDS)
    _region, at, stored, row = locate(0, local, images, octets, REGIONS)
    weights = read(weights_ptr, column, columns, row, at, stored)
    attended = read(attended_ptr, column, columns, row, at, stored)
    square = tl.sum(weights * attended, 1)
    square = tl.where(square < 0, 0.0, square)
    inside = column < columns
    length = tl.load(lengths_ptr + column, mask=inside, other=0.0)
    word = tl.load(word_of_column_ptr + column, mask=inside, other=-1)
    real = word >= 0
    image = (first_image + local).to(tl.int64)
    divisor = tl.maximum(tl.sqrt(square) * length, EPS, propagate_nan=tl.PropagateNan.ALL)
    divisor = tl.where(divisor == float("inf"), float("nan"), divisor)  # no cosine is known
    value = tl.load(product_ptr + image * apart + column, mask=real, other=0.0) / divisor
    # where regions cancel, rounding may leave too short a norm; no cosine is beyond 1
    value = tl.where(value > 1, 1.0, tl.where(value < -1, -1.0, value))
    tl.store(cosine_ptr + image * (texts * words) + word, value, mask=real)
    tl.store(square_ptr + image * apart + column, square, mask=real)


# Backward.


@launched
def differentiate_cosine(
    upstream_ptr, cosine_ptr, product_ptr, square_ptr, lengths_ptr, word_of_column_ptr, terms_ptr,
    first_image, images, texts, words, columns, apart, BLOCK: tl.constexpr,
):  # fmt: skip
    """What the gradient of a score needs to know of its word, ``terms (image, 4, column)``.

    ``dnum = dr / (‖c‖ y)``; ``2 dq = -dr r / q``, or 0 where the clamp holds, and both where a norm
    is 0; and the averages over the regions of what they multiply, num and q.
    """
    local = (tl.program_id(0) % images).to(tl.int64)
    column = tl.program_id(0) // images * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    word = tl.load(word_of_column_ptr + column, mask=inside, other=-1)
    real = word >= 0
    at = (first_image + local) * (texts * words) + word
    upstream = tl.load(upstream_ptr + at, mask=real, other=0.0)
    cosine = tl.load(cosine_ptr + at, mask=real, other=0.0)
    at = (first_image + local) * apart + column
    product = tl.load(product_ptr + at, mask=real, other=0.0)
    square = tl.load(square_ptr + at, mask=real, other=0.0)
    norms = tl.sqrt(square) * tl.load(lengths_ptr + column, mask=inside, other=0.0)
    clamped = norms < EPS
    divisor = tl.maximum(norms, EPS, propagate_nan=tl.PropagateNan.ALL)
    terms = terms_ptr + local * 4 * columns + column
    tl.store(terms, tl.where(norms == 0, 0.0, upstream / divisor), mask=inside)
    curvature = tl.where(clamped, 0.0, -upstream * cosine / square)
    tl.store(terms + columns, curvature, mask=inside)
    tl.store(terms + 2 * columns, product, mask=inside)
    tl.store(terms + 3 * columns, square, mask=inside)


@triton.jit
def pull(
    scores_ptr, weights_ptr, attended_ptr, terms_ptr, columns, word, end, row, at, stored,
):  # fmt: skip
    """Of a tile, (word, region): s; ``a de``; the direct part of ds; and ``2 dq a``.

    ``de = dnum (s - num) + 2 dq (G a - q)``: the averages over the regions of both parts cancel but
    at the clamp, and rounding leaves less of it where each is taken off by itself: where one region
    has all attention, nothing.
    """
    inside = word < end
    slope = tl.load(terms_ptr + word, mask=inside, other=0.0)
    curvature = tl.load(terms_ptr + columns + word, mask=inside, other=0.0)
    product = tl.load(terms_ptr + 2 * columns + word, mask=inside, other=0.0)
    square = tl.load(terms_ptr + 3 * columns + word, mask=inside, other=0.0)
    scores = read(scores_ptr, word, end, row, at, stored)
    weights = read(weights_ptr, word, end, row, at, stored)
    attended = read(attended_ptr, word, end, row, at, stored)
    direct = slope[:, None] * weights
    curved = curvature[:, None] * weights
    through = direct * (scores - product[:, None]) + curved * (attended - square[:, None])
    return scores, through, direct, curved


@launched
def score_gradient(
    scores_ptr, weights_ptr, attended_ptr, starts_ptr, terms_ptr,
    gradient_ptr, curved_ptr,
    images, octets, columns, blocks, inverse_temperature,
    OVER_WORDS: tl.constexpr, WORDS: tl.constexpr, REGIONS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """``ds`` of one text on a block of regions, and ``2 dq a`` for the Gram matrix's gradient.

    Through the softmax over regions ``dx = a de / τ``, and where x is a softmax over words, through
    that: ``ds = p (dx - Σ_i p dx)``. Both, and ``dnum a``, which reaches s directly.
    """
    block = tl.program_id(0) % blocks
    local = tl.program_id(0) // blocks % images
    text = tl.program_id(0) // blocks // images
    start = tl.load(starts_ptr + text)
    end = tl.load(starts_ptr + text + 1)
    _region, at, stored, row = locate(block, local, images, octets, REGIONS)
    terms_ptr += local.to(tl.int64) * 4 * columns
    top = tl.full((REGIONS,), float("-inf"), tl.float32)
    total = tl.zeros((REGIONS,), tl.float32)
    mean = tl.zeros((REGIONS,), tl.float32)
    if OVER_WORDS:
        for first in tl.range(start, end, WORDS, num_stages=STAGES):
            word = first + tl.arange(0, WORDS)
            scores, through, direct, curved = pull(
                scores_ptr, weights_ptr, attended_ptr, terms_ptr, columns, word, end, row, at,
                stored,
            )  # fmt: skip
            scores = tl.where((word < end)[:, None], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 0))
            power = tl.exp2((scores - higher[None, :]) * LOG2_E)
            rescale = tl.exp2((top - higher) * LOG2_E)
            total = total * rescale + tl.sum(power, 0)
            mean = mean * rescale + tl.sum(power * through, 0)
            top = higher
        total = 1 / total
        mean *= total
    last = last_block(start, end, WORDS)
    for done in tl.range(0, end - start, WORDS, num_stages=STAGES):
        word = last - done + tl.arange(0, WORDS)
        scores, gradient, direct, curved = pull(
            scores_ptr, weights_ptr, attended_ptr, terms_ptr, columns, word, end, row, at, stored
        )
        if OVER_WORDS:
            softmax = tl.exp2((scores - top[None, :]) * LOG2_E) * total[None, :]
            gradient = softmax * (gradient - mean[None, :])
        gradient = gradient * inverse_temperature + direct
        write(gradient_ptr, gradient, word, end, row, at, stored)
        write(curved_ptr, curved, word, end, row, at, stored)


# The aggregation of the words' cosines. A program takes one text and a block of images.


@triton.jit
def locate_pairs(images, texts, words, IMAGES: tl.constexpr):
    """Which text and images a program has; where their cosines begin; which images there are."""
    text = tl.program_id(0) % texts
    image = tl.program_id(0) // texts * IMAGES + tl.arange(0, IMAGES)
    rows = (image.to(tl.int64) * texts + text) * words
    return text, image, rows[:, None], image < images


@triton.jit
def sum_of_powers(
    cosine_ptr, mask_ptr, text, rows, inside, words, scale,
    IMAGES: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Of the real words, by image: the highest cosine, ``Σ 2^(scale (r - it))``; and how many."""
    highest = tl.full((IMAGES,), float("-inf"), tl.float32)
    total = tl.zeros((IMAGES,), tl.float32)
    count = 0
    for first in range(0, words, WORDS):
        word = first + tl.arange(0, WORDS)
        real = tl.load(mask_ptr + text * words + word, mask=word < words, other=0) != 0
        some = inside[:, None] & real[None, :]
        cosine = tl.load(cosine_ptr + rows + word[None, :], mask=some, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(cosine, 1))
        top = tl.where(higher == float("-inf"), 0.0, higher)  # no real word so far
        power = tl.exp2((cosine - top[:, None]) * scale)
        total = total * tl.exp2((highest - top) * scale) + tl.sum(power, 1)
        highest = higher
        count += tl.sum(real.to(tl.int32), 0)
    return highest, total, count


@launched
def soft_maximum(
    cosine_ptr, mask_ptr, similarity_ptr,
    images, texts, words, inverse_temperature,
    MEAN: tl.constexpr, IMAGES: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """``Z = τ log Σ_i exp(r_i / τ)`` of the real words, or of their mean; 0 where there is none."""
    text, image, rows, inside = locate_pairs(images, texts, words, IMAGES)
    scale = inverse_temperature * LOG2_E
    highest, total, count = sum_of_powers(
        cosine_ptr, mask_ptr, text, rows, inside, words, scale, IMAGES, WORDS
    )
    if MEAN:
        total /= count
    similarity = tl.where(count > 0, highest + tl.log2(total) / scale, 0.0)
    tl.store(similarity_ptr + image.to(tl.int64) * texts + text, similarity, mask=inside)


@launched
def soft_maximum_gradient(
    upstream_ptr, cosine_ptr, mask_ptr, gradient_ptr,
    upstream_image, upstream_text, images, texts, words, inverse_temperature,
    IMAGES: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """``dr_i = dZ exp(r_i / τ) / Σ_k exp(r_k / τ)``, of the mean the same; 0 at padding."""
    text, image, rows, inside = locate_pairs(images, texts, words, IMAGES)
    scale = inverse_temperature * LOG2_E
    highest, total, _count = sum_of_powers(
        cosine_ptr, mask_ptr, text, rows, inside, words, scale, IMAGES, WORDS
    )
    at = image.to(tl.int64) * upstream_image + text.to(tl.int64) * upstream_text
    share = tl.load(upstream_ptr + at, mask=inside, other=0.0) / total
    for first in range(0, words, WORDS):
        word = first + tl.arange(0, WORDS)
        real = tl.load(mask_ptr + text * words + word, mask=word < words, other=0) != 0
        some = inside[:, None] & real[None, :]
        cosine = tl.load(cosine_ptr + rows + word[None, :], mask=some, other=0.0)
        slope = share[:, None] * tl.exp2((cosine - highest[:, None]) * scale)
        tl.store(
            gradient_ptr + rows + word[None, :],
            tl.where(real[None, :], slope, 0.0),
            mask=inside[:, None] & (word < words)[None, :],
        )
