"""Show what was measured as tables.

    python benchmarks/report.py benchmarks/results/cpu.json
    python benchmarks/report.py --write docs/benchmarks.md

The second writes the page of the docs from everything in benchmarks/results; nothing in that page
is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
| `products` | nothing but the matrix products that `chunked` needs, recomputing none: a floor |
| `matrix`, `blocks` | the global loss on its whole pair matrix, and this library's without one |

*Memory* is the peak beside inputs, result and gradients, measured in a process of its own. *Of the
roofline* is the share of the measured time that the counted operations, or bytes
(`gloria.matching.cost`), would take at the machine's own rates.
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


def page(results: list[dict[str, Any]]) -> str:
    """The page of the docs."""
    sections = [section(each) for each in results] or ["No results yet.\n"]
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
        lines += ["", results["workloads"][name] + ".", "", *table(modes, machine), ""]
    return "\n".join(lines)


def groups(cases: list[Figures]) -> Iterator[tuple[str, str, dict[str, Figures]]]:
    """Workload, attention, and the peers' figures of each mode."""
    grouped: dict[tuple[str, str], dict[str, Figures]] = {}
    for case in cases:
        modes = grouped.setdefault((case["workload"], case["attention"]), {})
        modes[case["mode"]] = case["peers"]
    for (name, attention), modes in grouped.items():
        yield name, attention, modes


def table(modes: dict[str, Figures], machine: dict[str, Any]) -> list[str]:
    """A Markdown table, a row per peer; columns that nothing fills are left out."""
    peers = dict.fromkeys(peer for figures in modes.values() for peer in figures)
    rows = [row(peer, modes, machine) for peer in peers]
    kept = [k for k in range(len(COLUMNS)) if k == 0 or any(each[k] != NONE for each in rows)]
    titles = COLUMNS
    if "matrix" in peers:  # the global loss's definition
        titles = tuple(title.replace("definition", "matrix") for title in COLUMNS)
    lines = [titles, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows]
    return ["| " + " | ".join(line[k] for k in kept) + " |" for line in lines]


def row(peer: str, modes: dict[str, Figures], machine: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one peer."""
    forward, both = modes.get("fwd", {}), modes.get("fwdbwd", {})
    definition = "matrix" if "matrix" in both else "definition"
    last = both or forward
    return (
        f"`{peer}`",
        time(forward.get(peer)),
        ratio(forward.get(definition), forward.get(peer)),
        time(both.get(peer)),
        ratio(both.get(definition), both.get(peer)),
        ratio(last.get("published"), last.get(peer)),
        ratio(last.get(peer), last.get("products")),
        memory(last.get(peer)),
        roofline(last.get(peer), machine),
    )


def time(figures: Figures | None) -> str:
    """Fastest round, or why there is none."""
    if figures is None:
        return NONE
    if "failed" in figures:
        return str(figures["failed"])
    seconds = figures["fastest"]
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def ratio(slower: Figures | None, faster: Figures | None) -> str:
    """How many times the one takes of what the other takes."""
    if slower is None or faster is None or "failed" in slower or "failed" in faster:
        return NONE
    return f"{slower['fastest'] / faster['fastest']:.2f}"


def memory(figures: Figures | None) -> str:
    """Measured peak."""
    if figures is None or "memory" not in figures:
        return NONE
    return f"{figures['memory'] / 2**20:,.0f} MiB"


def roofline(figures: Figures | None, machine: dict[str, Any]) -> str:
    """The counted lower bound's share of the time."""
    if figures is None or "operations" not in figures or "failed" in figures:
        return NONE
    work = Work(figures["operations"], figures["bytes"])
    least = work.seconds(Device(machine["flops"], machine["bandwidth"]))
    return f"{least / figures['fastest']:.0%}"


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
        args.write.write_text(page(results), encoding="utf-8")
    else:
        print("\n".join(map(section, results)))


if __name__ == "__main__":
    main()
