"""Local matching in fused Triton kernels around the library's matrix products, for CUDA and ROCm.

No tensor of image · text · word · region elements exists; there are a few of column · region
elements, a column being a real word of any text, for as many images as the memory budget allows
(the packed words and their gradient come on top). Scores accumulate in float32 and stay so; what
else is kept, and the gradients' products, are bfloat16 for either half type (float16 has not the
range). float32 inputs multiply as ``torch.set_float32_matmul_precision`` says. No result depends on
the order in which programs run: the same inputs give the same bits.

The design, its count of operations and what was measured are in ``triton.md``; the kernels in
:mod:`gloria.matching.triton_kernels`.
"""

from __future__ import annotations

import functools
import itertools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gloria.aggregators import masked_logmeanexp, masked_logsumexp
from gloria.matching import einops
from gloria.matching.problem import (
    MatchingInputs,
    MatchingOptions,
    Problem,
    by_definition,
    full_precision,
    out_of_reach,
    refuse_second_derivative,
)
from gloria.matching.triton_support import FUSED, capturing, ceil_div, why_not_here

TAKES_HALF_PRECISION = True
READS_MASKED_WORDS = False
RUNS_KERNELS = True

OCTET = 8
"""Widths of rows are multiples of it: what is read 16 bytes at a time, and what products like."""

MOST_REGIONS = 4096
"""One program holds a word's attention to all regions of an image."""


def reasons_not_supported(problem: Problem) -> list[str]:
    """Why the kernels cannot run the problem: machine, dtype, or size."""
    reasons = why_not_here(problem.device, problem.dtype, None if problem.elsewhere else kernels)
    if problem.regions > MOST_REGIONS:
        reasons.append(f"It takes at most {MOST_REGIONS} regions; got {problem.regions}.")
    if problem.texts * problem.words >= 2**31:
        reasons.append(
            f"It counts the words of all texts in 32 bits; got {problem.texts} · {problem.words}."
        )
    return reasons


def kernels() -> ModuleType:
    """The kernels; triton is imported here, when it is used."""
    from gloria.matching import triton_kernels

    return triton_kernels


def word_cosines(inputs: MatchingInputs, options: MatchingOptions) -> Tensor:
    """Cosine of each word with the region feature it attends to, ``(image, text, word)``."""
    cosine: Tensor
    if torch.compiler.is_compiling():
        cosine, *_ = attention_cosine(
            *inputs[:4], options.attention, options.attention_temperature, options.memory_budget
        )
    else:
        cosine = _WordCosines.apply(*inputs, options)
    return cosine


def soft_maximum(cosine: Tensor, word_mask: Tensor, temperature: float, *, mean: bool) -> Tensor:
    """``τ log Σ exp(r / τ)`` over the real words, or with ``mean`` of their mean.

    Of float32 cosines ``(image, text, word)`` what :func:`gloria.aggregators.masked_logsumexp` and
    :func:`gloria.aggregators.masked_logmeanexp` give, ``(image, text)``, in one launch each way.
    """
    similarity: Tensor = _SoftMaximum.apply(
        cosine.contiguous(), word_mask.contiguous(), temperature, mean
    )
    return similarity


# Block sizes.


class Launch(NamedTuple):
    """How one kernel runs."""

    regions: int
    """Regions of a program"""
    words: int
    """Words at a time"""
    warps: int
    stages: int
    """Depth of the pipeline over words"""


class Blocks(NamedTuple):
    """How the matching kernels run."""

    attend: Launch
    """All regions of an image, and what fills a power of two"""
    cosine: Launch
    """As many"""
    score_gradient: Launch


