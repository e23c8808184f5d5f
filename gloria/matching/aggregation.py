"""The last step of local matching, the same for every backend: one number from one per word."""

from __future__ import annotations

import torch
from torch import Tensor

from gloria.aggregators import masked_logmeanexp, masked_logsumexp, masked_max, masked_mean
from gloria.errors import ShapeError
from gloria.matching.problem import MatchingOptions
from gloria.matching.triton import soft_maximum


def aggregate_words(
    cosine: Tensor, word_mask: Tensor, options: MatchingOptions, in_kernels: bool = False
) -> Tensor:
    """One number per image and text from one per word, ``(image, text)``.

    Where the cosines come from kernels, the two soft maxima may be kernels too (``in_kernels``):
    the same numbers in one launch each way. A compiler fuses the plain code itself.
    """
    mask, tau = word_mask[None], options.match_temperature
    in_kernels = in_kernels and not torch.compiler.is_compiling()
    match options.aggregation:
        case "logsumexp" | "logmeanexp" if in_kernels and isinstance(tau, float | int):
            return soft_maximum(cosine, word_mask, tau, mean=options.aggregation == "logmeanexp")
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
            is_tensor = isinstance(similarity, Tensor)
            if not is_tensor or similarity.shape != cosine.shape[:-1]:
                given = tuple(similarity.shape) if is_tensor else type(similarity).__name__
                raise ShapeError(
                    f"aggregation must reduce (image, text, word) to a tensor (image, text), "
                    f"{tuple(cosine.shape[:-1])}; it gave {given}."
                )
            return similarity
