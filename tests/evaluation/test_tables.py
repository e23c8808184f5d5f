"""Tables: what is measured and what was published can't be mistaken for one another."""

import math

import numpy as np
import pytest

from gloria.errors import OptionError, ShapeError
from gloria.evaluation.bootstrap import Interval
from gloria.evaluation.published import DATA_SETS, PERCENT, PUBLISHED
from gloria.evaluation.tables import (
    NOT_COMPARABLE,
    TITLES,
    Spread,
    Table,
    as_markdown,
    as_text,
)


def table(task="retrieval"):
    rows = {"mine": (Interval(0.61, 0.58, 0.645), 0.5, None), "chance": (0.2, 0.2, 0.2)}
    return Table(task, "phantoms, 5x100", ("Prec@5", "Prec@10", "Prec@100"), rows)


def test_published_rows_stand_below_a_line_that_says_they_are_no_match():
    for show in (as_text, as_markdown):
        lines = show(table()).splitlines()
        mark = next(k for k, line in enumerate(lines) if "not comparable" in line)
        ours = next(k for k, line in enumerate(lines) if "61.0 [58.0, 64.5]" in line)
        theirs = next(k for k, line in enumerate(lines) if "69.24" in line)
        assert ours < mark < theirs
        assert any("CheXpert 5x200" in line for line in lines[mark:])
        assert NOT_COMPARABLE not in show(table(), published=())


@pytest.mark.parametrize("task", TITLES)
@pytest.mark.parametrize("data_set", DATA_SETS)
def test_published_rows_of_one_data_set(task, data_set):
    for show in (as_text, as_markdown):
        shown = show(table(task), published=(data_set,))
        for each in PUBLISHED[task]:
            assert (each.protocol in shown) == each.data.startswith(data_set)
        assert ("not comparable" in shown) == any(
            each.data.startswith(data_set) for each in PUBLISHED[task]
        )


def test_every_published_table_is_of_one_of_the_data_sets():
    begin = {each.data.split()[0] for tables in PUBLISHED.values() for each in tables}
    assert begin == set(DATA_SETS)


def test_a_figure_without_an_interval_shows_none():
    row = {"mine": (Interval(0.5, None, None, 1000),)}
    assert "50.0 [–, –]" in as_text(Table("retrieval", "few images", ("P@5",), row))


@pytest.mark.parametrize("task", TITLES)
def test_every_task_shows_every_published_figure_as_printed(task):
    text = as_text(table(task))
    for published in PUBLISHED[task]:
        for name, figures in published.rows.items():
            line = next(
                line
                for line in text[text.index(published.protocol) :].splitlines()
                if line.strip().startswith(f"{name} ")
            )
            assert [float(cell) for cell in line.split()[-len(figures) :]] == list(figures)
            assert len(figures) == len(published.columns)
            assert all(0 <= figure <= (100 if task in PERCENT else 1) for figure in figures)


def test_percent_or_shares_as_the_paper_prints_them():
    assert table("classification").lines()[1][1:3] == ("61.0 [58.0, 64.5]", "50.0")
    assert table("segmentation").lines()[1][1:3] == ("0.610 [0.580, 0.645]", "0.500")
    assert table("classification").title.endswith("in %")


def test_markdown_has_as_many_cells_in_every_line_of_a_table():
    rows = [line for line in as_markdown(table()).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}
    assert "| mine | 61.0 [58.0, 64.5] | 50.0 | – |" in rows
    assert "| *GLoRIA* | *69.24* | *67.22* | *53.78* |" in rows


def test_spread_is_numpys_mean_and_standard_deviation():
    values = [0.2, 0.5, 0.55, 0.9]
    assert Spread.of(values)[:2] == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert math.isnan(Spread.of([0.3, math.nan]).sd)
    alone = Spread.of([0.3])
    assert (alone.mean, alone.runs) == (0.3, 1)
    assert math.isnan(alone.sd)
    shown = Table("zero-shot", "", ("Acc", "F1"), {"mine": (Spread.of(values), alone)})
    assert shown.lines()[1] == ("mine", "0.537 ± 0.287", "0.300")


def test_wrong_tables():
    with pytest.raises(OptionError, match="task must be one of 'retrieval'"):
        Table("detection", "", (), {})
    with pytest.raises(ShapeError, match="row 'mine' must have a cell for each of 2 columns"):
        Table("retrieval", "", ("a", "b"), {"mine": (0.1,)})
