"""Losses on the pair matrix: loops, closed forms, derivatives, precision."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import random, with_gradients
from torch.autograd import gradcheck, gradgradcheck

from gloria.errors import DtypeError, OptionError, ShapeError
from gloria.functional import (
    PRODUCTS,
    contrastive_cross_entropy,
    global_contrastive_loss,
    global_local_contrastive_loss,
    global_similarity,
    local_attention,
    local_contrastive_loss,
    sigmoid_cross_entropy,
)
from gloria.matching import ATTENTION_VARIANTS, WORD_AGGREGATIONS

DIRECTIONS = ("image_to_text_weight", "text_to_image_weight")
HALF = (torch.float16, torch.bfloat16)
attention_variants = pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
products = pytest.mark.parametrize("product", PRODUCTS)
aggregations = pytest.mark.parametrize("aggregation", WORD_AGGREGATIONS)
region_masks = pytest.mark.parametrize("masked_regions", [False, True])

seeds = st.integers(0, 1000)


def same(actual, expected):
    """Equal up to the order of float64 sums."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# The definition.


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0, 7.0])
@pytest.mark.parametrize("pairs", [1, 2, 7])
def test_cross_entropy_equals_the_loop(pairs, temperature, naive, assert_values):
    similarity = random(pairs, pairs)
    terms = contrastive_cross_entropy(similarity, temperature)
    rows, columns = naive.contrastive_terms(similarity, temperature)
    assert_values(terms.image_to_text, rows)
    assert_values(terms.text_to_image, columns)


# Closed forms.


@pytest.mark.parametrize("pairs", [1, 2, 5, 64])
def test_cross_entropy_of_a_constant_is_the_log_of_the_batch(pairs):
    for constant in (0.0, -3.0):
        terms = contrastive_cross_entropy(torch.full((pairs, pairs), constant))
        assert [term.item() for term in terms] == pytest.approx([math.log(pairs)] * 2, abs=1e-6)


def test_a_batch_of_one_costs_nothing_and_teaches_nothing():
    similarity = torch.tensor([[0.3]], requires_grad=True)
    terms = contrastive_cross_entropy(similarity, 0.02)
    (terms.image_to_text + terms.text_to_image).backward()
    assert [term.item() for term in terms] == [0, 0]
    assert similarity.grad.item() == 0


# Properties.


@given(pairs=st.integers(1, 6), seed=seeds, temperature=st.floats(0.01, 10))
def test_cross_entropy_properties(pairs, seed, temperature):
    similarity = random(pairs, pairs, seed=seed)
    terms = contrastive_cross_entropy(similarity, temperature)
    assert min(terms) >= 0
    mirrored = contrastive_cross_entropy(similarity.T, temperature)
    same(torch.stack(terms), torch.stack(mirrored[::-1]))
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    permuted = contrastive_cross_entropy(similarity[order][:, order], temperature)
    same(torch.stack(terms), torch.stack(permuted))
    shifted = contrastive_cross_entropy(similarity + 5, temperature)
    torch.testing.assert_close(torch.stack(terms), torch.stack(shifted), rtol=1e-9, atol=1e-9)


# Gradients.


@region_masks
@products
@aggregations
@attention_variants
def test_gradcheck_of_the_local_loss(attention, aggregation, product, masked_regions, make_pairs):
    """With ragged texts, masked regions and a temperature that learns."""
    regions, words, word_mask, region_mask = make_pairs(
        2, 2, 3, 3, 2, masked_regions=masked_regions, seed=3
    )
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def loss(regions, words, temperature):
        return local_contrastive_loss(
            regions,
            words,
            word_mask,
            region_mask,
            temperature=temperature,
            attention=attention,
            aggregation=aggregation,
            product=product,
        )

    assert gradcheck(loss, (regions.requires_grad_(), words.requires_grad_(), temperature))


