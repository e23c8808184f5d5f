"""Everything the Triton backend has to show on a GPU, in one command, within eight minutes.

    python benchmarks/gpu.py                               # on a machine with a GPU
    TRITON_INTERPRET=1 python benchmarks/gpu.py --smoke    # its logic without one, on tiny sizes

Parity, peers side by side, batch sizes, memory, the largest batch, the hard maximum, profile,
tuning, the global loss, sanitizer: what matters most comes first.

Each stage runs in a process of its own, for so many seconds at most: one that hangs or leaves the
device's context broken costs the others nothing. What it has is in
``benchmarks/results/campaign/triton-<device>.json`` after each step, so that a run cut short leaves
that, and what did not end is named there; it is printed as the docs will tell it, too. Where parity
does not hold, all is run to find out why, and no time is told.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import test_max_similarity as hard_maximum
import torch
from measure import device_name
from peers import Run, global_peers, published, run_of
from report import campaign, parity_holds
from torch import Tensor
from workloads import WORKLOADS, Inputs, Workload

from gloria.files import write_text
from gloria.functional import local_similarity, max_similarity
from gloria.matching import ATTENTION_VARIANTS, MatchingInputs, MatchingOptions, einops
from gloria.matching import triton as backend
from gloria.matching.cost import Device, count
from gloria.matching.triton_support import INTERPRETED

SMOKE = "--smoke" in sys.argv
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
RESULTS = Path(__file__).with_name("results") / "campaign"

# Greatest error over greatest value, of cosines and of gradients; reasons in the tests.
TOLERANCE = {
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (5e-3, 5e-2),
    torch.float16: (5e-3, 5e-2),
}

Similarity = Callable[..., Tensor]


class Sizes:
    """What a campaign runs; in a smoke run, what shows that it runs at all."""

    def __init__(self) -> None:
        # the interpreter gets bfloat16 wrong
        self.dtype = torch.float32 if DEVICE == "cpu" else torch.bfloat16
        self.dtypes = list(TOLERANCE) if DEVICE == "cuda" else [torch.float32]
        self.exact = [(1, 1, 1, 1, 1), (2, 3, 5, 9, 20)]  # images, texts, regions, words, dim
        self.pairs = [2, 3]
        self.regions, self.dim, self.words = 5, 16, 6
        self.workloads = {"small": self.workload(2)}
        self.profile = {"small": self.workload(2)}
        self.tuning = [(5, 16, 2)]  # regions, dim, pairs
        self.memory, self.largest = 2, 3
        self.hard_maximum = ["small"]
        self.contrastive = [8]
        if not SMOKE:
            self.exact += [(3, 5, 361, 97, 768), (3, 4, 196, 60, 512), (5, 3, 49, 256, 100)]
            self.exact += [(2, 3, 1024, 40, 2048), (2, 37, 100, 12, 64)]
            self.workloads = {name: WORKLOADS[name] for name in ("paper", "vit-b16")}
            self.pairs = [48, 96, 128, 256, 512, 1024]
            self.regions, self.dim, self.words = 361, 768, 97
            self.profile = self.workloads | {"512 pairs": self.workload(512)}
            self.tuning = [(361, 768, 256), (196, 768, 256)]
            self.memory, self.largest = 128, 2048
            # the peer tunes itself for each, ten seconds at a time
            self.hard_maximum = ["colbert-train", "colbert-train-ragged", "words-find-regions-256"]
            self.contrastive = [8192, 32768]

    def workload(self, pairs: int) -> Workload:
        return Workload(pairs, self.regions, self.dim, self.words)


# What is compared.


def of_backend(name: str, attention: str = "words_then_regions", **matching: Any) -> Similarity:
    return functools.partial(local_similarity, attention=attention, backend=name, **matching)


def half_definition(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """The definition on the inputs as they are: the public function widens them to float32."""
    options = MatchingOptions("words_then_regions", 0.25, 0.2, "logsumexp")
    words = words.masked_fill(~word_mask[..., None], 0)
    cosine = einops.word_cosines(MatchingInputs(regions, words, word_mask, None), options)
    return 0.2 * (cosine.float() / 0.2).masked_fill(~word_mask, -math.inf).logsumexp(-1)


def peers() -> dict[str, Similarity]:
    """What takes longest to begin comes last."""
    compiler = {"backend": "eager"} if SMOKE else {"dynamic": False}
    return {
        "triton": of_backend("triton"),
        "definition": of_backend("einops"),
        "published": functools.partial(published, attention="words_then_regions"),
        "triton-1GiB": of_backend("triton", memory_budget=2**30),
        "chunked": of_backend("chunked"),
        "definition-half": half_definition,
        "compiled": torch.compile(of_backend("einops"), **compiler),
        "compiled-half": torch.compile(half_definition, **compiler),
    }


# How it is measured.


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds(run: Run, at_least: float = 0.3, most: int = 200) -> float:
    """Wall-clock seconds of one call, launches and host time included: mean after warm-ups."""
    for _ in range(0 if SMOKE else 5):
        run()
    synchronize()
    begin, count = time.perf_counter(), 0
    while count < (1 if SMOKE else 3) or (
        not SMOKE and time.perf_counter() - begin < at_least and count < most
    ):
        run()
        count += 1
    synchronize()
    return (time.perf_counter() - begin) / count


def extra_memory(run: Run) -> int | str:
    """Peak bytes beside what was there before."""
    if DEVICE != "cuda":
        return "not measured without a GPU"
    run()
    synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def or_why_not(measure: Callable[..., Any], *arguments: Any) -> Any:
    """A measurement, or what it failed of: the others go on (but in a smoke run)."""
    try:
        return measure(*arguments)
    except Exception as error:
        if SMOKE:
            raise
        return reason(error)
    finally:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def reason(error: Exception) -> str:
    """The error's kind and first line."""
    if isinstance(error, subprocess.TimeoutExpired):  # whose text is this machine's command
        return f"TimeoutExpired: after {error.timeout:.0f} seconds"
    return f"{type(error).__name__}: {str(error).split(chr(10))[0]}"


