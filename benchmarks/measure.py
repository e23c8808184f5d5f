"""Measure every peer on every workload, side by side, and keep the figures.

    python benchmarks/measure.py --out benchmarks/results/cpu.json

Each case runs in rounds, A B C A B C, so that a noisy machine disturbs all peers alike: the ratio
is the figure, the seconds are the machine's. Before anything is timed, each peer is run alone in a
process of its own, for its peak memory (beside inputs, result and gradients), and its values and
gradients are held to the definition's. Peers that do not fit into memory, or take longer than
--patience, are kept as such.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peers import Run, assert_same, global_peers, local_peers
from workloads import GLOBAL_WORKLOADS, WORKLOADS

import gloria
from gloria.files import write_text
from gloria.matching.cost import COUNTED, Device, count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REFERENCES = ("definition", "matrix")
AT_MOST, AT_LEAST = 15, 3
"""rounds"""


class Case(NamedTuple):
    """One group of figures that may be compared."""

    workload: str
    attention: str
    mode: str

    def peers(self, device: str, dtype: torch.dtype, first: int | None = None) -> dict[str, Run]:
        """What runs, on inputs drawn now; ``first``: on so many pairs only."""
        if self.workload in GLOBAL_WORKLOADS:
            return global_peers(first or GLOBAL_WORKLOADS[self.workload], device, dtype)
        workload = WORKLOADS[self.workload]
        inputs = workload.draw(device, dtype).first(first or workload.pairs)
        workload = workload._replace(pairs=len(inputs.regions))
        return local_peers(inputs, workload, self.attention, self.mode)


def cases(workloads: list[str], modes: tuple[str, ...] = ("fwd", "fwdbwd")) -> Iterator[Case]:
    """Every case of the named workloads in these modes."""
    for name in workloads:
        if name in GLOBAL_WORKLOADS:
            yield Case(name, "", "fwdbwd")
            continue
        for attention in WORKLOADS[name].attentions:
            for mode in WORKLOADS[name].modes:
                if mode in modes:
                    yield Case(name, attention, mode)


def measure(
    case: Case, device: str, dtype: torch.dtype, budget: float, patience: float
) -> dict[str, dict[str, Any]]:
    """The figures of one case by peer: memory, seconds, counts; or why a peer failed."""
    runs = case.peers(device, dtype)
    figures = {name: alone(case, name, device, dtype, patience) for name in runs}
    runs = {name: run for name, run in runs.items() if "failed" not in figures[name]}
    # on a corner, what the definition cannot do in full
    checked = runs if any(name in runs for name in REFERENCES) else case.peers(device, dtype, 8)
    expected = next(checked[name] for name in REFERENCES if name in checked)()
    for name in runs:
        if name != "products":
            try:
                assert_same(checked[name](), expected)
            except AssertionError as wrong:
                told = str(wrong).strip().partition("\n")[0]
                figures[name] = fault(f"not the definition: {told}")
    runs = {name: run for name, run in runs.items() if "failed" not in figures[name]}
    for name, seconds in interleave(runs, device, budget).items():
        figures[name] |= {
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "rounds": len(seconds),
        }
        if case.workload in WORKLOADS:
            figures[name] |= counted(case, name, device, dtype)
    return figures


def interleave(runs: dict[str, Run], device: str, budget: float) -> dict[str, list[float]]:
    """Seconds of every round of every peer, the peers taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        timed(run, device)
    start = time.perf_counter()
    for done in range(AT_MOST):
        if done >= AT_LEAST and time.perf_counter() - start > budget:
            break
        for name, run in runs.items():
            seconds[name].append(timed(run, device))
    return seconds


