"""FILIP's loss: two matrices against nested loops, closed forms, and training."""

import math

import pytest
import torch

from gloria.functional import max_similarity
from gloria.losses import FILIPLoss


@pytest.mark.parametrize("masked_regions", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (4, 4, 5, 3, 6)])
def test_each_direction_has_its_own_matrix(sizes, masked_regions, make_pairs, naive, assert_values):
    """Rows of the mean over regions, columns of the mean over words: the nested loop."""
    pairs = make_pairs(*sizes, masked_regions=masked_regions)
    of_regions = naive.max_similarity(*pairs, maximum_over="words")
    of_words = naive.max_similarity(*pairs, maximum_over="regions")
    rows, _ = naive.contrastive_terms(of_regions, 0.07)
    _, columns = naive.contrastive_terms(of_words, 0.07)
    loss = FILIPLoss(learnable=False)
    terms = loss.terms(*pairs)
    assert_values(terms["image_to_text"], rows)
    assert_values(terms["text_to_image"], columns)
    assert_values(loss(*pairs), rows / 2 + columns / 2)


def test_the_paper_learns_its_temperature_from_seven_hundredths():
    paper = FILIPLoss.from_preset("paper")
    assert repr(paper) == repr(FILIPLoss())
    assert paper.temperature().item() == pytest.approx(0.07)
    assert len(list(paper.parameters())) == 1


def test_perfect_pairs_in_closed_form():
    """Cosine 1 within a pair, 0 across: each direction -log(e^a / (e^a + 3)), half of each."""
    tokens = 5 * torch.eye(4).double()[:, None].expand(-1, 3, -1)
    mask = torch.ones(4, 3, dtype=torch.bool)
    value = FILIPLoss(temperature=0.1, learnable=False)(tokens, tokens, mask)
    assert value.item() == pytest.approx(math.log1p(3 * math.exp(-10)), rel=1e-9)


def test_uninformative_pairs_cost_the_log_of_the_batch():
    zeros, mask = torch.zeros(5, 3, 4, requires_grad=True), torch.ones(5, 3, dtype=torch.bool)
    value = FILIPLoss()(zeros, zeros, mask)
    value.backward()
    assert value.item() == pytest.approx(math.log(5))
    assert zeros.grad.eq(0).all()


def test_weights_are_those_of_the_directions(make_pairs):
    pairs = make_pairs(4, 4, 5, 3, 6)
    loss = FILIPLoss(image_to_text_weight=0.25, text_to_image_weight=2.0)
    terms = loss.terms(*pairs)
    expected = 0.25 * terms["image_to_text"] + 2.0 * terms["text_to_image"]
    torch.testing.assert_close(loss(*pairs), expected)


def test_matrices_may_be_rectangular(make_pairs):
    pairs = make_pairs(2, 3, 5, 4, 6)
    loss = FILIPLoss(backend="einops")
    matrices = loss.similarities(*pairs)
    assert torch.equal(
        matrices["image_to_text"], max_similarity(*pairs, maximum_over="words", backend="einops")
    )
    assert torch.equal(matrices["text_to_image"], max_similarity(*pairs, backend="einops"))
