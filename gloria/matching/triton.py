"""Local matching in fused Triton kernels, for CUDA and ROCm.

No tensor of image · text · word · region elements exists; there are up to three of
image · region · word for as many images as the memory budget allows (the packed words and their
gradient come on top). Products of half-precision inputs accumulate in float32; what is kept between
two kernels, and the gradients' products, are bfloat16 for either half type (float16 has not the
range). float32 inputs multiply in float32, or in TF32 where
``torch.set_float32_matmul_precision`` allows it. No result depends on the order in which programs
run: the same inputs give the same bits.

The design, its count of operations and what was measured are in ``triton.md``; the kernels in
:mod:`gloria.matching.triton_kernels`.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gloria.matching.problem import (
    MatchingInputs,
    MatchingOptions,
    Problem,
    refuse_second_derivative,
)
from gloria.matching.triton_support import capturing, multiply_precision, why_not_here

TAKES_HALF_PRECISION = True

MOST_WORDS = 256
"""Words per text where a softmax runs over them: a text must lie in one window."""

SLOT = 8
"""Columns that belong to one text; ``triton_kernels.SLOT``."""

BOUNDED = 8.0
"""Up to this 1/τ, exp((p - 1)/τ) needs no running maximum: its square stays above 1e-7."""


def reasons_not_supported(problem: Problem) -> list[str]:
    """Why the kernels cannot run the problem: machine, dtype, or words per text."""
    reasons = why_not_here(problem.device, problem.dtype, kernels)
    if problem.options.attention == "words_then_regions" and problem.words > MOST_WORDS:
        reasons.append(
            f"Under 'words_then_regions' it takes at most {MOST_WORDS} word positions per text; "
            f"got {problem.words}."
        )
    if problem.regions * problem.texts * round_up(problem.words, SLOT) >= 2**31:
        reasons.append(
            f"It counts regions · texts · words of one image in 32 bits; got {problem.regions} · "
            f"{problem.texts} · {problem.words}."
        )
    return reasons


def kernels() -> ModuleType:
    """The kernels; triton is imported here, when it is used."""
    from gloria.matching import triton_kernels

    return triton_kernels


def word_cosines(inputs: MatchingInputs, options: MatchingOptions) -> Tensor:
    """Cosine of each word with the region feature it attends to, ``(image, text, word)``."""
    cosine: Tensor
    cosine, *_ = attention_cosine(
        *inputs, options.attention, options.attention_temperature, options.memory_budget
    )
    return cosine


# Block sizes: by architecture, dtype and the size of one image and text, never by how many there
# are: another batch size compiles nothing. No entry spills registers (tests/matching/
# test_triton_compile.py); which is fastest is for benchmarks/gpu.py to find.


class Launch(NamedTuple):
    """How one kernel runs."""

    regions: int
    """Regions of a program"""
    warps: int
    stages: int
    """Depth of the software pipeline"""


class Blocks(NamedTuple):
    """How the matching kernels run."""

    width: int
    """Columns of a program, one window"""
    inner: int
    """Step along dim, and along the regions where the Gram matrix multiplies"""
    attend: Launch
    cosine: Launch
    """As many regions as attend"""
    attend_again: Launch
    score_gradient: Launch


def blocks_of(
    forward: tuple[int, int],
    again: tuple[int, int],
    gradient: tuple[int, int],
    *,
    width: int = 128,
    inner: int = 64,
    stages: tuple[int, int] = (3, 2),
) -> Blocks:
    """Blocks from (regions, warps) of forward, attend_again and score_gradient.

    ``stages`` is the depth everywhere, and that of cosine, whose steps are larger.
    """
    return Blocks(
        width,
        inner,
        Launch(*forward, stages[0]),
        Launch(*forward, stages[1]),
        Launch(*again, stages[0]),
        Launch(*gradient, stages[0]),
    )


TALL = {
    # architecture, whether a softmax runs over the words
    ("sm80", False): blocks_of((128, 8), (128, 8), (128, 8)),
    ("sm80", True): blocks_of((128, 8), (128, 8), (128, 8)),
    ("sm90", False): blocks_of((128, 8), (128, 8), (128, 8)),
    ("sm90", True): blocks_of((128, 8), (128, 8), (128, 8)),
    ("sm100", False): blocks_of((64, 8), (128, 8), (128, 8)),
    ("sm100", True): blocks_of((64, 8), (64, 8), (128, 8)),
    ("gfx942", False): blocks_of((64, 8), (128, 8), (128, 8), inner=32, stages=(2, 1)),
    ("gfx942", True): blocks_of((128, 8), (128, 8), (128, 8), inner=32, stages=(2, 1)),
}
"""Half precision."""

SHORT = {
    "sm80": blocks_of((64, 8), (64, 8), (64, 8)),
    "sm90": blocks_of((64, 4), (64, 4), (64, 4)),
    "sm100": blocks_of((64, 8), (64, 8), (64, 8)),
    "gfx942": blocks_of((64, 8), (64, 8), (64, 8), inner=32, stages=(2, 1)),
}
"""Half precision, where blocks of 128 regions would be filled badly."""

WIDE = {
    "sm80": blocks_of((32, 8), (32, 8), (32, 8), width=256),
    "sm90": blocks_of((32, 8), (32, 8), (32, 8), width=256),
    "sm100": blocks_of((32, 8), (32, 8), (32, 8), width=256),
    "gfx942": blocks_of((32, 8), (32, 8), (32, 8), width=256, inner=32, stages=(2, 1)),
}
"""Half precision, where a text of more than 128 words must lie in one window."""

FULL = {
    64: blocks_of((32, 8), (64, 8), (64, 8), width=64, inner=16, stages=(2, 2)),
    128: blocks_of((16, 8), (32, 8), (32, 8), width=128, inner=16, stages=(2, 3)),
    256: blocks_of((16, 8), (16, 8), (16, 8), width=256, inner=16, stages=(2, 2)),
}
"""float32, by width."""


def choose_blocks(regions: int, words: int, dtype: torch.dtype, over_words: bool) -> Blocks:
    """The blocks for images of so many regions, and texts of so many word positions."""
    if dtype == torch.float32:
        return FULL[min(width for width in FULL if not over_words or words <= width)]
    machine = architecture()
    if over_words and words > 128:
        return WIDE[machine]
    if round_up(regions, 64) < 0.85 * round_up(regions, 128):
        return SHORT[machine]
    return TALL[machine, over_words]


@functools.cache
def architecture() -> str:
    """The entry of the tables for this device; what has none has less shared memory, as sm80."""
    if torch.version.hip is not None:
        return "gfx942"
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 8
    return {9: "sm90", 10: "sm100"}.get(major, "sm80")


# The texts' words, packed.


class Packed(NamedTuple):
    """The real words of all texts in one list of columns; see :mod:`triton_kernels`."""

    words: Tensor
    """(column, dim), zeros in padding"""
    lengths: Tensor
    """(column,) float32"""
    word_of_column: Tensor
    """(column,) index into the flattened (text, word); -1 is padding"""
    column_of_word: Tensor
    """(text · word,) and back"""
    windows: Tensor
    """first column of each window, and the end"""
    window_count: int


def place(word_mask: Tensor, over_words: bool, width: int) -> tuple[Tensor, Tensor]:
    """Where texts and windows start, (2, text + 1 or more), and how many columns and windows.

    The counts are on the CPU. Reads the device once; while a CUDA graph is captured, which forbids
    that, gives upper bounds.
    """
    texts, words = word_mask.shape
    starts = word_mask.new_zeros(starts_shape(texts), dtype=torch.int32)
    sizes = word_mask.new_empty(2, dtype=torch.int32)
    kernels().place_texts[(1,)](
        word_mask.sum(1, dtype=torch.int32), *starts, sizes, texts, texts,
        OVER_WORDS=over_words, WIDTH=width, BLOCK=1024,
    )  # fmt: skip
    if not capturing(word_mask):
        return starts, sizes.cpu()
    columns = texts * round_up(words, SLOT)
    windows = texts if over_words else ceil_div(columns, width)
    return starts, torch.tensor([columns, windows], dtype=torch.int32)


def starts_shape(texts: int) -> tuple[int, int]:
    """Rows of whole 16 bytes: Triton compiles anew for a pointer that is not aligned."""
    return 2, round_up(texts + 1, 4)


def pack(words: Tensor, word_mask: Tensor, starts: Tensor, sizes: Tensor, dim: int) -> Packed:
    """The packed words, ``dim`` wide."""
    texts, positions, _ = words.shape
    columns, window_count = sizes.tolist()
    # while capturing there may be columns that no text fills
    filled = not capturing(words)
    packed = Packed(
        (words.new_empty if filled else words.new_zeros)((columns, dim)),
        (words.new_empty if filled else words.new_zeros)(columns, dtype=torch.float32),
        words.new_full((columns,), -1, dtype=torch.int32),
        words.new_empty((texts * positions,), dtype=torch.int32),
        starts[1],
        window_count,
    )
    kernels().pack_words[(texts,)](
        words, word_mask, starts, *packed[:4], positions, words.shape[2], dim, WORDS=16, DIM=128
    )
    return packed


# The two operators.


@torch.library.custom_op("gloria::word_cosines", mutates_args=())
def attention_cosine(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    attention: str,
    temperature: float,
    memory_budget: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The cosines, and what the backward needs: shift, norm (of the kernel ``cosine``), places."""
    images, region_count, _ = regions.shape
    texts, positions, dim = words.shape
    cosine, shift, norm, starts, sizes = empty_results(regions, words, word_mask)
    if cosine.numel() == 0:
        return cosine, shift, norm, starts, sizes
    over_words = attention == "words_then_regions"
    running_max = not over_words or 1 / temperature > BOUNDED
    blocks = choose_blocks(region_count, positions, regions.dtype, over_words)
    block_count = ceil_div(region_count, blocks.attend.regions)
    dim = round_up(dim, blocks.inner)
    with torch.cuda.device_of(regions):
        words, word_mask = words.contiguous(), word_mask.contiguous()
        region_mask = None if region_mask is None else region_mask.contiguous()
        starts, sizes = place(word_mask, over_words, blocks.width)
        packed = pack(words, word_mask, starts, sizes, dim)
        regions = widen(regions, dim)
        columns, kind = len(packed.words), working_dtype(regions)
        gram_width = round_up(region_count, blocks.attend.regions)
        each = kind.itemsize * region_count * (columns + 3 * gram_width + dim)
        each += 12 * block_count * columns
        for first, last in chunks(images, each, memory_budget):
            gram = gram_matrix(regions[first:last].to(kind), gram_width)
            weights = gram.new_empty((last - first, region_count, columns))
            partial = shift.new_empty((last - first, block_count, 3, columns))
            grid = packed.window_count * (last - first)
            kernels().attend[(grid * block_count,)](
                regions, region_mask, packed.words, packed.word_of_column, packed.windows,
                weights, partial,
                first, last - first, region_count, positions, columns // SLOT, dim, 1 / temperature,
                HAS_REGION_MASK=region_mask is not None,
                OVER_WORDS=over_words,
                RUNNING_MAX=running_max,
                REGIONS=blocks.attend.regions,
                WIDTH=blocks.width,
                DIM=blocks.inner,
                PRECISION=multiply_precision(regions.dtype),
                num_warps=blocks.attend.warps,
                num_stages=blocks.attend.stages,
            )  # fmt: skip
            # eᵀ G e = eᵀ U e with the lower half folded onto the upper
            folded = gram.triu().add_(gram.triu(1))
            kernels().cosine[(grid,)](
                weights, partial, folded,
                packed.lengths, packed.word_of_column, packed.windows,
                cosine, shift, norm,
                first, last - first, region_count, texts, positions, columns // SLOT, gram_width,
                OVER_WORDS=over_words,
                RUNNING_MAX=running_max,
                REGIONS=blocks.attend.regions,
                WIDTH=blocks.width,
                PRECISION=multiply_precision(regions.dtype),
                num_warps=blocks.cosine.warps,
                num_stages=blocks.cosine.stages,
            )  # fmt: skip
    return cosine, shift, norm, starts, sizes


