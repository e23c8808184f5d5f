"""SPARC: against nested loops over floats, and in its corners."""

import math

import pytest
import torch

from gloria.errors import EmptyImageError, OptionError
from gloria.functional import (
    global_contrastive_loss,
    sparc_cross_entropy,
    sparse_attention,
)
from gloria.losses import SPARCLoss


@pytest.fixture(scope="session")
def nested_loop(naive):
    """``weights(v, t)`` of one pair's real vectors, and ``terms(...)`` of a batch."""

    def weights(v, t):
        rows = []
        for word in t:
            scores = [naive.dot(word, region) for region in v]
            low, high = min(scores), max(scores)
            if high == low:
                rows.append([1 / len(v)] * len(v))
                continue
            shares = [(score - low) / (high - low) for score in scores]
            shares = [share if share >= 1 / len(v) else 0.0 for share in shares]
            rows.append([share / math.fsum(shares) for share in shares])
        return rows

    def real(values, mask):
        if mask is None:
            return values.tolist()
        return [[x for x, keep in zip(*one, strict=True) if keep]
                for one in zip(values.tolist(), mask.tolist(), strict=True)]  # fmt: skip

    def terms(regions, words, word_mask, region_mask, temperature):
        """Context to word and word to context."""
        forwards, backwards = [], []
        for v, t in zip(real(regions, region_mask), real(words, word_mask), strict=True):
            contexts = [
                [naive.dot(row, [region[d] for region in v]) for d in range(len(v[0]))]
                for row in weights(v, t)
            ]
            logits = [[naive.cosine(c, word) / temperature for word in t] for c in contexts]
            rows = [-math.log(naive.softmax(row)[i]) for i, row in enumerate(logits)]
            columns = [
                -math.log(naive.softmax([row[i] for row in logits])[i]) for i in range(len(t))
            ]
            forwards.append(math.fsum(rows) / len(t))
            backwards.append(math.fsum(columns) / len(t))
        return math.fsum(forwards) / len(forwards), math.fsum(backwards) / len(backwards)

    terms.weights = weights
    return terms


SIZES = [(1, 1, 1, 1), (1, 2, 3, 2), (3, 7, 5, 4), (2, 49, 9, 3), (5, 3, 1, 6)]


@pytest.mark.parametrize("masked_regions", [False, True])
@pytest.mark.parametrize("pairs, regions, words, dim", SIZES)
def test_equals_the_nested_loop(
    pairs, regions, words, dim, masked_regions, make_pairs, nested_loop, naive, assert_values
):
    batch = make_pairs(pairs, pairs, regions, words, dim, masked_regions=masked_regions)
    images, texts = make_pairs(pairs, pairs, 1, 1, 5, seed=3)[:2]
    images, texts = images[:, 0], texts[:, 0]
    loss = SPARCLoss(
        global_temperature=0.2,
        local_temperature=0.3,
        learnable=False,
        global_weight=0.5,
        local_weight=2.0,
    )
    whole = naive.contrastive_terms(naive.global_similarity(images, texts), 0.2)
    parts = nested_loop(*batch, 0.3)
    terms = loss.terms(images, texts, *batch)
    assert list(terms) == [
        "global_image_to_text",
        "global_text_to_image",
        "local_image_to_text",
        "local_text_to_image",
    ]
    for term, expected in zip(terms.values(), (*whole, *parts), strict=True):
        assert_values(term, expected)
    assert_values(loss(images, texts, *batch), 0.25 * sum(whole) + sum(parts))


def test_weights_equal_the_nested_loop(make_pairs, nested_loop):
    regions, words, word_mask, region_mask = make_pairs(3, 3, 9, 5, 4, masked_regions=True)
    weights = sparse_attention(regions, words, word_mask, region_mask)
    for k in range(3):
        v, t = regions[k, region_mask[k]].tolist(), words[k, word_mask[k]].tolist()
        ours = weights[k, word_mask[k]]
        expected = torch.tensor(nested_loop.weights(v, t)).double()
        torch.testing.assert_close(ours[:, region_mask[k]], expected)
        assert ours[:, ~region_mask[k]].eq(0).all()
        assert weights[k, ~word_mask[k]].eq(0).all()


def test_weights_are_sparse_and_sum_to_one(make_pairs):
    batch = make_pairs(4, 4, 25, 6, 8)
    weights = sparse_attention(*batch)[batch.word_mask]
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)).double())
    # the lowest region is always dropped, and no other positive weight is tiny
    assert weights.eq(0).any(1).all()
    assert (weights[weights > 0] >= 1 / 25**2).all()


def test_a_constant_added_to_all_scores_changes_no_weight(make_pairs):
    """Minimum and maximum move along: only the differences between regions count."""
    regions, words, word_mask, _ = make_pairs(2, 2, 6, 3, 4)
    shifted = regions + torch.tensor([1.0, -2.0, 3.0, 0.5])
    torch.testing.assert_close(
        sparse_attention(shifted, words, word_mask), sparse_attention(regions, words, word_mask)
    )
    torch.testing.assert_close(
        sparse_attention(7 * regions, 0.1 * words, word_mask),
        sparse_attention(regions, words, word_mask),
    )