def timed(run: Run, device: str) -> float:
    """Seconds of one run, launches and kernels."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def counted(case: Case, peer: str, device: str, dtype: torch.dtype) -> dict[str, int]:
    """What cost.py counts for a peer that it knows."""
    backends = {"definition": "einops", "compiled": "einops", "chunked-compiled": "chunked"}
    backend = backends.get(peer, peer)
    if backend not in COUNTED:
        return {}
    workload = WORKLOADS[case.workload]
    real_words = int(workload.draw().word_mask.sum())
    cost = count(workload.problem(case.attention, device, dtype), backend, real_words)
    if case.mode == "fwd":
        return cost.forward._asdict()
    return {**(cost.forward + cost.backward)._asdict(), "counted_memory": cost.memory}


def alone(
    case: Case, peer: str, device: str, dtype: torch.dtype, patience: float
) -> dict[str, Any]:
    """Peak memory of a peer in a process of its own, or why there is none."""
    command = [sys.executable, __file__, "--alone", *case, peer, device, str(dtype)[6:]]
    # freed memory goes back at once, so that the peak is that of live tensors
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {patience:.0f} s"}
    if "allocate memory" in done.stderr or "OutOfMemoryError" in done.stderr:
        return {"failed": "out of memory"}
    if done.returncode:
        # who is killed says nothing
        return fault((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return {"memory": int(done.stdout)}


def fault(why: str) -> dict[str, Any]:
    """Of a peer that is wrong or breaks, and not only too large or too slow."""
    return {"failed": why, "fault": True}


def peak_memory(case: Case, peer: str, device: str, dtype: torch.dtype) -> int:
    """Bytes at the peak beside inputs, result and gradients; to be called in a fresh process."""
    warm = case._replace(workload="global-1024" if case.attention == "" else "small")
    warm.peers(device, dtype)[peer]()
    run = case.peers(device, dtype)[peer]
    if peer.endswith("compiled"):
        run()  # compiling takes memory of its own
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = run()
        peak = torch.cuda.max_memory_allocated()
    else:
        limit = int(0.7 * available_memory())
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = status("VmRSS")
        outputs = run()
        peak = status("VmHWM")
    return peak - before - sum(each.nbytes for each in outputs)


def status(key: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def available_memory() -> int:
    """Bytes that this machine can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


def machine(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": device_name(device),
        "dtype": str(dtype)[6:],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gloria": gloria.__version__,
    }


def rates(device: str, dtype: torch.dtype) -> Device:
    """Of large matrix products and large copies, measured now."""
    size = 2048 if device == "cpu" else 8192
    matrix = torch.randn(size, size).to(device, dtype)
    large = torch.empty(2**26, device=device)
    other = torch.empty_like(large)
    products = min(timed(lambda: [matrix @ matrix], device) for _ in range(20))
    copies = min(timed(lambda: [other.copy_(large)], device) for _ in range(20))
    return Device(2 * size**3 / products, 2 * large.nbytes / copies)


def device_name(device: str) -> str:
    """Its own; of a processor, the architecture's where Linux has no model name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def synchronize(device: str) -> None:
    """Wait for a device that works behind our back."""
    if device != "cpu":
        torch.accelerator.synchronize()


def main() -> int:
    """Measure and write, case by case; 1 if a peer is wrong."""
    if sys.argv[1:2] == ["--alone"]:
        *case, peer, device, dtype = sys.argv[2:]
        print(peak_memory(Case(*case), peer, device, DTYPES[dtype]))
        return 0
    known = [*WORKLOADS, *GLOBAL_WORKLOADS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--workloads", nargs="+", choices=known, default=known[1:])
    parser.add_argument("--modes", nargs="+", choices=("fwd", "fwdbwd"), default=("fwd", "fwdbwd"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--seconds", type=float, default=20, help="of the rounds of a case")
    parser.add_argument("--patience", type=float, default=300, help="seconds for a peer alone")
    args = parser.parse_args()
    dtype = DTYPES[args.dtype or ("bfloat16" if args.device == "cuda" else "float32")]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(args.device, dtype), "workloads": {}, "cases": []}
    best, code = Device(0.0, 0.0), 0
    for case in cases(args.workloads, tuple(args.modes)):
        print(*case, flush=True)
        torch.compiler.reset()
        before = rates(args.device, dtype)
        figures = measure(case, args.device, dtype, args.seconds, args.patience)
        # again and again: a busy moment must not lower the roof
        best = Device(*map(max, best, before, rates(args.device, dtype)))
        results["machine"] |= best._asdict()
        results["cases"].append({**case._asdict(), "peers": figures})
        results["workloads"][case.workload] = described(case.workload)
        write_text(args.out, json.dumps(results, indent=1) + "\n")
        faults = {name: each["failed"] for name, each in figures.items() if "fault" in each}
        code |= bool(faults)
        for name, why in faults.items():
            print(f"{name} on {' '.join(case)}: {why}", file=sys.stderr)
    return code


def described(name: str) -> str:
    """A workload in words."""
    if name in GLOBAL_WORKLOADS:
        return f"{GLOBAL_WORKLOADS[name]:,} pairs, dim 512, a learned temperature"
    workload = WORKLOADS[name]
    mean = float(workload.draw().word_mask.sum(1).float().mean())
    return (
        f"{workload.pairs:,} images of {workload.regions} regions, {workload.pairs:,} texts of "
        f"{workload.words} words ({mean:.0f} real on average), dim {workload.dim}"
    )


if __name__ == "__main__":
    sys.exit(main())
