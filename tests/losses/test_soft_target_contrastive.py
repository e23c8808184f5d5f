"""Soft targets: against nested loops, and what they are for."""

import math

import pytest
import torch
from tensors import random
from torch.autograd import gradcheck

from gloria.errors import DtypeError, OptionError, ShapeError
from gloria.functional import (
    contrastive_cross_entropy,
    global_similarity,
    soft_target_cross_entropy,
)
from gloria.losses import SoftTargetContrastiveLoss


def nested_loop(naive, similarity, shared, temperature, target_temperature, pair_weight):
    """The two directions; ``similarity`` and ``shared`` are lists of rows."""

    def direction(similarity, shared):
        total = 0.0
        for k, (row, other) in enumerate(zip(similarity, shared, strict=True)):
            predicted = naive.softmax([x / temperature for x in row])
            targets = naive.softmax([x / target_temperature for x in other])
            for n, (p, y) in enumerate(zip(predicted, targets, strict=True)):
                target = pair_weight * (k == n) + (1 - pair_weight) * y
                total -= target * math.log(p)
        return total / len(similarity)

    def columns(rows):
        return [list(column) for column in zip(*rows, strict=True)]

    return direction(similarity, shared), direction(columns(similarity), columns(shared))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3, "target_temperature": 1.0, "pair_weight": 0.0},
        {"image_to_text_weight": 0.75, "text_to_image_weight": 0.25, "pair_weight": 1.0},
    ],
)
@pytest.mark.parametrize("pairs, dim", [(1, 3), (2, 1), (7, 5)])
def test_targets_from_the_texts_equal_the_nested_loop(options, pairs, dim, naive, assert_values):
    v, t = random(pairs, dim), random(pairs, dim, seed=1)
    loss = SoftTargetContrastiveLoss(learnable=False, **options)
    rows, columns = nested_loop(
        naive,
        naive.global_similarity(v, t).tolist(),
        naive.global_similarity(t, t).tolist(),
        options.get("temperature", 0.07),
        options.get("target_temperature", 0.07),
        options.get("pair_weight", 0.5),
    )
    terms = loss.terms(v, t)
    assert list(terms) == ["image_to_text", "text_to_image"]
    assert_values(terms["image_to_text"], rows)
    assert_values(terms["text_to_image"], columns)
    weights = loss.weights()
    expected = weights["image_to_text"] * rows + weights["text_to_image"] * columns
    assert_values(loss(v, t), expected)


def test_the_paper_preset_on_label_vectors_equals_the_nested_loop(naive):
    """Images and texts of their own, with labels: MedCLIP's setting; 5 images, 3 texts."""
    v, t = random(5, 4), random(3, 4, seed=1)
    image_labels = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]]).double()
    text_labels = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0]]).double()
    loss = SoftTargetContrastiveLoss.from_preset("paper", learnable=False)
    value = loss(v, t, global_similarity(image_labels, text_labels))
    terms = nested_loop(
        naive,
        naive.global_similarity(v, t).tolist(),
        naive.global_similarity(image_labels, text_labels).tolist(),
        *(0.07, 1.0, 0.0),
    )
    assert value.item() == pytest.approx(sum(terms) / 2, rel=1e-12)


def test_the_dot_products_of_the_published_code_can_be_given():
    """As MedCLIP's code has it, in its own terms: a soft cross-entropy summed over the batch."""
    v, t = random(4, 6), random(4, 6, seed=1)
    labels = torch.tensor([[1, 0, 1], [0, -1, 0], [0, 0, 1], [1, 1, 1]]).double()
    shared = labels @ labels.T
    logits = global_similarity(v, t) / 0.07
    expected = 0.0
    for rows, targets in ((logits, shared), (logits.T, shared.T)):
        expected -= (targets.softmax(1) * rows.log_softmax(1)).sum() / len(rows) / 2
    loss = SoftTargetContrastiveLoss.from_preset("paper", learnable=False)
    torch.testing.assert_close(loss(v, t, shared), expected)


def test_the_whole_weight_on_the_pair_is_infonce():
    v, t = random(6, 4), random(6, 4, seed=1)
    similarity = global_similarity(v, t)
    hard = contrastive_cross_entropy(similarity, 0.07)
    soft = soft_target_cross_entropy(similarity, random(6, 6, seed=2), pair_weight=1.0)
    torch.testing.assert_close(soft, hard)


def test_it_is_lowest_where_the_prediction_is_the_target():
    """Cross-entropy = entropy of the targets + divergence from them."""
    shared = random(5, 5)
    targets = shared.softmax(1)
    entropy = -(targets * targets.log()).sum(1).mean()
    equal = soft_target_cross_entropy(shared, shared, temperature=1.0).image_to_text
    torch.testing.assert_close(equal, entropy)
    other = soft_target_cross_entropy(shared + random(5, 5, seed=1), shared, temperature=1.0)
    assert other.image_to_text > entropy


def test_a_report_that_says_the_same_is_no_negative():
    """Texts 0 and 1 are one vector: image 0 is as right at one as at the other."""
    texts = torch.eye(3).double()[[0, 0, 1]]
    at_both = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]).double().requires_grad_()
    gradients = {}
    for pair_weight in (0.0, 1.0):
        loss = SoftTargetContrastiveLoss(pair_weight=pair_weight, learnable=False)
        similarity = loss.similarity(at_both, texts).detach().requires_grad_()
        terms = soft_target_cross_entropy(
            similarity, global_similarity(texts, texts), 0.07, 0.07, pair_weight
        )
        (gradients[pair_weight],) = torch.autograd.grad(terms.image_to_text, similarity)
    assert gradients[0.0].abs().max() < 1e-4
    assert gradients[1.0][0, 1] > 1  # InfoNCE pushes the twin away


def test_nothing_is_learned_through_the_targets():
    v, t = random(4, 3), random(4, 3, seed=1).requires_grad_()
    loss = SoftTargetContrastiveLoss(learnable=False)
    (own,) = torch.autograd.grad(loss(v, t), t)
    given = global_similarity(t, t)
    (fixed,) = torch.autograd.grad(loss(v, t, given.detach()), t)
    assert torch.equal(own, fixed)
    assert torch.equal(torch.autograd.grad(loss(v, t, given), t)[0], fixed)


def test_gradcheck():
    loss = SoftTargetContrastiveLoss(temperature=0.5).double()
    v, t = random(3, 2).requires_grad_(), random(3, 2, seed=1).requires_grad_()
    shared = random(3, 3, seed=2)
    assert gradcheck(lambda v, t, *_: loss(v, t, shared), (v, t, *loss.parameters()))


def test_bad_input_is_named():
    paper = SoftTargetContrastiveLoss.from_preset("paper")
    with pytest.raises(ShapeError, match=r"must have one shape.*got \(2, 3\) and \(3, 3\)"):
        paper(random(2, 4), random(3, 4))
    with pytest.raises(ShapeError, match="at least one image and text"):
        paper(random(0, 4), random(0, 4))
    with pytest.raises(DtypeError, match="target_similarity must be a floating-point tensor"):
        paper(random(2, 4), random(2, 4), torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(OptionError, match="pair_weight must be a number from 0 to 1; got 2"):
        SoftTargetContrastiveLoss(pair_weight=2)
    with pytest.raises(OptionError, match="target_temperature must be a finite number above 0"):
        SoftTargetContrastiveLoss(target_temperature=0)


def test_repr_shows_the_hyper_parameters():
    text = repr(SoftTargetContrastiveLoss.from_preset("paper"))
    for part in ("target_temperature=1.0", "pair_weight=0.0", "image_to_text_weight=0.5"):
        assert part in text
