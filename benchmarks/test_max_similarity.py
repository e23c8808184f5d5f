"""Hard-maximum matching: every backend beside late-interaction-kernels, the public peer.

    pytest benchmarks/test_max_similarity.py --benchmark-json=results.json

On a GPU, if there is one, in bfloat16 and beside the peer's Triton kernels; else on the CPU in
float32, beside its PyTorch reference, which is what it runs there. Each case first asserts that it
computes what the definition does, values and gradients.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from measure import machine, timed
from peers import run_of
from torch import Tensor
from torch.nn.functional import normalize

from gloria.functional import max_similarity
from gloria.matching.maxsim import MAXSIM_BACKENDS, MaxSimProblem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


class Inputs(NamedTuple):
    """Unit vectors, and which are real; None = all."""

    queries: Tensor
    keys: Tensor
    query_mask: Tensor | None
    key_mask: Tensor | None


class Workload(NamedTuple):
    """Sizes; a side with a median length is ragged, its lengths lognormal."""

    queries: int
    query_tokens: int
    keys: int
    key_tokens: int
    dim: int
    query_median: int | None = None
    key_median: int | None = None

    def draw(self) -> Inputs:
        """The same every time."""
        generator = torch.Generator().manual_seed(0)

        def side(items: int, tokens: int, median: int | None) -> tuple[Tensor, Tensor | None]:
            vectors = normalize(torch.randn(items, tokens, self.dim, generator=generator), dim=-1)
            vectors = vectors.to(DEVICE, DTYPE)
            if median is None:
                return vectors, None
            spread = torch.randn(items, generator=generator).mul(0.5).exp()
            lengths = (median * spread).round().clamp(1, tokens)
            return vectors, (torch.arange(tokens) < lengths[:, None]).to(DEVICE)

        queries, query_mask = side(self.queries, self.query_tokens, self.query_median)
        keys, key_mask = side(self.keys, self.key_tokens, self.key_median)
        return Inputs(queries, keys, query_mask, key_mask)


WORKLOADS = {
    "small": Workload(2, 3, 4, 5, 16, query_median=2),  # for CI, which times nothing
    # ColBERT: 32 query tokens, passages of 180 or 300, 128 dim, as the peer benchmarks it
    "colbert-train": Workload(32, 32, 64, 180, 128),
    "colbert-train-ragged": Workload(32, 32, 64, 180, 128, key_median=80),
    "colbert-rerank": Workload(1, 32, 1000, 300, 128),
    # regions and words: 14 x 14 patches, reports with a median of 18 words
    "words-find-regions-256": Workload(48, 97, 48, 196, 256, query_median=18),
    "regions-find-words-256": Workload(48, 196, 48, 97, 256, key_median=18),
    "words-find-regions-768": Workload(32, 97, 32, 196, 768, query_median=18),
    "regions-find-words-768": Workload(32, 196, 32, 97, 768, key_median=18),
}


def of_backend(name: str) -> Callable[..., Tensor]:
    """Ours: queries are the words, keys the regions."""

    def scores(queries: Tensor, keys: Tensor, *masks: Tensor | None) -> Tensor:
        options = {"reduction": "sum", "product": "dot", "backend": name}
        return max_similarity(keys, queries, *masks, **options).T

    return scores


def late_interaction_kernels(*inputs: Tensor | None) -> Tensor:
    """The peer: fused kernels on a GPU, its reference elsewhere."""
    if DEVICE == "cuda":
        from late_interaction_kernels import maxsim

        return maxsim(*inputs)
    from late_interaction_kernels.reference import maxsim_reference

    return maxsim_reference(*inputs)


HERE = MaxSimProblem(2, 3, 4, 5, 16, DTYPE, DEVICE)
PEERS = {
    name: of_backend(name)
    for name, backend in MAXSIM_BACKENDS.items()
    if not backend.reasons_not_supported(HERE)
}
if importlib.util.find_spec("late_interaction_kernels"):
    PEERS["late-interaction-kernels"] = late_interaction_kernels


@pytest.mark.parametrize("mode", ["fwd", "fwdbwd"])
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("peer", PEERS)
def test_max_similarity(benchmark, peer: str, workload: str, mode: str) -> None:
    inputs = WORKLOADS[workload].draw()
    run, definition = (run_of(PEERS[name], inputs, mode) for name in (peer, "einops"))
    # of two bfloat16 scores that are nearly equal, either may win
    tolerance = 1e-4 if DEVICE == "cpu" else 2e-2
    torch.testing.assert_close(run(), definition(), rtol=tolerance, atol=tolerance)
    benchmark.group = f"{workload}-{mode}"
    benchmark.extra_info.update(machine(DEVICE, DTYPE))
    benchmark(timed, run, DEVICE)
