"""Local matching: every backend beside the published code's loop.

    pytest benchmarks --benchmark-enable --benchmark-json=results.json

Each case first asserts that it computes the same, values and gradients.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from workloads import WORKLOADS, published_loop

from gloria.functional import local_similarity
from gloria.matching import BACKENDS

Similarity = Callable[[Tensor, Tensor, Tensor], Tensor]


def of_backend(name: str) -> Similarity:
    """Our local similarity, in the published code's variant and scale."""

    def similarity(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        return 5 * local_similarity(
            regions, words, word_mask, attention="words_then_regions", backend=name
        )

    return similarity


PEERS: dict[str, Similarity] = {"published-loop": published_loop} | {
    name: of_backend(name) for name in BACKENDS
}


def run(similarity: Similarity, tensors: tuple[Tensor, Tensor, Tensor], mode: str) -> list[Tensor]:
    """The similarity, and in mode fwdbwd the gradients of a weighted sum of it."""
    regions, words, word_mask = tensors
    if mode == "fwd":
        with torch.no_grad():
            return [similarity(regions, words, word_mask)]
    regions, words = (each.detach().requires_grad_() for each in (regions, words))
    pairs = similarity(regions, words, word_mask)
    upstream = torch.randn(pairs.shape, generator=torch.Generator().manual_seed(1))
    return [pairs.detach(), *torch.autograd.grad(pairs, (regions, words), upstream)]


@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("peer", PEERS)
def test_local_matching(benchmark, peer: str, workload: str, mode: str) -> None:
    tensors = WORKLOADS[workload].draw()
    for ours, theirs in zip(
        run(PEERS[peer], tensors, mode), run(published_loop, tensors, mode), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    benchmark.group = f"{workload}-{mode}"
    benchmark.extra_info.update(
        torch=torch.__version__, threads=torch.get_num_threads(), machine=platform.processor()
    )
    benchmark(run, PEERS[peer], tensors, mode)
