"""Everything the Triton backend has to show on a GPU, in one command, within eight minutes.

    python benchmarks/gpu.py                               # on a machine with a GPU
    TRITON_INTERPRET=1 python benchmarks/gpu.py --smoke    # its logic without one, on tiny sizes

Parity, peers side by side, batch sizes, memory, the largest batch, profile, tuning, sanitizer.

Writes ``benchmarks/results/campaign/triton-<device>.json`` and again after each stage, so that a
run cut short leaves what it had. Nothing is timed unless parity holds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peers import Run, published
from torch import Tensor
from workloads import WORKLOADS, Inputs, Workload

from gloria.functional import local_similarity
from gloria.matching import ATTENTION_VARIANTS, MatchingInputs, MatchingOptions, einops
from gloria.matching import triton as backend
from gloria.matching.cost import Device, count
from gloria.matching.triton_support import INTERPRETED
from gloria.weights import write_text

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
        self.workloads = {"small": WORKLOADS["small"]}
        self.pairs = [2, 3]
        self.regions, self.dim, self.words = 5, 16, 6
        self.memory = self.tuning = self.profile = 2
        self.largest = 3
        if not SMOKE:
            self.exact += [(3, 5, 361, 97, 768), (3, 4, 196, 60, 512), (5, 3, 49, 256, 100)]
            self.exact += [(2, 3, 1024, 40, 2048), (2, 37, 100, 12, 64)]
            self.workloads = {name: WORKLOADS[name] for name in ("paper", "vit-b16")}
            self.pairs = [48, 96, 128, 256, 512, 1024]
            self.regions, self.dim, self.words = 361, 768, 97
            self.memory, self.tuning, self.profile, self.largest = 128, 128, 256, 2048

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
    compiler = {"backend": "eager"} if SMOKE else {}
    return {
        "triton": of_backend("triton"),
        "triton-1GiB": of_backend("triton", memory_budget=2**30),
        "chunked": of_backend("chunked"),
        "definition": of_backend("einops"),
        "definition-half": half_definition,
        "compiled": torch.compile(of_backend("einops"), **compiler),
        "compiled-half": torch.compile(half_definition, **compiler),
        "published": functools.partial(published, attention="words_then_regions"),
    }


def run_of(similarity: Similarity, inputs: Inputs, mode: str) -> Run:
    """What is timed: with an upstream gradient that is there before."""
    upstream = torch.randn(len(inputs.regions), len(inputs.words), device=DEVICE)

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [similarity(*inputs)]

    def forward_backward() -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in inputs[:2]]
        pairs = similarity(*leaves, inputs.word_mask)
        return [pairs.detach(), *torch.autograd.grad(pairs, leaves, upstream.to(pairs.dtype))]

    return forward if mode == "fwd" else forward_backward


# How it is measured.


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds(run: Run, at_least: float = 0.3, most: int = 50) -> float:
    """Wall-clock seconds of one call, launches and host time included: mean after two warm-ups."""
    for _ in range(0 if SMOKE else 2):
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


def extra_memory(run: Run) -> int | None:
    """Peak bytes beside what was there before."""
    if DEVICE != "cuda":
        return None
    run()
    synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def or_why_not(measure: Callable[[], Any]) -> Any:
    """A measurement, or what it failed of: the others go on (but in a smoke run)."""
    try:
        return measure()
    except Exception as error:
        if SMOKE:
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    finally:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def roofline(workload: Workload, attention: str, inputs: Inputs) -> dict[str, float]:
    """Seconds at the rates of this machine's own products and copies, nothing lost."""
    problem = workload.problem(attention, DEVICE, inputs.regions.dtype)
    cost = count(problem, "triton", int(inputs.word_mask.sum()))
    rates = REPORT["machine"]
    device = Device(rates["matmul_flops"], rates["copy_bytes_per_second"])
    return {
        "fwd": cost.forward.seconds(device),
        "fwdbwd": (cost.forward + cost.backward).seconds(device),
    }


# The stages.


