"""What local matching costs: operations, bytes and memory, counted before anything runs.

With B images of M regions, N texts of W words, R of all these words real, vectors of D numbers,
``E = B·M·R`` real pair elements and ``P = B·M·N·W`` padded ones, the matrix products take::

    einops    forward  4·P·D              backward  8·P·D
    chunked   forward  2·E·(D + A)        backward  2·E·(2·D + A + k·(D + A))
    triton    forward  2·E·(D + M)        backward  2·E·(2·D + M + k·(D + M))

operations, a multiplication and an addition being two. A is what the pull of the attention weights
costs per pair element: M with the Gram matrices, which take ``2·B·M²·D`` more, once made and once
for their gradient, or D without; then what is pulled meets the regions once more, 2·E·D, in the
forward of a tile that is kept. k is the share of the tiles that do not fit the memory budget and
are computed again, whole; of ``triton``, all or nothing. The elementwise steps are not counted: a
few operations per element.

Bytes are what has to travel to and from memory if every step reads its operands once and writes
its result once, tiles that fit a cache staying there. A time from :meth:`Work.seconds` is a
**lower bound**, not a prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from gloria.checks import check_choice, check_integer, check_positive
from gloria.matching.chunked import (
    CACHE_TILE,
    WORKING_TILES,
    gram_is_cheaper,
    symmetric_numbers,
)
from gloria.matching.problem import Problem
from gloria.matching.triton import bytes_of_image, images_together


class Device(NamedTuple):
    """The two rates that bound every kernel from below."""

    flops: float
    """operations per second, in large matrix products"""
    bandwidth: float
    """bytes per second, to and from memory"""


_H200_HALF = Device(771e12, 4.26e12)

DEVICES = {
    "NVIDIA H200": {
        torch.bfloat16: _H200_HALF,
        torch.float16: _H200_HALF,
        torch.float32: Device(51e12, 4.26e12),
    }
}
"""By dtype, the rates that large matrix products and copies were measured at: the half types as
bfloat16, float32 without TF32."""


NUMBERS_PER_COSINE = 5
"""Of ``chunked``, numbers per image and word position, padding included, that no budget bounds: the
cosines and their aggregation, forward and backward."""

NUMBERS_PER_REAL_COSINE = 8
"""Of ``chunked``, numbers per image and real word that no budget bounds, at another time than those
with padding: the packed cosines, and what their backward needs. (In a compiled graph, which keeps
both, they add up.)"""


class Work(NamedTuple):
    """Operations of the matrix products, and bytes moved."""

    operations: int
    bytes: int

    def __add__(self, other: object) -> Work:
        """Both, one after the other."""
        if not isinstance(other, Work):
            return NotImplemented
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def seconds(self, device: Device) -> float:
        """The roofline: the longer of computing and moving."""
        check_positive("flops", device.flops)
        check_positive("bandwidth", device.bandwidth)
        return max(self.operations / device.flops, self.bytes / device.bandwidth)


class Cost(NamedTuple):
    """What a problem costs on one backend."""

    forward: Work
    backward: Work
    memory: int
    """bytes at the peak of forward and backward, beside inputs, result and gradients"""


def count(problem: Problem, backend: str, real_words: int | None = None) -> Cost:
    """The cost of a problem on a backend.

    Args:
        problem: its sizes and options.
        backend: one of ``"einops"``, ``"chunked"``, ``"triton"``; whether it can run here is
            another question (:func:`gloria.matching.explain_backends`).
        real_words: words of all texts together; None: no text is padded.

    Raises:
        OptionError: there is no such backend, or more real words than positions.

    Example:
        >>> from gloria.matching.dispatch import PAPER_PROBLEM
        >>> definition = count(PAPER_PROBLEM, "einops")
        >>> ours = count(PAPER_PROBLEM, "chunked", real_words=48 * 22)
        >>> round(definition.forward.operations / ours.forward.operations, 1)
        5.3
    """
    check_choice("backend", backend, COUNTED)
    positions = problem.texts * problem.words
    real_words = positions if real_words is None else real_words
    check_integer("real_words", real_words, 0, positions)
    return COUNTED[backend](problem, real_words)


def _einops(problem: Problem, real_words: int) -> Cost:
    """Every tensor in full: of P elements, and of B·N·W·D for the attended features."""
    images, regions, texts, words, dim = problem[:5]
    padded = images * regions * texts * words
    attended = images * texts * words * dim
    small = _numbers(problem, texts * words)
    size = _full_width(problem)
    # tensors made: forward scores and their softmaxes, attended features and their products
    twice = problem.options.attention == "words_then_regions"
    forward = (6 if twice else 3) * padded + 2 * attended + small
    backward = (7 if twice else 4) * padded + 7 * attended + small
    at_forward = (5 if twice else 3) * padded
    at_backward = (2 if twice else 1) * padded + 4 * attended
    return Cost(
        Work(4 * padded * dim, 2 * size * forward),
        Work(8 * padded * dim, 2 * size * backward),
        size * max(at_forward, at_backward) + _copies(problem),
    )


def _chunked(problem: Problem, real_words: int) -> Cost:
    """Tiles in the cache; what the backward reads again is kept as far as the budget goes."""
    images, regions, _, _, dim = problem[:5]
    element, size = images * regions * real_words, _full_width(problem)
    gram = gram_is_cheaper(regions, real_words, dim)
    pull = regions if gram else dim
    made = images * symmetric_numbers(regions)
    grams = 2 * made * dim if gram else 0
    scores_and_pulls = 2 * element * (dim + pull)
    overlap = 0 if gram else 2 * element * dim
    by_gram = 2 * made * real_words + 2 * images * regions**2 * dim
    gradients = 4 * element * dim + (by_gram if gram else 2 * element * dim)

    tile = min(element, problem.options.memory_budget // (2 * WORKING_TILES * size))
    if problem.device == "cpu":
        tile = min(tile, CACHE_TILE // size)
    tiles = WORKING_TILES if gram else WORKING_TILES + 1
    together = max(1, min(images, tile // max(1, real_words * regions)))
    gram_and_gradient = 2 * gram * together * regions**2
    working = size * (tiles * tile + 2 * real_words * dim + gram_and_gradient)
    tiles_kept = 3 if problem.options.attention == "words_then_regions" else 2
    keepable = size * (tiles_kept * element + images * (regions**2 if gram else real_words * dim))
    kept = max(0, min(keepable, problem.options.memory_budget - working))
    again = 1 - kept / keepable if keepable else 0.0
    small = size * _numbers(problem, real_words)
    once_more = round(again * (scores_and_pulls + grams + overlap))
    padded = NUMBERS_PER_COSINE * problem.texts * problem.words
    cosines = images * max(padded, NUMBERS_PER_REAL_COSINE * real_words)
    return Cost(
        Work(scores_and_pulls + grams + round((1 - again) * overlap), small + kept),
        Work(gradients + once_more, 2 * small + kept),
        working + kept + size * cosines + _copies(problem),
    )


def _triton(problem: Problem, real_words: int) -> Cost:
    """Library products and kernels in turn, for some images at a time."""
    images, regions, _, _, dim = problem[:5]
    element = images * regions * real_words
    # scores are float32; what else stands between two steps is bfloat16 for either half type
    inputs = problem.dtype.itemsize
    of_image = bytes_of_image(real_words, regions, dim, inputs)[1]
    kept = images * of_image <= problem.options.memory_budget
    together = images_together(images, of_image, problem.options.memory_budget) if images else 0
    grams = 2 * images * regions**2 * dim
    small = inputs * _numbers(problem, real_words)
    # scores written and read; weights written, multiplied; with what is attended, read again
    attend = Work(2 * element * (dim + regions) + grams, small + element * (8 + 3 * inputs))
    forward = attend + Work(0, element * 2 * inputs)
    # all three read, two gradients written; one read by two products, the other with the weights
    backward = Work(
        2 * element * (2 * dim + regions) + grams, 2 * small + element * (4 + 8 * inputs)
    )
    # the cosines and both gradients of them, with padding; what they are made of, without
    made_of = 2 if kept else 4
    of_words = 4 * images * (3 * problem.texts * problem.words + made_of * real_words)
    return Cost(
        forward,
        backward if kept else backward + forward,
        together * of_image + (inputs + 4) * real_words * dim + of_words,
    )


def _numbers(problem: Problem, words: int) -> int:
    """Numbers in the inputs and the cosines."""
    vectors = problem.images * problem.regions + words
    return vectors * problem.dim + problem.images * words


def _copies(problem: Problem) -> int:
    """Bytes of half-precision inputs and their gradients where they are widened, for the latter."""
    narrow, wide = problem.dtype.itemsize, _full_width(problem)
    if narrow == wide:
        return 0
    numbers = _numbers(problem, problem.texts * problem.words)
    vectors = numbers - problem.images * problem.texts * problem.words
    return (2 * wide - narrow) * vectors


def _full_width(problem: Problem) -> int:
    """Bytes of a number where half precision is widened."""
    return torch.promote_types(problem.dtype, torch.float32).itemsize


COUNTED: dict[str, Callable[[Problem, int], Cost]] = {
    "einops": _einops,
    "chunked": _chunked,
    "triton": _triton,
}
"""Backends with a count."""
