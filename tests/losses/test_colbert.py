"""ColBERT's loss: the summed maxima against nested loops and closed forms."""

import math

import pytest
import torch

from gloria.losses import ColBERTLoss


@pytest.mark.parametrize("masked_regions", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (4, 4, 5, 3, 6)])
def test_texts_choose_their_image_by_the_sum_over_words(
    sizes, masked_regions, make_pairs, naive, assert_values
):
    pairs = make_pairs(*sizes, masked_regions=masked_regions)
    rows, columns = naive.contrastive_terms(naive.max_similarity(*pairs, reduction="sum"), 1.0)
    loss = ColBERTLoss.from_preset("paper")
    terms = loss.terms(*pairs)
    assert_values(terms["image_to_text"], rows)
    assert_values(terms["text_to_image"], columns)
    assert_values(loss(*pairs), columns)
    both = ColBERTLoss(image_to_text_weight=0.5, text_to_image_weight=2.0)
    assert_values(both(*pairs), 0.5 * rows + 2 * columns)


def test_the_paper_has_no_temperature():
    assert ColBERTLoss.from_preset("paper").temperature() == 1.0
    assert not list(ColBERTLoss().parameters())
    assert ColBERTLoss(learnable=True, temperature=0.5).temperature().item() == pytest.approx(0.5)


def test_perfect_pairs_in_closed_form():
    """A text of n words scores n with its own image and 0 with the others."""
    tokens = 5 * torch.eye(4).double()[:, None].expand(-1, 3, -1)
    mask = torch.arange(3) < torch.tensor([[1], [2], [3], [3]])
    value = ColBERTLoss()(tokens, tokens, mask)
    expected = sum(math.log1p(3 * math.exp(-n)) for n in (1, 2, 3, 3)) / 4
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_uninformative_pairs_cost_the_log_of_the_batch():
    zeros, mask = torch.zeros(5, 3, 4, requires_grad=True), torch.ones(5, 3, dtype=torch.bool)
    value = ColBERTLoss()(zeros, zeros, mask)
    value.backward()
    assert value.item() == pytest.approx(math.log(5))
    assert zeros.grad.eq(0).all()
