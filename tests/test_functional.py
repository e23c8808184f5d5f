"""The stateless numerics against nested loops, closed forms, and what users rely on."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from gloria import functional
from gloria.errors import (
    BackendError,
    DeviceError,
    DtypeError,
    EmptyImageError,
    EmptyTextError,
    GloriaError,
    OptionError,
    ShapeError,
)
from gloria.functional import (
    PRODUCTS,
    contrastive_cross_entropy,
    global_contrastive_loss,
    global_similarity,
    local_attention,
    local_contrastive_loss,
    local_similarity,
    max_similarity,
)
from gloria.losses import LocalContrastiveLoss
from gloria.matching import (
    ATTENTION_VARIANTS,
    WORD_AGGREGATIONS,
    choose_backend,
    explain_backends,
)
from gloria.matching.problem import memory_budget_on

HALF = (torch.float16, torch.bfloat16)
ON_CPU = [name for name, reasons in explain_backends().items() if not reasons]

attention_variants = pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
products = pytest.mark.parametrize("product", PRODUCTS)
aggregations = pytest.mark.parametrize("aggregation", WORD_AGGREGATIONS)
region_masks = pytest.mark.parametrize("masked_regions", [False, True])

matching_options = st.fixed_dictionaries(
    {
        "attention": st.sampled_from(ATTENTION_VARIANTS),
        "product": st.sampled_from(PRODUCTS),
        "aggregation": st.sampled_from(WORD_AGGREGATIONS),
    }
)
sizes = st.tuples(  # image, text, region, word, dim
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 7), st.integers(1, 8)
)
seeds = st.integers(0, 1000)


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def same(actual, expected):
    """Equal up to the order of float64 sums."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def with_gradients(function, regions, words, *masks, **options):
    """Value and the gradients for regions and words of a random upstream gradient."""
    regions, words = (x.detach().clone().requires_grad_() for x in (regions, words))
    value = function(regions, words, *masks, **options)
    upstream = random(*value.shape, seed=99).to(value.dtype)
    return value.detach(), *torch.autograd.grad(value, (regions, words), upstream)


# The definition.


@region_masks
@products
@aggregations
@attention_variants
@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3, 5, 4, 3), (3, 1, 7, 2, 6)])
def test_local_similarity_equals_the_nested_loop(
    sizes,
    backend,
    attention,
    aggregation,
    product,
    masked_regions,
    make_pairs,
    naive,
    assert_values,
):
    pairs = make_pairs(*sizes, masked_regions=masked_regions)
    options = {
        "attention": attention,
        "product": product,
        "attention_temperature": 1 / 3,
        "aggregation": aggregation,
        "match_temperature": 1 / 7,
    }
    actual = local_similarity(*pairs, backend=backend, **options)
    assert_values(actual, naive.local_similarity(*pairs, **options))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@products
@attention_variants
def test_local_similarity_of_every_dtype_is_computed_in_full_precision(
    attention, product, dtype, make_pairs, naive, assert_values, assert_gradients
):
    """Half precision inputs cost their own rounding and not one more."""
    pairs = make_pairs(2, 3, 9, 5, 16, masked_regions=True, dtype=dtype, scale=0.5)
    wide = pairs._replace(regions=pairs.regions.double(), words=pairs.words.double())
    options = {"attention": attention, "product": product}
    value, *gradients = with_gradients(local_similarity, *pairs, **options)
    expected, *expected_gradients = with_gradients(local_similarity, *wide, **options)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_values(value, naive.local_similarity(*wide, **options))
    assert_values(value, expected)
    for actual, reference in zip(gradients, expected_gradients, strict=True):
        assert actual.dtype == dtype
        assert_gradients(actual, reference)


def test_mixed_dtypes_are_widened_to_the_wider(make_pairs, assert_values):
    regions, words, mask, _ = make_pairs(2, 2, 5, 4, 3, dtype=torch.float16)
    expected = local_similarity(regions.double(), words.double(), mask)
    for first, second, result in [
        (torch.float16, torch.float32, torch.float32),
        (torch.float16, torch.float64, torch.float64),
        (torch.float32, torch.float64, torch.float64),
    ]:
        for one, other in ((first, second), (second, first)):
            actual = local_similarity(regions.to(one), words.to(other), mask)
            assert actual.dtype == result
            assert_values(actual, expected)


