"""Hard-maximum matching (late interaction): one definition, interchangeable backends.

| backend   | what it is                                                      | runs          |
|-----------|-----------------------------------------------------------------|---------------|
| `triton`  | fused kernels: no score leaves the processor                    | CUDA, ROCm    |
| `chunked` | large matrix products; memory within a budget, exact backward   | every device  |
| `einops`  | the definition; memory query · key · token · token; meta        | everything    |
|           | tensors, ``torch.func`` and forward-mode AD too                 |               |

A backend is a module with ``summed_maxima(inputs, memory_budget)``, ``both_summed_maxima`` of the
same, ``reasons_not_supported(problem)``, ``TAKES_HALF_PRECISION`` and ``READS_MASKED_TOKENS``.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gloria.matching.dispatch import CanRefuse
from gloria.matching.maxsim import chunked, einops, triton
from gloria.matching.maxsim.problem import (
    MAXIMA_OVER,
    MAXIMUM_REDUCTIONS,
    MaximumOver,
    MaximumReduction,
    MaxSimInputs,
    MaxSimProblem,
)


class MaxSimBackend(CanRefuse, Protocol):
    """What a backend module offers."""

    TAKES_HALF_PRECISION: bool
    """Whether float16 and bfloat16 inputs come as they are; otherwise they come as float32."""

    READS_MASKED_TOKENS: bool
    """Whether zeros have to stand in masked tokens; otherwise anything may."""

    def summed_maxima(self, inputs: MaxSimInputs, memory_budget: int) -> Tensor:
        """``Σ_i max_j <q_i, k_j>`` over real tokens, ``(query, key)``, in float32 or float64.

        A query or key without a real token scores 0 with zero gradient.
        """
        ...

    def both_summed_maxima(self, inputs: MaxSimInputs, memory_budget: int) -> tuple[Tensor, Tensor]:
        """The same, and that of keys and queries exchanged, ``(key, query)``."""
        ...


# Fastest first: this is the order in which "auto" asks.
MAXSIM_BACKENDS: dict[str, MaxSimBackend] = {
    "triton": triton,
    "chunked": chunked,
    "einops": einops,
}

__all__ = [
    "MAXIMA_OVER",
    "MAXIMUM_REDUCTIONS",
    "MAXSIM_BACKENDS",
    "MaxSimBackend",
    "MaxSimInputs",
    "MaxSimProblem",
    "MaximumOver",
    "MaximumReduction",
]
