"""The definition of local matching, in einops: every backend is held to this one.

It keeps tensors of image · text · word · region elements, so it is for reading, for testing and
for small problems.
"""

from __future__ import annotations

from einops import einsum
from torch import Tensor
from torch.linalg import vector_norm

from gloria.aggregators import masked_softmax
from gloria.matching.problem import MatchingInputs, MatchingOptions, Problem, cosine_divisor

TAKES_HALF_PRECISION = False
READS_MASKED_WORDS = True
RUNS_KERNELS = False


def reasons_not_supported(problem: Problem) -> list[str]:
    """Why this backend cannot run the problem: never; it runs everything."""
    return []


def word_cosines(inputs: MatchingInputs, options: MatchingOptions) -> Tensor:
    """Cosine of each word with the region feature it attends to, ``(image, text, word)``."""
    scores = einsum(
        inputs.regions, inputs.words, "image region dim, text word dim -> image text word region"
    )
    region_mask = None if inputs.region_mask is None else inputs.region_mask[:, None]
    attention = attend(scores, inputs.word_mask, region_mask, options)
    attended = einsum(
        attention, inputs.regions, "image text word region, image region dim -> image text word dim"
    )
    return cosine_of_words(attended, inputs.words)


def attend(
    scores: Tensor, word_mask: Tensor, region_mask: Tensor | None, options: MatchingOptions
) -> Tensor:
    """Attention of every word over the regions, from the scores ``(..., word, region)``.

    ``word_mask (..., word)`` and ``region_mask (..., region)`` broadcast over the leading axes.
    """
    if options.attention == "words_then_regions":
        scores = masked_softmax(scores, word_mask[..., None], dim=-2)
    if region_mask is not None:
        region_mask = region_mask[..., None, :]
    return masked_softmax(scores / options.attention_temperature, region_mask, dim=-1)


def cosine_of_words(attended: Tensor, words: Tensor) -> Tensor:
    """``<c, t> / max(‖c‖·‖t‖, 1e-8)`` along the last axis; 0 for a zero vector."""
    product = (attended * words).sum(-1)
    norms = vector_norm(attended, dim=-1) * vector_norm(words, dim=-1)
    cosine: Tensor = product / cosine_divisor(norms)
    return cosine
