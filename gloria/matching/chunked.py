"""Local matching in bounded memory: plain PyTorch, any device, exact forward and backward.

The scores of all words with all regions are made tile by tile, some words by some images, and only
the cosines leave. What makes it fast:

- **No padding.** The real words of all texts are packed, shortest texts first; texts of one length
  are neighbours, so that the softmax over their words is one call.
- **The Gram identity.** With ``G = V Vᵀ`` the attended feature ``c = Σ_j a_j v_j`` need not be
  made: ``<c, v_j> = (G a)_j`` and ``‖c‖² = aᵀ G a``. Where few words meet many regions, making
  ``c`` is the cheaper of the two, and is done.
- **Half of what is symmetric.** G and its gradient are made up to the diagonal, and mirrored.
- **Slopes instead of scores.** How r changes with s is known before any upstream gradient is: but
  for the scale it is made in the forward, instead of the scores; the backward only multiplies it.
- **Words on cache lines.** A matrix product that writes its rows elsewhere takes longer; the tiles
  that products write have room behind each word for it.
- **Recomputation.** Of what the backward needs, as much is kept as fits the memory budget; the rest
  is computed again.

Of ``r = n / d``, with ``n = Σ a s`` and ``d = max(‖c‖ ‖t‖, 1e-8)``, and an upstream gradient g::

    h  = s - r ‖t‖² / d · G a                 how r changes with a, times d
    ds = g / d · (a + (h through the softmaxes))
    dt = Σ ds v - Σ g r t / ‖t‖²              dv = Σ ds t - Σ g r (‖t‖ / d)² a c

Where the bound of d is active, the terms with r are 0; where c or t is 0, d is infinite and all of
them are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
    cosine_divisor,
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

CACHE_LINE = 64
"""Bytes of a cache line of a CPU, and of its widest vector."""

STRIP = 80
"""Rows that are made together of a symmetric matrix; fewer save little more and cost calls."""

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


def strips(size: int) -> Iterator[tuple[slice, slice]]:
    """Rows of a square matrix, and the columns up to where they end on its diagonal."""
    for start in range(0, size, STRIP):
        stop = min(start + STRIP, size)
        yield slice(start, stop), slice(0, stop)


def symmetric_numbers(size: int) -> int:
    """How many numbers of a symmetric matrix are made."""
    return sum((rows.stop - rows.start) * columns.stop for rows, columns in strips(size))


def add_symmetric(into: Tensor, left: Tensor, right: Tensor, beta: int = 1) -> None:
    """Add symmetric products to matrices, up to the diagonal; with ``beta=0``, write them."""
    for rows, columns in strips(into.shape[1]):
        into[:, rows, columns].baddbmm_(left[:, rows], right[..., columns], beta=beta)


def mirror(matrices: Tensor) -> Tensor:
    """Fill in what is above the diagonal."""
    for rows, _ in strips(matrices.shape[1]):
        matrices[:, : rows.start, rows] = matrices[:, rows, : rows.start].mT
    return matrices


def whole_lines(count: int, bytes_each: int) -> int:
    """So many numbers, rounded up to whole cache lines."""
    each = CACHE_LINE // bytes_each
    return -(-count // each) * each


def word_cosines(inputs: MatchingInputs, options: MatchingOptions) -> Tensor:
    """Cosine of each word with the region feature it attends to, ``(image, text, word)``."""
    regions, words, word_mask, region_mask, counts = inputs
    # a function's own needs_input_grad does not know that nobody records
    needs_gradient = torch.is_grad_enabled() and (regions.requires_grad or words.requires_grad)
    cosine: Tensor
    if torch.compiler.is_compiling():
        cosine, *_ = _word_cosines(
            *inputs[:4],
            options.attention,
            options.attention_temperature,
            options.memory_budget,
            # not in an export (but a strict one): it is not trained, whatever requires gradients
            keep=needs_gradient and torch.compiler.is_dynamo_compiling(),
        )
        return cosine
    packing = Packing.of(word_mask, counts)
    cosine = _PackedCosines.apply(
        regions.contiguous(), packing.pack(words), region_mask, packing, options, needs_gradient
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

    def pack_cosines(self, cosine: Tensor) -> Tensor:
        """``(image, text, word)`` → ``(packed word, image)``."""
        return cosine.flatten(1).index_select(1, self.positions).mT

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


Place = tuple[int, int]
"""The first of some images and, of a tile, the first word; for no tile -1."""


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


class Found(NamedTuple):
    """What the backward takes from the forward."""

    cosine: Tensor
    """r, ``(packed word, image)``"""
    denominator: Tensor
    """d, likewise"""
    kept: dict[Place, Tensor]
    """What fitted the budget, each part flat; see :meth:`Matcher.plan`"""


class Matcher:
    """Forward and backward of one problem, tile by tile; its words are packed.

    A tile is ``(packed word, image, region)``; in a *wide* one each word is on a cache line. The
    *pulls* of a tile are what its weights gather from the regions: ``G a``, a wide tile itself, or,
    where that is cheaper, ``c (image, packed word, dim)``.
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
        self.blocks = list(packing.blocks(tile // whole_lines(width, bytes_each)))
        tall = max((block.words.stop - block.words.start for block in self.blocks), default=0)
        together = max(1, min(images, tile // max(tall * width, 1)))
        self.chunks = [slice(i, min(i + together, images)) for i in range(0, images, together)]
        row = whole_lines(together * across, bytes_each)
        self.scratch = regions.new_empty(WORKING_TILES, tall * row)
        pulls = 0 if self.use_gram else tall * together * dim
        gram = 2 * together * across**2 if self.use_gram else 0  # and its gradient
        at_work = 2 * words.numel() + self.scratch.numel() + pulls + gram
        self.planned = self.plan(options.memory_budget // bytes_each - at_work)

    def plan(self, room: int) -> dict[Place, int]:
        """What is kept, and how many numbers: G of some images, the :class:`Slopes` of a tile."""
        planned = {}
        for images in self.chunks:
            for block in (None, *self.blocks):
                size = self.size_kept(images, block)
                if 0 < size <= room:
                    planned[place(images, block)] = size
                    room -= size
        return planned

    def forward(self, kept: dict[Place, Tensor]) -> Found:
        """The cosines; and for the backward, what is planned is written to ``kept``, or nothing."""
        new, shape = self.regions.new_empty, (len(self.words), len(self.regions))
        found = Found(new(shape), new(shape), kept)
        for images in self.chunks:
            gram = self.gram(images, kept.get(place(images)))
            for block in self.blocks:
                store = kept.get(place(images, block))
                matched = self.match(block, images, gram, found, store)
                if store is not None:
                    self.differentiate(matched, block, images, found, store)
        return found

    def match(
        self,
        block: Block,
        images: slice,
        gram: Tensor | None,
        found: Found,
        store: Tensor | None = None,
    ) -> Matched:
        """Write a tile's cosines to what is found; the rest to what stores it, if anything does."""
        here = block.words, images
        scores = self.scores(block, images)
        softmax, weights = self.attend(scores, block, images, store)
        pulls = self.pull(weights, block, images, gram, store)
        products = self.tile(4, block, images)
        if gram is None:
            norm = vector_norm(pulls, dim=2).mT
        else:
            square = torch.mul(weights, pulls, out=products).sum(-1)
            self.repair(square, weights, images, gram)
            norm = square.sqrt()
        denominator = cosine_divisor(norm.mul_(self.word_norms[block.words]))
        numerator = torch.mul(weights, scores, out=products).sum(-1)
        # where regions cancel, rounding may leave too short a norm; no cosine is beyond 1
        found.cosine[here] = numerator.div_(denominator).clamp_(-1.0, 1.0)
        found.denominator[here] = denominator
        return Matched(scores, weights, softmax, pulls)

    def differentiate(
        self,
        matched: Matched,
        block: Block,
        images: slice,
        found: Found,
        store: Tensor | None = None,
    ) -> Slopes:
        """How a tile's cosines change."""
        here = block.words, images
        scores, weights, softmax, pulls = matched
        overlap = pulls
        if not self.use_gram:
            overlap = self.wide_tile(3, block, images)
            torch.bmm(pulls, self.regions[images].mT, out=overlap.transpose(0, 1))
        norms, denominator = self.word_norms[block.words], found.denominator[here]
        through_norm = found.cosine[here] * norms * (norms / denominator)
        through_norm.masked_fill_(denominator <= EPS, 0.0)
        slopes = self.tile(4 if store is None else 0, block, images, store)
        torch.addcmul(scores, overlap, through_norm[..., None], value=-1, out=slopes)
        softmax_backward(slopes, weights, -1, out=slopes)
        if softmax is None:
            torch.add(weights, slopes, alpha=self.steepness, out=slopes)
        return Slopes(slopes, weights, softmax, None if self.use_gram else pulls)

    def backward(
        self, grad: Tensor, found: Found, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of regions and packed words, where needed, from that of the cosines."""
        empty = self.regions.new_empty if self.blocks else self.regions.new_zeros
        grad_regions = empty(self.regions.shape) if needs[0] else None
        grad_words = self.words.new_zeros(self.words.shape) if needs[1] else None
        bounded = found.denominator <= EPS
        exact = (grad * found.cosine).masked_fill_(bounded, 0.0)
        d_numerator = grad / found.denominator
        d_square = -exact * (self.word_norms / found.denominator).square()
        d_square.masked_fill_(bounded, 0.0)
        again: Found | None = None
        for images in self.chunks:
            regions = self.regions[images]
            # what was kept is used up, and its memory free; a second backward computes it again
            store = found.kept.pop(place(images), None)
            gram = self.gram(images) if store is None else self.square(images, store)
            grad_gram = None if gram is None else torch.zeros_like(gram)
            for block in self.blocks:
                here = block.words, images, None
                store = found.kept.pop(place(images, block), None)
                if store is None:
                    # what was found is the graph's
                    again = again or found._replace(
                        cosine=torch.empty_like(found.cosine),
                        denominator=torch.empty_like(found.denominator),
                    )
                    matched = self.match(block, images, gram, again)
                    slopes, weights, softmax, attended = self.differentiate(
                        matched, block, images, again
                    )
                else:
                    slopes, weights, softmax, attended = self.slopes(block, images, store)
                scaled = self.tile(0, block, images)
                if softmax is None:
                    grad_scores = torch.mul(slopes, d_numerator[here], out=scaled)
                else:
                    torch.mul(slopes, self.steepness * d_numerator[here], out=scaled)
                    grad_scores = self.tile(3, block, images)
                    for text, probability, into in block.by_text(scaled, softmax, grad_scores):
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
                    add_symmetric(grad_gram, spread.permute(1, 2, 0), weights.transpose(0, 1))
            if grad_regions is not None and grad_gram is not None:
                grad_regions[images].baddbmm_(mirror(grad_gram), regions)
        if grad_words is not None:
            share = exact.sum(1, keepdim=True) / self.word_norms.square()
            grad_words -= share.masked_fill(self.word_norms == 0, 0.0) * self.words
        return grad_regions, grad_words

    def gram(self, images: slice, store: Tensor | None = None) -> Tensor | None:
        """``G (image, region, region)``, where it is used."""
        if not self.use_gram:
            return None
        regions = self.regions[images]
        if store is None:
            store = regions.new_empty(len(regions) * regions.shape[1] ** 2)
        gram = self.square(images, store)
        add_symmetric(gram, regions, regions.mT, beta=0)
        return mirror(gram)

    def scores(self, block: Block, images: slice) -> Tensor:
        """``s``, the dot product of every word with every region."""
        out = self.wide_tile(0, block, images)
        regions = self.regions[images].flatten(0, 1)
        torch.mm(self.words[block.words], regions.mT, out=out.flatten(1))
        return out

    def attend(
        self, scores: Tensor, block: Block, images: slice, store: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """The softmax over words, if there is one, and the weights ``a``."""
        softmax, weights = None, self.tile(1, block, images, store)
        if self.two_softmaxes:
            softmax = self.tile(2, block, images, store)
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

    def pull(
        self,
        weights: Tensor,
        block: Block,
        images: slice,
        gram: Tensor | None,
        store: Tensor | None,
    ) -> Tensor:
        """What the weights gather: ``G a`` with a Gram matrix, else ``c``."""
        by_image = weights.transpose(0, 1)
        if gram is None:
            out = None if store is None else self.slopes(block, images, store).attended
            return torch.bmm(by_image, self.regions[images], out=out)
        out = self.wide_tile(3, block, images)
        torch.bmm(by_image, gram, out=out.transpose(0, 1))
        return out

    def repair(self, square: Tensor, weights: Tensor, images: slice, gram: Tensor) -> None:
        """Make ``‖c‖²`` from c itself wherever ``aᵀ G a`` has cancelled."""
        lost = square < ILL_CONDITIONED * gram.diagonal(dim1=1, dim2=2).amax(1)
        if lost.any():
            for index, regions in enumerate(self.regions[images]):
                rows = lost[:, index]
                square[rows, index] = (weights[rows, index] @ regions).square().sum(1)

    def shape(self, block: Block, images: slice) -> tuple[int, int, int]:
        """Of a tile."""
        tall: int = block.words.stop - block.words.start
        return tall, images.stop - images.start, self.regions.shape[1]

    def tile(self, index: int, block: Block, images: slice, store: Tensor | None = None) -> Tensor:
        """A tile to write to: a scratch that the next tile overwrites, or what stores it."""
        shape = self.shape(block, images)
        size = math.prod(shape)
        row = self.scratch[index] if store is None else store[index * size :]
        return row[:size].view(shape)

    def wide_tile(self, index: int, block: Block, images: slice) -> Tensor:
        """A scratch tile with each word on a cache line."""
        tall, count, across = self.shape(block, images)
        row = whole_lines(count * across, self.regions.element_size())
        rows = self.scratch[index, : tall * row].view(tall, row)[:, : count * across]
        return rows.view(tall, count, across)

    def square(self, images: slice, store: Tensor) -> Tensor:
        """G of some images, where it is stored."""
        across = self.regions.shape[1]
        return store.view(images.stop - images.start, across, across)

    def slopes(self, block: Block, images: slice, store: Tensor) -> Slopes:
        """What is stored of a tile."""
        count = 3 if self.two_softmaxes else 2
        slopes, weights, *softmax = (
            self.tile(index, block, images, store) for index in range(count)
        )
        attended = None
        if not self.use_gram:
            behind = store[count * slopes.numel() :]
            attended = behind.view(slopes.shape[1], slopes.shape[0], -1)
        return Slopes(slopes, weights, softmax[0] if softmax else None, attended)

    def split(self, kept: Tensor) -> dict[Place, Tensor]:
        """What is planned, of one tensor; of one without a number nothing."""
        if not len(kept):
            return {}
        return dict(zip(self.planned, kept.split(list(self.planned.values())), strict=True))

    def size_kept(self, images: slice, block: Block | None) -> int:
        """Numbers in what is kept of some images, or of one tile."""
        across, dim = self.regions.shape[1:]
        count: int = images.stop - images.start
        if block is None:
            return count * across**2 if self.use_gram else 0
        pairs: int = count * (block.words.stop - block.words.start)
        return pairs * (across * (3 if self.two_softmaxes else 2) + (0 if self.use_gram else dim))


def place(images: slice, block: Block | None = None) -> Place:
    return images.start, -1 if block is None else block.words.start


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
        planned = matcher.planned if needs_gradient else {}
        found = matcher.forward({at: regions.new_empty(size) for at, size in planned.items()})
        ctx.save_for_backward(regions, words, region_mask, found.cosine, found.denominator)
        ctx.kept, ctx.packing, ctx.options = found.kept, packing, options
        return found.cosine

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        regions, words, region_mask, cosine, denominator = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        if out_of_reach(grad):
            definition = partial(_definition, region_mask, ctx.packing, ctx.options)
            return *by_definition(definition, (regions, words), needs, grad), *[None] * 4
        with full_precision(grad):
            matcher = Matcher(regions, words, region_mask, ctx.packing, ctx.options)
            found = Found(cosine, denominator, ctx.kept)
            return *matcher.backward(grad, found, needs), *[None] * 4


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
    return packing.pack_cosines(cosine)


# Inside a compiled graph the whole matching is one opaque operator; how much it keeps, no shape
# tells.


@torch.library.custom_op("gloria::chunked_word_cosines", mutates_args=())
def _word_cosines(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    attention: str,
    attention_temperature: float,
    memory_budget: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """:class:`Found`, unpacked."""
    options = MatchingOptions.of_attention(attention, attention_temperature, memory_budget)
    packing = Packing.of(word_mask)
    matcher = Matcher(regions, packing.pack(words), region_mask, packing, options)
    kept = regions.new_empty(sum(matcher.planned.values()) if keep else 0)
    found = matcher.forward(matcher.split(kept))
    cosine, denominator = (packing.unpack(each).contiguous() for each in found[:2])
    return cosine, denominator, kept


@torch.library.custom_op("gloria::chunked_word_cosines_backward", mutates_args=())
def _word_cosines_backward(
    grad: Tensor,
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    cosine: Tensor,
    denominator: Tensor,
    kept: Tensor,
    attention: str,
    attention_temperature: float,
    memory_budget: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of regions and words."""
    options = MatchingOptions.of_attention(attention, attention_temperature, memory_budget)
    packing = Packing.of(word_mask)
    matcher = Matcher(regions, packing.pack(words), region_mask, packing, options)
    cosine, denominator, grad = map(packing.pack_cosines, (cosine, denominator, grad))
    with full_precision(grad):
        found = Found(cosine, denominator, matcher.split(kept))
        grad_regions, grad_words = matcher.backward(grad, found, (True, True))
    assert grad_regions is not None
    assert grad_words is not None
    return grad_regions, packing.unpack_words(grad_words)


@_word_cosines.register_fake
def _(regions: Tensor, words: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, keep = rest
    shape = regions.shape[0], *words.shape[:2]
    size = torch.library.get_ctx().new_dynamic_size() if keep else 0
    return regions.new_empty(shape), regions.new_empty(shape), regions.new_empty(size)


@_word_cosines_backward.register_fake
def _(grad: Tensor, regions: Tensor, words: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return regions.new_empty(regions.shape), words.new_empty(words.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, attention, temperature, memory_budget, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.options = attention, temperature, memory_budget


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _word_cosines_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *gradients, None, None, None, None, None, None


_word_cosines.register_autograd(_differentiate, setup_context=_keep)
_word_cosines_backward.register_autograd(refuse_second_derivative)