def test_defaults_are_the_printed_formula(make_pairs):
    pairs = make_pairs(2, 3, 5, 4, 3)
    explicit = local_similarity(
        *pairs,
        attention="regions",
        product="dot",
        attention_temperature=0.25,
        aggregation="logsumexp",
        match_temperature=0.2,
    )
    assert torch.equal(local_similarity(*pairs), explicit)


@region_masks
@products
@attention_variants
def test_local_attention_equals_the_nested_loop(
    attention, product, masked_regions, make_pairs, naive, assert_values
):
    pairs = make_pairs(3, 3, 5, 4, 6, masked_regions=masked_regions)
    options = {"attention": attention, "product": product, "attention_temperature": 1 / 3}
    maps = local_attention(*pairs, **options)
    assert_values(maps, naive.local_attention(*pairs, **options))
    assert_values(maps.sum(-1), pairs.word_mask.double())


def test_one_image_can_be_asked_several_texts(make_pairs):
    regions, words, mask, _ = make_pairs(1, 3, 5, 4, 6)
    maps = local_attention(regions.expand(3, -1, -1), words, mask)
    for k in range(3):
        same(maps[k : k + 1], local_attention(regions, words[k : k + 1], mask[k : k + 1]))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@pytest.mark.parametrize("images, texts, dim", [(1, 1, 1), (3, 5, 7), (4, 2, 100)])
def test_global_similarity_equals_the_loop(
    images, texts, dim, dtype, naive, assert_values, assert_gradients
):
    v, t = random(images, dim, dtype=dtype), random(texts, dim, seed=1, dtype=dtype)
    v[0] = 0  # the clamp's side of the formula
    value, *gradients = with_gradients(global_similarity, v, t)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_values(value, naive.global_similarity(v.double(), t.double()))
    _, *expected = with_gradients(global_similarity, v.double(), t.double())
    for actual, reference in zip(gradients, expected, strict=True):
        assert_gradients(actual[1:], reference[1:])  # the zero vector's is of another size, 1e8


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0, 7.0])
@pytest.mark.parametrize("pairs", [1, 2, 7])
def test_cross_entropy_equals_the_loop(pairs, temperature, naive, assert_values):
    similarity = random(pairs, pairs)
    terms = contrastive_cross_entropy(similarity, temperature)
    rows, columns = naive.contrastive_terms(similarity, temperature)
    assert_values(terms.image_to_text, rows)
    assert_values(terms.text_to_image, columns)


# Closed forms.


@attention_variants
def test_one_word_and_one_region_is_their_cosine(attention):
    v, t = random(2, 1, 5), random(3, 1, 5, seed=1)
    mask = torch.ones(3, 1, dtype=torch.bool)
    for product in PRODUCTS:
        for aggregation in WORD_AGGREGATIONS:
            z = local_similarity(
                v, t, mask, attention=attention, product=product, aggregation=aggregation
            )
            same(z, global_similarity(v[:, 0], t[:, 0]))


def test_repeated_words_add_their_logarithm_to_the_sum_and_nothing_to_the_mean():
    v, t = random(2, 3, 5), random(2, 1, 5, seed=1).expand(2, 7, 5)
    mask = torch.arange(7) < torch.tensor([[7], [3]])
    z = {
        name: local_similarity(v, t, mask, aggregation=name, match_temperature=0.2)
        for name in WORD_AGGREGATIONS
    }
    same(z["logmeanexp"], z["max"])
    same(z["mean"], z["max"])
    same(z["logsumexp"], z["max"] + 0.2 * torch.tensor([7.0, 3.0], dtype=torch.float64).log())


