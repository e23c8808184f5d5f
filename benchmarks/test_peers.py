"""Every peer computes the same; with pytest-benchmark also how fast, one after the other.

    pytest benchmarks -k paper

For ratios that a noisy machine cannot bend, and for memory: ``measure.py``.
"""

from __future__ import annotations

import pytest
import torch
from measure import Case, cases, machine, timed
from peers import SIMILARITIES, assert_same
from workloads import GLOBAL_WORKLOADS, WORKLOADS

IDS = [
    (peer, case)
    for case in cases([*WORKLOADS, *GLOBAL_WORKLOADS])
    for peer in (
        ["matrix", "blocks"] if case.workload in GLOBAL_WORKLOADS else [*SIMILARITIES, "products"]
    )
]


@pytest.mark.parametrize(
    "peer, case", IDS, ids=["-".join(filter(None, (peer, *case))) for peer, case in IDS]
)
@pytest.mark.filterwarnings("ignore")  # a compiler's
@pytest.mark.timeout(0)
def test_peer(benchmark, peer: str, case: Case) -> None:
    if peer.endswith("compiled") and not benchmark.enabled:
        pytest.skip("compiling takes longer than all the others")
    device = "cuda" if torch.cuda.is_available() and benchmark.enabled else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    peers = case.peers(device, dtype)
    if peer not in peers:
        pytest.skip(f"{peer} cannot run this on {device}")
    if peer != "products":
        expected = peers["matrix" if "matrix" in peers else "definition"]()
        assert_same(peers[peer](), expected)
    if benchmark.enabled:
        benchmark.extra_info.update(machine(device, dtype))
    benchmark.group = "-".join(filter(None, case))
    benchmark(timed, peers[peer], device)
