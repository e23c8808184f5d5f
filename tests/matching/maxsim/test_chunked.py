"""What chunked promises beside the right numbers: its budget, and to be an operator."""

import math

import pytest
import torch
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from gloria.errors import BackendError
from gloria.matching.maxsim import MaxSimInputs, chunked, einops

OPERATORS = torch.ops.gloria


def inputs_of(make_pairs, *sizes, masked_regions=False, dtype=torch.float32):
    """Words as queries, regions as keys, zeros under the masks."""
    pairs = make_pairs(*sizes, masked_regions=masked_regions, dtype=dtype)
    words = pairs.words.masked_fill(~pairs.word_mask[..., None], 0)
    return MaxSimInputs(words, pairs.regions, pairs.word_mask, pairs.region_mask)


def gradients(inputs, budget, module=chunked):
    leaves = [each.detach().requires_grad_() for each in inputs[:2]]
    scores = module.summed_maxima(MaxSimInputs(*leaves, *inputs[2:]), budget)
    upstream = torch.linspace(-1, 1, scores.numel(), dtype=scores.dtype).view_as(scores)
    return torch.autograd.grad(scores, leaves, upstream)


def gradients_of_both(inputs, budget, module=chunked):
    leaves = [each.detach().requires_grad_() for each in inputs[:2]]
    sums, sums_of_keys = module.both_summed_maxima(MaxSimInputs(*leaves, *inputs[2:]), budget)
    upstream = torch.linspace(-1, 1, sums.numel(), dtype=sums.dtype).view_as(sums)
    return torch.autograd.grad((sums, sums_of_keys), leaves, (upstream, upstream.T))


# opcheck itself looks at the gradients of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("masked_regions", [False, True])
@pytest.mark.parametrize("keep_winners", [False, True])
def test_is_an_operator(keep_winners, masked_regions, make_pairs):
    inputs = inputs_of(make_pairs, 3, 2, 5, 4, 6, masked_regions=masked_regions)
    leaves = [each.clone().requires_grad_() for each in inputs[:2]]
    opcheck(OPERATORS.maxsim_chunked, (*leaves, *inputs[2:], keep_winners, 2**20))
    scores, winners = OPERATORS.maxsim_chunked(*inputs, keep_winners, 2**20)
    for needs in ([True, True], [True, False], [False, True]):
        arguments = torch.ones_like(scores), *inputs, winners, needs, 2**20
        opcheck(OPERATORS.maxsim_chunked_backward, arguments)


def test_keeping_the_winners_or_finding_them_again_is_the_same_to_the_bit(make_pairs):
    inputs = inputs_of(make_pairs, 3, 4, 6, 5, 7)
    leaves = [each.clone().requires_grad_() for each in inputs[:2]]
    results = []
    for keep in (False, True):
        scores, winners = OPERATORS.maxsim_chunked(*leaves, *inputs[2:], keep, 2**20)
        assert winners.numel() == (4 * 5 * 3 if keep else 0)
        results.append(torch.autograd.grad(scores.square().sum(), leaves))
    for kept, found in zip(*results, strict=True):
        assert torch.equal(kept, found)


@pytest.mark.parametrize("budget", [1, 1_000, 30_000, 2**24])
def test_every_budget_gives_the_same(budget, make_pairs, assert_values, assert_gradients):
    inputs = inputs_of(make_pairs, 5, 7, 23, 11, 9, masked_regions=True, dtype=torch.float64)
    assert_values(chunked.summed_maxima(inputs, budget), einops.summed_maxima(inputs, 0))
    expected = gradients(inputs, 0, einops)
    for actual, reference in zip(gradients(inputs, budget), expected, strict=True):
        assert_gradients(actual, reference)