def test_attention_goes_from_uniform_to_the_best_region_with_temperature():
    v, t = random(1, 6, 4), random(1, 1, 4, seed=1)
    mask, scores = torch.ones(1, 1, dtype=torch.bool), (v @ t.mT)[0, :, 0]
    hot = local_attention(v, t, mask, attention_temperature=1e12)
    cold = local_attention(v, t, mask, attention_temperature=1e-9)
    torch.testing.assert_close(hot[0, 0], torch.full_like(scores, 1 / 6))
    assert cold[0, 0].tolist() == torch.nn.functional.one_hot(scores.argmax(), 6).tolist()


@aggregations
@attention_variants
def test_zero_features_have_cosine_zero(attention, aggregation):
    z = local_similarity(
        torch.zeros(2, 5, 3),
        torch.zeros(2, 4, 3),
        torch.ones(2, 4, dtype=torch.bool),
        attention=attention,
        aggregation=aggregation,
    )
    expected = 0.2 * math.log(4) if aggregation == "logsumexp" else 0.0
    torch.testing.assert_close(z, torch.full((2, 2), expected))


def test_cosine_product_does_not_see_lengths_and_scaled_dot_divides_by_root_dim(make_pairs):
    regions, words, mask, _ = make_pairs(2, 3, 5, 4, 9)
    same(
        local_similarity(regions, words, mask, product="cosine"),
        local_similarity(1000 * regions, 0.01 * words, mask, product="cosine"),
    )
    same(
        local_similarity(regions, words, mask, product="scaled_dot"),
        local_similarity(regions, words, mask, attention_temperature=3 / 4),
    )


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


@given(sizes=sizes, options=matching_options, seed=seeds, data=st.data())
def test_permutations(make_pairs, sizes, options, seed, data):
    images, texts, count, positions, _ = sizes
    pairs = make_pairs(*sizes, masked_regions=True, seed=seed)
    regions, words, word_mask, region_mask = pairs
    z = local_similarity(*pairs, **options)
    image, text, region, word = (
        torch.tensor(data.draw(st.permutations(range(n))))
        for n in (images, texts, count, positions)
    )
    permuted = local_similarity(
        regions[image], words[text], word_mask[text], region_mask[image], **options
    )
    same(permuted, z[image][:, text])
    within = local_similarity(
        regions[:, region], words[:, word], word_mask[:, word], region_mask[:, region], **options
    )
    same(within, z)


