"""Runs of a table are checked before any is trained, and their spread is the sample's."""

import numpy as np
import pytest

from gloria.errors import OptionError
from gloria.training.shares import check_runs, name_share, spread


def test_the_spread_is_over_what_is_there():
    values = [0.5, 0.25, 0.9]
    found = spread([values[0], None, *values[1:]])
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["sd"] == pytest.approx(np.std(values, ddof=1))
    assert spread([0.5]) == {"mean": 0.5, "sd": None}
    assert spread([None]) == spread([]) == {"mean": None, "sd": None}


def test_runs_of_one_name_and_runs_out_of_range():
    assert [name_share(each) for each in (0.01, 0.1, 1, 0.125)] == ["1%", "10%", "100%", "12.5%"]
    check_runs({"a": 0}, (0.01, 1), (0, 3))
    for rows, fractions, seeds, message in (
        ({}, (1,), (0,), "rows must hold at least one"),
        ({"a": 0}, (), (0,), "fractions must hold at least one"),
        ({"a": 0}, (1, 1.0), (0,), "fractions must hold at least one, each once"),
        ({"a": 0}, (0.1, 0.1 + 1e-9), (0,), "fractions must hold at least one, each once"),
        ({"a": 0}, (0.5, 2), (0,), "fractions must be a number from 0 to 1; got 2"),
        ({"a": 0}, (0,), (0,), "fractions must be above 0"),
        ({"a": 0}, (1,), (1, 1), "seeds must hold at least one, each once"),
        ({"a": 0}, (1,), (-1,), "seeds must be at least 0"),
    ):
        with pytest.raises(OptionError, match=message):
            check_runs(rows, fractions, seeds)
