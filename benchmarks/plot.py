"""Draw cost against batch size: time and memory of every peer, log-log.

python benchmarks/plot.py benchmarks/results/cpu-sweep.json docs/batch-size.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gloria.visualize.figure import new_figure, save_figure, style_axes

COLOURS = {
    "definition": "#d1495b",
    "compiled": "#edae49",
    "published": "#8d6a9f",
    "chunked": "#00798c",
    "triton": "#30638e",
    "products": "#9a9a9a",
}


def draw(results: dict[str, Any], out: Path) -> None:
    """Two panels over the workloads named batch-N."""
    sweep = {
        int(case["workload"].removeprefix("batch-")): case["peers"]
        for case in results["cases"]
        if case["workload"].startswith("batch-")
    }
    if not sweep:
        raise SystemExit("no workload batch-N in these results")
    figure = new_figure(10, 4.2)
    panels = figure.subplots(1, 2)
    titles = {"fastest": "time (s)", "memory": "peak memory (MiB)"}
    units = {"fastest": 1.0, "memory": 2**20}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for peer, colour in COLOURS.items():
            points = [
                (pairs, peers[peer][key] / units[key])
                for pairs, peers in sorted(sweep.items())
                if key in peers.get(peer, {}) and "failed" not in peers[peer]
            ]
            if not points or (key == "memory" and peer == "products"):
                continue
            style = "--" if peer == "products" else "-"
            axes.loglog(*zip(*points, strict=True), style, marker="o", color=colour, label=peer)
        axes.set_xticks(sorted(sweep), [str(pairs) for pairs in sorted(sweep)])
        axes.minorticks_off()
        style_axes(axes, title, "images and texts in a batch")
    panels[0].legend(frameon=False)
    machine = results["machine"]
    workload = results["workloads"][f"batch-{max(sweep)}"]
    figure.suptitle(
        f"Forward and backward on {machine['device']}, {machine['threads']} CPU threads, "
        f"{machine['dtype']}\nlargest: {workload}",
        fontsize=10,
    )
    save_figure(figure, out)


def main() -> None:
    """Read results, write a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    draw(json.loads(args.results.read_text(encoding="utf-8")), args.out)


if __name__ == "__main__":
    main()