@given(sizes=sizes, options=matching_options, seed=seeds)
@pytest.mark.parametrize("content", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_changes_no_bit_and_gets_no_gradient(make_pairs, content, sizes, options, seed):
    pairs = make_pairs(*sizes, masked_regions=True, dtype=torch.float32, seed=seed)
    regions, words, word_mask, region_mask = pairs
    filled = pairs._replace(
        regions=regions.masked_fill(~region_mask[..., None], content),
        words=words.masked_fill(~word_mask[..., None], content),
    )
    before = with_gradients(local_similarity, *pairs, **options)
    after = with_gradients(local_similarity, *filled, **options)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    _, regions_gradient, words_gradient = after
    assert regions_gradient[~region_mask].eq(0).all()
    assert words_gradient[~word_mask].eq(0).all()


@products
@attention_variants
@pytest.mark.parametrize("backend", ON_CPU)
def test_no_backend_sees_nan_in_masked_words(make_pairs, backend, attention, product):
    """Some do without zeros there: they must not read what stands there instead."""
    pairs = make_pairs(3, 4, 10, 9, 6, dtype=torch.float32)
    filled = pairs._replace(words=pairs.words.masked_fill(~pairs.word_mask[..., None], math.nan))
    options = {"backend": backend, "attention": attention, "product": product}
    before = with_gradients(local_similarity, *pairs, **options)
    after = with_gradients(local_similarity, *filled, **options)
    for one, other in zip(before, after, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    assert after[2][~pairs.word_mask].eq(0).all()


def test_without_a_memory_budget_it_is_the_usual_one_of_the_device(make_pairs, monkeypatch):
    assert memory_budget_on("cpu", None) == 128 * 2**20
    assert {memory_budget_on(each, None) for each in ("cuda", "mps", "xpu")} == {512 * 2**20}
    assert memory_budget_on("cpu", 7) == memory_budget_on("cuda", 7) == 7
    asked = []

    def note(problem, backend):
        asked.append(problem.options.memory_budget)
        return choose_backend(problem, backend)

    monkeypatch.setattr("gloria.functional.similarity.choose_backend", note)
    pairs = make_pairs(2, 2, 5, 4, 3)
    for budget in (None, 5):
        local_similarity(*pairs, memory_budget=budget)
        local_contrastive_loss(*pairs, memory_budget=budget)
        LocalContrastiveLoss(memory_budget=budget)(*pairs)
    assert asked == 3 * [128 * 2**20] + 3 * [5]


@given(sizes=sizes, options=matching_options, seed=seeds, more=st.integers(1, 9))
def test_appended_padding_is_nothing(make_pairs, sizes, options, seed, more):
    """Up to the order of sums: another length vectorises another way."""
    pairs = make_pairs(*sizes, masked_regions=True, seed=seed)
    regions, words, word_mask, region_mask = pairs
    longer = (
        torch.cat([regions, regions.new_full((len(regions), more, sizes[4]), math.nan)], 1),
        torch.cat([words, words.new_full((len(words), more, sizes[4]), math.inf)], 1),
        torch.cat([word_mask, word_mask.new_zeros(len(words), more)], 1),
        torch.cat([region_mask, region_mask.new_zeros(len(regions), more)], 1),
    )
    value, *gradients = with_gradients(local_similarity, *pairs, **options)
    padded, *padded_gradients = with_gradients(local_similarity, *longer, **options)
    same(padded, value)
    for gradient, padded_gradient in zip(gradients, padded_gradients, strict=True):
        same(padded_gradient[:, : gradient.shape[1]], gradient)
        assert padded_gradient[:, gradient.shape[1] :].eq(0).all()


@given(sizes=sizes, options=matching_options, seed=seeds)
def test_masks_anywhere_equal_cutting_out(make_pairs, sizes, options, seed):
    pairs = make_pairs(*sizes, masked_regions=True, seed=seed)
    regions, words, word_mask, region_mask = pairs
    order = torch.randperm(sizes[3], generator=torch.Generator().manual_seed(seed))
    words, word_mask = words[:, order], word_mask[:, order]
    z = local_similarity(regions, words, word_mask, region_mask, **options)
    for k, (image, real_regions) in enumerate(zip(regions, region_mask, strict=True)):
        for n, (text, real_words) in enumerate(zip(words, word_mask, strict=True)):
            kept_regions, kept_words = image[real_regions][None], text[real_words][None]
            alone = local_similarity(
                kept_regions, kept_words, real_words[real_words][None], **options
            )
            same(alone[0, 0], z[k, n])


@given(sizes=sizes, options=matching_options, seed=seeds, data=st.data())
def test_blocks_of_the_gallery_equal_the_whole(make_pairs, sizes, options, seed, data):
    regions, words, word_mask, _ = make_pairs(*sizes, seed=seed)
    image, text = data.draw(st.integers(0, sizes[0])), data.draw(st.integers(0, sizes[1]))
    z = local_similarity(regions, words, word_mask, **options)
    blocks = [
        torch.cat(
            [
                local_similarity(rows, words[:text], word_mask[:text], **options),
                local_similarity(rows, words[text:], word_mask[text:], **options),
            ],
            dim=1,
        )
        for rows in (regions[:image], regions[image:])
    ]
    same(torch.cat(blocks), z)


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


@attention_variants
def test_a_convolutional_map_needs_no_copy(attention):
    feature_map = random(2, 6, 3, 4)  # image, dim, height, width
    regions = feature_map.flatten(2).transpose(1, 2)
    words = random(3, 1, 6, seed=1).expand(3, 5, 6)
    mask = torch.ones(1, 5, dtype=torch.bool).expand(3, 5)
    assert not regions.is_contiguous()
    value, *gradients = with_gradients(local_similarity, regions, words, mask, attention=attention)
    expected, *expected_gradients = with_gradients(
        local_similarity, regions.contiguous(), words.contiguous(), mask, attention=attention
    )
    same(local_similarity(regions, words, mask, attention=attention), expected)
    same(value, expected)
    for one, other in zip(gradients, expected_gradients, strict=True):
        same(one, other)


@pytest.mark.parametrize("images, texts", [(0, 3), (2, 0), (0, 0)])
@aggregations
@attention_variants
def test_no_images_or_no_texts_give_an_empty_matrix(attention, aggregation, images, texts):
    regions = torch.zeros(images, 5, 4, requires_grad=True)
    words = torch.zeros(texts, 3, 4, requires_grad=True)
    mask = torch.ones(texts, 3, dtype=torch.bool)
    for region_mask in (None, torch.ones(images, 5, dtype=torch.bool)):
        z = local_similarity(
            regions, words, mask, region_mask, attention=attention, aggregation=aggregation
        )
        assert z.shape == (images, texts)
        z.sum().backward()
        assert regions.grad.eq(0).all()
        assert words.grad.eq(0).all()
    assert global_similarity(regions[:, 0], words[:, 0]).shape == (images, texts)


def test_no_pairs_have_no_attention():
    mask = torch.ones(0, 3, dtype=torch.bool)
    assert local_attention(torch.zeros(0, 5, 4), torch.zeros(0, 3, 4), mask).shape == (0, 3, 5)


def test_inputs_are_left_as_they_were(make_pairs):
    pairs = make_pairs(2, 2, 5, 4, 3, masked_regions=True)
    before = [tensor.clone() for tensor in pairs]
    for product in PRODUCTS:
        local_contrastive_loss(*pairs, product=product)
        local_attention(*pairs, product=product)
    assert all(torch.equal(one, other) for one, other in zip(pairs, before, strict=True))


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


@pytest.mark.parametrize("aggregation", ["logsumexp", "logmeanexp"])
@pytest.mark.parametrize("backend", ["einops", "chunked"])
def test_the_match_temperature_may_be_learned(backend, aggregation, make_pairs):
    regions, words, word_mask, _ = make_pairs(2, 3, 4, 3, 2)

    def similarity(temperature):
        return local_similarity(
            regions, words, word_mask,
            aggregation=aggregation, match_temperature=temperature, backend=backend,
        )  # fmt: skip

    assert gradcheck(similarity, torch.tensor(0.3, dtype=torch.float64, requires_grad=True))


@attention_variants
def test_gradcheck_of_attention_maps(attention, make_pairs):
    regions, words, word_mask, region_mask = make_pairs(2, 2, 3, 2, 2, masked_regions=True)
    assert gradcheck(
        lambda v, t: local_attention(v, t, word_mask, region_mask, attention=attention),
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
    """Unit vectors times the scale, and one zero vector on each side.

    The gradient of a zero vector is that of the clamp, a multiple of 1e8: too large for float16.
    """
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
        if dtype == torch.float16:
            gradient[0, 0] = 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "dtype, scale", [(torch.float32, 1e15), (torch.float32, 1e-20), (torch.float16, 6e4)]
)
def test_extreme_embeddings_have_finite_cosines_and_gradients(dtype, scale):
    v = torch.nn.functional.normalize(random(3, 4), dim=-1) * scale
    t = torch.nn.functional.normalize(random(3, 4, seed=1), dim=-1) * scale
    value, *gradients = with_gradients(global_similarity, v.to(dtype), t.to(dtype))
    assert value.abs().max() <= 1 + 1e-6
    assert all(gradient.isfinite().all() for gradient in gradients)


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


@products
@aggregations
@attention_variants
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_image_spoils_its_row_and_a_bad_text_its_column(
    bad, attention, aggregation, product, make_pairs
):
    options = {"attention": attention, "aggregation": aggregation, "product": product}
    pairs = make_pairs(3, 4, 5, 3, 6, masked_regions=True, dtype=torch.float32)
    clean = local_similarity(*pairs, **options)
    regions, words = pairs.regions.clone(), pairs.words.clone()
    regions[1, pairs.region_mask[1].nonzero()[0]] = bad
    words[2, 0] = bad
    row = local_similarity(*pairs._replace(regions=regions), **options)
    column = local_similarity(*pairs._replace(words=words), **options)
    assert not row[1].isfinite().any()
    assert torch.equal(row[[0, 2]], clean[[0, 2]])
    assert not column[:, 2].isfinite().any()
    assert torch.equal(column[:, [0, 1, 3]], clean[:, [0, 1, 3]])


def test_a_bad_embedding_spoils_its_row_or_column():
    v, t = random(3, 4), random(2, 4, seed=1)
    clean = global_similarity(v, t)
    v[1, 0] = math.nan
    z = global_similarity(v, t)
    assert z[1].isnan().all()
    assert torch.equal(z[[0, 2]], clean[[0, 2]])
    assert contrastive_cross_entropy(global_similarity(v[:2], t)).image_to_text.isnan()


# Transforms, and tensors without values.


@pytest.mark.parametrize("similarity", [local_similarity, max_similarity])
def test_torch_func_gets_the_definition_at_any_size(similarity, make_pairs):
    regions, words, word_mask, _ = make_pairs(6, 6, 49, 20, 64, dtype=torch.float32)

    def total(regions):
        return similarity(regions, words, word_mask).sum()

    expected = torch.autograd.grad(total(regions.requires_grad_()), regions)[0]
    torch.testing.assert_close(torch.func.grad(total)(regions.detach()), expected)
    both = torch.func.vmap(total)(torch.stack([regions.detach(), 2 * regions.detach()]))
    torch.testing.assert_close(both, torch.stack([total(regions), total(2 * regions)]))
    for backend in ("chunked", "triton"):
        on_backend = partial(similarity, words=words, word_mask=word_mask, backend=backend)
        with pytest.raises(BackendError, match=f"'{backend}' cannot run this.*torch.func"):
            torch.func.vmap(on_backend)(regions[None])


def test_torch_func_takes_a_large_global_loss():
    embeddings = torch.randn(1024, 4, generator=torch.Generator().manual_seed(0))
    leaf = embeddings.clone().requires_grad_()
    (expected,) = torch.autograd.grad(global_contrastive_loss(leaf, embeddings), leaf)
    found = torch.func.grad(global_contrastive_loss)(embeddings, embeddings)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("similarity", [local_similarity, max_similarity])
def test_meta_tensors_have_shapes(similarity, make_pairs):
    pairs = make_pairs(6, 5, 49, 20, 64, masked_regions=True, dtype=torch.float16)
    found = similarity(*(each.to("meta") for each in pairs))
    assert (found.shape, found.dtype, found.device.type) == ((6, 5), torch.float32, "meta")


# Compilers.


@attention_variants
def test_compiles_in_one_graph_for_any_batch(attention, make_pairs):
    def similarity(regions, words, word_mask, region_mask):
        return local_similarity(regions, words, word_mask, region_mask, attention=attention)

    compiled = torch.compile(similarity, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in [(3, 2, 5, 4, 8), (2, 4, 6, 3, 8)]:
        pairs = make_pairs(*shape, masked_regions=True, dtype=torch.float32)
        actual = with_gradients(compiled, *pairs)
        expected = with_gradients(similarity, *pairs)
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "attention, aggregation",
    [("regions", "logsumexp"), ("words_then_regions", "logmeanexp"), ("regions", "max")],
)
def test_inside_a_compiler_an_empty_text_or_image_is_finite_with_zero_gradient(
    attention, aggregation
):
    """Values cannot be read there, so nothing can be raised; the docstring promises this."""

    def similarity(regions, words, word_mask, region_mask):
        return local_similarity(
            regions, words, word_mask, region_mask, attention=attention, aggregation=aggregation
        )

    compiled = torch.compile(similarity, fullgraph=True, backend="eager", dynamic=True)
    word_mask = torch.tensor([[True, True, False], [False] * 3])
    region_mask = torch.tensor([[True, False], [False, False]])
    value, regions, words = with_gradients(
        compiled, random(2, 2, 3), random(2, 3, 3), word_mask, region_mask
    )
    assert value[:, 1].eq(0).all()  # no word
    assert regions[1].eq(0).all()
    assert words[1].eq(0).all()
    assert all(tensor.isfinite().all() for tensor in (value, regions, words))
    # no region: every cosine is 0
    assert value[1, 0].item() == pytest.approx(
        0.2 * math.log(2) if aggregation == "logsumexp" else 0.0
    )


# Bad input.


def inputs(**changed):
    good = {
        "regions": torch.zeros(2, 4, 3),
        "words": torch.zeros(2, 5, 3),
        "word_mask": torch.ones(2, 5, dtype=torch.bool),
        "region_mask": torch.ones(2, 4, dtype=torch.bool),
    }
    return {**good, **changed}


@pytest.mark.parametrize(
    "changed, error, message",
    [
        (
            {"regions": torch.zeros(3, 8, 2, 2)},
            ShapeError,
            r"regions must be \(image, region, dim\); got \(3, 8, 2, 2\)\. Flatten a feature map "
            r"first: rearrange\(x, 'b d h w -> b \(h w\) d'\)",
        ),
        ({"regions": torch.zeros(4, 3)}, ShapeError, r"regions must be .*; got \(4, 3\)"),
        (
            {"words": torch.zeros(5, 3)},
            ShapeError,
            r"words must be \(text, word, dim\); got \(5, 3\)",
        ),
        (
            {"words": torch.zeros(2, 5, 7)},
            ShapeError,
            "regions and words must agree in dim; got 3 and 7. Project both to one width first",
        ),
        (
            {"word_mask": torch.ones(2, 4, dtype=torch.bool)},
            ShapeError,
            r"word_mask must be \(2, 5\) = \(text, word\); got \(2, 4\)",
        ),
        (
            {"word_mask": torch.ones(2, 5, 1, dtype=torch.bool)},
            ShapeError,
            r"word_mask must be \(text, word\); got \(2, 5, 1\)",
        ),
        (
            {"region_mask": torch.ones(4, 2, dtype=torch.bool)},
            ShapeError,
            r"region_mask must be \(2, 4\) = \(image, region\); got \(4, 2\)",
        ),
        (
            {"word_mask": torch.ones(2, 5)},
            DtypeError,
            r"word_mask must be boolean, True = real; got dtype torch.float32\. Convert 0/1 masks "
            r"with mask.bool\(\)",
        ),
        (
            {"region_mask": torch.ones(2, 4, dtype=torch.int64)},
            DtypeError,
            "region_mask must be boolean, True = real; got dtype torch.int64",
        ),
        (
            {"word_mask": [5, 5]},
            DtypeError,
            r"word_mask must be a tensor \(text, word\); got list",
        ),
        (
            {"regions": torch.zeros(2, 4, 3, dtype=torch.int64)},
            DtypeError,
            "regions must be a floating-point tensor; got dtype torch.int64",
        ),
        (
            {"words": torch.zeros(2, 5, 3, dtype=torch.complex64)},
            DtypeError,
            "words must be a floating-point tensor; got dtype torch.complex64",
        ),
        (
            {"regions": [[0.0]]},
            DtypeError,
            r"regions must be a tensor \(image, region, dim\); got list",
        ),
        (
            {"word_mask": torch.tensor([[True] * 5, [False] * 5])},
            EmptyTextError,
            "every text needs at least one real word; text 1 has none in word_mask. Drop such",
        ),
        (
            {"words": torch.zeros(2, 0, 3), "word_mask": torch.ones(2, 0, dtype=torch.bool)},
            EmptyTextError,
            "text 0 has none",
        ),
        (
            {"region_mask": torch.tensor([[True] * 4, [False] * 4])},
            EmptyImageError,
            "every image needs at least one real region; image 1 has none in region_mask",
        ),
        (
            {"regions": torch.zeros(2, 0, 3), "region_mask": None},
            EmptyImageError,
            r"regions must hold at least one region; got \(2, 0, 3\)",
        ),
        (
            {"attention": "softmax"},
            OptionError,
            "attention must be one of 'regions', 'words_then_regions'; got 'softmax'",
        ),
        (
            {"product": "l2"},
            OptionError,
            "product must be one of 'dot', 'scaled_dot', 'cosine'; got 'l2'",
        ),
        (
            {"attention_temperature": 0.0},
            OptionError,
            "attention_temperature must be a finite number above 0; got 0.0",
        ),
    ],
)
def test_bad_input_is_named(changed, error, message):
    assert issubclass(error, GloriaError)
    assert issubclass(error, TypeError if error is DtypeError else ValueError)
    for function in (local_similarity, local_attention, local_contrastive_loss):
        with pytest.raises(error, match=message):
            function(**inputs(**changed))


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"aggregation": "sum"}, OptionError, "aggregation must be one of .*; got 'sum'"),
        ({"match_temperature": -1}, OptionError, "match_temperature must be .*above 0; got -1"),
        (
            {"match_temperature": True},
            DtypeError,
            "match_temperature must be a number above 0; got True",
        ),
        ({"backend": "cuda"}, OptionError, "backend must be one of 'auto', .*; got 'cuda'"),
    ],
)
def test_bad_options_of_similarity_are_named(changed, error, message):
    for function in (local_similarity, local_contrastive_loss):
        with pytest.raises(error, match=message):
            function(**inputs(**changed))


