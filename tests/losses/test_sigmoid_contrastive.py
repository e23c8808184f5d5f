"""The sigmoid loss: against nested loops, open_clip's and closed forms."""

import math

import pytest
import torch
from open_clip.loss import SigLipLoss
from tensors import random

from gloria.errors import DtypeError, OptionError
from gloria.functional import sigmoid_cross_entropy
from gloria.losses import SigmoidContrastiveLoss


def nested_loop(similarity, temperature, bias):
    positives, negatives = [], []
    for k, row in enumerate(similarity.tolist()):
        for n, cosine in enumerate(row):
            logit = cosine / temperature + bias
            if k == n:
                positives.append(math.log1p(math.exp(-logit)))
            else:
                negatives.append(math.log1p(math.exp(logit)))
    return math.fsum(positives) / len(similarity), math.fsum(negatives) / len(similarity)


@pytest.mark.parametrize("temperature, bias", [(0.1, -10.0), (0.5, 0.0), (1.0, 3.0)])
@pytest.mark.parametrize("pairs, dim", [(1, 3), (2, 1), (7, 5)])
def test_equals_the_nested_loop(pairs, dim, temperature, bias, naive, assert_values):
    v, t = random(pairs, dim), random(pairs, dim, seed=1)
    loss = SigmoidContrastiveLoss(temperature=temperature, bias=bias, learnable=False)
    positives, negatives = nested_loop(naive.global_similarity(v, t), temperature, bias)
    terms = loss.terms(v, t)
    assert list(terms) == ["positives", "negatives"]
    assert_values(terms["positives"], positives)
    assert_values(terms["negatives"], negatives)
    assert_values(loss(v, t), positives + negatives)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_paper_preset_is_open_clips(dtype, assert_values, assert_gradients):
    leaves = [random(9, 16, seed=seed, dtype=dtype).requires_grad_() for seed in (0, 1)]
    loss = SigmoidContrastiveLoss.from_preset("paper")
    value = loss(*leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    unit = [torch.nn.functional.normalize(leaf, dim=1) for leaf in wide]
    scale, bias = torch.tensor(10.0).double(), torch.tensor(-10.0).double().requires_grad_()
    expected = SigLipLoss()(*unit, scale, bias)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)  # float32 temperature
    references = torch.autograd.grad(expected, [*wide, bias])
    gradients = torch.autograd.grad(value, [*leaves, loss.bias])
    for gradient, reference in zip(gradients, references, strict=True):
        gradient = gradient.double().view_as(reference)
        torch.testing.assert_close(gradient, reference, rtol=5e-5, atol=1e-6)


def test_paper_is_the_default_and_starts_where_the_paper_does():
    loss = SigmoidContrastiveLoss()
    assert repr(loss) == repr(SigmoidContrastiveLoss.from_preset("paper"))
    assert loss.temperature().item() == pytest.approx(1 / math.exp(math.log(10)))
    assert loss.bias.item() == -10
    assert {name for name, _ in loss.named_parameters()} == {"temperature.raw", "bias"}


def test_orthogonal_pairs_in_closed_form():
    """Logits 1/τ + b = 0 on the diagonal and b elsewhere."""
    loss = SigmoidContrastiveLoss(learnable=False)
    terms = loss.terms(5 * torch.eye(4).double(), torch.eye(4).double())
    assert terms["positives"].item() == pytest.approx(math.log(2), rel=1e-12)
    assert terms["negatives"].item() == pytest.approx(3 * math.log1p(math.exp(-10)), rel=1e-12)


def test_large_logits_stay_exact():
    """Far from 0, one side of log σ is linear and the other an exponential: no overflow, no 0."""
    similarity = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).double()
    positives, negatives = sigmoid_cross_entropy(similarity, 0.001, 0.0)
    assert positives.item() == pytest.approx(500, rel=1e-12)
    assert negatives.item() == pytest.approx(500, rel=1e-12)
    positives, _ = sigmoid_cross_entropy(torch.eye(2).double(), 1 / 30, 0.0)
    assert positives.item() == pytest.approx(math.log1p(math.exp(-30)), rel=1e-12)


def test_a_batch_of_one_has_positives_only():
    v, t = random(1, 5).requires_grad_(), random(1, 5, seed=1)
    loss = SigmoidContrastiveLoss()
    terms = loss.terms(v, t)
    assert terms["negatives"].item() == 0
    assert terms["positives"].item() > 0
    loss(v, t).backward()
    assert v.grad.ne(0).any()


def test_bad_options_are_named():
    with pytest.raises(OptionError, match="bias must be a finite number; got inf"):
        SigmoidContrastiveLoss(bias=math.inf)
    with pytest.raises(DtypeError, match="bias must be a number; got None"):
        sigmoid_cross_entropy(torch.eye(2), bias=None)
    with pytest.raises(OptionError, match="temperature must be a finite number above 0; got 0"):
        sigmoid_cross_entropy(torch.eye(2), temperature=0)


def test_repr_shows_the_hyper_parameters():
    assert "bias=learnable from -10.0" in repr(SigmoidContrastiveLoss())
    assert "bias=-2.5" in repr(SigmoidContrastiveLoss(bias=-2.5, learnable=False))
