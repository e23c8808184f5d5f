"""The paper's four tables, as data, as text for a terminal and as Markdown.

Published figures stand below a rule of their own and are marked as being on other data: nothing
that is measured here can be compared with them.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gloria.checks import check_choice
from gloria.errors import ShapeError
from gloria.evaluation.bootstrap import Interval
from gloria.evaluation.published import DATA_SETS, PERCENT, PUBLISHED, SOURCE

TITLES = {
    "retrieval": "Image-text retrieval",
    "zero-shot": "Zero-shot classification",
    "classification": "Supervised classification, AUROC by share of the labels",
    "segmentation": "Segmentation, Dice by share of the labels",
}
"""The tasks, in the paper's order, and what their tables are called."""

NOT_COMPARABLE = f"published, on other data: not comparable with the rows above ({SOURCE})"
NONE = "–"


class Spread(NamedTuple):
    """A figure of several runs.

    Attributes:
        mean: over the runs.
        sd: standard deviation over the runs, with ``runs - 1`` below; NaN for a single one.
        runs: how many.
    """

    mean: float
    sd: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Mean and standard deviation of at least one number.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0])
            Spread(mean=2.0, sd=1.0, runs=3)
        """
        # not of the statistics module: what is NaN or infinite has no standard deviation there
        mean = math.fsum(values) / len(values)
        if len(values) == 1:
            return cls(mean, math.nan, 1)
        squares = math.fsum((value - mean) ** 2 for value in values)
        return cls(mean, math.sqrt(squares / (len(values) - 1)), len(values))


Cell = float | Interval | Spread | None


@dataclass(frozen=True)
class Table:
    """Figures of one task.

    Attributes:
        task: one of :data:`TITLES`.
        caption: data and protocol of the measured rows.
        columns: what the figures are called.
        rows: row: its figures as shares of 1, one for each column; None = it has none.

    Raises:
        OptionError: there is no such task.
        ShapeError: a row has not one cell for each column.

    Example:
        >>> row = {"mine": (Interval(0.61, 0.58, 0.64), None, Spread(0.4, 0.02, 3))}
        >>> print(as_text(Table("retrieval", "phantoms", ("P@5", "P@10", "P@100"), row), ()))
        Image-text retrieval, in %
        phantoms
        <BLANKLINE>
                            P@5  P@10       P@100
        mine  61.0 [58.0, 64.0]     –  40.0 ± 2.0
    """

    task: str
    caption: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[Cell]]

    def __post_init__(self) -> None:
        check_choice("task", self.task, TITLES)
        for name, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise ShapeError(
                    f"row {name!r} must have a cell for each of {len(self.columns)} columns; "
                    f"it has {len(cells)}."
                )

    @property
    def title(self) -> str:
        """What stands above it, with the unit."""
        return TITLES[self.task] + (", in %" if self.task in PERCENT else "")

    def lines(self) -> list[tuple[str, ...]]:
        """The measured rows as strings, below the columns' names."""
        scale, decimals = (100, 1) if self.task in PERCENT else (1, 3)
        rows = [
            (name, *(_format(cell, scale, decimals) for cell in cells))
            for name, cells in self.rows.items()
        ]
        return [("", *self.columns), *rows]


def as_text(table: Table, published: Collection[str] = DATA_SETS) -> str:
    """A table for the terminal.

    Args:
        table: what to show.
        published: the data sets, of ``DATA_SETS``, whose published rows stand below.
    """
    caption = textwrap.fill(table.caption, 100)
    parts = [f"{table.title}\n{caption}\n", align(table.lines())]
    if below := _published(table.task, published):
        parts.append(f"-- {NOT_COMPARABLE}")
        parts += [f"   {about}\n{align(lines, '   ')}" for about, lines in below]
    return "\n".join(parts)


def as_markdown(table: Table, published: Collection[str] = DATA_SETS) -> str:
    """A table as Markdown, with a heading; arguments as in :func:`as_text`."""
    parts = [f"## {table.title}", f"{table.caption}.", markdown(table.lines())]
    if below := _published(table.task, published):
        parts.append(f"*{NOT_COMPARABLE[0].upper()}{NOT_COMPARABLE[1:]}:*")
        for about, lines in below:
            parts += [f"*{about}*", markdown([tuple(map(_italic, line)) for line in lines])]
    return "\n\n".join(parts) + "\n"


def markdown(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines as a Markdown table.

    Args:
        lines: of equally many cells; the first is the head.
        left: how many columns are on the left; figures are on the right.
    """
    head, *rows = lines
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])


def align(lines: Sequence[Sequence[str]], indent: str = "") -> str:
    """Lines in columns, the first on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        indent
        + "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _published(task: str, data_sets: Collection[str]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """What each published table is of, and its lines, the figures as they were printed."""
    return [
        (
            f"{table.data}: {table.protocol}",
            [
                ("", *table.columns),
                *(
                    (name, *(f"{figure:.{table.decimals}f}" for figure in figures))
                    for name, figures in table.rows.items()
                ),
            ],
        )
        for table in PUBLISHED[task]
        if table.data.partition(" ")[0] in data_sets
    ]


def _format(cell: Cell, scale: float, decimals: int) -> str:
    def show(value: float | None) -> str:
        return NONE if value is None or math.isnan(value) else f"{scale * value:.{decimals}f}"

    if isinstance(cell, Interval):
        return f"{show(cell.value)} [{show(cell.low)}, {show(cell.high)}]"
    if isinstance(cell, Spread):
        return show(cell.mean) if cell.runs == 1 else f"{show(cell.mean)} ± {show(cell.sd)}"
    return show(cell)


def _italic(cell: str) -> str:
    return f"*{cell}*" if cell else ""
