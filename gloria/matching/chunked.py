"""Local matching in bounded memory: plain PyTorch, any device, exact forward and backward.

The scores of all words with all regions are made tile by tile, some words by some images, and only
the cosines leave. What makes it fast:

- **No padding.** The real words of all texts are packed, shortest texts first; texts of one length
  are neighbours, so that the softmax over their words is one call.
- **The Gram identity.** With ``G = V Vᵀ`` the attended feature ``c = Σ_j a_j v_j`` need not be
  made: ``<c, v_j> = (G a)_j`` and ``‖c‖² = aᵀ G a``. Where few words meet many regions, making
  ``c`` is the cheaper of the two, and is done.
- **Slopes instead of scores.** How r changes with s is known before any upstream gradient is: but
  for the scale it takes the scores' place in the forward, and the backward only multiplies it.
- **Recomputation.** Of what the backward needs, as much is kept as fits the memory budget; the rest
  is computed again.

Of ``r = n / d``, with ``n = Σ a s`` and ``d = max(‖c‖ ‖t‖, 1e-8)``, and an upstream gradient g::

    h  = s - r ‖t‖² / d · G a                 how r changes with a, times d
    ds = g / d · (a + (h through the softmaxes))
    dt = Σ ds v - Σ g r t / ‖t‖²              dv = Σ ds t - Σ g r (‖t‖ / d)² a c

Where the bound of d is active, the terms with r are 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from gloria.matching import einops
from gloria.matching.problem import (
    EPS,
    MatchingInputs,
    MatchingOptions,
    Problem,
    by_definition,
    full_precision,
    out_of_reach,
    refuse_second_derivative,
    why_only_the_definition,
)

TAKES_HALF_PRECISION = False
READS_MASKED_WORDS = False
RUNS_KERNELS = False

CACHE_TILE = 4 * 2**20
"""Bytes of a tile on a CPU, so that the steps between two products find it in the cache."""

WORKING_TILES = 5
"""Tiles at work at a time: scores, their softmax over words, weights, pulls, products of two."""

ILL_CONDITIONED = 1e-4
"""Below this share of ``max ‖v‖²``, too much of ``aᵀ G a`` has cancelled.

Just above, two opposite regions leave float32 cosines off by 3e-4, hundreds by 1e-6. A higher bound
would catch the mean of a thousand unrelated regions, as short, of which nothing cancels.
"""


def reasons_not_supported(problem: Problem) -> list[str]:
    """Why this backend cannot run the problem: no values, or a transform around it."""
    return why_only_the_definition(problem.device)


def gram_is_cheaper(regions: int, words: int, dim: int) -> bool:
    """Whether ``G a``, G included, takes fewer operations than ``c = a V``, for one image."""
    return regions * (dim + words) < 2 * words * dim


def word_cosines(inputs: MatchingInputs, options: MatchingOptions) -> Tensor:
    """Cosine of each word with the region feature it attends to, ``(image, text, word)``."""
    if torch.compiler.is_compiling():
        compiled: Tensor = _word_cosines(
            *inputs[:4], options.attention, options.attention_temperature, options.memory_budget
        )
        return compiled
    packing = Packing.of(inputs.word_mask, inputs.word_counts)
    regions, words = inputs.regions.contiguous(), packing.pack(inputs.words)
    # a function's own needs_input_grad does not know that nobody records
    needs_gradient = torch.is_grad_enabled() and (regions.requires_grad or words.requires_grad)
    cosine: Tensor = _PackedCosines.apply(
        regions, words, inputs.region_mask, packing, options, needs_gradient
    )
    return packing.unpack(cosine)


class Group(NamedTuple):
    """Neighbouring packed texts of one length."""

    texts: int
    length: int


class Block(NamedTuple):
    """A run of whole packed texts."""

    words: slice
    groups: list[Group]

    def by_text(self, *tiles: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Each group's part of some tiles, as ``(text, word, image · region)``."""
        sizes = [texts * length for texts, length in self.groups]
        parts = zip(*(tile.split(sizes) for tile in tiles), strict=True)
        for (texts, length), part in zip(self.groups, parts, strict=True):
            yield tuple(rows.view(texts, length, -1) for rows in part)


