"""The definition itself, step by step: attention, cosine, aggregation."""

import itertools
import math

import pytest
import torch
from tensors import random

from gloria.matching import ATTENTION_VARIANTS, MatchingOptions, einops
from gloria.matching.aggregation import aggregate_words


def options(attention="regions", aggregation="max"):
    return MatchingOptions(attention, 0.25, 0.2, aggregation)


def test_regions_attention_ignores_the_other_words():
    scores = random(4, 6)
    both = einops.attend(scores, torch.ones(4, dtype=torch.bool), None, options())
    alone = einops.attend(scores[:1], torch.ones(1, dtype=torch.bool), None, options())
    torch.testing.assert_close(both[:1], alone)


def test_words_then_regions_is_two_softmaxes_the_second_at_four():
    """Word softmax per region: 1/4 and 3/4; then exp(4·p) over the regions."""
    scores = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]], dtype=torch.float64)
    attention = einops.attend(
        scores, torch.ones(2, dtype=torch.bool), None, options("words_then_regions")
    )
    near, far = math.exp(3), math.exp(1)
    expected = torch.tensor([[far, near], [near, far]], dtype=torch.float64) / (near + far)
    torch.testing.assert_close(attention, expected)


def test_one_word_under_words_then_regions_attends_everywhere_alike():
    """Its word softmax is 1 at every region, whatever the scores."""
    attention = einops.attend(
        100 * random(1, 7), torch.ones(1, dtype=torch.bool), None, options("words_then_regions")
    )
    torch.testing.assert_close(attention, torch.full_like(attention, 1 / 7))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_masks_broadcast_over_leading_axes(attention):
    scores = random(2, 3, 4, 5)
    word_mask = torch.tensor([[True] * 4, [True, False, True, False], [True] + 3 * [False]])
    region_mask = torch.tensor([[True] * 5, [False, True, True, False, True]])
    weights = einops.attend(scores, word_mask, region_mask[:, None], options(attention))
    for image, text in itertools.product(range(2), range(3)):
        real = scores[image, text][word_mask[text]][:, region_mask[image]]
        alone = einops.attend(
            real, torch.ones(len(real), dtype=torch.bool), None, options(attention)
        )
        ours = weights[image, text][word_mask[text]]
        torch.testing.assert_close(ours[:, region_mask[image]], alone)
        assert ours[:, ~region_mask[image]].eq(0).all()


def test_cosine_is_clamped_as_in_the_published_code():
    """The product of the norms is clamped, not each norm: 1e-6 · 1e-6 / 1e-8."""
    attended = torch.full((1, 1, 1, 1), 1e-6, dtype=torch.float64)
    words = torch.full((1, 1, 1), 1e-6, dtype=torch.float64)
    assert einops.cosine_of_words(attended, words).item() == pytest.approx(1e-4)
    assert einops.cosine_of_words(attended, 1e9 * words).item() == pytest.approx(1.0)
    assert einops.cosine_of_words(0 * attended, words).item() == 0


def test_any_callable_can_aggregate_and_sees_the_mask():
    cosine, mask = (
        random(2, 3, 4),
        torch.tensor([[True] * 4, [True, False] * 2, [True] + 3 * [False]]),
    )
    calls = []

    def second_moment(values, mask, dim):
        calls.append((values.shape, mask.shape, dim))
        return values.square().masked_fill(~mask, 0).sum(dim)

    actual = aggregate_words(cosine, mask, options(aggregation=second_moment))
    expected = (cosine.square() * mask).sum(-1)
    torch.testing.assert_close(actual, expected)
    assert calls == [((2, 3, 4), (1, 3, 4), -1)]
