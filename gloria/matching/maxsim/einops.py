"""The definition of hard-maximum matching, in einops: every backend is held to this one.

It keeps tensors of query · key · token · token elements, so it is for reading, for testing and for
small problems.
"""

from __future__ import annotations

import math

from einops import einsum
from torch import Tensor

from gloria.matching.maxsim.problem import MaxSimInputs, MaxSimProblem

TAKES_HALF_PRECISION = False
READS_MASKED_TOKENS = True


def reasons_not_supported(problem: MaxSimProblem) -> list[str]:
    """Why this backend cannot run the problem: never; it runs everything."""
    return []


def summed_maxima(inputs: MaxSimInputs, memory_budget: int) -> Tensor:
    """``Σ_i max_j <q_i, k_j>`` over real tokens, ``(query, key)``; the budget is not heeded."""
    queries, keys, query_mask, key_mask = inputs
    scores = einsum(queries, keys, "query i dim, key j dim -> query key i j")
    if not scores.shape[-1]:
        return scores.sum((-1, -2))
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, :], -math.inf)
    # not amax: of equal maxima the first one takes the gradient
    maxima = scores.max(-1).values
    if key_mask is not None:
        maxima = maxima.masked_fill(~key_mask.any(-1)[:, None], 0.0)
    if query_mask is not None:
        maxima = maxima.masked_fill(~query_mask[:, None, :], 0.0)
    return maxima.sum(-1)


def both_summed_maxima(inputs: MaxSimInputs, memory_budget: int) -> tuple[Tensor, Tensor]:
    """The same, and that of keys and queries exchanged, ``(key, query)``."""
    return summed_maxima(inputs, memory_budget), summed_maxima(inputs.exchanged(), memory_budget)
