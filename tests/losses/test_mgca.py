"""MGCA: against nested loops over floats, its published code's computation, and in its corners."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from gloria.errors import OptionError
from gloria.functional import global_contrastive_loss, local_attention, mgca_cross_entropy
from gloria.losses import MGCALoss


@pytest.fixture(scope="session")
def nested_loop(naive):
    """The word side and the region side of a batch."""

    def side(tokens, others, attention_temperature, temperature):
        tokens, others = [naive.unit(x) for x in tokens], [naive.unit(x) for x in others]
        contexts = []
        for token in tokens:
            scores = [naive.dot(token, other) / attention_temperature for other in others]
            weights = naive.softmax(scores)
            contexts.append(
                [naive.dot(weights, [other[d] for other in others]) for d in range(len(token))]
            )
        logits = [[naive.cosine(c, token) / temperature for token in tokens] for c in contexts]
        total = 0.0
        for i in range(len(tokens)):
            total -= math.log(naive.softmax(logits[i])[i])
            total -= math.log(naive.softmax([row[i] for row in logits])[i])
        return total / len(tokens) / 2

    def terms(regions, words, word_mask, region_mask, attention_temperature, temperature):
        if region_mask is None:
            region_mask = torch.ones(regions.shape[:2], dtype=torch.bool)
        temperatures = attention_temperature, temperature
        word_side, region_side = [], []
        for k in range(len(regions)):
            v, t = regions[k, region_mask[k]].tolist(), words[k, word_mask[k]].tolist()
            word_side.append(side(t, v, *temperatures))
            region_side.append(side(v, t, *temperatures))
        return math.fsum(word_side) / len(regions), math.fsum(region_side) / len(regions)

    return terms


SIZES = [(1, 1, 1, 1), (1, 2, 3, 2), (3, 7, 5, 4), (2, 16, 9, 3), (5, 3, 1, 6)]


@pytest.mark.parametrize("masked_regions", [False, True])
@pytest.mark.parametrize("pairs, regions, words, dim", SIZES)
def test_equals_the_nested_loop(
    pairs, regions, words, dim, masked_regions, make_pairs, nested_loop, naive, assert_values
):
    batch = make_pairs(pairs, pairs, regions, words, dim, masked_regions=masked_regions)
    images, texts = make_pairs(pairs, pairs, 1, 1, 5, seed=3)[:2]
    images, texts = images[:, 0], texts[:, 0]
    loss = MGCALoss(
        global_temperature=0.2,
        attention_temperature=0.15,
        local_temperature=0.3,
        global_weight=0.5,
        local_weight=2.0,
    )
    whole = naive.contrastive_terms(naive.global_similarity(images, texts), 0.2)
    parts = nested_loop(*batch, 0.15, 0.3)
    terms = loss.terms(images, texts, *batch)
    assert list(terms) == [
        "global_image_to_text",
        "global_text_to_image",
        "local_words",
        "local_regions",
    ]
    for term, expected in zip(terms.values(), (*whole, *parts), strict=True):
        assert_values(term, expected)
    assert_values(loss(images, texts, *batch), 0.5 * sum(whole) + 2 * sum(parts))


def test_the_official_preset_is_the_published_computation_without_padding():
    """A CNN's regions and words of equal weight, in the published code's own steps."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(3, 8, generator=generator).double() for _ in range(2))
    regions = torch.randn(3, 6, 8, generator=generator).double()
    words = torch.randn(3, 4, 8, generator=generator).double()

    def aligned(tokens, others):
        tokens, others = normalize(tokens, dim=-1), normalize(others, dim=-1)
        attended = torch.softmax(tokens @ others.mT / 0.1, dim=-1) @ others
        scores = tokens @ normalize(attended, dim=-1).mT / 0.1
        answers = torch.arange(tokens.shape[1]).repeat(len(tokens))
        both = [cross_entropy(each.flatten(0, 1), answers) for each in (scores, scores.mT)]
        return sum(both) / 2

    scores = normalize(images, dim=-1) @ normalize(texts, dim=-1).T / 0.07
    answers = torch.arange(3)
    expected = cross_entropy(scores, answers) + cross_entropy(scores.T, answers)
    expected += aligned(words, regions) + aligned(regions, words)
    loss = MGCALoss.from_preset("official")
    mask = torch.ones(3, 4, dtype=torch.bool)
    torch.testing.assert_close(loss(images, texts, regions, words, mask), expected)


