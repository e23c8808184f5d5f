"""Write the study's page from what its runs left: tables, pictures, and which rows differ.

Nothing between the page's markers is typed by hand; what is above and below them is.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gloria.evaluation.tables import Cell, Spread, Table, as_markdown, markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEGIN = "<!-- written by `python benchmarks/study.py report --write`: do not edit -->"
END = "<!-- end of what is written -->"
REFERENCE = "gloria"
NONE = "–"

Result = dict[str, Any]
Results = dict[str, dict[int, Result]]


class Column(NamedTuple):
    """One figure of a run."""

    name: str
    read: Callable[[Result], float | None]


def load(folder: Path, order: Sequence[str]) -> Results:
    """Row and seed: what is known of it; rows in a given order, then as they come.

    Args:
        folder: of files that ``study.py run`` collected.
        order: of the rows.
    """
    results: Results = {}
    for path in sorted(folder.glob("*.json")):
        for result in json.loads(path.read_text(encoding="utf-8")):
            results.setdefault(result["row"], {})[result["seed"]] = result
    known = [row for row in order if row in results]
    known += [row for row in results if row not in order]
    return {row: dict(sorted(results[row].items())) for row in known}


def at(*keys: str) -> Callable[[Result], float | None]:
    """The figure at a path of keys; None where it leads nowhere."""

    def read(result: Result) -> float | None:
        value: Any = result
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
        return None if value is None else float(value)

    return read


def retrieval(k: int) -> Callable[[Result], float | None]:
    """Precision of an image's query, by the similarity that the row's loss trains."""

    def read(result: Result) -> float | None:
        kinds = result.get("retrieval", {})
        kind = "both" if "both" in kinds else next(iter(kinds), "")
        return at("retrieval", kind, "image_to_text", f"precision@{k}")(result)

    return read


def supervised(task: str, figure: str) -> list[Column]:
    """A column for each share of the labels."""
    return [
        Column(share, at(task, "rows", "model", share, figure, "mean"))
        for share in ("1%", "10%", "100%")
    ]


RETRIEVAL = [Column(f"Prec@{k}", retrieval(k)) for k in (5, 10, 100)]
ZERO_SHOT = [
    Column("Acc", at("zero-shot", "accuracy")),
    *(
        Column(name, at("zero-shot", key, "mean"))
        for name, key in (
            ("Sens", "sensitivity"),
            ("Spec", "specificity"),
            ("PPV", "ppv"),
            ("NPV", "npv"),
            ("F1", "f1"),
        )
    ),
]
CLASSIFICATION = supervised("classification", "auroc")
SEGMENTATION = supervised("segmentation", "dice_positives")
ATTENTION = {
    "peak_near_mask": "peak near mask",
    "auroc": "AUROC against mask",
    "correct_side": "correct side",
}


def page(results: Results, about: Mapping[str, str]) -> str:
    """What stands between the markers."""
    if not results:
        return "No results yet.\n"
    return "\n".join(
        [
            head(results),
            "![Figures of every row, a dot for each seed](study.png)\n\n"
            "![AUROC and Dice by the share of the labels](study-labels.png)\n",
            what_is_what(results, about),
            *(
                as_markdown(table(task, caption, columns, results))
                for task, caption, columns in TABLES
                if any(values(results, column) for column in columns)
            ),
            attention(results),
            differences(results),
        ]
    )


TABLES: list[tuple[str, str, list[Column]]] = [
    (
        "retrieval",
        "A 5xN set: an image asks for reports of its class, by the similarity that its loss trains "
        "(the mean of both where there are two); chance 20",
        RETRIEVAL,
    ),
    (
        "zero-shot",
        "The same set: the class whose prompts match best, averaged over a class's prompts; all "
        "but the accuracy are means over classes, each against the others; chance of the accuracy "
        "0.2",
        ZERO_SHOT,
    ),
    (
        "classification",
        "Linear classifier on the pooled feature of the frozen image encoder, mean over six "
        "findings; `local` trains no pooled feature: its last stage is as it was drawn",
        CLASSIFICATION,
    ),
    (
        "segmentation",
        "U-Net on the image encoder, which learns on; pneumothorax, mean over the images that "
        "have one; a short training, the same for all rows",
        SEGMENTATION,
    ),
]


def head(results: Results) -> str:
    """Where the figures come from, and what they are not."""
    every = [result for runs in results.values() for result in runs.values()]
    machines = {
        f"{each['machine']['device']}, torch {each['machine']['torch']}, Python "
        f"{each['machine']['python']}, gloria {each['machine']['gloria']}"
        for each in every
    }
    sizes = every[0]["settings"]["sizes"]
    counts = sorted({len(runs) for runs in results.values()})
    seeds = " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    return (
        f"**Phantom radiographs.** They show that training works and where words attend. They are "
        f"no evidence about real radiographs, nor for or against any paper.\n\n"
        f"Seeds of a row: {seeds}; mean ± standard deviation over seeds. With a seed change the "
        f"training images, the test images, the weights and the order of training; rows of one "
        f"seed share their images. {sizes['steps']} steps of 32 of {sizes['train']:,} phantoms, "
        f"findings at contrast {sizes['contrast']} (the demo's are at 1.7, where most figures are "
        f"near 1); "
        f"tested on 5x{sizes['per_class']} images of one finding each and on {sizes['test']} of "
        f"any. Measured on {'; '.join(sorted(machines))}.\n"
    )


def what_is_what(results: Results, about: Mapping[str, str]) -> str:
    """Rows, what they are, and how their training went."""
    lines: list[tuple[str, ...]] = [("row", "what it is", "seconds to train", "loss, first → last")]
    for row, runs in results.items():
        seconds = [s for run in runs.values() if (s := at("seconds", "training")(run)) is not None]
        losses = [run["loss"] for run in runs.values() if "loss" in run]
        first, last = (
            statistics.mean(loss[when] for loss in losses) if losses else math.nan
            for when in ("first", "last")
        )
        failed = [str(seed) for seed, run in runs.items() if "failed" in run]
        lines.append(
            (
                f"`{row}`",
                about.get(row, "") + (f"; failed with seed {', '.join(failed)}" if failed else ""),
                f"{statistics.mean(seconds):.0f}" if seconds else NONE,
                f"{first:.2f} → {last:.2f}" if losses else NONE,
            )
        )
    return markdown(lines, left=2) + "\n"


def values(results: Results, column: Column) -> dict[str, dict[int, float]]:
    """Row and seed: the figure; rows and seeds without it are left out."""
    found = {
        row: {
            seed: value
            for seed, run in runs.items()
            if (value := column.read(run)) is not None and not math.isnan(value)
        }
        for row, runs in results.items()
    }
    return {row: figures for row, figures in found.items() if figures}


def table(task: str, caption: str, columns: Sequence[Column], results: Results) -> Table:
    """A task's figures, with the published rows below."""
    by_column = [values(results, column) for column in columns]
    rows: dict[str, Sequence[Cell]] = {
        f"`{row}`": [
            Spread.of(list(figures[row].values())) if row in figures else None
            for figures in by_column
        ]
        for row in results
        if any(row in figures for figures in by_column)
    }
    return Table(task, caption, tuple(column.name for column in columns), rows)


