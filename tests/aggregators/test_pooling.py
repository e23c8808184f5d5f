"""Generalised mean, attention pooling and WELDON against their formulas on Python floats."""

import math

import pytest
import torch
from tensors import random

from gloria.aggregators import AttentionPooling, GeM, Weldon, gem, masked_softmax, weldon
from gloria.errors import DtypeError, OptionError, ShapeError


def mean(kept):
    return math.fsum(kept) / len(kept)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("highest, lowest", [(1, 1), (2, 3), (15, 15)])
def test_weldon_is_the_mean_of_the_ends(highest, lowest, dim, masked, by_loop, assert_values):
    values = random(4, 6, 3)
    mask = random(4, 6, 3, seed=1) < 0.3 if masked else None
    expected = by_loop(
        values,
        mask,
        dim,
        lambda kept: mean(sorted(kept)[-highest:]) + mean(sorted(kept)[:lowest]),
    )
    assert_values(weldon(values, mask, dim, highest, lowest), expected)
    assert_values(Weldon(highest, lowest)(values, mask, dim), expected)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("p", [1.0, 3.0, 7.5])
def test_gem_is_the_generalised_mean_of_clamped_values(p, dim, masked, by_loop, assert_values):
    values = random(4, 6, 3)
    mask = random(4, 6, 3, seed=1) < 0.3 if masked else None
    expected = by_loop(
        values, mask, dim, lambda kept: mean([max(x, 1e-6) ** p for x in kept]) ** (1 / p)
    )
    actual = gem(values, mask, dim, torch.tensor(p, dtype=torch.float64))
    assert_values(actual, expected)
    assert_values(GeM(p).double()(values, mask, dim), expected)


def test_gem_of_large_p_is_the_maximum_and_does_not_overflow():
    values = torch.tensor([[1e4, 2e4, 3e4]], requires_grad=True)
    pooled = GeM(500.0)(values, None, 1)
    pooled.sum().backward()
    assert pooled.item() == pytest.approx(3e4, rel=0.01)
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("p", [1.0, 3.0, 8.0, 100.0])
@pytest.mark.parametrize(
    "mask", [None, [[True, True, False]], [[True, False, False]], [[False, False, False]]]
)
def test_gem_of_a_dead_channel_has_finite_gradients(p, mask):
    """All zero after a ReLU, or all masked: the exponent's gradient must not become NaN."""
    pooling, values = GeM(p), torch.zeros(1, 3, requires_grad=True)
    pooled = pooling(values, None if mask is None else torch.tensor(mask), 1)
    pooled.sum().backward()
    assert pooled.item() == pytest.approx(0, abs=2e-6)
    assert values.grad.isfinite().all()
    assert pooling.p.grad.isfinite()


def test_gem_learns_its_exponent_and_never_goes_below_the_mean():
    pooling, values = GeM(3.0).double(), random(2, 5).abs() + 0.1
    assert torch.autograd.gradcheck(
        lambda x, p: gem(x, None, 1, p), (values.requires_grad_(), pooling.p)
    )
    with torch.no_grad():
        pooling.p.fill_(-2.0)
    torch.testing.assert_close(pooling(values, None, 1), values.mean(1))


def test_gem_pushed_below_its_bound_comes_back():
    """A plain clamp would have lost its gradient there."""
    pooling, values = GeM(1.5), random(4, 5).abs().float() + 0.1
    optimizer = torch.optim.SGD(pooling.parameters(), lr=0.5)

    def push(sign, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (sign * pooling(values, None, 1).sum()).backward()
            optimizer.step()

    push(+1, 20)  # towards smaller means
    assert pooling.p < 1
    torch.testing.assert_close(pooling(values, None, 1), values.mean(1))
    push(-1, 60)
    assert pooling.p > 1.5


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dim", [0, 1, -2])
def test_attention_pooling_is_a_softmax_weighted_sum(dim, masked, assert_values):
    values, width = random(3, 4, 5), 5
    pooling = AttentionPooling(width).double()
    mask = random(3, 4, 1, seed=1) < 0.5 if masked else None
    weight, bias = pooling.score.weight[0].tolist(), pooling.score.bias.item()
    rows = values.movedim(dim, 1).tolist()
    keep = torch.ones(3, 4, 1) if mask is None else mask
    expected = []
    for vectors, kept in zip(rows, keep.movedim(dim, 1)[..., 0].tolist(), strict=True):
        vectors = [vector for vector, real in zip(vectors, kept, strict=True) if real]
        powers = [
            math.exp(bias + math.fsum(w * x for w, x in zip(weight, vector, strict=True)))
            for vector in vectors
        ]
        total = math.fsum(powers) or 1.0
        expected.append(
            [
                math.fsum(a / total * v[d] for a, v in zip(powers, vectors, strict=True))
                for d in range(width)
            ]
        )
    assert_values(pooling(values, mask, dim), expected)


@pytest.mark.parametrize("lowest_score", [0.0, -1e30])
def test_masked_softmax_is_a_softmax_of_what_is_kept(lowest_score, assert_values):
    scores = random(3, 7) + lowest_score
    mask = random(3, 7, seed=1) < 0.5
    mask[0] = False
    weights = masked_softmax(scores, mask, 1)
    for row, kept, actual in zip(scores, mask, weights, strict=True):
        assert_values(actual[kept], row[kept].softmax(0))
        assert actual[~kept].eq(0).all()
    assert weights.sum(1).tolist() == pytest.approx([0.0, 1.0, 1.0])


def test_masked_softmax_gives_masked_scores_and_empty_slices_a_zero_gradient():
    scores = torch.tensor([[1.0, 2.0, math.nan], [math.inf, 0.0, 1.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    (masked_softmax(scores, mask, 1) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert scores.grad[0, 0].item() == pytest.approx(-0.19661, abs=1e-5)  # a·(1 - a)
    assert scores.grad[0, 1].item() == pytest.approx(0.19661, abs=1e-5)
    assert scores.grad[~mask].eq(0).all()


def test_attention_pooling_cannot_reduce_the_feature_axis():
    pooling = AttentionPooling(4)
    for dim in (2, -1):
        with pytest.raises(ShapeError, match="dim must not be the last axis"):
            pooling(torch.zeros(2, 3, 4), None, dim)
    with pytest.raises(ShapeError, match=r"values must have 4 features.*got \(2, 3, 5\)"):
        pooling(torch.zeros(2, 3, 5), None, 1)


def test_counts_and_exponents_are_checked():
    with pytest.raises(OptionError, match="highest must be at least 1; got 0"):
        Weldon(highest=0)
    with pytest.raises(OptionError, match="lowest must be at least 1; got -1"):
        Weldon(lowest=-1)
    with pytest.raises(DtypeError, match="lowest must be an integer"):
        weldon(torch.zeros(3), None, 0, 1, 1.5)
    with pytest.raises(OptionError, match="width must be at least 1; got 0"):
        AttentionPooling(0)
    with pytest.raises(OptionError, match="p must be a finite number above 0; got -1"):
        GeM(-1.0)
    with pytest.raises(OptionError, match=r"p must be at least 1; got 0\.5"):
        GeM(0.5)


def test_repr_shows_the_hyper_parameters():
    assert repr(Weldon(3, 2)) == "Weldon(highest=3, lowest=2)"