@pytest.mark.parametrize("regions", [1, 2, 5])
def test_regions_that_are_alike_are_gathered_equally(regions):
    v = torch.tensor([1.0, 2.0]).expand(1, regions, 2).clone().requires_grad_()
    t = torch.tensor([[[0.5, 1.0], [1.0, -1.0], [0.0, 0.0]]]).requires_grad_()
    mask = torch.ones(1, 3, dtype=torch.bool)
    weights = sparse_attention(v, t, mask)
    torch.testing.assert_close(weights, torch.full((1, 3, regions), 1 / regions))
    sum(sparc_cross_entropy(v, t, mask)).backward()
    assert v.grad.isfinite().all()
    assert t.grad.isfinite().all()


def test_masked_regions_are_as_if_left_out(make_pairs):
    """The minimum, the maximum and the threshold are of the real regions."""
    regions, words, word_mask, _ = make_pairs(2, 2, 6, 4, 5)
    padded = torch.cat([regions, torch.full((2, 3, 5), 1e6)], dim=1)
    region_mask = torch.arange(9) < torch.tensor([[6], [6]])
    torch.testing.assert_close(
        sparc_cross_entropy(padded, words, word_mask, region_mask),
        sparc_cross_entropy(regions, words, word_mask),
    )


def test_no_pair_sees_another(make_pairs):
    """The local loss of a batch is the mean of those of its pairs."""
    batch = make_pairs(4, 4, 6, 5, 3, masked_regions=True)
    whole = sparc_cross_entropy(*batch).image_to_text
    single = [sparc_cross_entropy(*(x[k : k + 1] for x in batch)).image_to_text for k in range(4)]
    torch.testing.assert_close(whole, torch.stack(single).mean())


def test_a_text_of_one_word_teaches_nothing():
    v, t = torch.randn(1, 5, 3).requires_grad_(), torch.randn(1, 4, 3).requires_grad_()
    mask = torch.tensor([[True, False, False, False]])
    terms = sparc_cross_entropy(v, t, mask)
    sum(terms).backward()
    assert [term.item() for term in terms] == [0, 0]
    assert v.grad.eq(0).all()
    assert t.grad.eq(0).all()


def test_random_features_cost_what_the_docstring_says():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(32, 256, generator=generator) for _ in range(2))
    regions, words = (torch.randn(32, n, 256, generator=generator) for n in (49, 12))
    value = SPARCLoss()(images, texts, regions, words, torch.ones(32, 12, dtype=torch.bool))
    assert value.item() == pytest.approx(math.log(32) + math.log(12), rel=0.3)


def test_paper_is_the_default(make_pairs):
    batch = make_pairs(3, 3, 5, 4, 6)
    pooled = batch.regions.mean(1), batch.words.mean(1)
    loss = SPARCLoss()
    assert repr(loss) == repr(SPARCLoss.from_preset("paper"))
    assert {name for name, _ in loss.named_parameters()} == {
        "global_loss.temperature.raw",
        "local_temperature.raw",
    }
    expected = global_contrastive_loss(*pooled, temperature=0.07) / 2
    expected = expected + sum(sparc_cross_entropy(*batch, temperature=0.07)) / 2
    torch.testing.assert_close(loss(*pooled, *batch), expected, rtol=1e-5, atol=0)


def test_maps_are_the_weights(make_pairs):
    batch = make_pairs(2, 2, 5, 4, 6, masked_regions=True)
    assert torch.equal(SPARCLoss().attention_maps(*batch), sparse_attention(*batch))


def test_inside_a_compiler_an_empty_text_or_image_is_finite(make_pairs):
    regions, words, word_mask, region_mask = make_pairs(3, 3, 5, 4, 6, masked_regions=True)
    word_mask[1], region_mask[2] = False, False
    leaves = regions.requires_grad_(), words.requires_grad_()
    terms = torch.compile(sparc_cross_entropy, fullgraph=True, backend="eager")(
        *leaves, word_mask, region_mask
    )
    sum(terms).backward()
    assert all(term.isfinite() for term in terms)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    assert words.grad[1].eq(0).all()
    assert regions.grad[2].eq(0).all()


def test_bad_input_is_named(make_pairs):
    regions, words, word_mask, _ = make_pairs(2, 2, 5, 4, 6)
    with pytest.raises(EmptyImageError, match="image 0 has none"):
        sparse_attention(regions, words, word_mask, torch.tensor([[False], [True]]).expand(2, 5))
    with pytest.raises(OptionError, match="temperature must be a finite number above 0; got -1"):
        sparc_cross_entropy(regions, words, word_mask, temperature=-1)
    with pytest.raises(OptionError, match="local_weight must be a finite number of at least 0"):
        SPARCLoss(local_weight=-1)
    with pytest.raises(OptionError, match=r"^global_temperature must be a finite number above 0"):
        SPARCLoss(global_temperature=0)
