"""Show what was measured as tables.

    python benchmarks/report.py benchmarks/results/cpu.json
    python benchmarks/report.py --write docs/benchmarks.md

The second writes the page of the docs from everything in benchmarks/results; no figure in it is
typed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

from gloria.evaluation.tables import markdown
from gloria.matching.cost import Device, Work

RESULTS = Path(__file__).parent / "results"

INTRODUCTION = """\
# Benchmarks

Written by `python benchmarks/report.py --write docs/benchmarks.md` from what
`python benchmarks/measure.py --out benchmarks/results/NAME.json` left. Peers ran side by side, in
turns; a time is that of the fastest round, and **the ratios are the figures**: seconds are the
machine's. Every peer was first held to the definition's values and gradients.

| peer | what it is |
|---|---|
| `definition` | the einops backend, on padded texts |
| `compiled` | `torch.compile` of the definition |
| `published` | the published code's loop over captions, written anew |
| `chunked`, `triton` | this library's backends |
| `chunked-compiled` | `torch.compile` of `chunked` |
| `products` | nothing but the matrix products that `chunked` needs, recomputing none: a floor |
| `matrix`, `blocks` | the global loss on its whole pair matrix, and this library's without one |

*Memory* is the peak beside inputs, result and gradients, measured in a process of its own. *Of the
roofline* is the share of the measured time that the counted operations, or bytes
(`gloria.matching.cost`), would take at the machine's own rates, the best that were measured between
the cases. What else ran there then makes the rates too low and the shares too high, even above
100 %: a share says about how much is left, a ratio how much was gained.
"""

COLUMNS = (
    "",
    "forward",
    "× faster than definition",
    "forward + backward",
    "× faster than definition",
    "× faster than published",
    "times products",
    "memory",
    "of the roofline",
)
NONE = "–"
Figures = dict[str, Any]


def page(results: list[dict[str, Any]], campaigns: list[dict[str, Any]]) -> str:
    """The page of the docs."""
    sections = [section(each) for each in results] or ["No results yet.\n"]
    sections += [campaign(each) for each in campaigns]
    return "\n".join([INTRODUCTION, *sections])


def section(results: dict[str, Any]) -> str:
    """One machine's tables."""
    machine = results["machine"]
    lines = [
        f"## {machine['device']}, {machine['dtype']}",
        "",
        f"{machine['threads']} CPU threads, torch {machine['torch']}, Python "
        f"{machine['python']}, gloria {machine['gloria']}; large matrix products "
        f"{machine['flops'] / 1e9:,.0f} GFLOP/s, copies {machine['bandwidth'] / 1e9:,.0f} GB/s, "
        f"the best of the same run.",
        "",
    ]
    for name, attention, modes in groups(results["cases"]):
        lines += [f"### {name}" + (f", `{attention}`" if attention else "")]
        lines += ["", results["workloads"][name] + ".", "", table(modes, machine), ""]
    return "\n".join(lines)


GPU_INTRODUCTION = """\
Written from what `python benchmarks/gpu.py` left. Times are wall-clock, launches and host included;
*of the roofline* as above. The definition's public function widens half precision to float32; the
peers `-half` multiply as the inputs are, less exactly.
"""


def parity_holds(results: dict[str, Any]) -> bool:
    """Whether what was timed computes what it should; no time is told where it does not."""
    held: bool = results.get("parity", {"passed": True})["passed"]
    return held


def campaign(results: dict[str, Any]) -> str:
    """What a GPU said of the Triton kernels; ``since``: and what of them changed afterwards."""
    machine = dict.fromkeys(("device", "torch", "triton", "python"), "unknown")
    machine |= results.get("machine", {})  # which may have hung
    lines = [
        f"## {machine['device']}, bfloat16",
        "",
        GPU_INTRODUCTION,
        *([fill(results["since"], 100, break_on_hyphens=False), ""] if "since" in results else []),
        f"torch {machine['torch']}, triton {machine['triton']}, Python {machine['python']}"
        f"{rates(machine)}.",
        "",
    ]
    for stage, tables in CAMPAIGN.items():
        if stage in results and (parity_holds(results) or tables is parity):
            lines += [*tables(results[stage]), ""]
    if unfinished := results.get("unfinished"):
        told = "; ".join(f"{stage}: {why}" for stage, why in unfinished.items())
        lines += [f"Not all of it was measured. {told}.", ""]
    return "\n".join(lines)