def machine(sizes: Sizes) -> dict[str, Any]:
    """Device, versions, and what its matrix units and memory do in plain torch."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": getattr(__import__("triton"), "__version__", None),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "interpreted": INTERPRETED,
        "architecture": backend.architecture(),
    }
    side = 64 if SMOKE else 8192
    square = torch.randn(side, side, device=DEVICE, dtype=sizes.dtype)
    facts["matmul_flops"] = 2 * side**3 / seconds(lambda: square @ square)
    block = torch.empty(side**2 * 4, device=DEVICE)
    facts["copy_bytes_per_second"] = 2 * block.nbytes / seconds(lambda: block.clone())
    return facts


def parity(sizes: Sizes) -> dict[str, Any]:
    """Against the definition in float64, each with holes in the masks; and the odd features."""
    cases = []
    for dtype, attention, masked, shape in itertools.product(
        sizes.dtypes, ATTENTION_VARIANTS, (False, True), sizes.exact
    ):
        errors = errors_of(shape, dtype, attention, masked)
        values, gradients = TOLERANCE[dtype]
        passed = errors[0] <= values and max(errors[1:]) <= gradients
        cases.append(
            {
                "images, texts, regions, words, dim": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "attention": attention,
                "region_mask": masked,
                "errors": errors,
                "passed": passed,
            }
        )
    inputs = next(iter(sizes.workloads.values())).draw(DEVICE, sizes.dtype)
    run = run_of(of_backend("triton"), inputs, "fwdbwd")
    first = run()
    features = {"same bits twice": all(map(torch.equal, run(), first))}
    if "PYTORCH_NO_CUDA_MEMORY_CACHING" not in os.environ:  # a capture needs the cache
        features["torch.compile"] = or_why_not(lambda: compiles(inputs, first))
        if DEVICE == "cuda":
            features["cuda graph"] = or_why_not(lambda: captures(inputs))
    # a feature that fails is a finding, and no reason to go home without timings
    return {"passed": all(case["passed"] for case in cases), "features": features, "cases": cases}


def errors_of(
    shape: tuple[int, ...], dtype: torch.dtype, attention: str, masked: bool
) -> list[float]:
    """Greatest error over greatest value: of cosines, and of both gradients."""
    images, texts, regions, words, dim = shape
    generator = torch.Generator().manual_seed(0)
    word_mask = torch.rand(texts, words, generator=generator) < 0.6
    word_mask[:, 0] |= ~word_mask.any(1)
    region_mask = torch.rand(images, regions, generator=generator) < 0.8
    region_mask[:, 0] |= ~region_mask.any(1)
    region_mask = region_mask.to(DEVICE) if masked else None
    word_mask = word_mask.to(DEVICE)
    v = torch.randn(images, regions, dim, generator=generator).to(DEVICE, dtype) / dim**0.25
    t = torch.randn(texts, words, dim, generator=generator).to(DEVICE, dtype) / dim**0.25
    t = t.masked_fill(~word_mask[..., None], 0)
    v = v if region_mask is None else v.masked_fill(~region_mask[..., None], 0)
    upstream = torch.randn(images, texts, words, generator=generator).to(DEVICE) * word_mask
    options = MatchingOptions(attention, 0.25, 0.2, "max")
    results = []
    for engine, kind in ((backend, dtype), (einops, torch.float64)):
        leaves = [each.detach().to(kind).requires_grad_() for each in (v, t)]
        cosine = engine.word_cosines(MatchingInputs(*leaves, word_mask, region_mask), options)
        gradients = torch.autograd.grad(cosine, leaves, upstream.to(cosine.dtype))
        results.append([cosine.detach() * word_mask, *gradients])
    ours, theirs = results
    theirs[2] = theirs[2] * word_mask[..., None]
    if region_mask is not None:
        theirs[1] = theirs[1] * region_mask[..., None]
    # where every gradient vanishes (one region), a thousandth of dr is no error
    floors = (1e-30, *(1e-3 * upstream.abs().max() / each.abs().max() for each in (v, t)))
    return [
        float((a.double() - b).abs().max() / max(b.abs().max(), floor))
        for a, b, floor in zip(ours, theirs, floors, strict=True)
    ]


def compiles(inputs: Inputs, expected: list[Tensor]) -> bool:
    similarity = torch.compile(of_backend("triton"), fullgraph=True, backend="aot_eager")
    values = run_of(similarity, inputs, "fwd")()
    torch.testing.assert_close(values, expected[:1])
    run_of(similarity, inputs, "fwdbwd")()
    return True


def captures(inputs: Inputs) -> bool:
    """Capture forward and backward, replay on other inputs, compare with eager."""
    options = MatchingOptions("words_then_regions", 0.25, 0.2, "max")
    leaves = [each.detach().clone().requires_grad_() for each in inputs[:2]]
    upstream = torch.randn(len(leaves[0]), *leaves[1].shape[:2], device=DEVICE)

    def step() -> tuple[Tensor, ...]:
        cosine = backend.word_cosines(MatchingInputs(*leaves, inputs.word_mask, None), options)
        return cosine, *torch.autograd.grad(cosine, leaves, upstream)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaves[0].mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    for ours, theirs in zip(captured, step(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-3)
    return True


def tuning(sizes: Sizes) -> dict[str, Any]:
    """One change after the other to the blocks, keeping what is faster; for the tables to copy."""
    inputs = sizes.workload(sizes.tuning).draw(DEVICE, sizes.dtype)
    found = {}
    for attention in ATTENTION_VARIANTS:
        run = run_of(of_backend("triton", attention, memory_budget=2**28), inputs, "fwdbwd")
        best = backend.choose_blocks(
            sizes.regions, sizes.words, sizes.dtype, attention == "words_then_regions"
        )
        best_time = seconds(run, 0.1)
        tried = [{"blocks": best, "seconds": best_time}]
        for change in changes():
            if out_of_time(0.9):
                break
            blocks = change(best)
            with mock.patch.object(backend, "choose_blocks", lambda *_, blocks=blocks: blocks):
                took = or_why_not(functools.partial(seconds, run, 0.1))
            tried.append({"blocks": blocks, "seconds": took})
            if isinstance(took, float) and took < best_time:
                best, best_time = blocks, took
        found[attention] = {"best": best._asdict(), "seconds": best_time, "tried": tried}
    return found


def changes() -> Iterator[Callable[[backend.Blocks], backend.Blocks]]:
    """Regions, warps and stages of each kernel; forward's two have their regions in common."""
    launches = [(128, 8, 3), (64, 4, 3), (64, 8, 3), (128, 8, 4), (128, 8, 2), (64, 4, 4)]
    if SMOKE:
        launches = [(16, 4, 1)]
    launch = backend.Launch

    def forward_as(r: int, w: int, s: int) -> Callable[[backend.Blocks], backend.Blocks]:
        return lambda b: b._replace(attend=launch(r, w, s), cosine=launch(r, w, min(s, 2)))

    for shape in launches:
        yield forward_as(*shape)
        for kernel in ("attend_again", "score_gradient"):
            yield lambda b, kernel=kernel, shape=shape: b._replace(**{kernel: launch(*shape)})
    yield lambda b: b._replace(cosine=b.cosine._replace(stages=b.cosine.stages + 1))
    yield lambda b: b._replace(inner=32)
    yield lambda b: b._replace(inner=128)


