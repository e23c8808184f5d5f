"""Local matching in bounded memory: plain PyTorch, any device, exact forward and backward.

The scores of all words with all regions are made tile by tile, some words by some images, and only
the cosines leave. What makes it fast:

- **No padding.** The real words of all texts are packed, shortest texts first; texts of one length
  are neighbours, so that the softmax over their words is one call.
- **Unnormalised attention.** The cosine does not see the length of the attended feature, so the
  weights ``e = exp(...)`` are never divided by their sum.
- **The Gram identity.** With ``G = V Vᵀ`` the attended feature ``c = Σ_j e_j v_j`` need not be
  made: ``<c, v_j> = (G e)_j`` and ``‖c‖² = eᵀ G e``. Where few words meet many regions, making
  ``c`` is the cheaper of the two, and is done.
- **Recomputation.** Of what the backward needs, as much is kept as fits the memory budget; the rest
  is computed again.

Backward, for an upstream gradient g of ``r = n / d``, with ``n = Σ e s`` and
``d = max(‖c‖ ‖t‖, 1e-8 Σ e)``::

    dn = g / d        dq = -g r / ‖c‖²        de = dn s + dq G e
    ds = dn e + (de through the softmaxes)
    dt = Σ ds v - Σ g r t / ‖t‖²              dv = Σ ds t + Σ dq e c

Where the bound of d is active, dq and the term in ``‖t‖²`` are 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.linalg import vector_norm

from gloria.matching import einops
from gloria.matching.problem import (
    EPS,
    AttentionVariant,
    MatchingInputs,
    MatchingOptions,
    Problem,
    full_precision,
    refuse_second_derivative,
)

TAKES_HALF_PRECISION = False
READS_MASKED_WORDS = False
RUNS_KERNELS = False

CACHE_TILE = 4 * 2**20
"""Bytes of a tile on a CPU, so that the steps between two products find it in the cache."""

WORKING_TILES = 4
"""Tiles at work at a time: scores, their softmax over words, weights, pulls."""

STEEPEST_WITHOUT_PEAK = 8.0
"""Up to this ``1 / attention_temperature``, ``exp((p - 1) / temperature)`` cannot underflow."""

ILL_CONDITIONED = 1e-4
"""Below this share of ``(Σ e · max ‖v‖)²``, too much of ``eᵀ G e`` has cancelled."""


def reasons_not_supported(problem: Problem) -> list[str]:
    """Why this backend cannot run the problem: never; it runs everything."""
    return []


def gram_is_cheaper(regions: int, words: int, dim: int) -> bool:
    """Whether ``G e``, G included, takes fewer operations than ``c = e V``, for one image."""
    return regions * (dim + words) < 2 * words * dim


def word_cosines(inputs: MatchingInputs, options: MatchingOptions) -> Tensor:
    """Cosine of each word with the region feature it attends to, ``(image, text, word)``."""
    if torch.compiler.is_compiling():
        compiled: Tensor = _word_cosines(
            *inputs[:4], options.attention, options.attention_temperature, options.memory_budget
        )
        return compiled
    packing = Packing.of(inputs.word_mask, inputs.word_counts)
    cosine: Tensor = _PackedCosines.apply(
        inputs.regions.contiguous(),
        packing.pack(inputs.words),
        inputs.region_mask,
        packing,
        options,
    )
    return packing.unpack(cosine)


class Group(NamedTuple):
    """Neighbouring packed texts of one length."""

    start: int
    texts: int
    length: int


class Block(NamedTuple):
    """A run of whole packed texts; the groups count from its own start."""

    words: slice
    groups: list[Group]

    def by_text(self, *tiles: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Each group's part of some tiles, as ``(text, word, image · region)``."""
        sizes = [texts * length for _, texts, length in self.groups]
        parts = zip(*(tile.split(sizes) for tile in tiles), strict=True)
        for (_, texts, length), part in zip(self.groups, parts, strict=True):
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
        groups, start = list[Group](), 0
        for length, count in sorted(Counter(lengths).items()):
            if length:
                groups.append(Group(start, count, length))
                start += count * length
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
        for _, texts, length in self.groups:
            while texts:
                fitting = min(texts, max(0, most - filled) // length)
                if not fitting and groups:
                    yield Block(slice(start, start + filled), groups)
                    start, filled, groups = start + filled, 0, []
                    continue
                fitting = max(fitting, 1)
                groups.append(Group(filled, fitting, length))
                filled += fitting * length
                texts -= fitting
        if groups:
            yield Block(slice(start, start + filled), groups)


class Kept(NamedTuple):
    """What the backward need not compute again, of one tile."""

    scores: Tensor
    pulls: Tensor
    attended: tuple[Tensor, Tensor] | None
    """Logits and weights, where there is room for all of them."""


@dataclass
class Forward:
    """Cosines, and what the backward takes from them.

    Attributes:
        cosine: r, ``(packed word, image)``.
        denominator: d, likewise.
        total: Σ e, likewise.
        bounded: where the bound of d is active, likewise.
        grams: G by first image, as many as fitted the budget.
        tiles: by first word and first image, as many as fitted.
    """

    cosine: Tensor
    denominator: Tensor
    total: Tensor
    bounded: Tensor
    grams: dict[int, Tensor] = field(default_factory=dict)
    tiles: dict[tuple[int, int], Kept] = field(default_factory=dict)


class Matcher:
    """Forward and backward of one problem, tile by tile.

    A tile is ``(packed word, image, region)``. The *pulls* of a tile are what its weights gather
    from the regions: ``G e``, a tile itself, or, where that is cheaper, ``c (image, packed word,
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
        width = max(across, 1 if self.use_gram else dim)
        self.blocks = list(packing.blocks(tile // width))
        tall = max((block.words.stop - block.words.start for block in self.blocks), default=0)
        together = max(1, min(images, tile // max(tall * width, 1)))
        self.chunks = [slice(i, min(i + together, images)) for i in range(0, images, together)]
        self.scratch = regions.new_empty(WORKING_TILES, tall * together * across)
        pulls = 0 if self.use_gram else tall * together * dim
        gram = together * across**2 if self.use_gram else 0
        at_work = 2 * words.numel() + self.scratch.numel() + pulls + gram
        self.room = options.memory_budget - at_work * bytes_each
        # logits and weights are the cheapest to make again: kept only if all else is
        everything = sum(self.size_kept(block, slice(0, images)) for block in self.blocks)
        everything += images * across**2 * self.use_gram
        everything += images * across * len(words) * (1 + self.two_softmaxes)
        self.keeps_attended = everything * bytes_each <= self.room

    def forward(self, keep: bool) -> Forward:
        """The cosines; with ``keep``, what fits the budget stays for the backward."""
        shape = len(self.words), len(self.regions)
        cosine, denominator, total = self.regions.new_empty(3, *shape)
        bounded = torch.empty(shape, dtype=torch.bool, device=cosine.device)
        result = Forward(cosine, denominator, total, bounded)
        for images in self.chunks:
            gram = self.gram(images)
            if keep and gram is not None and self.fits(gram.numel()):
                result.grams[images.start] = gram
            longest = vector_norm(self.regions[images], dim=2).amax(1)
            for block in self.blocks:
                here = block.words, images
                kept = keep and self.fits(self.size_kept(block, images))
                scores = self.scores(block, images, fresh=kept)
                attended = self.attend(scores, block, images, kept and self.keeps_attended)
                _, weights = attended
                pulls = self.pull(weights, block, images, gram, fresh=kept)
                if kept:
                    result.tiles[block.words.start, images.start] = Kept(
                        scores, pulls, attended if self.keeps_attended else None
                    )
                products = self.tile(1, block, images)
                torch.sum(weights, -1, out=total[here])
                if gram is None:
                    square = pulls.square().sum(-1).mT
                else:
                    square = torch.mul(weights, pulls, out=products).sum(-1)
                    self.repair(square, weights, images, (total[here] * longest).square())
                exact = square.sqrt() * self.word_norms[block.words]
                bound = EPS * total[here].clamp_min(EPS)  # an image without a region has no weights
                torch.maximum(exact, bound, out=denominator[here])
                torch.le(exact, bound, out=bounded[here])
                numerator = torch.mul(weights, scores, out=products).sum(-1)
                torch.div(numerator, denominator[here], out=cosine[here])
        return result

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
        for images in self.chunks:
            regions = self.regions[images]
            # what was kept is used up: a second backward computes it again
            gram = result.grams.pop(images.start, None)
            gram = self.gram(images) if gram is None else gram
            grad_gram = None if gram is None else torch.zeros_like(gram)
            for block in self.blocks:
                here = block.words, images, None
                kept = result.tiles.pop((block.words.start, images.start), None)
                scores = kept.scores if kept else self.scores(block, images)
                attended = kept.attended if kept else None
                logits, weights = attended or self.attend(scores, block, images)
                pulls = kept.pulls if kept else self.pull(weights, block, images, gram)
                overlap = pulls
                if gram is None:
                    overlap = self.tile(3, block, images)
                    torch.bmm(pulls, regions.mT, out=overlap.transpose(0, 1))

                grad_logits = overlap.mul_(self.steepness * d_square[here])
                grad_logits.addcmul_(scores, self.steepness * d_numerator[here])
                grad_logits.mul_(weights)
                # their sum is 0 but for rounding, which a steep attention would multiply
                rounding = grad_logits.sum(-1) / result.total[here[:2]].clamp_min(EPS)
                grad_logits.addcmul_(weights, rounding[..., None], value=-1)
                grad_scores = self.attend_backward(grad_logits, logits, block, out=scores)
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
                # scratch 1 held the logits, which are done with
                spread = torch.mul(weights, d_square[here], out=self.tile(1, block, images))
                if grad_gram is None:
                    into.baddbmm_(spread.permute(1, 2, 0), pulls)
                else:
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

    def scores(self, block: Block, images: slice, fresh: bool = False) -> Tensor:
        """``s``, the dot product of every word with every region."""
        out = self.tile(0, block, images, fresh)
        regions = self.regions[images].flatten(0, 1)
        torch.mm(self.words[block.words], regions.mT, out=out.flatten(1))
        return out

    def attend(
        self, scores: Tensor, block: Block, images: slice, fresh: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The logits of the softmax over regions, and its weights ``e``, not normalised."""
        mask = None if self.region_mask is None else ~self.region_mask[images]
        logits, weights = scores, self.tile(2, block, images, fresh)
        if self.two_softmaxes:
            logits = self.tile(1, block, images, fresh)
            for text, softmax in block.by_text(scores, logits):
                torch.softmax(text, 1, out=softmax)
        if self.two_softmaxes and self.steepness <= STEEPEST_WITHOUT_PEAK:
            torch.sub(logits, 1.0, out=weights)
        else:
            real = logits if mask is None else logits.masked_fill(mask, -torch.inf)
            torch.sub(logits, real.amax(-1, keepdim=True), out=weights)
        weights.mul_(self.steepness).exp_()
        if mask is not None:
            weights.masked_fill_(mask, 0.0)
        return logits, weights

    def attend_backward(self, grad: Tensor, logits: Tensor, block: Block, out: Tensor) -> Tensor:
        """Gradient of the scores from that of the logits; a second softmax writes to ``out``."""
        if not self.two_softmaxes:
            return grad
        for text, softmax, result in block.by_text(grad, logits, out):
            torch._softmax_backward_data(text, softmax, 1, text.dtype, grad_input=result)
        return out

    def pull(
        self, weights: Tensor, block: Block, images: slice, gram: Tensor | None, fresh: bool = False
    ) -> Tensor:
        """What the weights gather: ``G e`` with a Gram matrix, else ``c``."""
        by_image = weights.transpose(0, 1)
        if gram is None:
            return torch.bmm(by_image, self.regions[images])
        out = self.tile(3, block, images, fresh)
        torch.bmm(by_image, gram, out=out.transpose(0, 1))
        return out

    def repair(self, square: Tensor, weights: Tensor, images: slice, scale: Tensor) -> None:
        """Make ``‖c‖²`` from c itself wherever ``eᵀ G e`` has cancelled."""
        lost = square < ILL_CONDITIONED * scale
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
        return pairs * (across + (across if self.use_gram else dim))

    def fits(self, numbers: int) -> bool:
        """Take room for so many numbers, if there is any."""
        size = numbers * self.regions.element_size()
        if size > self.room:
            return False
        self.room -= size
        return True


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
    ) -> Tensor:
        matcher = Matcher(regions, words, region_mask, packing, options)
        ctx.result = matcher.forward(keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(regions, words, region_mask)
        ctx.packing, ctx.options = packing, options
        # a copy: an output that its own graph holds is never freed
        cosine: Tensor = ctx.result.cosine.clone()
        return cosine

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        regions, words, region_mask = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        with full_precision(grad):
            if torch.is_grad_enabled():  # create_graph=True: only the definition goes on
                cosine = _by_definition(regions, words, region_mask, ctx.packing, ctx.options)
                wanted = [each for each, need in zip((regions, words), needs, strict=True) if need]
                found = iter(torch.autograd.grad(cosine, wanted, grad, create_graph=True))
                return *(next(found) if need else None for need in needs), None, None, None
            matcher = Matcher(regions, words, region_mask, ctx.packing, ctx.options)
            return *matcher.backward(grad, ctx.result, needs), None, None, None


def _by_definition(
    regions: Tensor,
    words: Tensor,
    region_mask: Tensor | None,
    packing: Packing,
    options: MatchingOptions,
) -> Tensor:
    """The same cosines by the definition, which can be differentiated any number of times."""
    padded = packing.unpack_words(words)
    real = padded.new_zeros(padded.shape[:2], dtype=torch.bool)
    real.view(-1)[packing.positions] = True
    cosine = einops.word_cosines(MatchingInputs(regions, padded, real, region_mask), options)
    return cosine.flatten(1).index_select(1, packing.positions).mT


# Inside a compiled graph the whole matching is one opaque operator, which keeps nothing.


def _options(attention: str, temperature: float, memory_budget: int) -> MatchingOptions:
    return MatchingOptions(
        cast("AttentionVariant", attention), temperature, 1.0, "mean", memory_budget
    )


@torch.library.custom_op(
    "gloria::chunked_word_cosines",
    mutates_args=(),
    schema="(Tensor regions, Tensor words, Tensor word_mask, Tensor? region_mask, "
    "str attention, float attention_temperature, int memory_budget) -> Tensor",
)
def _word_cosines(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None,
    attention: str,
    attention_temperature: float,
    memory_budget: int,
) -> Tensor:
    options = _options(attention, attention_temperature, memory_budget)
    packing = Packing.of(word_mask)
    matcher = Matcher(regions, packing.pack(words), region_mask, packing, options)
    return packing.unpack(matcher.forward(keep=False).cosine).contiguous()


@torch.library.custom_op(
    "gloria::chunked_word_cosines_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor regions, Tensor words, Tensor word_mask, Tensor? region_mask, "
    "str attention, float attention_temperature, int memory_budget) -> (Tensor, Tensor)",
)
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
    options = _options(attention, attention_temperature, memory_budget)
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
