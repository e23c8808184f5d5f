"""The last step of local matching, the same for every backend: one number from one per word."""

from __future__ import annotations

from torch import Tensor

from gloria.aggregators import masked_logmeanexp, masked_logsumexp, masked_max, masked_mean
from gloria.errors import ShapeError
from gloria.matching.problem import MatchingOptions


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