@dataclass(frozen=True)
class Packing:
    """Where the real words of all texts are, texts sorted by length.

    Attributes:
        positions: ``(packed word)``, indices into the flattened ``(text, word)``.
        groups: texts of one length, in packed order.
        texts: number of texts, those without a word included.
        words: number of positions of a text.
    """

    positions: Tensor
    groups: list[Group]
    texts: int
    words: int

    @classmethod
    def of(cls, word_mask: Tensor, counts: list[int] | None = None) -> Packing:
        """The packing of a ``(text, word)`` mask; ``counts`` of its texts, where they are known."""
        lengths: list[int] = word_mask.sum(1).tolist() if counts is None else counts
        texts, words = word_mask.shape
        shortest_first = sorted(range(texts), key=lengths.__getitem__)
        order = torch.tensor(shortest_first, dtype=torch.long, device=word_mask.device)
        text, word = word_mask[order].nonzero(as_tuple=True)
        groups = [Group(count, each) for each, count in sorted(Counter(lengths).items()) if each]
        return cls(order[text] * words + word, groups, texts, words)

    def pack(self, words: Tensor) -> Tensor:
        """``(text, word, dim)`` → ``(packed word, dim)``."""
        return words.flatten(0, 1).index_select(0, self.positions)

    def unpack_words(self, packed: Tensor) -> Tensor:
        """``(packed word, dim)`` → ``(text, word, dim)``, zeros elsewhere."""
        empty = packed.new_zeros(self.texts * self.words, packed.shape[1])
        shape = self.texts, self.words, packed.shape[1]
        return empty.index_copy(0, self.positions, packed).view(shape)

    def unpack(self, cosine: Tensor) -> Tensor:
        """``(packed word, image)`` → ``(image, text, word)``, zeros elsewhere."""
        return self.unpack_words(cosine).permute(2, 0, 1)

    def blocks(self, most: int) -> Iterator[Block]:
        """The packed words in runs of at most ``most`` words, or of one longer text."""
        start, filled, groups = 0, 0, list[Group]()
        for texts, length in self.groups:
            while texts:
                fitting = min(texts, max(0, most - filled) // length)
                if not fitting and groups:
                    yield Block(slice(start, start + filled), groups)
                    start, filled, groups = start + filled, 0, []
                    continue
                fitting = max(fitting, 1)
                groups.append(Group(fitting, length))
                filled += fitting * length
                texts -= fitting
        if groups:
            yield Block(slice(start, start + filled), groups)


class Matched(NamedTuple):
    """What there is of one tile when its cosines are made."""

    scores: Tensor
    weights: Tensor
    softmax: Tensor | None
    """Over words, where there are two softmaxes."""
    pulls: Tensor


class Slopes(NamedTuple):
    """What the backward takes from one tile."""

    slopes: Tensor
    """``d ∂r/∂s``; with two softmaxes ``d ∂r/∂(p / attention_temperature)``."""
    weights: Tensor
    softmax: Tensor | None
    """Over words, where there are two softmaxes."""
    attended: Tensor | None
    """c, where it is made."""


@dataclass
class Forward:
    """Cosines, and what the backward takes from them.

    Attributes:
        cosine: r, ``(packed word, image)``.
        denominator: d, likewise.
        bounded: where the bound of d is active, likewise.
        grams: G by first image, as many as fitted the budget.
        tiles: by first word and first image, as many as fitted.
    """

    cosine: Tensor
    denominator: Tensor
    bounded: Tensor
    grams: dict[int, Tensor] = field(default_factory=dict)
    tiles: dict[tuple[int, int], Slopes] = field(default_factory=dict)


class Matcher:
    """Forward and backward of one problem, tile by tile.

    A tile is ``(packed word, image, region)``. The *pulls* of a tile are what its weights gather
    from the regions: ``G a``, a tile itself, or, where that is cheaper, ``c (image, packed word,
    dim)``.

    Args:
        regions: ``(image, region, dim)``.
        words: ``(packed word, dim)``.
        region_mask: ``(image, region)`` boolean, or None.
        packing: of the words.
        options: the attention and the memory budget.
    """

    def __init__(
        self,
        regions: Tensor,
        words: Tensor,
        region_mask: Tensor | None,
        packing: Packing,
        options: MatchingOptions,
    ) -> None:
        self.regions, self.words, self.region_mask = regions.contiguous(), words, region_mask
        self.two_softmaxes = options.attention == "words_then_regions"
        self.steepness = 1 / options.attention_temperature
        self.word_norms = vector_norm(words, dim=1)[:, None]

        images, across, dim = regions.shape
        bytes_each = regions.element_size()
        self.use_gram = gram_is_cheaper(across, len(words), dim)
        tile = options.memory_budget // (2 * WORKING_TILES * bytes_each)
        if regions.device.type == "cpu":
            tile = min(tile, CACHE_TILE // bytes_each)
        width = max(1, across, 0 if self.use_gram else dim)
        self.blocks = list(packing.blocks(tile // width))
        tall = max((block.words.stop - block.words.start for block in self.blocks), default=0)
        together = max(1, min(images, tile // max(tall * width, 1)))
        self.chunks = [slice(i, min(i + together, images)) for i in range(0, images, together)]
        self.scratch = regions.new_empty(WORKING_TILES, tall * together * across)
        pulls = 0 if self.use_gram else tall * together * dim
        gram = 2 * together * across**2 if self.use_gram else 0  # and its gradient
        at_work = 2 * words.numel() + self.scratch.numel() + pulls + gram
        self.room = options.memory_budget - at_work * bytes_each

    def forward(self, keep: bool) -> Forward:
        """The cosines; with ``keep``, what fits the budget stays for the backward."""
        shape = len(self.words), len(self.regions)
        cosine, denominator = self.regions.new_empty(2, *shape)
        bounded = torch.empty(shape, dtype=torch.bool, device=cosine.device)
        result = Forward(cosine, denominator, bounded)
        for images in self.chunks:
            gram = self.gram(images)
            if keep and gram is not None and self.fits(gram.numel()):
                result.grams[images.start] = gram
            for block in self.blocks:
                fits = keep and self.fits(self.size_kept(block, images))
                matched = self.match(block, images, gram, result, fresh=fits)
                if fits:
                    slopes = self.differentiate(matched, block, images, result)
                    result.tiles[block.words.start, images.start] = slopes
        return result

    def match(
        self, block: Block, images: slice, gram: Tensor | None, result: Forward, *, fresh: bool
    ) -> Matched:
        """Write a tile's cosines to the result."""
        here = block.words, images
        scores = self.scores(block, images, fresh)
        softmax, weights = self.attend(scores, block, images, fresh)
        pulls = self.pull(weights, block, images, gram)
        products = self.tile(4, block, images)
        if gram is None:
            norm = vector_norm(pulls, dim=2).mT
        else:
            square = torch.mul(weights, pulls, out=products).sum(-1)
            self.repair(square, weights, images, gram)
            norm = square.sqrt()
        exact = norm * self.word_norms[block.words]
        torch.clamp_min(exact, EPS, out=result.denominator[here])
        torch.le(exact, EPS, out=result.bounded[here])
        numerator = torch.mul(weights, scores, out=products).sum(-1)
        # where regions cancel, rounding may leave too short a norm; no cosine is beyond 1
        torch.div(numerator, result.denominator[here], out=result.cosine[here]).clamp_(-1.0, 1.0)
        return Matched(scores, weights, softmax, pulls)

    def differentiate(
        self, matched: Matched, block: Block, images: slice, result: Forward
    ) -> Slopes:
        """How a tile's cosines change; the slopes take the scores' place."""
        here = block.words, images
        scores, weights, softmax, pulls = matched
        overlap = pulls
        if not self.use_gram:
            overlap = self.tile(3, block, images)
            torch.bmm(pulls, self.regions[images].mT, out=overlap.transpose(0, 1))
        norms = self.word_norms[block.words]
        through_norm = result.cosine[here] * norms * (norms / result.denominator[here])
        through_norm.masked_fill_(result.bounded[here], 0.0)
        slopes = scores.addcmul_(overlap, through_norm[..., None], value=-1)
        softmax_backward(slopes, weights, -1, out=slopes)
        if softmax is None:
            torch.add(weights, slopes, alpha=self.steepness, out=slopes)
        return Slopes(slopes, weights, softmax, None if self.use_gram else pulls)

    def backward(
        self, grad: Tensor, result: Forward, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of regions and packed words, where needed, from that of the cosines."""
        empty = self.regions.new_empty if self.blocks else self.regions.new_zeros
        grad_regions = empty(self.regions.shape) if needs[0] else None
        grad_words = self.words.new_zeros(self.words.shape) if needs[1] else None
        exact = (grad * result.cosine).masked_fill(result.bounded, 0.0)
        d_numerator = grad / result.denominator
        d_square = -exact * (self.word_norms / result.denominator).square()
        d_square.masked_fill_(result.bounded, 0.0)
        for images in self.chunks:
            regions = self.regions[images]
            # what was kept is used up: a second backward computes it again
            gram = result.grams.pop(images.start, None)
            gram = self.gram(images) if gram is None else gram
            grad_gram = None if gram is None else torch.zeros_like(gram)
            for block in self.blocks:
                here = block.words, images, None
                kept = result.tiles.pop((block.words.start, images.start), None)
                if kept is None:
                    matched = self.match(block, images, gram, result, fresh=False)
                    kept = self.differentiate(matched, block, images, result)
                slopes, weights, softmax, attended = kept
                if softmax is None:
                    grad_scores = slopes.mul_(d_numerator[here])
                else:
                    slopes.mul_(self.steepness * d_numerator[here])
                    grad_scores = self.tile(3, block, images)
                    for text, probability, into in block.by_text(slopes, softmax, grad_scores):
                        softmax_backward(text, probability, 1, out=into)
                    grad_scores.addcmul_(weights, d_numerator[here])

                if grad_words is not None:
                    into = grad_words[block.words]
                    into.addmm_(grad_scores.flatten(1), regions.flatten(0, 1))
                if grad_regions is None:
                    continue
                into = grad_regions[images]
                into.flatten(0, 1).addmm_(
                    grad_scores.flatten(1).mT,
                    self.words[block.words],
                    beta=0 if block is self.blocks[0] else 1,  # 0: what stood there is not read
                )
                spread = torch.mul(weights, d_square[here], out=self.tile(4, block, images))
                if attended is not None:
                    into.baddbmm_(spread.permute(1, 2, 0), attended)
                elif grad_gram is not None:
                    grad_gram.baddbmm_(spread.permute(1, 2, 0), weights.transpose(0, 1))
            if grad_regions is not None and grad_gram is not None:
                grad_regions[images].baddbmm_(grad_gram, regions)
        if grad_words is not None:
            share = exact.sum(1, keepdim=True) / self.word_norms.square()
            grad_words -= share.masked_fill(self.word_norms == 0, 0.0) * self.words
        return grad_regions, grad_words

    def gram(self, images: slice) -> Tensor | None:
        """``G (image, region, region)``, where it is used."""
        regions = self.regions[images]
        return torch.bmm(regions, regions.mT) if self.use_gram else None

    def scores(self, block: Block, images: slice, fresh: bool) -> Tensor:
        """``s``, the dot product of every word with every region."""
        out = self.tile(0, block, images, fresh)
        regions = self.regions[images].flatten(0, 1)
        torch.mm(self.words[block.words], regions.mT, out=out.flatten(1))
        return out

    def attend(
        self, scores: Tensor, block: Block, images: slice, fresh: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The softmax over words, if there is one, and the weights ``a``."""
        softmax, weights = None, self.tile(2, block, images, fresh)
        if self.two_softmaxes:
            softmax = self.tile(1, block, images, fresh)
            for text, into in block.by_text(scores, softmax):
                torch.softmax(text, 1, out=into)
        torch.mul(scores if softmax is None else softmax, self.steepness, out=weights)
        if self.region_mask is None:
            torch.softmax(weights, -1, out=weights)
        else:
            mask = ~self.region_mask[images]
            torch.softmax(weights.masked_fill_(mask, -torch.inf), -1, out=weights)
            weights.masked_fill_(mask, 0.0)  # an image without a region had no softmax
        return softmax, weights

    def pull(self, weights: Tensor, block: Block, images: slice, gram: Tensor | None) -> Tensor:
        """What the weights gather: ``G a`` with a Gram matrix, else ``c``."""
        by_image = weights.transpose(0, 1)
        if gram is None:
            return torch.bmm(by_image, self.regions[images])
        out = self.tile(3, block, images)
        torch.bmm(by_image, gram, out=out.transpose(0, 1))
        return out

    def repair(self, square: Tensor, weights: Tensor, images: slice, gram: Tensor) -> None:
        """Make ``‖c‖²`` from c itself wherever ``aᵀ G a`` has cancelled."""
        lost = square < ILL_CONDITIONED * gram.diagonal(dim1=1, dim2=2).amax(1)
        if lost.any():
            for index, regions in enumerate(self.regions[images]):
                rows = lost[:, index]
                square[rows, index] = (weights[rows, index] @ regions).square().sum(1)

    def tile(self, index: int, block: Block, images: slice, fresh: bool = False) -> Tensor:
        """A tile to write to: a scratch that the next tile overwrites, or a fresh one."""
        shape = (
            block.words.stop - block.words.start,
            images.stop - images.start,
            self.regions.shape[1],
        )
        if fresh:
            return self.regions.new_empty(shape)
        return self.scratch[index, : math.prod(shape)].view(shape)

    def size_kept(self, block: Block, images: slice) -> int:
        """Numbers in what is kept of one tile."""
        across, dim = self.regions.shape[1:]
        pairs: int = (block.words.stop - block.words.start) * (images.stop - images.start)
        return pairs * (across * (3 if self.two_softmaxes else 2) + (0 if self.use_gram else dim))

    def fits(self, numbers: int) -> bool:
        """Take room for so many numbers, if there is any."""
        size = numbers * self.regions.element_size()
        if size > self.room:
            return False
        self.room -= size
        return True


def softmax_backward(grad: Tensor, softmax: Tensor, dim: int, out: Tensor) -> None:
    """``p (g - Σ p g)``: the gradient of what a softmax p over ``dim`` was taken of."""
    torch._softmax_backward_data(grad, softmax, dim, grad.dtype, grad_input=out)


class _PackedCosines(torch.autograd.Function):
    """``(packed word, image)`` cosines of regions and packed words."""

    @staticmethod
    def forward(
        ctx: Any,
        regions: Tensor,
        words: Tensor,
        region_mask: Tensor | None,
        packing: Packing,
        options: MatchingOptions,
        needs_gradient: bool,
    ) -> Tensor:
        matcher = Matcher(regions, words, region_mask, packing, options)
        ctx.result = matcher.forward(keep=needs_gradient)
        ctx.save_for_backward(regions, words, region_mask)
        ctx.packing, ctx.options = packing, options
        # a copy: an output that its own graph holds is never freed
        cosine: Tensor = ctx.result.cosine.clone()
        return cosine

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        regions, words, region_mask = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if out_of_reach(grad):
            definition = partial(_definition, region_mask, ctx.packing, ctx.options)
            return *by_definition(definition, (regions, words), needs, grad), *[None] * 4
        with full_precision(grad):
            matcher = Matcher(regions, words, region_mask, ctx.packing, ctx.options)
            return *matcher.backward(grad, ctx.result, needs), *[None] * 4


def _definition(
    region_mask: Tensor | None,
    packing: Packing,
    options: MatchingOptions,
    regions: Tensor,
    words: Tensor,
) -> Tensor:
    """The same cosines of regions and packed words, by the definition."""
    padded = packing.unpack_words(words)
    real = padded.new_zeros(padded.shape[:2], dtype=torch.bool)
    real.view(-1)[packing.positions] = True
    cosine = einops.word_cosines(MatchingInputs(regions, padded, real, region_mask), options)
    return cosine.flatten(1).index_select(1, packing.positions).mT


# Inside a compiled graph the whole matching is one opaque operator, which keeps nothing.


@torch.library.custom_op("gloria::chunked_word_cosines", mutates_args=())
def _word_cosines(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    attention: str,
    attention_temperature: float,
    memory_budget: int,
) -> Tensor:
    options = MatchingOptions.of_attention(attention, attention_temperature, memory_budget)
    packing = Packing.of(word_mask)
    matcher = Matcher(regions, packing.pack(words), region_mask, packing, options)
    return packing.unpack(matcher.forward(keep=False).cosine).contiguous()


@torch.library.custom_op("gloria::chunked_word_cosines_backward", mutates_args=())
def _word_cosines_backward(
    grad: Tensor,
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    attention: str,
    attention_temperature: float,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    options = MatchingOptions.of_attention(attention, attention_temperature, memory_budget)
    packing = Packing.of(word_mask)
    matcher = Matcher(regions, packing.pack(words), region_mask, packing, options)
    packed = grad.flatten(1).index_select(1, packing.positions).mT
    with full_precision(grad):
        result = matcher.forward(keep=True)
        grad_regions, grad_words = matcher.backward(packed, result, (True, True))
    assert grad_regions is not None
    assert grad_words is not None
    return grad_regions, packing.unpack_words(grad_words)


@_word_cosines.register_fake
def _(regions: Tensor, words: Tensor, *_: Any) -> Tensor:
    return regions.new_empty(regions.shape[0], *words.shape[:2])


@_word_cosines_backward.register_fake
def _(grad: Tensor, regions: Tensor, words: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return regions.new_empty(regions.shape), words.new_empty(words.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_word_cosines_backward(grad, *ctx.saved_tensors, *ctx.options), *[None] * 5


_word_cosines.register_autograd(_differentiate, setup_context=_keep_inputs)
_word_cosines_backward.register_autograd(refuse_second_derivative)
