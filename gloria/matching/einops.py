"""The definition of local matching, in einops: every backend is held to this one.

It keeps tensors of image · text · word · region elements, so it is for reading, for testing and
for small problems.
"""

from __future__ import annotations

from einops import einsum
from torch import Tensor
from torch.linalg import vector_norm

from gloria.aggregators import (
    masked_logmeanexp,
    masked_logsumexp,
    masked_max,
    masked_mean,
    masked_softmax,
)
from gloria.errors import ShapeError
from gloria.matching.problem import EPS, MatchingInputs, MatchingOptions, Problem


def reasons_not_supported(problem: Problem) -> list[str]:
    """Why this backend cannot run the problem: never; it runs everything."""
    return []


def local_similarity(inputs: MatchingInputs, options: MatchingOptions) -> Tensor:
    """Similarity of every image with every text, ``(image, text)``."""
    scores = einsum(
        inputs.regions, inputs.words, "image region dim, text word dim -> image text word region"
    )
    region_mask = None if inputs.region_mask is None else inputs.region_mask[:, None]
    attention = attend(scores, inputs.word_mask, region_mask, options)
    attended = einsum(
        attention, inputs.regions, "image text word region, image region dim -> image text word dim"
    )
    cosine = word_cosine(attended, inputs.words)
    return aggregate_words(cosine, inputs.word_mask, options)


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


def word_cosine(attended: Tensor, words: Tensor) -> Tensor:
    """Cosine of each word with the region feature it attends to, ``(image, text, word)``."""
    product = (attended * words).sum(-1)
    norms = vector_norm(attended, dim=-1) * vector_norm(words, dim=-1)
    cosine: Tensor = product / norms.clamp_min(EPS)
    return cosine


def aggregate_words(cosine: Tensor, word_mask: Tensor, options: MatchingOptions) -> Tensor:
    """One number per image and text from one per word, ``(image, text)``."""
    mask, tau = word_mask[None], options.match_temperature
    match options.aggregation:
        case "logsumexp":
            return masked_logsumexp(cosine, mask, -1, tau)
        case "logmeanexp":
            return masked_logmeanexp(cosine, mask, -1, tau)
        case "max":
            return masked_max(cosine, mask, -1)
        case "mean":
            return masked_mean(cosine, mask, -1)
        case aggregator:
            similarity = aggregator(cosine, mask, -1)
            if similarity.shape != cosine.shape[:-1]:
                raise ShapeError(
                    f"aggregation must reduce (image, text, word) to (image, text), "
                    f"{tuple(cosine.shape[:-1])}; it gave {tuple(similarity.shape)}."
                )
            return similarity