def attention(results: Results) -> str:
    """Where findings' words attend, each figure beside its control."""
    lines: list[tuple[str, ...]] = [
        ("", *(name for each in ATTENTION.values() for name in (each, "*other image*")))
    ]
    by_column = [
        values(results, Column("", at("grounding", which, name)))
        for name in ATTENTION
        for which in ("matched", "other_image")
    ]
    borrowed = []
    for row, runs in results.items():
        cells = [spread(list(figures.get(row, {}).values())) for figures in by_column]
        if set(cells) == {NONE}:
            continue
        own = all(run["grounding"]["own_attention"] for run in runs.values() if "grounding" in run)
        borrowed += [] if own else [row]
        lines.append((f"`{row}`" + ("" if own else " †"), *cells))
    if len(lines) == 1:
        return ""
    note = (
        "\n\n† This loss attends to nothing; it is read with GLoRIA's attention. Where regions and "
        "words have no part in the loss, their projections were never trained."
        if borrowed
        else ""
    )
    return (
        "## Where words attend\n\n"
        "The attention of the words that name a finding, against the finding's mask: the share of "
        "peaks within 4 px, the mean pixel AUROC, the share of one-sided findings with most "
        "attention on their side. Beside each, the same words on **another image** with the same "
        "finding, against the first image's mask: what knowing the finding's usual place is "
        f"worth.\n\n{markdown(lines)}{note}\n"
    )


COMPARED = [
    RETRIEVAL[0],
    Column("zero-shot Acc", ZERO_SHOT[0].read),
    Column("AUROC 1%", CLASSIFICATION[0].read),
    Column("AUROC 100%", CLASSIFICATION[2].read),
    Column("Dice 1%", SEGMENTATION[0].read),
    Column("peak near mask", at("grounding", "matched", "peak_near_mask")),
    Column("correct side", at("grounding", "matched", "correct_side")),
]


def differences(results: Results) -> str:
    """Each row less the reference, seed by seed, with a t interval."""
    if REFERENCE not in results or len(results) < 2:
        return ""
    columns = [column for column in COMPARED if REFERENCE in values(results, column)]
    lines: list[tuple[str, ...]] = [("", *(column.name for column in columns))]
    for row in results:
        if row == REFERENCE:
            continue
        cells = []
        for column in columns:
            found = values(results, column)
            cells.append(difference(found.get(row, {}), found[REFERENCE]))
        lines.append((f"`{row}`", *cells))
    return (
        f"## Which rows differ\n\n"
        f"The row less `{REFERENCE}`, seed by seed: mean and 95 % interval (Student's t over "
        f"seeds). **Bold: the interval leaves out 0**; of the rest no order can be told. Of "
        f"{(len(lines) - 1) * len(columns)} intervals about one in twenty would leave out 0 by "
        f"chance.\n\n{markdown(lines)}\n"
    )