def timings(sizes: Sizes) -> dict[str, Any]:
    """Each peer on each workload, seconds beside those of the roofline."""
    table: dict[str, Any] = {}
    for name, workload in sizes.workloads.items():
        inputs = workload.draw(DEVICE, sizes.dtype)
        table[name] = {"roofline": roofline(workload, "words_then_regions", inputs)}
        for peer, similarity in peers().items():
            table[name][peer] = "no time left" if out_of_time(0.7) else both(similarity, inputs)
    return table


def scaling(sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds against batch size, beside those of the roofline."""
    rows = []
    for pairs in sizes.pairs:
        if out_of_time(0.8):
            break
        workload = sizes.workload(pairs)
        inputs = workload.draw(DEVICE, sizes.dtype)
        for attention in ATTENTION_VARIANTS:
            similarity = of_backend("triton", attention, memory_budget=2**30)
            rows.append(
                {
                    "pairs": pairs,
                    "attention": attention,
                    "seconds": both(similarity, inputs),
                    "roofline": roofline(workload, attention, inputs),
                }
            )
    return rows


def both(similarity: Similarity, inputs: Inputs) -> dict[str, Any]:
    return {
        mode: or_why_not(functools.partial(seconds, run_of(similarity, inputs, mode)))
        for mode in ("fwd", "fwdbwd")
    }


def memory(sizes: Sizes) -> dict[str, Any]:
    """Peak bytes beside inputs, forward and backward."""
    inputs = sizes.workload(sizes.memory).draw(DEVICE, sizes.dtype)
    return {
        name: or_why_not(functools.partial(extra_memory, run_of(similarity, inputs, "fwdbwd")))
        for name, similarity in (
            ("triton", of_backend("triton")),
            ("chunked", of_backend("chunked")),
            ("definition", of_backend("einops")),
            ("definition-half", half_definition),
        )
    }


def largest(sizes: Sizes) -> dict[str, Any]:
    """The largest batch on one card, forward and backward."""
    inputs = sizes.workload(sizes.largest).draw(DEVICE, sizes.dtype)
    run = run_of(of_backend("triton", memory_budget=2**30), inputs, "fwdbwd")
    return {
        "pairs": sizes.largest,
        "extra_bytes": or_why_not(lambda: extra_memory(run)),
        "seconds": or_why_not(lambda: seconds(run, 0.1, 3)),
    }


def profile(sizes: Sizes) -> list[dict[str, Any]]:
    """Time by kernel, forward and backward."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    inputs = sizes.workload(sizes.profile).draw(DEVICE, sizes.dtype)
    run = run_of(of_backend("triton", memory_budget=2**30), inputs, "fwdbwd")
    run()
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize()
    key = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, key))
    return [
        {"kernel": row.key, "calls": row.count, "microseconds": getattr(row, key)}
        for row in rows[:25]
    ]