@pytest.mark.parametrize("moved", ["words", "word_mask", "region_mask"])
@pytest.mark.parametrize(
    "function",
    [
        local_similarity,
        local_attention,
        local_contrastive_loss,
        functional.max_similarity,
        functional.sparse_attention,
    ],
)
def test_a_tensor_that_is_elsewhere_is_named(function, moved):
    given = inputs()
    other = "regions" if moved in ("words", "region_mask") else "words"
    given[moved] = given[moved].to("meta")
    with pytest.raises(DeviceError, match=f"^{moved} must be on the device of {other}, cpu; got m"):
        function(**given)


@pytest.mark.parametrize(
    "function",
    [
        global_similarity,
        functional.global_contrastive_loss,
        functional.soft_target_cross_entropy,
    ],
)
def test_of_two_matrices_the_one_that_is_elsewhere_is_named(function):
    with pytest.raises(DeviceError, match=r"must be on the device of .*, cpu; got meta"):
        function(torch.ones(2, 3), torch.ones(2, 3, device="meta"))


def test_attention_needs_as_many_images_as_texts():
    with pytest.raises(
        ShapeError, match="regions and words must agree in number of pairs; got 2 and 3"
    ):
        local_attention(
            torch.zeros(2, 4, 3), torch.zeros(3, 5, 3), torch.ones(3, 5, dtype=torch.bool)
        )


@pytest.mark.parametrize(
    "images, texts, error, message",
    [
        (
            torch.zeros(3),
            torch.zeros(2, 3),
            ShapeError,
            r"image_embeddings must be \(image, dim\); got \(3,\)",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 1, 3),
            ShapeError,
            r"text_embeddings must be \(text, dim\); got \(2, 1, 3\)",
        ),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 4),
            ShapeError,
            "image_embeddings and text_embeddings must agree in dim; got 3 and 4",
        ),
        (
            torch.zeros(2, 3).long(),
            torch.zeros(2, 3),
            DtypeError,
            "image_embeddings must be a floating-point tensor",
        ),
        (
            torch.zeros(2, 3),
            None,
            DtypeError,
            r"text_embeddings must be a tensor \(text, dim\); got NoneType",
        ),
    ],
)
def test_bad_embeddings_are_named(images, texts, error, message):
    with pytest.raises(error, match=message):
        global_similarity(images, texts)
    with pytest.raises(error, match=message):
        functional.global_contrastive_loss(images, texts)


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


def test_every_public_name_is_there():
    assert all(hasattr(functional, name) for name in functional.__all__)