@pytest.mark.parametrize(("budget", "products"), [(1, 2), (40_000, 2), (60_000, 1), (2**20, 1)])
def test_so_do_both_sides_at_once(budget, products, make_pairs, assert_values, assert_gradients):
    """Of one product, where the budget allows that."""
    inputs = inputs_of(make_pairs, 5, 7, 23, 11, 9, masked_regions=True, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        sums = chunked.both_summed_maxima(inputs, budget)
    real = inputs.query_mask.sum() * inputs.key_mask.sum()
    assert counter.get_total_flops() == products * 2 * 9 * real
    for actual, reference in zip(sums, einops.both_summed_maxima(inputs, 0), strict=True):
        assert_values(actual, reference)
    expected = gradients_of_both(inputs, 0, einops)
    for actual, reference in zip(gradients_of_both(inputs, budget), expected, strict=True):
        assert_gradients(actual, reference)


def test_runs_repeat_to_the_bit(make_pairs):
    inputs = inputs_of(make_pairs, 5, 7, 23, 11, 9)
    for one, other in zip(gradients(inputs, 2**20), gradients(inputs, 2**20), strict=True):
        assert torch.equal(one, other)


def test_a_second_derivative_goes_by_the_definition(make_pairs):
    inputs = inputs_of(make_pairs, 2, 3, 5, 4, 3, masked_regions=True)

    def second(backend, inputs):
        leaves = [each.detach().clone().requires_grad_() for each in inputs[:2]]
        scores = backend.summed_maxima(MaxSimInputs(*leaves, *inputs[2:]), 2**20)
        first = torch.autograd.grad(scores.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), leaves)

    expected = second(einops, inputs)
    spoiled = [
        tokens.masked_fill(~mask[..., None], math.nan)
        for tokens, mask in zip(inputs[:2], inputs[2:], strict=True)
    ]
    for actual, reference in zip(
        second(chunked, MaxSimInputs(*spoiled, *inputs[2:])), expected, strict=True
    ):
        torch.testing.assert_close(actual, reference)


def test_a_second_derivative_of_a_compiled_graph_is_refused(make_pairs):
    inputs = inputs_of(make_pairs, 2, 2, 3, 3, 3)
    leaves = [each.clone().requires_grad_() for each in inputs[:2]]
    compiled = torch.compile(chunked.summed_maxima, backend="eager", fullgraph=True)
    scores = compiled(MaxSimInputs(*leaves, *inputs[2:]), 2**20)
    first = torch.autograd.grad(scores.square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(BackendError, match=r"no second derivative\. Use backend='einops'"):
        first.sum().backward()


@pytest.mark.parametrize("budget", [2**20, 2**22])
@pytest.mark.parametrize(
    "sizes",  # image, text, region, word, dim
    [(32, 32, 100, 60, 32), (64, 1, 200, 2, 128), (2, 300, 10, 40, 128)],
)
@pytest.mark.parametrize("masked_regions", [False, True])
def test_memory_stays_within_the_budget(masked_regions, sizes, budget, make_pairs, peak_bytes):
    """Beside the result and the gradients."""
    inputs = inputs_of(make_pairs, *sizes, masked_regions=masked_regions)
    result = 4 * sizes[0] * sizes[1]
    taken = peak_bytes(lambda: chunked.summed_maxima(inputs, budget))
    assert taken - result <= budget
    taken = peak_bytes(lambda: chunked.both_summed_maxima(inputs, budget))
    assert taken - 2 * result <= budget
    owed = sum(each.nbytes for each in inputs[:2])
    taken = peak_bytes(lambda: gradients(inputs, budget))
    assert taken - owed - 3 * result <= budget
    taken = peak_bytes(lambda: gradients_of_both(inputs, budget))
    assert taken - 2 * owed - 6 * result <= budget  # either side has its own until they are added


def test_the_definition_takes_more(make_pairs, peak_bytes):
    """Or else the budget would prove nothing."""
    inputs = inputs_of(make_pairs, 32, 32, 100, 60, 32)
    assert peak_bytes(lambda: einops.summed_maxima(inputs, 0)) > 32 * 32 * 100 * 60 * 4