@region_masks
@attention_variants
def test_second_derivatives(attention, masked_regions, make_pairs):
    regions, words, word_mask, region_mask = make_pairs(
        2, 2, 2, 2, 2, masked_regions=masked_regions
    )
    assert gradgradcheck(
        lambda v, t: local_contrastive_loss(v, t, word_mask, region_mask, attention=attention),
        (regions.requires_grad_(), words.requires_grad_()),
    )


# Precision.


@products
@aggregations
@attention_variants
@pytest.mark.parametrize(
    "dtype, scale",
    [
        (torch.float32, 1e15),
        (torch.float32, 1e-20),
        (torch.float32, 0.0),
        (torch.float16, 6e4),
        (torch.bfloat16, 1e15),
        (torch.float64, 1e100),
    ],
)
def test_extreme_features_have_finite_losses_and_gradients(
    scale, dtype, attention, aggregation, product
):
    """Unit vectors times the scale, and one zero vector on each side."""
    regions = torch.nn.functional.normalize(random(2, 5, 4), dim=-1) * scale
    words = torch.nn.functional.normalize(random(2, 3, 4, seed=1), dim=-1) * scale
    regions[0, 0] = words[0, 0] = 0
    mask = torch.ones(2, 3, dtype=torch.bool)
    options = {"attention": attention, "aggregation": aggregation, "product": product}
    value, *gradients = with_gradients(
        local_contrastive_loss, regions.to(dtype), words.to(dtype), mask, **options
    )
    assert value.isfinite()
    for gradient in gradients:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("sizes", [(1, 1), (4, 4), (3, 7), (6, 2)])
def test_several_positives_equal_a_plain_loop(sizes):
    similarity = random(*sizes, seed=3).requires_grad_()
    positives = random(*sizes, seed=4) > 0.3
    positives[0, 0] = True

    def by_loop(rows, marks):
        losses = []
        for row, marked in zip(rows.tolist(), marks.tolist(), strict=True):
            total = math.log(sum(math.exp(s / 0.5) for s in row))
            own = [total - s / 0.5 for s, positive in zip(row, marked, strict=True) if positive]
            losses += [sum(own) / len(own)] if own else []
        return sum(losses) / len(losses)

    terms = contrastive_cross_entropy(similarity, 0.5, positives)
    assert terms.image_to_text.item() == pytest.approx(by_loop(similarity, positives))
    assert terms.text_to_image.item() == pytest.approx(by_loop(similarity.T, positives.T))
    assert gradcheck(lambda s: contrastive_cross_entropy(s, 0.5, positives), similarity)


def test_the_diagonal_is_the_usual_positives():
    similarity = random(5, 5)
    diagonal = torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(
        contrastive_cross_entropy(similarity, 0.1, diagonal),
        contrastive_cross_entropy(similarity, 0.1),
    )


def test_positives_that_do_not_fit_are_told():
    similarity = random(2, 3)
    with pytest.raises(ShapeError, match=r"similarity must be square .*2 images and 3 texts"):
        contrastive_cross_entropy(similarity)
    with pytest.raises(ShapeError, match=r"positives must be \(2, 3\) = \(image, text\)"):
        contrastive_cross_entropy(similarity, 0.1, torch.eye(2, dtype=torch.bool))
    with pytest.raises(DtypeError, match="positives must be boolean"):
        contrastive_cross_entropy(similarity, 0.1, torch.ones(2, 3))
    with pytest.raises(ShapeError, match=r"similarity must have an image and a text; got \(0, 3\)"):
        contrastive_cross_entropy(similarity[:0], 0.1, torch.ones(0, 3, dtype=torch.bool))
    masked = torch.full((2, 3), -math.inf).index_fill(0, torch.tensor(0), 1.0).requires_grad_()
    ones = torch.tensor([[True, False, True], [False, False, False]])
    contrastive_cross_entropy(masked, 0.1, ones).image_to_text.backward()
    assert masked.grad.isfinite().all()
    nobodys = torch.zeros(2, 3, dtype=torch.bool)
    assert all(term.isnan() for term in contrastive_cross_entropy(similarity, 0.1, nobodys))