@torch.library.custom_op("gloria::word_cosines_backward", mutates_args=())
def attention_cosine_backward(
    upstream: Tensor,
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    cosine: Tensor,
    shift: Tensor,
    norm: Tensor,
    starts: Tensor,
    sizes: Tensor,
    attention: str,
    temperature: float,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of regions and words."""
    images, region_count, width = regions.shape
    texts, positions, dim = words.shape
    regions_gradient, words_gradient = empty_gradients(upstream, regions, words)
    if cosine.numel() == 0:
        return regions_gradient.zero_(), words_gradient.zero_()
    over_words = attention == "words_then_regions"
    blocks = choose_blocks(region_count, positions, regions.dtype, over_words)
    dim = round_up(dim, blocks.inner)
    with torch.cuda.device_of(regions):
        upstream, words, word_mask = (x.contiguous() for x in (upstream, words, word_mask))
        region_mask = None if region_mask is None else region_mask.contiguous()
        packed = pack(words, word_mask, starts, sizes, dim)
        regions = widen(regions, dim)
        columns, kind = len(packed.words), working_dtype(regions)
        packed_words = packed.words.to(kind)
        packed_gradient = torch.zeros_like(packed.words, dtype=torch.float32)
        gram_width = round_up(region_count, blocks.inner)
        each = kind.itemsize * region_count * (3 * columns + 2 * gram_width + 2 * dim)
        for first, last in chunks(images, each, memory_budget):
            part = regions[first:last].to(kind)
            gram = gram_matrix(part, gram_width)
            weights, score_gradient, softmax = (
                (gram.new_zeros if capturing(gram) else gram.new_empty)(
                    (last - first, region_count, columns)
                )
                for _ in range(3)
            )
            terms = shift.new_empty((last - first) * 5 * columns + blocks.width)
            kernels().differentiate_cosine[(last - first, ceil_div(columns, 256))](
                upstream, cosine, shift, norm, packed.lengths, packed.word_of_column, terms,
                first, texts, positions, columns, BLOCK=256,
            )  # fmt: skip
            grid = packed.window_count * (last - first)
            launch = blocks.attend_again
            kernels().attend_again[(grid * ceil_div(region_count, launch.regions),)](
                regions, region_mask, packed.words, packed.word_of_column, packed.windows, terms,
                weights, score_gradient, softmax,
                first, last - first, region_count, positions, columns // SLOT, dim, 1 / temperature,
                HAS_REGION_MASK=region_mask is not None,
                OVER_WORDS=over_words,
                REGIONS=launch.regions,
                WIDTH=blocks.width,
                DIM=blocks.inner,
                PRECISION=multiply_precision(regions.dtype),
                num_warps=launch.warps,
                num_stages=launch.stages,
            )  # fmt: skip
            launch = blocks.score_gradient
            kernels().score_gradient[(grid * ceil_div(region_count, launch.regions),)](
                weights, score_gradient, softmax, gram,
                packed.word_of_column, packed.windows, terms,
                last - first, region_count, positions, columns // SLOT, gram_width, 1 / temperature,
                OVER_WORDS=over_words,
                REGIONS=launch.regions,
                WIDTH=blocks.width,
                INNER=blocks.inner,
                PRECISION=multiply_precision(regions.dtype),
                num_warps=launch.warps,
                num_stages=launch.stages,
            )  # fmt: skip
            rows = score_gradient.flatten(0, 1)
            direct = (rows @ packed_words).unflatten(0, part.shape[:2])
            # softmax holds 2 dq e by now; rows as wide as gram's are aligned, which products like
            through_gram = torch.empty_like(gram)[..., :region_count]
            torch.bmm(softmax, weights.mT, out=through_gram)
            gradient = torch.baddbmm(direct, through_gram, part)
            regions_gradient[first:last] = gradient[..., :width]
            packed_gradient += rows.mT @ part.flatten(0, 1)
        kernels().unpack_word_gradient[(texts, ceil_div(positions, 16))](
            packed_gradient, words, packed.lengths, packed.column_of_word,
            upstream, cosine, norm, words_gradient,
            images, texts, positions, width, dim, WORDS=16, DIM=128,
        )  # fmt: skip
    return regions_gradient, words_gradient


@attention_cosine.register_fake
def empty_results(
    regions: Tensor, words: Tensor, word_mask: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = (regions.shape[0], *words.shape[:2])
    cosine, shift, norm = (regions.new_zeros(shape, dtype=torch.float32) for _ in range(3))
    starts = words.new_zeros(starts_shape(words.shape[0]), dtype=torch.int32)
    return cosine, shift, norm, starts, torch.zeros(2, dtype=torch.int32)


@attention_cosine_backward.register_fake
def empty_gradients(_: Tensor, regions: Tensor, words: Tensor, *__: Any) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(regions, memory_format=torch.contiguous_format),
        torch.empty_like(words, memory_format=torch.contiguous_format),
    )


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, attention, temperature, memory_budget = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = attention, temperature, memory_budget


def differentiate(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    regions_gradient, words_gradient = attention_cosine_backward(
        upstream, *ctx.saved_tensors, *ctx.options
    )
    return regions_gradient, words_gradient, None, None, None, None, None


attention_cosine.register_autograd(differentiate, setup_context=save)
attention_cosine_backward.register_autograd(refuse_second_derivative)


# Their parts.


def widen(regions: Tensor, dim: int) -> Tensor:
    """Contiguous, with zeros up to ``dim``."""
    missing = dim - regions.shape[-1]
    return (pad(regions, (0, missing)) if missing else regions).contiguous()


def gram_matrix(regions: Tensor, width: int) -> Tensor:
    """``<v_j, v_k>`` of every image, (image, region, width), with zeros behind the last region."""
    gram = regions.new_zeros((*regions.shape[:2], width))
    torch.bmm(regions, regions.mT, out=gram[..., : regions.shape[1]])
    return gram


def working_dtype(tensor: Tensor) -> torch.dtype:
    """What is kept between kernels: float16 has not the range for squares and gradients."""
    return torch.float32 if tensor.dtype == torch.float32 else torch.bfloat16


def chunks(images: int, bytes_each: int, budget: int) -> list[tuple[int, int]]:
    """As few and as even runs of images as the budget allows."""
    step = ceil_div(images, ceil_div(images, max(1, budget // bytes_each)))
    return [(first, min(first + step, images)) for first in range(0, images, step)]


def round_up(size: int, step: int) -> int:
    return ceil_div(size, step) * step


def ceil_div(size: int, step: int) -> int:
    return -(-size // step)