def roofline(
    workload: Workload, attention: str, inputs: Inputs, budget: int | None = None
) -> dict[str, float]:
    """Seconds at the rates of this machine's own products and copies, where there are some."""
    rates = REPORT.get("machine", {})
    if "copy_bytes_per_second" not in rates:
        return {}
    problem = workload.problem(attention, DEVICE, inputs.regions.dtype, budget)
    cost = count(problem, "triton", int(inputs.word_mask.sum()))
    device = Device(rates["matmul_flops"], rates["copy_bytes_per_second"])
    return {
        "fwd": cost.forward.seconds(device),
        "fwdbwd": (cost.forward + cost.backward).seconds(device),
    }


# The stages: each gives what it has so far, again and again.


def machine(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Device, versions, and what its matrix units and memory do in plain torch."""
    facts: dict[str, Any] = {
        "device": device_name(DEVICE),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": getattr(__import__("triton"), "__version__", None),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "interpreted": INTERPRETED,
    }
    yield facts
    side = 64 if SMOKE else 8192
    square = torch.randn(side, side, device=DEVICE, dtype=sizes.dtype)
    facts["matmul_flops"] = 2 * side**3 / seconds(lambda: square @ square)
    wide = square.float()
    facts["matmul_flops_float32"] = 2 * side**3 / seconds(lambda: wide @ wide)
    block = torch.empty(side**2 * 4, device=DEVICE)
    facts["copy_bytes_per_second"] = 2 * block.nbytes / seconds(lambda: block.clone())
    yield facts


def parity(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Against the definition in float64, each with holes in the masks; and the odd features."""
    jobs = list(itertools.product(sizes.exact, sizes.dtypes, ATTENTION_VARIANTS, (False, True)))
    # each compiles kernels of its own
    results = in_processes(parity_case, jobs) if DEVICE == "cuda" and not SMOKE else None
    cases = results or [parity_case(*job) for job in jobs]
    # a feature that fails or hangs, or a dtype that is not timed, is no reason to go home without
    # timings
    timed = str(sizes.dtype).removeprefix("torch.")
    passed = all(case["passed"] for case in cases if case["dtype"] == timed)
    features: dict[str, Any] = {}
    found = {"passed": passed, "features": features, "cases": cases}
    yield found
    inputs = next(iter(sizes.workloads.values())).draw(DEVICE, sizes.dtype)
    run = run_of(of_backend("triton"), inputs, "fwdbwd")
    first = run()
    features["same bits twice"] = all(map(torch.equal, run(), first))
    yield found
    if "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ:  # a capture needs the cache
        if DEVICE == "cuda":
            # before what it needs and its warm-up does not is loaded by others
            features["cuda graph"] = or_why_not(captures, inputs)
            yield found
        features["torch.compile"] = or_why_not(compiles, inputs, first)
        yield found
    features["large scores in other runs of images"] = or_why_not(large_scores, sizes)
    yield found
    features["hard maxima"] = or_why_not(hard_maxima, sizes)
    yield found


def parity_case(
    shape: tuple[int, ...], dtype: torch.dtype, attention: str, masked: bool
) -> dict[str, Any]:
    """One case, and whether its errors are within the tolerance."""
    errors = or_why_not(errors_of, shape, dtype, attention, masked)
    values, gradients = TOLERANCE[dtype]
    return {
        "images, texts, regions, words, dim": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "attention": attention,
        "region_mask": masked,
        "errors": errors,
        "passed": isinstance(errors, list) and errors[0] <= values and max(errors[1:]) <= gradients,
    }


def in_processes(job: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """The job's results, computed by as many processes as there are cores, in order."""
    context = multiprocessing.get_context("spawn")
    workers = min(len(arguments), os.cpu_count() or 1)
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
        return list(pool.map(job, *zip(*arguments, strict=True)))


def errors_of(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    attention: str,
    masked: bool,
    *,
    score: float = 1.0,
    budget: int | None = None,
    engine: Any = backend,
) -> list[float]:
    """Greatest error over greatest value: of cosines, and of both gradients.

    Scores are of about the size of ``score``. With masks everything is made again in the backward,
    but for another ``budget``.
    """
    images, texts, regions, words, dim = shape
    budget = budget or (1 if masked else 2**28)
    generator = torch.Generator().manual_seed(0)
    word_mask = torch.rand(texts, words, generator=generator) < 0.6
    word_mask[:, 0] |= ~word_mask.any(1)
    region_mask = torch.rand(images, regions, generator=generator) < 0.8
    region_mask[:, 0] |= ~region_mask.any(1)
    region_mask = region_mask.to(DEVICE) if masked else None
    word_mask = word_mask.to(DEVICE)
    unit = dim**0.25 / score**0.5
    v = torch.randn(images, regions, dim, generator=generator).to(DEVICE, dtype) / unit
    t = torch.randn(texts, words, dim, generator=generator).to(DEVICE, dtype) / unit
    t = t.masked_fill(~word_mask[..., None], 0)
    v = v if region_mask is None else v.masked_fill(~region_mask[..., None], 0)
    upstream = torch.randn(images, texts, words, generator=generator).to(DEVICE) * word_mask
    options = MatchingOptions(attention, 0.25, 0.2, "max", budget)
    results = []
    for runs, kind in ((engine, dtype), (einops, torch.float64)):
        leaves = [each.detach().to(kind).requires_grad_() for each in (v, t)]
        cosine = runs.word_cosines(MatchingInputs(*leaves, word_mask, region_mask), options)
        gradients = torch.autograd.grad(cosine, leaves, upstream.to(cosine.dtype))
        results.append([cosine.detach() * word_mask, *gradients])
    ours, theirs = results
    theirs[2] = theirs[2] * word_mask[..., None]
    if region_mask is not None:
        theirs[1] = theirs[1] * region_mask[..., None]
    # where every gradient vanishes (one region), rounding what cancels is no error
    rounding = 1e-3 if dtype == torch.float32 else 0.2
    floors = (1e-30, *(rounding * upstream.abs().max() / each.abs().max() for each in (v, t)))
    return [
        float((a.double() - b).abs().max() / max(b.abs().max(), floor))
        for a, b, floor in zip(ours, theirs, floors, strict=True)
    ]


def compiles(inputs: Inputs, expected: list[Tensor]) -> bool | str:
    similarity = torch.compile(of_backend("triton"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run_of(similarity, inputs, "fwd")(), expected[:1])
    found = run_of(similarity, inputs, "fwdbwd")()
    return within(TOLERANCE[inputs.regions.dtype][1], greatest_errors(found, expected))


def within(tolerance: float, errors: list[float]) -> bool | str:
    """Whether all are; or the greatest."""
    return max(errors) <= tolerance or f"error {max(errors):.1e}"


def large_scores(sizes: Sizes) -> bool | str:
    """In float32, made again by products of another size, which may sum in another order."""
    shape = (8, 8, 361, 97, 768) if not SMOKE else sizes.exact[-1]
    ours, theirs = (
        errors_of(shape, torch.float32, "regions", False, score=40.0, budget=2**25, engine=engine)
        for engine in (backend, einops)
    )
    # exponents amplify the rounding of scores, whoever sums them
    return within(max(TOLERANCE[torch.float32][1], 2 * max(theirs)), ours)


def hard_maxima(sizes: Sizes) -> bool | str:
    """Each dtype, with winners kept and made again, beside the definition in float64."""
    shape = (9, 7, 196, 97, 256) if not SMOKE else sizes.exact[-1]
    images, texts, regions, words, dim = shape
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, words + 1, (texts, 1), generator=generator)
    word_mask = (torch.arange(words) < lengths).to(DEVICE)
    errors = []
    for dtype in sizes.dtypes:
        # bfloat16 numbers in all of them: winners are the same
        vectors = [
            torch.randn(shape, generator=generator).bfloat16().to(DEVICE, dtype)
            for shape in ((images, regions, dim), (texts, words, dim))
        ]
        maxima = functools.partial(max_similarity, product="dot")
        exact = (*(each.double() for each in vectors), word_mask)
        expected = run_of(functools.partial(maxima, backend="einops"), exact, "fwdbwd")()
        for budget in (2**28, 1):
            ours = functools.partial(maxima, backend="triton", memory_budget=budget)
            found = run_of(ours, (*vectors, word_mask), "fwdbwd")()
            errors += greatest_errors(found, expected)
    return within(TOLERANCE[torch.bfloat16][1], errors)


def captured(run: Run) -> Run:
    """The same in a CUDA graph: launched by the host at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> list[Tensor]:
        graph.replay()
        return results

    return replay


def captures(inputs: Inputs) -> bool:
    """Capture forward and backward, replay on other inputs, compare with eager."""
    # kept in the warm-up, and made again in the capture, which has columns for padding, too
    options = MatchingOptions("words_then_regions", 0.25, 0.2, "max", 2**29)
    leaves = [each.detach().clone().requires_grad_() for each in inputs[:2]]
    upstream = torch.randn(len(leaves[0]), *leaves[1].shape[:2], device=DEVICE)

    def step() -> list[Tensor]:
        cosine = backend.word_cosines(MatchingInputs(*leaves, inputs.word_mask, None), options)
        return [cosine, *torch.autograd.grad(cosine, leaves, upstream)]

    replay = captured(step)
    with torch.no_grad():
        leaves[0].mul_(0.5)
    for ours, theirs in zip(replay(), step(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)
    return True


def tuning(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Microseconds of each kernel for many block sizes, and what the fastest would give.

    Compiled by many processes at once, timed by this one alone. ``choose_blocks`` is to follow;
    all else is timed with what it chooses now.
    """
    found: dict[str, Any] = {}
    cases = list(itertools.product(sizes.tuning, ATTENTION_VARIANTS))
    if DEVICE == "cuda":
        jobs = [
            (regions, dim, attention, blocks)
            for (regions, dim, _), attention in cases
            for blocks in candidates(regions)
        ]
        in_processes(compile_blocks, jobs)
    for (regions, dim, pairs), attention in cases:
        inputs = Workload(pairs, regions, dim, sizes.words).draw(DEVICE, sizes.dtype)
        run = run_of(of_backend("triton", attention, memory_budget=2**30), inputs, "fwdbwd")
        rows: dict[str, list[Any]] = {name: [] for name in KERNELS}
        for blocks in candidates(regions):
            with mock.patch.object(backend, "choose_blocks", return_value=blocks):
                took = or_why_not(kernel_times, run)
            if not isinstance(took, dict):
                print(f"{blocks}: {took}", flush=True)
                continue
            for name in KERNELS:
                rows[name].append([took[name], *getattr(blocks, name)])
        found[f"{attention}, {regions} regions, {dim} dim, {pairs} pairs"] = {
            "columns": "microseconds, regions, words, warps, stages; the default first",
            **{name: some[:1] + sorted(some[1:]) for name, some in rows.items()},
            "seconds": or_why_not(seconds_by_blocks, run, rows),
        }
        yield found


def seconds_by_blocks(run: Run, rows: dict[str, list[Any]]) -> dict[str, float]:
    """Of the whole, with the default blocks and with the fastest of each kernel."""
    fastest = backend.Blocks(*(backend.Launch(*min(some)[1:]) for some in rows.values()))
    default = seconds(run)
    with mock.patch.object(backend, "choose_blocks", return_value=fastest):
        return {"default": default, "fastest": seconds(run)}


KERNELS = backend.Blocks._fields


def candidates(regions: int) -> Iterator[backend.Blocks]:
    """Block sizes to time, the default first; the same for all kernels but for the regions."""
    default = backend.choose_blocks(regions)
    yield default
    for words, warps, stages in itertools.product((1, 2, 4, 8), (1, 2), (1, 3)):
        if not SMOKE:
            yield backend.Blocks(
                *(backend.Launch(each[0], words, warps, stages) for each in default)
            )


def compile_blocks(regions: int, dim: int, attention: str, blocks: backend.Blocks) -> str:
    """Leave the kernels of these blocks in Triton's cache."""
    inputs = Workload(2, regions, dim, 97).draw(DEVICE, torch.bfloat16)
    run = run_of(of_backend("triton", attention), inputs, "fwdbwd")
    with mock.patch.object(backend, "choose_blocks", return_value=blocks):
        outcome = or_why_not(run)
    return outcome if isinstance(outcome, str) else "compiled"


def kernel_times(run: Run) -> dict[str, float]:
    """Microseconds of each kernel in one run, all its launches together: the least of two."""
    run()
    runs = [device_times(run) for _ in range(2)]
    return {name: min(each[name] for each in runs) for name in KERNELS}


def device_times(run: Run) -> dict[str, float]:
    """Microseconds on the device by kernel."""
    if DEVICE != "cuda":
        run()
        return dict.fromkeys(KERNELS, 0.0)
    synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        synchronize()
    return {row.key: row.self_device_time_total for row in profiler.key_averages()}


def timings(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Each peer on each workload, seconds beside those of the roofline."""
    drawn = {name: each.draw(DEVICE, sizes.dtype) for name, each in sizes.workloads.items()}
    table: dict[str, Any] = {
        name: {
            "roofline": roofline(sizes.workloads[name], "words_then_regions", inputs),
            "errors of triton": or_why_not(errors_beside, inputs),
        }
        for name, inputs in drawn.items()
    }
    for peer, similarity in peers().items():
        # to compile takes ten seconds a mode
        modes = ("fwdbwd",) if peer.startswith("compiled") else ("fwd", "fwdbwd")
        for name, inputs in drawn.items():
            table[name][peer] = times(similarity, inputs, modes)
            yield table
    if DEVICE == "cuda":
        for name, inputs in drawn.items():
            run = run_of(of_backend("triton"), inputs, "fwdbwd")
            took = or_why_not(lambda run: seconds(captured(run)), run)
            table[name]["triton-captured"] = {"fwdbwd": took}
            yield table


def errors_beside(inputs: Inputs) -> list[float]:
    """Of what was timed, beside the definition: value and both gradients, to the greatest."""
    ours, theirs = (run_of(of_backend(name), inputs, "fwdbwd") for name in ("triton", "einops"))
    return greatest_errors(ours(), theirs())


def greatest_errors(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    """Each over the greatest value."""
    return [
        float((a.double() - b.double()).abs().max() / b.double().abs().max())
        for a, b in zip(ours, theirs, strict=True)
    ]


def scaling(sizes: Sizes) -> Iterator[list[dict[str, Any]]]:
    """Seconds against batch size, beside those of the roofline."""
    rows = []
    for pairs in sizes.pairs:
        workload = sizes.workload(pairs)
        inputs = workload.draw(DEVICE, sizes.dtype)
        for attention in ATTENTION_VARIANTS:
            similarity = of_backend("triton", attention, memory_budget=2**30)
            rows.append(
                {
                    "pairs": pairs,
                    "attention": attention,
                    "seconds": times(similarity, inputs),
                    "roofline": roofline(workload, attention, inputs, 2**30),
                }
            )
            yield rows


def times(
    similarity: Similarity, inputs: Inputs, modes: tuple[str, ...] = ("fwd", "fwdbwd")
) -> dict[str, Any]:
    """Seconds by mode."""
    return {mode: or_why_not(seconds, run_of(similarity, inputs, mode)) for mode in modes}


def memory(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Peak bytes beside inputs, forward and backward."""
    inputs = sizes.workload(sizes.memory).draw(DEVICE, sizes.dtype)
    found = {}
    for name, similarity in (
        ("triton", of_backend("triton")),
        ("triton-128MiB", of_backend("triton", memory_budget=2**27)),
        ("chunked", of_backend("chunked")),
        ("definition", of_backend("einops")),
        ("definition-half", half_definition),
    ):
        found[name] = or_why_not(extra_memory, run_of(similarity, inputs, "fwdbwd"))
        yield found


def largest(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The largest batch on one card, forward and backward."""
    inputs = sizes.workload(sizes.largest).draw(DEVICE, sizes.dtype)
    run = run_of(of_backend("triton", memory_budget=2**30), inputs, "fwdbwd")
    found = {"pairs": sizes.largest, "extra_bytes": or_why_not(extra_memory, run)}
    yield found
    yield found | {"seconds": or_why_not(seconds, run, 0.1, 3)}


def profile(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Microseconds by kernel, and of the host, forward and backward."""
    found = {}
    for name, workload in sizes.profile.items():
        inputs = workload.draw(DEVICE, sizes.dtype)
        run = run_of(of_backend("triton", memory_budget=2**30), inputs, "fwdbwd")
        host = 1e6 * host_seconds(run)
        times = sorted(device_times(run).items(), key=lambda row: -row[1])
        found[name] = {"host": host, **dict(times[:30])}
        yield found


def host_seconds(run: Run) -> float:
    """Until a call returns, of a device that has nothing else to do: the median of some."""
    run()
    took = []
    for _ in range(1 if SMOKE else 20):
        synchronize()
        begin = time.perf_counter()
        run()
        took.append(time.perf_counter() - begin)
    return statistics.median(took)


def hard_max(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Hard-maximum matching beside late-interaction-kernels, on its own workloads and ours."""
    table: dict[str, Any] = {}
    for name in sizes.hard_maximum:
        inputs = hard_maximum.WORKLOADS[name].draw()
        expected = run_of(hard_maximum.PEERS["einops"], inputs, "fwdbwd")()
        table[name] = {}
        for peer, scores in hard_maximum.PEERS.items():
            table[name][peer] = or_why_not(hard_max_peer, scores, inputs, expected)
            yield table


def hard_max_peer(
    scores: Callable[..., Tensor], inputs: Any, expected: list[Tensor]
) -> dict[str, Any]:
    """Greatest errors over greatest values, then seconds."""
    return {
        "errors": greatest_errors(run_of(scores, inputs, "fwdbwd")(), expected),
        **{mode: seconds(run_of(scores, inputs, mode), 0.1) for mode in ("fwd", "fwdbwd")},
    }


def contrastive(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The global loss without its pair matrix beside the one with it, in float32."""
    found = {}
    for pairs in sizes.contrastive:
        for name, run in global_peers(pairs, DEVICE, torch.float32).items():
            found[f"{pairs} pairs, {name}"] = {
                "extra_bytes": or_why_not(extra_memory, run),
                "seconds": or_why_not(seconds, run, 0.1, 10),
            }
            yield found


def sanitizer(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The tiny parity cases under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if DEVICE != "cuda" or tool is None or SMOKE:
        yield {"skipped": "it is for a GPU, and compute-sanitizer must be installed"}
        return
    outcome = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "1"]
        command += [sys.executable, __file__, "--smoke", "--here", "--only", "parity"]
        outcome[check] = or_why_not(said, command, STAGES[sanitizer] / 2 - 5)
        yield outcome


def said(command: list[str], limit: float) -> dict[str, Any]:
    """Exit code and the end of what a command printed, the cache of device memory off."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=limit,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )
    lines = (done.stdout + done.stderr).splitlines(keepends=True)
    return {"exit_code": done.returncode, "printed": "".join(lines[-20:])}


STAGES = {
    machine: 60,
    parity: 120,
    timings: 120,
    scaling: 60,
    memory: 40,
    largest: 60,
    hard_max: 90,
    profile: 40,
    tuning: 120,
    contrastive: 60,
    sanitizer: 150,
}
"""And the seconds of each at most; in one process they took 220 together, on an H200."""

REPORT: dict[str, Any] = {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; no figure is kept")
    parser.add_argument("--here", action="store_true", help="all stages in this process")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", nargs="+", choices=[stage.__name__ for stage in STAGES])
    parser.add_argument("--output", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    if DEVICE == "cpu" and not (SMOKE and INTERPRETED):
        print(
            "No GPU here, and this measures one. Its logic runs without: "
            "TRITON_INTERPRET=1 python benchmarks/gpu.py --smoke"
        )
        return 2
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as nowhere:
        target = file_in(arguments.output or (Path(nowhere) if SMOKE else RESULTS))
        if arguments.here and target.exists():
            REPORT.update(json.loads(target.read_text(encoding="utf-8")))
        write(target)
        for stage in STAGES:
            name = stage.__name__
            if name in (arguments.only or [name]) or (stage is machine and not REPORT):
                if arguments.here:
                    run_here(stage, target)
                    continue
                begin = time.monotonic()
                run_apart(stage, target, deadline)
                print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)
    if not arguments.here:
        print(campaign(REPORT))
    mine = arguments.only or [stage.__name__ for stage in STAGES]
    failed = any(name in REPORT.get("unfinished", {}) for name in mine)
    return int(failed or ("parity" in mine and not parity_holds(REPORT)))


def file_in(folder: Path) -> Path:
    """Where the results go."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.findall(r"\w+", device_name(DEVICE).lower() if DEVICE == "cuda" else "cpu")
    return folder / f"triton-{'-'.join(name)}.json"


def write(target: Path) -> None:
    """Write down what there is, without the folders of this machine."""
    text = json.dumps(REPORT, indent=1, default=str)
    text = re.sub(r"(?:(?<![\w.])|(?<=\\[nt]))/(?:[\w.+@~-]+/)+", "", text)
    write_text(target, text + "\n")


def run_here(stage: Callable[[Sizes], Iterator[Any]], target: Path) -> None:
    """Run a stage and write down what it has after each step."""
    REPORT.get("unfinished", {}).pop(stage.__name__, None)
    try:
        for found in stage(Sizes()):
            REPORT[stage.__name__] = found
            write(target)
    except Exception as error:
        if SMOKE:
            raise
        REPORT.setdefault("unfinished", {})[stage.__name__] = reason(error)
        write(target)


def run_apart(stage: Callable[[Sizes], Iterator[Any]], target: Path, deadline: float) -> None:
    """Run a stage in a process of its own, and take over what it wrote down."""
    name, left = stage.__name__, deadline - time.monotonic()
    command = [sys.executable, __file__, "--here", "--only", name, "--output", str(target.parent)]
    command += ["--smoke"] if SMOKE else []
    why = ended(command, min(STAGES[stage], left)) if left > 10 else "no time left"
    REPORT.update(json.loads(target.read_text(encoding="utf-8")))
    if why:
        REPORT.setdefault("unfinished", {}).setdefault(name, why)
        write(target)


def ended(command: list[str], limit: float) -> str:
    """Run a command, so many seconds at most, and end all that it began; why it failed, or ""."""
    process = subprocess.Popen(command, process_group=0)
    try:
        code = process.wait(limit)
        return f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} seconds"
    finally:
        # what hangs in the driver may outlive this, and is not waited for
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


if __name__ == "__main__":
    sys.exit(main())