def test_official_is_the_default(make_pairs):
    batch = make_pairs(3, 3, 5, 4, 6)
    pooled = batch.regions.mean(1), batch.words.mean(1)
    loss = MGCALoss()
    assert repr(loss) == repr(MGCALoss.from_preset("official"))
    assert loss.state_dict() == {}
    expected = global_contrastive_loss(*pooled, temperature=0.07) + sum(mgca_cross_entropy(*batch))
    torch.testing.assert_close(loss(*pooled, *batch), expected)


def test_the_two_sides_mirror_each_other(make_pairs):
    regions, words, word_mask, region_mask = make_pairs(3, 3, 7, 5, 4, masked_regions=True)
    terms = mgca_cross_entropy(regions, words, word_mask, region_mask)
    mirrored = mgca_cross_entropy(words, regions, region_mask, word_mask)
    torch.testing.assert_close(terms.words, mirrored.regions)
    torch.testing.assert_close(terms.regions, mirrored.words)


def test_lengths_of_the_vectors_do_not_matter(make_pairs):
    regions, words, word_mask, _ = make_pairs(3, 3, 7, 5, 4)
    torch.testing.assert_close(
        mgca_cross_entropy(100 * regions, 0.01 * words, word_mask),
        mgca_cross_entropy(regions, words, word_mask),
    )


def test_no_pair_sees_another(make_pairs):
    batch = make_pairs(4, 4, 6, 5, 3, masked_regions=True)
    whole = mgca_cross_entropy(*batch)
    single = [mgca_cross_entropy(*(x[k : k + 1] for x in batch)) for k in range(4)]
    for term, parts in zip(whole, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(term, torch.stack(parts).mean())


def test_a_single_token_teaches_nothing():
    v, t = torch.randn(1, 1, 3).requires_grad_(), torch.randn(1, 4, 3).requires_grad_()
    terms = mgca_cross_entropy(v, t, torch.tensor([[True, False, False, False]]))
    sum(terms).backward()
    assert [term.item() for term in terms] == [0, 0]
    assert v.grad.eq(0).all()
    assert t.grad.eq(0).all()


def test_random_features_cost_what_the_docstring_says():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(32, 256, generator=generator) for _ in range(2))
    regions, words = (torch.randn(32, n, 256, generator=generator) for n in (49, 12))
    value = MGCALoss()(images, texts, regions, words, torch.ones(32, 12, dtype=torch.bool))
    expected = 2 * math.log(32) + math.log(12) + math.log(49)
    assert value.item() == pytest.approx(expected, rel=0.3)


def test_maps_are_the_attention_of_the_words(make_pairs):
    batch = make_pairs(2, 2, 5, 4, 6, masked_regions=True)
    expected = local_attention(*batch, product="cosine", attention_temperature=0.2)
    assert torch.equal(MGCALoss(attention_temperature=0.2).attention_maps(*batch), expected)


def test_bad_input_is_named(make_pairs):
    regions, words, word_mask, _ = make_pairs(2, 2, 5, 4, 6)
    with pytest.raises(OptionError, match="attention_temperature must be a finite number above 0"):
        MGCALoss(attention_temperature=0)
    with pytest.raises(OptionError, match=r"^global_temperature must be a finite number above 0"):
        MGCALoss(global_temperature=0)
    with pytest.raises(OptionError, match="temperature must be a finite number above 0; got -1"):
        mgca_cross_entropy(regions, words, word_mask, temperature=-1)


def test_repr_shows_the_hyper_parameters():
    text = repr(MGCALoss(local_weight=0.7))
    for part in ("local_weight=0.7", "attention_temperature=0.1", "Temperature(0.07)"):
        assert part in text