@pytest.mark.parametrize("autocast_dtype", HALF)
@products
@attention_variants
def test_autocast_changes_no_bit(attention, product, autocast_dtype, make_pairs):
    """The backward stands outside the block, as torch advises."""
    pairs = make_pairs(3, 3, 7, 5, 16, masked_regions=True, dtype=torch.float32)
    leaves = (pairs.regions.requires_grad_(), pairs.words.requires_grad_())
    options = {"attention": attention, "product": product}

    def everything():
        return (
            local_contrastive_loss(*pairs, **options),
            local_attention(*pairs, **options),
            global_similarity(pairs.regions[:, 0], pairs.words[:, 0]),
        )

    plain = everything()
    with torch.autocast("cpu", autocast_dtype):
        casted = everything()
    for one, other in zip(casted, plain, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
        for gradient, expected in zip(
            *(torch.autograd.grad(value.sum(), leaves) for value in (one, other)), strict=True
        ):
            assert torch.equal(gradient, expected)


# Transforms, and tensors without values.


def test_torch_func_takes_a_large_global_loss():
    embeddings = torch.randn(1024, 4, generator=torch.Generator().manual_seed(0))
    leaf = embeddings.clone().requires_grad_()
    (expected,) = torch.autograd.grad(global_contrastive_loss(leaf, embeddings), leaf)
    found = torch.func.grad(global_contrastive_loss)(embeddings, embeddings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


# Bad input.


@pytest.mark.parametrize(
    "similarity, temperature, error, message",
    [
        (
            torch.zeros(2, 3),
            0.1,
            ShapeError,
            "similarity must be square with at least one pair.*got 2 images and 3 texts",
        ),
        (torch.zeros(0, 0), 0.1, ShapeError, "at least one pair.*got 0 images and 0 texts"),
        (torch.zeros(4), 0.1, ShapeError, r"similarity must be \(image, text\); got \(4,\)"),
        (torch.zeros(2, 2).long(), 0.1, DtypeError, "similarity must be a floating-point tensor"),
        (torch.zeros(2, 2), 0, OptionError, "temperature must be a finite number above 0; got 0"),
        (torch.zeros(2, 2), -0.1, OptionError, "temperature must be .*; got -0.1"),
        (torch.zeros(2, 2), math.inf, OptionError, "temperature must be .*; got inf"),
        (torch.zeros(2, 2), math.nan, OptionError, "temperature must be .*; got nan"),
        (torch.zeros(2, 2), True, DtypeError, "temperature must be a number above 0; got True"),
    ],
)
def test_bad_similarities_and_temperatures_are_named(similarity, temperature, error, message):
    with pytest.raises(error, match=message):
        contrastive_cross_entropy(similarity, temperature)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 1)])
def test_a_number_that_would_change_the_matrix_is_refused(shape):
    """More axes would be added to it, and a diagonal be taken of others."""
    similarity, number = torch.zeros(3, 3), torch.full(shape, 0.2)
    got = re.escape(f"must be a single number; got a tensor {shape}.")
    for loss in (contrastive_cross_entropy, sigmoid_cross_entropy):
        with pytest.raises(ShapeError, match="^temperature " + got):
            loss(similarity, number)
    with pytest.raises(ShapeError, match="^bias " + got):
        sigmoid_cross_entropy(similarity, bias=number)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_of_terms_are_checked_as_the_losses_check_them(weight, make_pairs):
    pairs = make_pairs(2, 2, 3, 4, 5)
    pooled = torch.eye(2)
    for loss, inputs, names in (
        (global_contrastive_loss, (pooled, pooled), DIRECTIONS),
        (local_contrastive_loss, pairs, DIRECTIONS),
        (
            global_local_contrastive_loss,
            (pooled, pooled, *pairs),
            ("global_weight", "local_weight"),
        ),
    ):
        for name in names:
            with pytest.raises(OptionError, match=f"{name} must be a finite number of at least 0"):
                loss(*inputs, **{name: weight})
