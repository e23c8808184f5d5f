"""The global loss: against the published code, nested loops and closed forms."""

import math

import pytest
import torch
from tensors import random
from torch.autograd import gradcheck, gradgradcheck

from gloria import contrastive
from gloria.functional import (
    contrastive_cross_entropy,
    global_contrastive_loss,
    global_similarity,
    pair_losses,
)
from gloria.losses import GlobalContrastiveLoss

PRESETS = tuple(GlobalContrastiveLoss.presets)


@pytest.fixture(params=["matrix", "blocks"], autouse=True)
def path(request, monkeypatch):
    """Every test here holds for the pair matrix and for blocks of it, in this case of two rows."""
    if request.param == "blocks":
        monkeypatch.setattr(pair_losses, "LEAN_FROM", 0)
        monkeypatch.setattr(contrastive, "_rows_per_block", lambda texts: 2)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pairs, dim", [(1, 1), (2, 3), (7, 64), (48, 100)])
def test_official_preset_is_the_published_code(
    pairs, dim, dtype, published, assert_values, assert_gradients
):
    leaves = [random(pairs, dim, seed=seed, dtype=dtype).requires_grad_() for seed in (0, 1)]
    loss = GlobalContrastiveLoss.from_preset("official")
    terms, value = loss.terms(*leaves), loss(*leaves)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    rows, columns = published.global_terms(*wide)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_values(terms["image_to_text"], rows)
    assert_values(terms["text_to_image"], columns)
    assert_values(value, rows + columns)
    expected = torch.autograd.grad(rows + columns, wide)
    for gradient, reference in zip(torch.autograd.grad(value, leaves), expected, strict=True):
        assert_gradients(gradient, reference)


@pytest.mark.parametrize(
    "preset, weights", [("paper", (1, 1)), ("stable", (1, 1)), ("convirt", (0.75, 0.25))]
)
def test_presets_equal_the_nested_loop(preset, weights, naive, assert_values):
    v, t = random(4, 5), random(4, 5, seed=1)
    rows, columns = naive.contrastive_terms(naive.global_similarity(v, t), 0.1)
    value = GlobalContrastiveLoss.from_preset(preset)(v, t)
    assert_values(value, weights[0] * rows + weights[1] * columns)


def test_a_subclass_trains_the_similarity_that_it_gives(assert_values):
    class Distance(GlobalContrastiveLoss):
        def similarity(self, image_embeddings, text_embeddings):
            return -torch.cdist(image_embeddings, text_embeddings)

    v, t = random(4, 5), random(4, 5, seed=1)
    rows, columns = contrastive_cross_entropy(-torch.cdist(v, t), 0.1)
    assert_values(Distance()(v, t), rows + columns)


def test_a_learned_temperature_beside_a_zero_vector_has_its_gradient():
    v, t = random(4, 5).requires_grad_(), random(4, 5, seed=1)
    v.data[1] = 0
    loss = GlobalContrastiveLoss(learnable=True).double()
    leaves = [v, *loss.parameters()]
    plain = torch.autograd.grad(loss(v, t), leaves)
    again = torch.autograd.grad(loss(v, t), leaves, create_graph=True)
    each = torch.autograd.grad(loss(v, t), leaves, torch.ones(1).double(), is_grads_batched=True)
    for one, other, batched in zip(plain, again, each, strict=True):
        torch.testing.assert_close(other, one)
        torch.testing.assert_close(batched[0], one)


@pytest.mark.parametrize("pairs", [1, 2, 9])
def test_zero_embeddings_cost_two_logs_of_the_batch(pairs):
    zeros = torch.zeros(pairs, 4, requires_grad=True)
    value = GlobalContrastiveLoss()(zeros, zeros)
    value.backward()
    assert value.item() == pytest.approx(2 * math.log(pairs))
    assert zeros.grad.eq(0).all()


def test_orthogonal_pairs_in_closed_form():
    """Cosine 1 on the diagonal, 0 elsewhere: -log(e^10 / (e^10 + 3)), twice."""
    value = GlobalContrastiveLoss().double()(7 * torch.eye(4).double(), torch.eye(4).double())
    assert value.item() == pytest.approx(2 * math.log1p(3 * math.exp(-10)), rel=1e-12)


def test_lengths_of_the_embeddings_do_not_matter():
    v, t = random(4, 5), random(4, 5, seed=1)
    loss = GlobalContrastiveLoss()
    torch.testing.assert_close(loss(1000 * v, 0.001 * t), loss(v, t))


def test_a_batch_of_one_costs_nothing_and_teaches_nothing(path):
    v, t = random(1, 5).requires_grad_(), random(1, 5, seed=1).requires_grad_()
    loss = GlobalContrastiveLoss(learnable=True)
    value = loss(v, t)
    value.backward()
    # in blocks the pair's own cosine is summed in another order
    bound = 0 if path == "matrix" else 1e-14
    assert abs(value.item()) <= bound
    assert all(x.grad.abs().max() <= bound for x in (v, t, *loss.parameters()))


@pytest.mark.parametrize("learnable", [False, True])
def test_gradcheck(learnable):
    loss = GlobalContrastiveLoss(learnable=learnable, image_to_text_weight=0.75).double()
    leaves = (random(3, 2).requires_grad_(), random(3, 2, seed=1).requires_grad_())
    assert gradcheck(lambda v, t, *_: loss(v, t), (*leaves, *loss.parameters()))
    assert gradgradcheck(lambda v, t, *_: loss(v, t), (*leaves, *loss.parameters()))


def test_compiles_in_one_graph():
    loss = GlobalContrastiveLoss(learnable=True)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        leaves = [random(5, 3, seed=s, dtype=torch.float32).requires_grad_() for s in (0, 1)]
        value = function(*leaves)
        results.append((value, *torch.autograd.grad(value, (*leaves, *loss.parameters()))))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


def test_is_its_functional_twin():
    v, t = random(4, 5), random(4, 5, seed=1)
    for preset in PRESETS:
        options = GlobalContrastiveLoss.presets[preset]
        loss = GlobalContrastiveLoss.from_preset(preset)
        assert torch.equal(loss(v, t), global_contrastive_loss(v, t, **options))
        assert torch.equal(loss.similarity(v, t), global_similarity(v, t))


def test_repr_shows_the_hyper_parameters():
    text = repr(GlobalContrastiveLoss.from_preset("convirt"))
    for part in ("Temperature(0.1)", "image_to_text_weight=0.75", "text_to_image_weight=0.25"):
        assert part in text
