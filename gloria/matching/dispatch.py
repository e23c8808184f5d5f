"""Which backend runs a matching problem.

| backend   | what it is                                     | "auto" takes it               |
|-----------|------------------------------------------------|-------------------------------|
| `triton`  | kernels between products, for CUDA and ROCm    | wherever it can run           |
| `chunked` | plain PyTorch, tile by tile in a memory budget | elsewhere                     |
| `einops`  | the definition; image·text·word·region numbers | on a CPU, below :data:`TINY`, |
|           |                                                | for meta tensors, and within  |
|           |                                                | ``torch.func`` or forward AD  |

A backend is a module with ``word_cosines(inputs, options)``, ``reasons_not_supported(problem)``,
``TAKES_HALF_PRECISION``, ``READS_MASKED_WORDS`` and ``RUNS_KERNELS``. A backend that was named and
cannot run raises with all its reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gloria.checks import check_choice
from gloria.errors import BackendError
from gloria.matching import chunked, einops, triton
from gloria.matching.cost import count
from gloria.matching.problem import MatchingInputs, MatchingOptions, Problem


class CanRefuse(Protocol):
    """A backend of any matching; each matching has its own kind of problem."""

    def reasons_not_supported(self, problem: Any) -> list[str]:
        """Sentences that say why not; empty = can run."""
        ...


class Backend(CanRefuse, Protocol):
    """What a backend module offers."""

    TAKES_HALF_PRECISION: bool
    """Whether float16 and bfloat16 inputs come as they are; otherwise they come as float32."""

    READS_MASKED_WORDS: bool
    """Whether zeros have to stand in masked words; otherwise anything may."""

    RUNS_KERNELS: bool
    """Whether Triton's kernels run wherever this backend does: the aggregation may use its own."""

    def word_cosines(self, inputs: MatchingInputs, options: MatchingOptions) -> Tensor:
        """Cosine of each word with the region feature it attends to, ``(image, text, word)``.

        In float32 or float64; at masked words anything finite, with zero gradient.
        """
        ...


TINY = 2**19
"""Bytes that the definition takes, as :mod:`gloria.matching.cost` counts them, below which it is
the fastest on a CPU: such a problem is all overhead."""

# Fastest first: this is the order in which "auto" asks.
BACKENDS: dict[str, Backend] = {"triton": triton, "chunked": chunked, "einops": einops}


def choose_backend(problem: Problem, backend: str = "auto") -> str:
    """Which of :data:`BACKENDS` runs a problem; raises as :func:`choose`."""
    if backend == "auto" and _is_tiny(problem):
        return "einops"
    return choose(BACKENDS, problem, backend)


def explain_backends(problem: Problem | None = None) -> dict[str, list[str]]:
    """Every backend's reasons not to run ``problem`` (by default the paper's); empty = can run."""
    problem = problem or PAPER_PROBLEM
    return {name: each.reasons_not_supported(problem) for name, each in BACKENDS.items()}


def choose(backends: Mapping[str, CanRefuse], problem: Any, backend: str) -> str:
    """The name given, or for ``"auto"`` that of the first backend that can run the problem.

    Raises:
        OptionError: there is no backend of that name.
        BackendError: the named backend cannot run the problem; lists its reasons.
    """
    check_choice("backend", backend, ("auto", *backends))
    if backend == "auto":
        return next(
            name
            for name, each in backends.items()
            # on a CPU Triton runs in its interpreter, which is for tests: only when named
            if (name, problem.device) != ("triton", "cpu")
            and not each.reasons_not_supported(problem)
        )
    reasons = backends[backend].reasons_not_supported(problem)
    if reasons:
        raise BackendError(f"backend {backend!r} cannot run this: {' '.join(reasons)}")
    return backend


def _is_tiny(problem: Problem) -> bool:
    # a compiled graph may serve other batch sizes than the one it is traced with
    if problem.device != "cpu" or torch.compiler.is_compiling():
        return False
    return count(problem, "einops").memory < TINY


PAPER_PROBLEM = Problem(
    images=48,
    regions=361,
    texts=48,
    words=97,
    dim=768,
    dtype=torch.float32,
    device="cpu",
    options=MatchingOptions("words_then_regions", 1 / 4, 1 / 5, "logsumexp"),
)
"""The published training setting: 19 × 19 regions, 97 tokens, batch 48."""
