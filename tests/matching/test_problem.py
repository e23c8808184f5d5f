"""The options of matching are checked when they are made."""

import math

import pytest
import torch

from gloria.aggregators import GeM
from gloria.errors import DtypeError, OptionError
from gloria.matching import MatchingOptions

GOOD = {
    "attention": "regions",
    "attention_temperature": 0.25,
    "match_temperature": 0.2,
    "aggregation": "logsumexp",
}


def test_published_constants_and_callables_pass():
    assert MatchingOptions(**GOOD).attention == "regions"
    assert MatchingOptions(**{**GOOD, "aggregation": max}).aggregation is max


@pytest.mark.parametrize("name", ["attention_temperature", "match_temperature"])
def test_temperatures_are_finite_numbers_above_zero(name):
    for bad in (0, 0.0, -0.25, math.inf, math.nan):
        with pytest.raises(OptionError, match=f"{name} must be a finite number above 0; got {bad}"):
            MatchingOptions(**{**GOOD, name: bad})
    for bad in (True, "0.25", None):
        with pytest.raises(DtypeError, match=f"{name} must be a number above 0; got {bad!r}"):
            MatchingOptions(**{**GOOD, name: bad})


def test_a_learned_attention_temperature_is_refused_as_no_backend_but_one_would_learn_it():
    with pytest.raises(DtypeError, match="attention_temperature must be a number above 0; got"):
        MatchingOptions(**{**GOOD, "attention_temperature": torch.tensor(0.25)})


def test_unknown_choices_are_listed():
    with pytest.raises(
        OptionError, match="attention must be one of 'regions', 'words_then_regions'; got 'words'"
    ):
        MatchingOptions(**{**GOOD, "attention": "words"})
    with pytest.raises(
        OptionError,
        match="aggregation must be one of 'logsumexp', 'logmeanexp', 'max', 'mean'; got 'sum'",
    ):
        MatchingOptions(**{**GOOD, "aggregation": "sum"})
    with pytest.raises(OptionError, match=r"an aggregator; got its class\. Make one: GeM\(\)"):
        MatchingOptions(**{**GOOD, "aggregation": GeM})


def test_options_are_frozen_and_compare_by_value():
    options = MatchingOptions(**GOOD)
    assert options == MatchingOptions(**GOOD)
    with pytest.raises(AttributeError):
        options.attention = "words_then_regions"
