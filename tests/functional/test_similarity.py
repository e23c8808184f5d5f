"""Similarities and attention against nested loops, closed forms, and what users rely on."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import random, with_gradients
from torch.autograd import forward_ad, gradcheck

from gloria.errors import BackendError
from gloria.functional import (
    PRODUCTS,
    contrastive_cross_entropy,
    global_similarity,
    local_attention,
    local_contrastive_loss,
    local_similarity,
    max_similarities,
    max_similarity,
)
from gloria.losses import ColBERTLoss, FILIPLoss, LocalContrastiveLoss
from gloria.matching import (
    ATTENTION_VARIANTS,
    WORD_AGGREGATIONS,
    choose_backend,
    explain_backends,
)
from gloria.matching.maxsim import MAXSIM_BACKENDS
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


def same(actual, expected):
    """Equal up to the order of float64 sums."""
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


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
    assert memory_budget_on("cpu", None) == 256 * 2**20
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
    assert asked == 3 * [256 * 2**20] + 3 * [5]


def test_the_memory_budget_reaches_the_hard_maxima(make_pairs, monkeypatch):
    asked = []

    def noted(run, inputs, memory_budget):
        asked.append(memory_budget)
        return run(inputs, memory_budget)

    backend = MAXSIM_BACKENDS["chunked"]
    for name in ("summed_maxima", "both_summed_maxima"):
        monkeypatch.setattr(backend, name, partial(noted, getattr(backend, name)))
    pairs = make_pairs(2, 2, 5, 4, 3)
    for budget in (None, 5):
        options = {"backend": "chunked", "memory_budget": budget}
        max_similarity(*pairs, **options)
        max_similarities(*pairs, **options)
        ColBERTLoss(**options)(*pairs)
        FILIPLoss(**options)(*pairs)
    assert asked == 4 * [256 * 2**20] + 4 * [5]


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


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize(
    "images, texts, count, dim",
    [(0, 3, 5, 4), (2, 0, 5, 4), (0, 0, 5, 4), (0, 3, 0, 4), (0, 3, 0, 0)],
)
@aggregations
@attention_variants
def test_no_images_or_no_texts_give_an_empty_matrix(
    attention, aggregation, images, texts, count, dim, backend
):
    regions = torch.zeros(images, count, dim, requires_grad=True)
    words = torch.zeros(texts, 3, dim, requires_grad=True)
    mask = torch.ones(texts, 3, dtype=torch.bool)
    options = {"attention": attention, "aggregation": aggregation, "backend": backend}
    for region_mask in (None, torch.ones(images, count, dtype=torch.bool)):
        z = local_similarity(regions, words, mask, region_mask, **options)
        assert z.shape == (images, texts)
        z.sum().backward()
        assert regions.grad.eq(0).all()
        assert words.grad.eq(0).all()
    assert global_similarity(regions.sum(1), words[:, 0]).shape == (images, texts)


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


@pytest.mark.parametrize(
    "dtype, scale", [(torch.float32, 1e15), (torch.float32, 1e-20), (torch.float16, 6e4)]
)
def test_extreme_embeddings_have_finite_cosines_and_gradients(dtype, scale):
    v = torch.nn.functional.normalize(random(3, 4), dim=-1) * scale
    t = torch.nn.functional.normalize(random(3, 4, seed=1), dim=-1) * scale
    value, *gradients = with_gradients(global_similarity, v.to(dtype), t.to(dtype))
    assert value.abs().max() <= 1 + 1e-6
    assert all(gradient.isfinite().all() for gradient in gradients)


@products
@attention_variants
@pytest.mark.parametrize("backend", ["einops", "chunked"])
@pytest.mark.parametrize("side", ["regions", "words"])
def test_vectors_whose_length_is_beyond_float32_have_no_cosine(
    side, backend, attention, product, make_pairs
):
    """Else it would be 0, and training at chance with no gradient."""
    pairs = make_pairs(3, 4, 5, 3, 6, dtype=torch.float32)
    pairs = pairs._replace(**{side: getattr(pairs, side).abs().add(1) * 1e20})
    options = {"attention": attention, "product": product, "backend": backend}
    assert local_similarity(*pairs, **options).isnan().all()
    embeddings = pairs.regions[:, 0], pairs.words[:, 0]
    assert global_similarity(*embeddings).isnan().all()


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


@pytest.mark.parametrize("backend", ["einops", "chunked"])
def test_vectors_without_a_length_are_no_zero_vectors(backend, make_pairs):
    """Of 1e30, the square is infinite: a cosine of 0 would go on as if nothing had happened."""
    pairs = make_pairs(3, 2, 5, 3, 6, dtype=torch.float32)
    regions = pairs.regions.clone()
    regions[1] *= 1e30
    found = local_similarity(*pairs._replace(regions=regions), product="cosine", backend=backend)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()
    assert max_similarity(regions, *pairs[1:3])[1].isnan().all()


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
    masks = torch.stack([word_mask, word_mask.logical_not().index_fill(1, torch.tensor(0), True)])
    each = torch.func.vmap(lambda mask: similarity(regions, words, mask))(masks)
    torch.testing.assert_close(
        each, torch.stack([similarity(regions, words, mask) for mask in masks])
    )
    for backend in ("chunked", "triton"):
        on_backend = partial(similarity, words=words, word_mask=word_mask, backend=backend)
        with pytest.raises(BackendError, match=f"'{backend}' cannot run this.*torch.func"):
            torch.func.vmap(on_backend)(regions[None])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")  # torch's own
@pytest.mark.parametrize("similarity", [local_similarity, max_similarity])
def test_forward_mode_gets_the_definition(similarity, make_pairs):
    regions, words, word_mask, _ = make_pairs(6, 6, 49, 20, 64)
    directions = torch.randn(regions.shape, generator=torch.Generator().manual_seed(0)).double()
    leaf = regions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(similarity(leaf, words, word_mask).sum(), leaf)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(regions, directions)
        slope = forward_ad.unpack_dual(similarity(dual, words, word_mask).sum()).tangent
        with pytest.raises(BackendError, match=r"cannot run this.*forward-mode"):
            similarity(dual, words, word_mask, backend="chunked")
    torch.testing.assert_close(slope, (gradient * directions).sum())


@pytest.mark.parametrize("similarity", [local_similarity, max_similarity])
@pytest.mark.parametrize("backend", ON_CPU)
def test_many_gradients_at_once_are_what_each_is(backend, similarity, make_pairs):
    """As ``torch.autograd.functional.jacobian(..., vectorize=True)`` asks for them."""
    regions, words, *masks, _ = make_pairs(3, 4, 9, 6, 8, masked_regions=True)
    leaves = regions.requires_grad_(), words.requires_grad_()
    value = similarity(*leaves, *masks, backend=backend)
    several = torch.randn(5, *value.shape, generator=torch.Generator().manual_seed(0)).double()
    ask = partial(torch.autograd.grad, value, leaves, retain_graph=True)
    together = ask(several, is_grads_batched=True)
    for one, each in zip(zip(*together, strict=True), several, strict=True):
        for actual, expected in zip(one, ask(each), strict=True):
            same(actual, expected)


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
