"""Each reduction against its formula on Python floats, and what is particular to one of them.

What all aggregators share is in test_contract.py.
"""

import math

import pytest
import torch

from gloria.aggregators import (
    First,
    LastNMean,
    LastNSum,
    LogMeanExp,
    LogSumExp,
    Max,
    Mean,
    Sum,
    last_n,
    masked_first,
    masked_logmeanexp,
    masked_logsumexp,
    masked_max,
    masked_mean,
    masked_sum,
)
from gloria.errors import DtypeError, OptionError


def mean(kept):
    return math.fsum(kept) / len(kept)


def logsumexp(kept, temperature):
    return temperature * math.log(math.fsum(math.exp(x / temperature) for x in kept))


REDUCTIONS = {
    "sum": (masked_sum, math.fsum),
    "mean": (masked_mean, mean),
    "max": (masked_max, max),
    "first": (masked_first, lambda kept: kept[0]),
    "logsumexp": (masked_logsumexp, lambda kept: logsumexp(kept, 1.0)),
    "logsumexp of 1/5": (
        lambda values, mask, dim: masked_logsumexp(values, mask, dim, 0.2),
        lambda kept: logsumexp(kept, 0.2),
    ),
    "logmeanexp of 1/5": (
        lambda values, mask, dim: masked_logmeanexp(values, mask, dim, 0.2),
        lambda kept: logsumexp(kept, 0.2) - 0.2 * math.log(len(kept)),
    ),
    "last 2 sum": (
        lambda values, mask, dim: last_n(values, mask, dim, 2, "sum"),
        lambda kept: math.fsum(kept[-2:]),
    ),
    "last 2 mean": (
        lambda values, mask, dim: last_n(values, mask, dim, 2, "mean"),
        lambda kept: mean(kept[-2:]),
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_formula(name, dim, masked, by_loop, assert_values):
    reduction, formula = REDUCTIONS[name]
    generator = torch.Generator().manual_seed(dim)
    values = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 5, 4, generator=generator) < 0.5 if masked else None
    assert_values(reduction(values, mask, dim), by_loop(values, mask, dim, formula))


@pytest.mark.parametrize(
    "module, name",
    [
        (Sum(), "sum"),
        (Mean(), "mean"),
        (Max(), "max"),
        (First(), "first"),
        (LogSumExp(), "logsumexp"),
        (LogSumExp(0.2), "logsumexp of 1/5"),
        (LogMeanExp(0.2), "logmeanexp of 1/5"),
        (LastNSum(2), "last 2 sum"),
        (LastNMean(2), "last 2 mean"),
    ],
)
def test_module_is_the_function(module, name):
    values = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    mask = values < 0.5
    assert torch.equal(module(values, mask, 1), REDUCTIONS[name][0](values, mask, 1))


def test_bert_last_four_of_thirteen_layers():
    layers = torch.randn(2, 13, 5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(LastNSum(4)(layers, None, 1), layers[:, 9:].sum(1))
    torch.testing.assert_close(LastNMean(1)(layers, None, 1), layers[:, 12])
    torch.testing.assert_close(LastNMean(99)(layers, None, 1), layers.mean(1))


def test_max_of_negative_values_is_not_the_zero_of_the_mask():
    assert masked_max(torch.tensor([-3.0, -2.0, 5.0]), torch.tensor([True, True, False]), 0) == -2


def test_equal_maxima_share_the_gradient():
    values = torch.tensor([2.0, 2.0, 1.0, 2.0], requires_grad=True)
    masked_max(values, torch.tensor([True, True, True, False]), 0).backward()
    assert values.grad.tolist() == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize("reduction", [masked_logsumexp, masked_logmeanexp])
def test_logsumexp_of_large_values_does_not_overflow(reduction):
    values = torch.tensor([1e4, 1e4 - 1, -1e30], requires_grad=True)
    reduced = reduction(values, None, 0, 0.01)
    reduced.backward()
    assert reduced.item() == pytest.approx(1e4, abs=0.05)
    assert values.grad.tolist() == pytest.approx([1, 0, 0], abs=1e-6)


@pytest.mark.parametrize("count", [1, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_logmeanexp_of_equal_values_is_that_value_whatever_their_number(count, dtype):
    """The mean has no length bias; half precision must not round before log(count) cancels."""
    values = torch.full((count,), 0.5, dtype=dtype)
    for mask in (None, torch.ones(count, dtype=torch.bool)):
        assert masked_logmeanexp(values, mask, 0).item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 1e3, 1e5])
def test_logmeanexp_of_a_high_temperature_is_rounded_as_told(temperature):
    """By 1e-6 · temperature; from hundreds on the mean is nearer."""
    values = torch.randn(500, 97, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = masked_logmeanexp(values, None, 1, temperature)
    error = (masked_logmeanexp(values.float(), None, 1, temperature) - exact).abs().max()
    assert error <= 1e-6 * temperature
    assert ((values.mean(1) - exact).abs().max() < error) == (temperature > 1)


def test_logsumexp_goes_from_sum_to_max_with_temperature():
    values = torch.tensor([0.3, 0.9, -0.2], dtype=torch.float64)
    assert masked_logsumexp(values, None, 0, 1e-3).item() == pytest.approx(0.9, abs=1e-9)
    assert masked_logmeanexp(values, None, 0, 1e6).item() == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda value: LogSumExp(value),
        lambda value: LogMeanExp(value),
        lambda value: masked_logsumexp(torch.zeros(2), None, 0, value),
        lambda value: masked_logmeanexp(torch.zeros(2), None, 0, value),
    ],
)
def test_temperature_must_be_a_positive_number(make):
    for bad in (0, -1.0, math.inf, math.nan):
        with pytest.raises(OptionError, match="temperature must be a finite number above 0"):
            make(bad)
    for bad in (True, "1", None):
        with pytest.raises(DtypeError, match="temperature must be a number above 0"):
            make(bad)


@pytest.mark.parametrize(
    "make", [LastNSum, LastNMean, lambda n: last_n(torch.zeros(2), None, 0, n, "sum")]
)
def test_n_must_be_a_positive_integer(make):
    for bad in (0, -1):
        with pytest.raises(OptionError, match=f"n must be at least 1; got {bad}"):
            make(bad)
    for bad in (1.0, True, None):
        with pytest.raises(DtypeError, match="n must be an integer; got"):
            make(bad)


def test_last_n_knows_sum_and_mean_only():
    with pytest.raises(OptionError, match="reduction must be one of 'sum', 'mean'; got 'max'"):
        last_n(torch.zeros(2), None, 0, 1, "max")


def test_repr_shows_the_hyper_parameters():
    assert repr(LogSumExp(0.2)) == "LogSumExp(temperature=0.2)"
    assert repr(LogMeanExp(0.5)) == "LogMeanExp(temperature=0.5)"
    assert repr(LastNSum(4)) == "LastNSum(n=4)"
    assert repr(LastNMean(3)) == "LastNMean(n=3)"