def sanitizer(sizes: Sizes) -> dict[str, Any]:
    """The tiny parity cases under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if DEVICE != "cuda" or tool is None or SMOKE:
        return {"skipped": "it is for a GPU, and compute-sanitizer must be installed"}
    outcome = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "1"]
        command += [sys.executable, __file__, "--smoke", "--only", "parity"]
        run = functools.partial(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            timeout=max(30, TIME_LIMIT - elapsed()),
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        outcome[check] = or_why_not(lambda run=run: said(run()))
    return outcome


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Exit code and the end of what a process printed."""
    return {"exit_code": done.returncode, "printed": (done.stdout + done.stderr)[-2000:]}


STAGES = (
    machine,
    parity,
    timings,
    scaling,
    memory,
    largest,
    profile,
    tuning,
    sanitizer,
)

REPORT: dict[str, Any] = {}
BEGIN = time.perf_counter()
TIME_LIMIT = 480.0


def elapsed() -> float:
    return time.perf_counter() - BEGIN


def out_of_time(share: float) -> bool:
    """Whether more than this share of the time is gone."""
    return elapsed() > share * TIME_LIMIT


def main() -> int:
    global TIME_LIMIT
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; no figure is kept")
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
    TIME_LIMIT = 60 * arguments.minutes
    sizes = Sizes()
    chosen = [
        stage
        for stage in STAGES
        if not arguments.only or stage is machine or stage.__name__ in arguments.only
    ]
    for stage in chosen:
        name = stage.__name__
        begin = time.perf_counter()
        measure = functools.partial(stage, sizes)
        REPORT[name] = "no time left" if out_of_time(0.97) else or_why_not(measure)
        print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
        save(arguments)
        if name == "parity" and not (isinstance(REPORT[name], dict) and REPORT[name]["passed"]):
            print(json.dumps(REPORT[name], indent=1, default=str))
            print("Parity does not hold: nothing is timed.")
            return 1
    return 0


def save(arguments: argparse.Namespace) -> None:
    """A smoke run keeps nothing unless told where."""
    folder = arguments.output or (None if SMOKE else RESULTS)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    device = str(REPORT["machine"]["device"]) if isinstance(REPORT["machine"], dict) else DEVICE
    name = "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split()) or "cpu"
    target = folder / f"triton-{name}.json"
    write_text(target, json.dumps(REPORT, indent=1, default=str) + "\n")


if __name__ == "__main__":
    sys.exit(main())