@functools.cache
def choose_blocks(regions: int, kind: torch.dtype = torch.bfloat16) -> Blocks:
    """The blocks for images of so many regions; how many images and texts changes nothing.

    The fastest of those that an H200 tried for 49, 196 and 361 regions (``triton.md``), and carried
    on for wider images: one warp, for then a sum over a text's words never leaves a thread. In
    float32 the score gradient has fewer stages, or it would spill registers.
    """
    width = 128
    while width < regions:
        width *= 2
    if width == 128:
        narrow = Launch(128, 4, 1, 1)
        return Blocks(narrow, Launch(128, 8, 1, 1), narrow._replace(words=2))
    return Blocks(
        attend=Launch(width, max(1, 512 // width), max(1, width // 1024), 3),
        cosine=Launch(width, 4, max(1, width // 512), 1),
        score_gradient=Launch(128, 4 if width > 256 else 2, 1, 3 if kind.itemsize == 2 else 2),
    )


# The texts' words, packed.


class Packed(NamedTuple):
    """The real words of all texts in one list of columns; see :mod:`triton_kernels`."""

    words: Tensor
    """(column, dim)"""
    lengths: Tensor
    """(column,) float32"""
    starts: Tensor
    """(text + 1,) first column of each text, and the end"""
    word_of_column: Tensor
    """(column,) index into the flattened (text, word); -1 where an upper bound has no word"""
    column_of_word: Tensor
    """(text · word,) and back; -1 for padding"""


def pack(words: Tensor, word_mask: Tensor, dim: int, counts: list[int] | None) -> Packed:
    """The packed words, ``dim`` wide with zeros behind.

    Without ``counts``, the number of words of each text, there are as many columns as positions.
    """
    texts, positions, width = words.shape
    if counts is None:
        columns, new = texts * positions, words.new_zeros
        starts = torch.zeros(texts + 1, dtype=torch.int32, device=words.device)
        torch.cumsum(word_mask.sum(1), 0, dtype=torch.int32, out=starts[1:])
        word_of_column = words.new_full((columns,), -1, dtype=torch.int32)
    else:
        ends = list(itertools.accumulate(counts, initial=0))
        columns, new = ends[-1], words.new_empty
        # without waiting; pinned, or it might be freed before it is read
        starts = torch.tensor(ends, dtype=torch.int32, device="cpu", pin_memory=words.is_cuda)
        starts = starts.to(words.device, non_blocking=True)
        word_of_column = words.new_empty(columns, dtype=torch.int32)
    packed = Packed(
        new((columns, dim)),
        new(columns, dtype=torch.float32),
        starts,
        word_of_column,
        words.new_empty(texts * positions, dtype=torch.int32),
    )
    kernels().pack_words[(texts, ceil_div(positions, 16))](
        words, word_mask, starts,
        packed.words, packed.lengths, packed.word_of_column, packed.column_of_word,
        positions, width, dim, WORDS=16, DIM=256, **FUSED,
    )  # fmt: skip
    return packed


# Forward and backward.


class Found(NamedTuple):
    """What the forward leaves: the cosines, and by (image, column) what they are made of."""

    cosine: Tensor
    """(image, text, word), 0 at masked words"""
    product: Tensor
    """``<c, t>`` of a word t and what it attends to, c"""
    square: Tensor
    """``‖c‖²``"""

    @property
    def apart(self) -> int:
        """From one image to the next, in numbers of the rest."""
        return self.product.shape[1]


class Attended(NamedTuple):
    """What is known of some images and every column; (column, image, region) each."""

    scores: Tensor
    """float32"""
    weights: Tensor
    """Attention"""
    attended: Tensor
    """Gram matrix times attention"""
    regions: Tensor
    """(image, region, dim), of the kind of these, with zeros up to whole octets"""


class Matcher:
    """One problem on its way: inputs in the form the kernels take."""

    def __init__(self, inputs: MatchingInputs, options: MatchingOptions) -> None:
        regions, words, word_mask, region_mask, counts = inputs
        self.images, self.region_count, self.width = regions.shape
        self.texts, self.positions, _ = words.shape
        # the rows of every matrix are whole octets: unaligned ones multiply ten times slower
        dim = round_up(self.width, OCTET)
        self.padded = round_up(self.region_count, OCTET)
        self.missing = dim - self.width, self.padded - self.region_count
        self.regions = regions.contiguous()
        self.words = words.contiguous()
        # while a CUDA graph is captured nothing may be read, and there are columns nothing writes
        if counts is None and not capturing(words):
            counts = word_mask.sum(1).tolist()
        self.packed = pack(self.words, word_mask.contiguous(), dim, counts)
        self.region_mask = None if region_mask is None else region_mask.contiguous()
        self.columns = len(self.packed.words)
        self.new = torch.zeros if counts is None else torch.empty
        self.over_words = options.attention == "words_then_regions"
        # a number of numpy is no kernel argument, nor what comes of it
        self.inverse_temperature = 1 / float(options.attention_temperature)
        self.budget = int(options.memory_budget)
        # what is kept between kernels: float16 has not the range for squares and gradients
        half = regions.dtype != torch.float32
        self.kind = torch.bfloat16 if half else torch.float32
        self.blocks = choose_blocks(self.padded, self.kind)
        sizes = self.columns, self.region_count, self.width, self.kind.itemsize
        self.bytes_forward, self.bytes_backward = bytes_of_image(*sizes)

    def forward(self, *, keep: bool, everywhere: bool = False) -> tuple[Found, Attended | None]:
        """What is found, ``everywhere`` with zeros behind, as for masked words; what is kept.

        All stays for the backward, or nothing, which is then made again.
        """
        shape = self.images, self.texts, self.positions
        cosine = self.words.new_zeros(shape, dtype=torch.float32)
        apart = self.texts * self.positions if everywhere else self.columns
        new = cosine.new_zeros if everywhere else cosine.new_empty
        found = Found(cosine, *(new(self.images, apart) for _ in range(2)))
        keep = keep and self.images * self.bytes_backward <= self.budget
        attended = None
        if not (self.images and self.columns):
            return found, None
        for first, last in chunks(self.images, self.bytes_forward, self.budget):
            attended = self.attend(first, last, found, self.texts)
            if not keep:
                attended = None  # before the next images take theirs
        return found, attended

    def attend(self, first: int, last: int, found: Found, texts: int) -> Attended:
        """Of some images, whose part of what is found is filled in.

        Their cosines are ``texts`` texts apart; with none, all are written to one place.
        """
        images = last - first
        part = self.part(first, last)
        scores = product_in_float32(self.packed.words, part.flatten(0, 1).T)
        weights = self.empty(images)
        launch = self.blocks.attend
        kernels().attend[(self.texts * images,)](
            scores, self.region_mask, self.packed.starts, weights, found.product,
            first, images, self.region_count, self.padded // OCTET, found.apart,
            self.inverse_temperature,
            MASKED=self.region_mask is not None, OVER_WORDS=self.over_words,
            WORDS=launch.words, REGIONS=launch.regions, STAGES=launch.stages,
            num_warps=launch.warps, **FUSED,
        )  # fmt: skip
        part = part.to(self.kind)
        attended = torch.empty_like(weights)
        torch.bmm(weights.transpose(0, 1), torch.bmm(part, part.mT), out=attended.transpose(0, 1))
        launch = self.blocks.cosine
        kernels().cosine[(ceil_div(self.columns, launch.words) * images,)](
            weights, attended, self.packed.lengths, self.packed.word_of_column,
            found.product, found.square, found.cosine,
            first, images, self.padded // OCTET,
            texts, self.positions, self.columns, found.apart,
            WORDS=launch.words, REGIONS=launch.regions, num_warps=launch.warps, **FUSED,
        )  # fmt: skip
        return Attended(scores, weights, attended, part)

    def part(self, first: int, last: int) -> Tensor:
        """Some images' regions, with zeros up to whole octets."""
        part = self.regions[first:last]
        return pad(part, (0, self.missing[0], 0, self.missing[1])) if any(self.missing) else part

    def empty(self, images: int) -> Tensor:
        """One number per element, (column, image, region); defined where no word is written."""
        shape = self.columns, images, self.padded
        return self.new(shape, dtype=self.kind, device=self.words.device)

    def backward(
        self, upstream: Tensor, found: Found, kept: Attended | None, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of regions and words, where needed."""
        upstream = upstream.contiguous()
        none = not (self.images and self.columns)
        new = torch.zeros_like if none else torch.empty_like
        regions_gradient = new(self.regions) if needs[0] else None
        words_gradient = new(self.words) if needs[1] else None
        if none:
            return regions_gradient, words_gradient
        packed_words = self.packed.words.to(self.kind)
        packed_gradient: Tensor | None = None
        if kept is None:
            # made again, scores and Gram matrices may differ in their last bits, for they come of
            # products of another size: what is averaged over the regions has to be of these
            product, square = torch.empty_like(found.product), torch.empty_like(found.square)
            found = found._replace(product=product, square=square)
        budget = self.images * self.bytes_backward if kept else self.budget
        for first, last in chunks(self.images, self.bytes_backward, budget):
            out = None if regions_gradient is None else regions_gradient[first:last]
            more = self.gradients(first, last, upstream, found, kept, packed_words, out, needs[1])
            if packed_gradient is None:
                packed_gradient = more
            elif more is not None:
                packed_gradient.add_(more)
        if words_gradient is not None:
            kernels().unpack_word_gradient[(self.texts, ceil_div(self.positions, 16))](
                packed_gradient, self.words, self.packed.lengths, self.packed.column_of_word,
                upstream, found.cosine, found.square, words_gradient,
                self.images, self.texts, self.positions, found.apart,
                self.width, self.packed.words.shape[1],
                WORDS=16, DIM=128, **FUSED,
            )  # fmt: skip
        return regions_gradient, words_gradient

    def gradients(
        self,
        first: int,
        last: int,
        upstream: Tensor,
        found: Found,
        kept: Attended | None,
        packed_words: Tensor,
        out: Tensor | None,
        of_words: bool,
    ) -> Tensor | None:
        """Of some images' regions to ``out``; through them of the packed words, in float32."""
        images = last - first
        if kept is None:
            unread = found.cosine.new_empty(self.texts * self.positions)
            kept = self.attend(first, last, found._replace(cosine=unread), 0)
        gradient, curved = self.empty(images), self.empty(images)
        terms = upstream.new_empty((images, 4, self.columns))
        kernels().differentiate_cosine[(ceil_div(self.columns, 256) * images,)](
            upstream, found.cosine, found.product, found.square,
            self.packed.lengths, self.packed.word_of_column, terms,
            first, images, self.texts, self.positions, self.columns, found.apart,
            BLOCK=256, **FUSED,
        )  # fmt: skip
        launch = self.blocks.score_gradient
        blocks = ceil_div(self.padded, launch.regions)
        kernels().score_gradient[(self.texts * images * blocks,)](
            kept.scores, kept.weights, kept.attended, self.packed.starts, terms,
            gradient, curved,
            images, self.padded // OCTET, self.columns, blocks, self.inverse_temperature,
            OVER_WORDS=self.over_words,
            WORDS=launch.words, REGIONS=launch.regions, STAGES=launch.stages,
            num_warps=launch.warps, **FUSED,
        )  # fmt: skip
        rows, part = gradient.flatten(1), kept.regions
        if out is not None:
            through_gram = torch.bmm(curved.permute(1, 2, 0), kept.weights.transpose(0, 1))
            direct = torch.mm(rows.T, packed_words).view(part.shape)
            real = slice(self.region_count)
            if out.dtype == self.kind and out.shape[2] == part.shape[2]:
                torch.baddbmm(direct[:, real], through_gram[:, real], part, out=out)
            else:  # of another type, or rows of no whole octets
                out.copy_(torch.baddbmm(direct, through_gram, part)[:, real, : self.width])
        return product_in_float32(rows, part.flatten(0, 1)) if of_words else None


def product_in_float32(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, accumulated and returned in float32."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda and torch.version.hip is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


class _WordCosines(torch.autograd.Function):
    """The cosines outside a compiled graph, where what fits the budget is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        regions: Tensor,
        words: Tensor,
        word_mask: Tensor,
        region_mask: Tensor | None,
        word_counts: list[int] | None,
        options: MatchingOptions,
    ) -> Tensor:
        inputs = MatchingInputs(regions, words, word_mask, region_mask, word_counts)
        with full_precision(regions), torch.cuda.device_of(regions):
            matcher = Matcher(inputs, options)
            needed = any(ctx.needs_input_grad)
            found, kept = matcher.forward(keep=needed)
        if needed:
            ctx.made, ctx.word_counts, ctx.options = (matcher, kept), word_counts, options
            ctx.save_for_backward(*found, *inputs[:4])
        return found.cosine

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        *found, regions, words, word_mask, region_mask = ctx.saved_tensors
        inputs = MatchingInputs(regions, words, word_mask, region_mask, ctx.word_counts)
        needs = ctx.needs_input_grad[:2]
        if out_of_reach(upstream):
            definition = functools.partial(cosines_by_definition, inputs, ctx.options)
            return *by_definition(definition, (regions, words), needs, upstream), *[None] * 4
        with full_precision(upstream), torch.cuda.device_of(upstream):
            # used up: whoever holds on to a loss does not hold on to these
            matcher, kept = ctx.made or (Matcher(inputs, ctx.options), None)
            ctx.made = None
            gradients = matcher.backward(upstream, Found(*found), kept, needs)
        return *gradients, *[None] * 4


def cosines_by_definition(
    inputs: MatchingInputs, options: MatchingOptions, regions: Tensor, words: Tensor
) -> Tensor:
    """The same cosines of regions and words, by the definition; the masks are of the inputs."""
    # it reads masked words, where anything may stand
    words = words.masked_fill(~inputs.word_mask[..., None], 0.0)
    wide = inputs._replace(regions=regions.float(), words=words.float())
    return einops.word_cosines(wide, options)


class _SoftMaximum(torch.autograd.Function):
    """:func:`soft_maximum`; its result is not kept, so that whoever gets it may change it."""

    @staticmethod
    def forward(
        ctx: Any, cosine: Tensor, word_mask: Tensor, temperature: float, mean: bool
    ) -> Tensor:
        images, texts, words = cosine.shape
        similarity = cosine.new_empty((images, texts))
        ctx.save_for_backward(cosine, word_mask)
        ctx.temperature, ctx.mean = temperature, mean
        if similarity.numel():
            with torch.cuda.device_of(cosine):
                kernels().soft_maximum[(ceil_div(images, 16) * texts,)](
                    cosine, word_mask, similarity, images, texts, words, 1 / temperature,
                    MEAN=mean, IMAGES=16, WORDS=32, **FUSED,
                )  # fmt: skip
        return similarity

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        cosine, word_mask = ctx.saved_tensors
        if out_of_reach(upstream):
            reduce = masked_logmeanexp if ctx.mean else masked_logsumexp
            definition = functools.partial(
                reduce, mask=word_mask[None], dim=-1, temperature=ctx.temperature
            )
            return *by_definition(definition, [cosine], [True], upstream), *[None] * 3
        gradient = torch.empty_like(cosine)
        images, texts, words = cosine.shape
        if gradient.numel():
            with torch.cuda.device_of(cosine):
                kernels().soft_maximum_gradient[(ceil_div(images, 16) * texts,)](
                    upstream, cosine, word_mask, gradient,
                    *upstream.stride(), images, texts, words, 1 / ctx.temperature,
                    IMAGES=16, WORDS=32, **FUSED,
                )  # fmt: skip
        return gradient, *[None] * 3


# Inside a compiled graph the whole matching is one opaque operator, which keeps nothing.


@torch.library.custom_op("gloria::word_cosines", mutates_args=())
def attention_cosine(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    attention: str,
    temperature: float,
    memory_budget: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """:class:`Found`."""
    with full_precision(regions), torch.cuda.device_of(regions):
        inputs = MatchingInputs(regions, words, word_mask, region_mask)
        options = MatchingOptions.of_attention(attention, temperature, memory_budget)
        matcher = Matcher(inputs, options)
        found, _ = matcher.forward(keep=False, everywhere=True)
    return found.cosine, found.product, found.square


@torch.library.custom_op("gloria::word_cosines_backward", mutates_args=())
def attention_cosine_backward(
    upstream: Tensor,
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    cosine: Tensor,
    product: Tensor,
    square: Tensor,
    attention: str,
    temperature: float,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of regions and words."""
    with full_precision(regions), torch.cuda.device_of(regions):
        inputs = MatchingInputs(regions, words, word_mask, region_mask)
        options = MatchingOptions.of_attention(attention, temperature, memory_budget)
        matcher = Matcher(inputs, options)
        found = Found(cosine, product, square)
        regions_gradient, words_gradient = matcher.backward(upstream, found, None, (True, True))
    assert regions_gradient is not None
    assert words_gradient is not None
    return regions_gradient, words_gradient


@attention_cosine.register_fake
def _(regions: Tensor, words: Tensor, *_: Any) -> tuple[Tensor, ...]:
    images, (texts, positions) = regions.shape[0], words.shape[:2]
    cosine = regions.new_empty((images, texts, positions), dtype=torch.float32)
    return cosine, *(cosine.new_empty((images, texts * positions)) for _ in Found._fields[1:])


@attention_cosine_backward.register_fake
def _(_: Tensor, regions: Tensor, words: Tensor, *__: Any) -> tuple[Tensor, Tensor]:
    return regions.new_empty(regions.shape), words.new_empty(words.shape)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, attention, temperature, memory_budget = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = attention, temperature, memory_budget


def differentiate(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gradients = attention_cosine_backward(upstream, *ctx.saved_tensors, *ctx.options)
    return *gradients, None, None, None, None, None


attention_cosine.register_autograd(differentiate, setup_context=save)
attention_cosine_backward.register_autograd(refuse_second_derivative)


# Their parts.


def bytes_of_image(columns: int, regions: int, dim: int, size: int) -> tuple[int, int]:
    """What one image takes, forward and backward, in numbers of ``size`` bytes but the scores."""
    regions, dim = round_up(regions, OCTET), round_up(dim, OCTET)
    element, square = columns * regions, regions**2
    forward = element * (4 + 2 * size) + size * square
    return forward, element * (4 + 4 * size) + size * (2 * square + 2 * regions * dim)


def chunks(images: int, bytes_each: int, budget: int) -> list[tuple[int, int]]:
    """As few and as even runs of images as the budget allows."""
    step = images_together(images, bytes_each, budget)
    return [(first, min(first + step, images)) for first in range(0, images, step)]


def images_together(images: int, bytes_each: int, budget: int) -> int:
    """How many images the longest run of :func:`chunks` has."""
    return ceil_div(images, ceil_div(images, max(1, budget // max(1, bytes_each))))


def round_up(size: int, step: int) -> int:
    return ceil_div(size, step) * step