def rates(machine: dict[str, Any]) -> str:
    """What the roofline is of, where it was measured."""
    if "copy_bytes_per_second" not in machine:
        return ""
    return (
        f"; large matrix products {machine['matmul_flops'] / 1e12:,.0f} TFLOP/s "
        f"({machine['matmul_flops_float32'] / 1e12:,.0f} in float32), copies "
        f"{machine['copy_bytes_per_second'] / 1e12:.1f} TB/s"
    )


def timings(results: dict[str, Figures]) -> list[str]:
    """Each peer's times, and how many times as long as the kernels it takes."""
    lines = []
    for workload, peers in results.items():
        kernels = peers.get("triton", {}).get("fwdbwd")
        rows = [
            (
                f"`{name}`",
                duration(figures.get("fwd")),
                duration(figures["fwdbwd"]),
                share(figures["fwdbwd"], kernels, ".1f"),
            )
            for name, figures in peers.items()
            if name not in ("roofline", "errors of triton")
        ]
        titles = "peer", "forward", "forward + backward", "× what `triton` takes"
        lines += [f"### {workload}, `words_then_regions`", "", markdown([titles, *rows]), ""]
    return lines[:-1]


def scaling(results: list[dict[str, Any]]) -> list[str]:
    """Times of more and more pairs, beside the roofline."""
    rows = [
        (
            f"{row['pairs']:,}",
            f"`{row['attention']}`",
            duration(row["seconds"]["fwd"]),
            duration(row["seconds"]["fwdbwd"]),
            share(row["roofline"].get("fwdbwd"), row["seconds"]["fwdbwd"], ".0%"),
        )
        for row in results
    ]
    titles = "pairs", "attention", "forward", "forward + backward", "of the roofline"
    heading = "### Batch sizes: 361 regions, dim 768, a budget of 1 GiB"
    return [heading, "", markdown([titles, *rows], left=2)]


def peaks(results: Figures) -> list[str]:
    """Memory of each peer."""
    rows = [(f"`{name}`", mebibytes(size)) for name, size in results.items()]
    heading = "### Peak memory, forward and backward, 128 pairs, gradients included"
    return [heading, "", markdown([("peer", "memory"), *rows])]


def largest(results: dict[str, Any]) -> list[str]:
    """The largest batch, in a sentence."""
    seconds, size = results.get("seconds", "not timed"), results["extra_bytes"]
    if isinstance(seconds, str) or isinstance(size, str):
        told = f"{duration(seconds)}; {mebibytes(size)}"
        return [f"{results['pairs']:,} pairs of 361 regions: {told}."]
    return [
        f"{results['pairs']:,} pairs of 361 regions ran forward and backward in {seconds:.2f} s, "
        f"with {size / 2**30:.1f} GiB beside the inputs."
    ]


def hard_max(results: dict[str, Figures]) -> list[str]:
    """Times of hard-maximum matching."""
    rows = []
    for workload, peers in results.items():
        for name, figures in peers.items():
            each = (
                dict.fromkeys(("fwd", "fwdbwd"), figures) if isinstance(figures, str) else figures
            )
            cells = duration(each["fwd"]), duration(each["fwdbwd"])
            rows.append((workload, f"`{name}`", *cells))
    titles = "workload", "peer", "forward", "forward + backward"
    return ["### Hard maximum", "", markdown([titles, *rows], left=2)]


def contrastive(results: dict[str, Any]) -> list[str]:
    """Time and memory of the global loss."""
    rows = [
        (name, duration(each["seconds"]), mebibytes(each["extra_bytes"]))
        for name, each in results.items()
    ]
    heading = "### Global loss, forward and backward, float32"
    return [heading, "", markdown([("", "time", "memory"), *rows])]


def parity(results: dict[str, Any]) -> list[str]:
    """Greatest errors over greatest values, beside the definition in float64; what else held."""
    greatest: dict[str, list[float]] = {}
    failed = []
    for case in results["cases"]:
        if not case["passed"]:
            failed.append("- " + ", ".join(str(each) for each in case.values()))
        if isinstance(case["errors"], list):
            so_far = greatest.setdefault(case["dtype"], [0.0] * 3)
            errors = zip(so_far, case["errors"], strict=True)
            greatest[case["dtype"]] = [max(pair) for pair in errors]
    rows = [(name, *(f"{error:.1e}" for error in errors)) for name, errors in greatest.items()]
    features = ", ".join(
        f"{name}: {'yes' if held is True else held}" for name, held in results["features"].items()
    )
    titles = "dtype", "cosine", "gradient of regions", "gradient of words"
    lines = ["### Parity", "", markdown([titles, *rows]), "", f"{features}."]
    return [*lines, "", "Beyond the tolerance:", "", *failed] if failed else lines


