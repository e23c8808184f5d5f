"""The one contract that every aggregator keeps: masks, empty slices, precision, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import random
from torch.autograd import gradcheck, gradgradcheck

from gloria.aggregators import (
    AttentionPooling,
    First,
    GeM,
    LastNMean,
    LastNSum,
    LogMeanExp,
    LogSumExp,
    Max,
    Mean,
    Sum,
    Weldon,
)
from gloria.errors import DeviceError, DtypeError, ShapeError
from gloria.types import Aggregator

WIDTH = 3


def attention_pooling():
    pooling = AttentionPooling(WIDTH)
    with torch.no_grad():
        pooling.score.weight.copy_(torch.tensor([[0.5, -1.0, 0.25]]))
        pooling.score.bias.fill_(0.125)
    return pooling


AGGREGATORS = {
    "sum": Sum,
    "mean": Mean,
    "max": Max,
    "first": First,
    "logsumexp": lambda: LogSumExp(0.5),
    "logmeanexp": lambda: LogMeanExp(0.5),
    "last 2 sum": lambda: LastNSum(2),
    "last 2 mean": lambda: LastNMean(2),
    "weldon": lambda: Weldon(2, 1),
    "gem": GeM,
    "attention": attention_pooling,
}


@pytest.fixture(params=AGGREGATORS)
def aggregator(request):
    return AGGREGATORS[request.param]()


def some(*shape, seed=1):
    """Whole positions of a (item, position, feature) tensor; the first item keeps none."""
    mask = random(*shape, seed=seed) < 0.3
    mask[0] = False
    return mask


def reduced_with_gradient(aggregator, values, mask, dim=1):
    values = values.detach().clone().requires_grad_()
    reduced = aggregator(values, mask, dim)
    upstream = random(*reduced.shape, dtype=reduced.dtype, seed=9)
    (gradient,) = torch.autograd.grad(reduced, values, upstream)
    return reduced.detach(), gradient


def test_is_an_aggregator(aggregator):
    assert isinstance(aggregator, Aggregator)


@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0])
def test_what_is_masked_changes_no_bit_and_gets_no_gradient(aggregator, content):
    values, mask = random(4, 5, WIDTH, dtype=torch.float32), some(4, 5, 1)
    reduced, gradient = reduced_with_gradient(aggregator, values, mask)
    other = values.masked_fill(~mask, content)
    again, again_gradient = reduced_with_gradient(aggregator, other, mask)
    assert torch.equal(reduced, again)
    assert torch.equal(gradient, again_gradient)
    assert gradient[~mask.expand_as(values)].eq(0).all()
    assert gradient[mask.expand_as(values)].isfinite().all()


def test_masked_content_does_not_reach_the_parameters_gradient():
    for make in (GeM, attention_pooling):
        gradients = []
        for content in (0.0, math.nan):
            module, mask = make(), some(4, 5, 1)
            values = random(4, 5, WIDTH, dtype=torch.float32).masked_fill(~mask, content)
            module(values, mask, 1).sum().backward()
            gradients.append([p.grad for p in module.parameters()])
        for one, other in zip(*gradients, strict=True):
            assert torch.equal(one, other)
            assert one.isfinite().all()


def test_a_slice_without_kept_values_is_zero_with_zero_gradient(aggregator):
    values, mask = random(4, 5, WIDTH), some(4, 5, 1)
    reduced, gradient = reduced_with_gradient(aggregator.double(), values, mask)
    assert reduced[0].eq(0).all()
    assert gradient[0].eq(0).all()
    assert reduced[1:].ne(0).any()


@pytest.mark.parametrize("mask_shape", [None, (2, 0, 1), (1, 1, 1)])
def test_an_axis_of_length_zero_reduces_to_zeros(aggregator, mask_shape):
    mask = None if mask_shape is None else torch.ones(mask_shape, dtype=torch.bool)
    reduced = aggregator(torch.zeros(2, 0, WIDTH), mask, 1)
    assert torch.equal(reduced, torch.zeros(2, WIDTH))


def test_an_empty_batch_stays_empty(aggregator):
    mask = torch.ones(0, 5, 1, dtype=torch.bool)
    assert aggregator(torch.zeros(0, 5, WIDTH), mask, 1).shape == (0, WIDTH)


def test_masking_equals_leaving_out(aggregator):
    values, aggregator = random(1, 6, WIDTH), aggregator.double()
    mask = torch.tensor([True, False, True, True, False, True])
    actual, gradient = reduced_with_gradient(aggregator, values, mask[None, :, None])
    expected, kept_gradient = reduced_with_gradient(aggregator, values[:, mask], None)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient[:, mask], kept_gradient, rtol=0, atol=1e-13)


def test_nan_that_is_kept_is_never_hidden(aggregator):
    values = random(2, 5, WIDTH, dtype=torch.float32)
    values[0, -1], values[0, 0] = math.nan, math.nan
    for mask in (None, torch.ones(2, 5, 1, dtype=torch.bool)):
        reduced = aggregator(values, mask, 1)
        assert reduced[0].isnan().all()
        assert reduced[1].isfinite().all()


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(0, 3)),
    name=st.sampled_from(sorted(AGGREGATORS)),
    data=st.data(),
)
def test_any_broadcast_mask_equals_the_full_one(shape, name, data):
    items, positions, extra = shape
    aggregator = AGGREGATORS[name]()
    values = random(items, extra, positions, WIDTH, dtype=torch.float32)
    axes = [data.draw(st.sampled_from([1, size])) for size in (items, extra, positions)]
    mask = random(*axes, 1, seed=3) < 0.5
    full = mask.expand_as(values).clone()
    reduced = aggregator(values, mask, 2)
    assert reduced.shape == (items, extra, WIDTH)
    assert torch.equal(reduced, aggregator(values, full, -2))


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(aggregator, masked):
    values = (random(2, 4, WIDTH).abs() + 0.1).requires_grad_()
    mask = some(2, 4, 1) if masked else None
    if masked:
        mask[1, 0] = True
    aggregator = aggregator.double()
    assert gradcheck(lambda x: aggregator(x, mask, 1), values)
    assert gradgradcheck(lambda x: aggregator(x, mask, 1), values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype_and_is_accurate(aggregator, dtype, assert_values, assert_gradients):
    aggregator = aggregator.double()
    for parameter in aggregator.parameters():  # so that every dtype holds the same parameters
        parameter.data = parameter.data.half().double()
    values, mask = random(3, 9, WIDTH, dtype=dtype), some(3, 9, 1)
    expected, expected_gradient = reduced_with_gradient(aggregator, values.double(), mask)
    actual, gradient = reduced_with_gradient(aggregator.to(dtype), values, mask)
    assert actual.dtype == gradient.dtype == dtype
    assert_values(actual, expected)
    if dtype.itemsize > 2:  # the upstream gradient above is rounded with the result
        assert_gradients(gradient, expected_gradient)


def test_compiles_without_a_graph_break(aggregator):
    compiled = torch.compile(aggregator, backend="eager", fullgraph=True)
    values, mask = random(2, 5, WIDTH, dtype=torch.float32), some(2, 5, 1)
    assert torch.equal(compiled(values, mask, 1), aggregator(values, mask, 1))


def test_bad_masks_and_axes_are_named(aggregator):
    values = torch.zeros(2, 5, WIDTH)
    with pytest.raises(DtypeError, match="values must be a floating-point tensor; got torch"):
        aggregator(values.long(), None, 1)
    with pytest.raises(
        DtypeError, match=r"mask must be boolean, True = keep; got dtype torch.int64"
    ):
        aggregator(values, torch.ones(2, 5, 1, dtype=torch.int64), 1)
    with pytest.raises(
        ShapeError, match=r"mask and values must agree in rank; got 2 and 3. Add axes"
    ):
        aggregator(values, torch.ones(2, 5, dtype=torch.bool), 1)
    with pytest.raises(
        ShapeError, match=r"mask must broadcast to values \(2, 5, 3\); got \(2, 4, 1\)"
    ):
        aggregator(values, torch.ones(2, 4, 1, dtype=torch.bool), 1)
    with pytest.raises(DeviceError, match="mask must be on the device of values, cpu; got meta"):
        aggregator(values, torch.ones(2, 5, 1, dtype=torch.bool, device="meta"), 1)
    with pytest.raises(ShapeError, match=r"dim must name an axis of values \(2, 5, 3\); got 3"):
        aggregator(values, None, 3)