def difference(row: Mapping[int, float], reference: Mapping[int, float]) -> str:
    """Mean of the paired differences and its interval."""
    pairs = [row[seed] - reference[seed] for seed in row if seed in reference]
    if len(pairs) < 2:
        return NONE
    low, high = t_interval(pairs)
    mean = statistics.mean(pairs)
    cell = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"**{cell}**" if low > 0 or high < 0 else cell


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean."""
    from scipy import stats

    count = len(differences)
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(differences) / math.sqrt(count)
    mean = statistics.mean(differences)
    return mean - float(half), mean + float(half)


def spread(numbers: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not numbers:
        return NONE
    each = Spread.of(numbers)
    return f"{each.mean:.2f}" if each.runs == 1 else f"{each.mean:.2f} ± {each.sd:.2f}"


class Panel(NamedTuple):
    """A figure of every row, with its control, and what chance gives."""

    column: Column
    control: Column | None = None
    chance: float | None = None


PANELS = [
    Panel(RETRIEVAL[0], chance=0.2),
    Panel(Column("zero-shot accuracy", ZERO_SHOT[0].read), chance=0.2),
    Panel(Column("AUROC, 1 % of labels", CLASSIFICATION[0].read), chance=0.5),
    Panel(Column("Dice, 1 % of masks", SEGMENTATION[0].read)),
    *(
        Panel(
            Column(f"attention: {title}", at("grounding", "matched", name)),
            Column("other image", at("grounding", "other_image", name)),
            chance,
        )
        for name, title, chance in (
            ("peak_near_mask", "near mask", None),
            ("auroc", "AUROC", 0.5),
            ("correct_side", "side", 0.5),
        )
    ),
    Panel(Column("AUROC, 100 % of labels", CLASSIFICATION[2].read), chance=0.5),
]


def draw(results: Results) -> Figure:
    """A panel for each figure: every seed a dot, the mean a line; the control an open dot."""
    from gloria.visualize.figure import FAINT, new_figure, style_axes

    panels = [panel for panel in PANELS if values(results, panel.column)]
    rows = list(results)
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(2.7 * columns + 1.2, lines * (0.7 + 0.24 * len(rows)) + 0.4)
    every = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes in every.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(every.flat, panels, strict=False):
        style_axes(axes, panel.column.name)
        axes.grid(visible=False, axis="y")
        if panel.chance is not None:
            axes.axvline(panel.chance, color=FAINT, lw=1, ls=":")
        if panel.control is not None:
            _draw_dots(axes, rows, values(results, panel.control), filled=False)
        _draw_dots(axes, rows, values(results, panel.column), filled=True)
        axes.set_xlim(-0.03, 1.03)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.suptitle(
        "Phantoms. A dot for every seed, a line for their mean; open: the same words on another "
        "image; dotted: chance",
        fontsize=10,
    )
    return figure


CURVES = ("gloria", "global", "local", "random")
"""The rows whose curves over the labels are drawn; all of them could not be told apart."""


def draw_labels(results: Results) -> Figure:
    """AUROC and Dice by the share of the labels: mean, and standard deviation over seeds."""
    from gloria.visualize.figure import COLOURS, new_figure, style_axes

    figure = new_figure(8, 3.3)
    panels = figure.subplots(1, 2)
    for axes, title, columns in (
        (panels[0], "AUROC of a linear classifier", CLASSIFICATION),
        (panels[1], "Dice on positives", SEGMENTATION),
    ):
        style_axes(axes, title, "share of the training labels")
        found = [values(results, column) for column in columns]
        rows = [row for row in CURVES if all(row in figures for figures in found)]
        for number, row in enumerate(rows):
            spreads = [Spread.of(list(figures[row].values())) for figures in found]
            axes.errorbar(
                [place + 0.04 * number for place in range(len(columns))],  # side by side
                [each.mean for each in spreads],
                yerr=[0 if each.runs == 1 else each.sd for each in spreads],
                color=COLOURS[number],
                marker="o",
                markersize=4,
                capsize=2,
                lw=1.4,
                label=row,
            )
        axes.set_xticks(range(len(columns)), [column.name for column in columns])
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle("Phantoms; bars: standard deviation over seeds", fontsize=10)
    return figure


def _draw_dots(
    axes: Any, rows: Sequence[str], figures: Mapping[str, Mapping[int, float]], *, filled: bool
) -> None:
    """One line of dots for each row; the open ones a little lower."""
    from gloria.visualize.figure import COLOURS, FAINT, INK

    for place, row in enumerate(rows):
        numbers = list(figures.get(row, {}).values())
        if not numbers:
            continue
        if filled:
            axes.scatter(numbers, [place] * len(numbers), s=18, color=COLOURS[0], zorder=3)
            axes.plot([statistics.mean(numbers)] * 2, [place - 0.34, place + 0.34], color=INK)
        else:
            at_place = [place + 0.22] * len(numbers)
            axes.scatter(numbers, at_place, s=16, facecolors="none", edgecolors=FAINT, lw=0.8)


def replace_between(text: str, generated: str) -> str:
    """A page with what is between its markers renewed."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page must have the lines\n{BEGIN}\n{END}")
    return f"{before}{begin}\n\n{generated}\n{end}{after}"