def sanitizer(results: dict[str, Any]) -> list[str]:
    """What compute-sanitizer said, in a sentence."""
    said = "; ".join(
        f"{tool}: " + (each if isinstance(each, str) else f"exit code {each['exit_code']}")
        for tool, each in results.items()
    )
    return [f"compute-sanitizer: {said}."]


CAMPAIGN: dict[str, Callable[[Any], list[str]]] = {
    "timings": timings,
    "scaling": scaling,
    "memory": peaks,
    "largest": largest,
    "hard_max": hard_max,
    "contrastive": contrastive,
    "parity": parity,
    "sanitizer": sanitizer,
}
"""What is told of each stage; one that did not end is left out."""


def share(part: float | str | None, whole: float | str | None, form: str) -> str:
    """A quotient, where both were measured."""
    measured = isinstance(part, float) and isinstance(whole, float)
    return format(part / whole, form) if measured else NONE


def mebibytes(size: float | str | None) -> str:
    """Or why there is no figure."""
    if size is None:
        return NONE
    return size if isinstance(size, str) else f"{size / 2**20:,.0f} MiB"


def duration(seconds: float | str | None) -> str:
    """Or why there is none."""
    if seconds is None:
        return NONE
    if isinstance(seconds, str):
        return seconds
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def groups(cases: list[Figures]) -> Iterator[tuple[str, str, dict[str, Figures]]]:
    """Workload, attention, and the peers' figures of each mode."""
    grouped: dict[tuple[str, str], dict[str, Figures]] = {}
    for case in cases:
        modes = grouped.setdefault((case["workload"], case["attention"]), {})
        modes[case["mode"]] = case["peers"]
    for (name, attention), modes in grouped.items():
        yield name, attention, modes


def table(modes: dict[str, Figures], machine: dict[str, Any]) -> str:
    """A Markdown table, a row per peer; columns that nothing fills are left out."""
    peers = dict.fromkeys(peer for figures in modes.values() for peer in figures)
    rows = [row(peer, modes, machine) for peer in peers]
    kept = [k for k in range(len(COLUMNS)) if k == 0 or any(each[k] != NONE for each in rows)]
    titles = COLUMNS
    if "matrix" in peers:  # the global loss's definition
        titles = tuple(title.replace("definition", "matrix") for title in COLUMNS)
    return markdown([[line[k] for k in kept] for line in (titles, *rows)])


def row(peer: str, modes: dict[str, Figures], machine: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one peer."""
    forward, both = (
        {
            name: told.get("failed", told.get("fastest"))
            for name, told in modes.get(mode, {}).items()
        }
        for mode in ("fwd", "fwdbwd")
    )
    definition = "matrix" if "matrix" in both else "definition"
    last = both or forward
    figures = modes["fwdbwd" if both else "fwd"].get(peer, {})
    return (
        f"`{peer}`",
        duration(forward.get(peer)),
        share(forward.get(definition), forward.get(peer), ".2f"),
        duration(both.get(peer)),
        share(both.get(definition), both.get(peer), ".2f"),
        share(last.get("published"), last.get(peer), ".2f"),
        share(last.get(peer), last.get("products"), ".2f"),
        mebibytes(figures.get("memory")),
        share(least_seconds(figures, machine), last.get(peer), ".0%"),
    )


def least_seconds(figures: Figures, machine: dict[str, Any]) -> float | None:
    """The counted lower bound of a peer's time."""
    if "operations" not in figures:
        return None
    work = Work(figures["operations"], figures["bytes"])
    return work.seconds(Device(machine["flops"], machine["bandwidth"]))


def load(paths: list[Path]) -> list[dict[str, Any]]:
    """Results by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)]


def main() -> None:
    """Print tables, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, help="default: all of results/")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page of the docs")
    args = parser.parse_args()
    results = load(args.results or list(RESULTS.glob("*.json")))
    if args.write:
        campaigns = load(list((RESULTS / "campaign").glob("*.json")))
        args.write.write_text(page(results, campaigns), encoding="utf-8")
    else:
        print("\n".join(map(section, results)))


if __name__ == "__main__":
    main()
