"""Hard-maximum matching: every backend against nested loops, closed forms and the public peer."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import with_gradients
from torch.autograd import gradcheck

from gloria.errors import (
    BackendError,
    DtypeError,
    EmptyImageError,
    EmptyTextError,
    OptionError,
    ShapeError,
)
from gloria.functional import PRODUCTS, MaxSimilarities, max_similarities, max_similarity
from gloria.matching.dispatch import choose
from gloria.matching.maxsim import (
    MAXIMA_OVER,
    MAXIMUM_REDUCTIONS,
    MAXSIM_BACKENDS,
    MaxSimProblem,
)

HALF = (torch.float16, torch.bfloat16)
# what runs here, without an accelerator
ON_CPU = [
    name
    for name, backend in MAXSIM_BACKENDS.items()
    if not backend.reasons_not_supported(MaxSimProblem(2, 3, 4, 5, 6, torch.float32, "cpu"))
]
backends = pytest.mark.parametrize("backend", ON_CPU)
others = pytest.mark.parametrize("backend", [name for name in ON_CPU if name != "einops"])
sides = pytest.mark.parametrize("maximum_over", MAXIMA_OVER)
reductions = pytest.mark.parametrize("reduction", MAXIMUM_REDUCTIONS)
region_masks = pytest.mark.parametrize("masked_regions", [False, True])

SIZES = [  # image, text, region, word, dim
    (1, 1, 1, 1, 1),
    (2, 3, 5, 4, 3),
    (3, 1, 7, 1, 6),
    (1, 4, 1, 9, 2),
    (5, 6, 11, 13, 17),
]


# The definition.


@region_masks
@pytest.mark.parametrize("product", PRODUCTS)
@reductions
@sides
@backends
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_the_nested_loop(
    sizes,
    backend,
    maximum_over,
    reduction,
    product,
    masked_regions,
    make_pairs,
    naive,
    assert_values,
):
    pairs = make_pairs(*sizes, masked_regions=masked_regions)
    options = {"maximum_over": maximum_over, "reduction": reduction, "product": product}
    actual = max_similarity(*pairs, backend=backend, **options)
    assert_values(actual, naive.max_similarity(*pairs, **options))


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
@sides
@backends
def test_every_dtype_is_computed_in_full_precision(
    backend, maximum_over, dtype, make_pairs, naive, assert_values, assert_gradients
):
    pairs = make_pairs(2, 3, 9, 5, 16, masked_regions=True, dtype=dtype, scale=0.5)
    wide = pairs._replace(regions=pairs.regions.double(), words=pairs.words.double())
    options = {"maximum_over": maximum_over, "product": "dot"}
    value, *gradients = with_gradients(max_similarity, *pairs, backend=backend, **options)
    _, *expected = with_gradients(max_similarity, *wide, backend="einops", **options)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_values(value, naive.max_similarity(*wide, **options))
    for actual, reference in zip(gradients, expected, strict=True):
        assert actual.dtype == dtype
        assert_gradients(actual, reference)


def test_defaults_are_filip_on_unit_vectors(make_pairs):
    pairs = make_pairs(2, 3, 5, 4, 3)
    explicit = max_similarity(*pairs, maximum_over="regions", reduction="mean", product="cosine")
    assert torch.equal(max_similarity(*pairs), explicit)


def test_the_two_sides_mirror_each_other(make_pairs):
    """Exchanging regions with words exchanges the sides and transposes the matrix."""
    regions, words, word_mask, region_mask = make_pairs(3, 4, 6, 5, 7, masked_regions=True)
    one = max_similarity(regions, words, word_mask, region_mask, maximum_over="words")
    other = max_similarity(words, regions, region_mask, word_mask, maximum_over="regions")
    torch.testing.assert_close(one, other.T)


# Gradients.


@region_masks
@reductions
@sides
@others
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_equal_the_definitions(
    sizes, backend, maximum_over, reduction, masked_regions, make_pairs, assert_gradients
):
    pairs = make_pairs(*sizes, masked_regions=masked_regions)
    options = {"maximum_over": maximum_over, "reduction": reduction}
    actual = with_gradients(max_similarity, *pairs, backend=backend, **options)
    expected = with_gradients(max_similarity, *pairs, backend="einops", **options)
    for one, reference in zip(actual, expected, strict=True):
        assert_gradients(one, reference)


@region_masks
@sides
@backends
def test_gradcheck(backend, maximum_over, masked_regions, make_pairs):
    regions, words, *masks = make_pairs(2, 3, 4, 3, 2, masked_regions=masked_regions)
    assert gradcheck(
        lambda v, t: max_similarity(
            v, t, *masks, maximum_over=maximum_over, product="dot", backend=backend
        ),
        (regions.requires_grad_(), words.requires_grad_()),
    )


@backends
def test_of_equal_maxima_the_first_takes_the_gradient(backend):
    regions = torch.tensor([[[1.0], [3.0], [3.0], [3.0], [2.0]]])
    words, mask = torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    _, gradient, _ = with_gradients(
        max_similarity, regions, words, mask, product="dot", backend=backend
    )
    assert (gradient.flatten() != 0).tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("needs", ["regions", "words"])
@backends
def test_one_side_may_need_no_gradient(backend, needs, make_pairs, compiled):
    regions, words, mask, _ = make_pairs(2, 3, 5, 4, 6)
    both = [each.clone().requires_grad_() for each in (regions, words)]
    value = max_similarity(*both, mask, backend=backend).square().sum()
    expected = torch.autograd.grad(value, both)[needs == "words"]
    leaf = {"regions": regions, "words": words}[needs].requires_grad_()
    for function in (max_similarity, compiled):
        value = function(regions, words, mask, backend=backend).square().sum()
        torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], expected)


# Both sides at once.


def one_after_the_other(regions, words, *masks, **options):
    """What :func:`max_similarities` is to give, as one tensor."""
    both = (max_similarity(regions, words, *masks, maximum_over=s, **options) for s in MAXIMA_OVER)
    return torch.stack(list(both))


def at_once(*inputs, **options):
    """The same of one call."""
    both = max_similarities(*inputs, **options)
    assert isinstance(both, MaxSimilarities)
    return torch.stack([getattr(both, f"over_{side}") for side in MAXIMA_OVER])


@region_masks
@pytest.mark.parametrize(("product", "reduction"), [("cosine", "mean"), ("dot", "sum")])
@backends
@pytest.mark.parametrize("sizes", [*SIZES, (0, 3, 2, 2, 4), (3, 0, 2, 2, 4)])
def test_both_sides_are_what_each_is(
    sizes, backend, product, reduction, masked_regions, make_pairs, assert_gradients
):
    pairs = make_pairs(*sizes, masked_regions=masked_regions)
    options = {"product": product, "reduction": reduction}
    expected = with_gradients(one_after_the_other, *pairs, backend="einops", **options)
    actual = with_gradients(at_once, *pairs, backend=backend, **options)
    for one, reference in zip(actual, expected, strict=True):
        assert_gradients(one, reference)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("side", MAXIMA_OVER)
@backends
def test_one_of_both_may_be_all_that_is_used(backend, side, needs, make_pairs):
    pairs = make_pairs(3, 4, 6, 5, 7, masked_regions=True)
    found = []
    for function, name in ((max_similarities, None), (max_similarity, side)):
        leaves = [
            each.detach().requires_grad_(need) for each, need in zip(pairs[:2], needs, strict=True)
        ]
        options = {"backend": backend} | ({"maximum_over": name} if name else {})
        value = function(*leaves, *pairs[2:], **options)
        value = value if name else getattr(value, f"over_{side}")
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        # twice: what is kept is not used up
        first, again = (
            torch.autograd.grad(value.square().sum(), wanted, retain_graph=True) for _ in range(2)
        )
        assert all(torch.equal(*each) for each in zip(first, again, strict=True))
        found.append(first)
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)


@backends
def test_both_sides_compile_in_one_graph(backend, make_pairs):
    pairs = make_pairs(2, 3, 5, 4, 6, masked_regions=True, dtype=torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(at_once, fullgraph=True, backend="aot_eager")
    for eager, traced in zip(
        with_gradients(at_once, *pairs, backend=backend),
        with_gradients(compiled, *pairs, backend=backend),
        strict=True,
    ):
        torch.testing.assert_close(traced, eager)
    torch.compiler.reset()


# Masks and permutations.


@sides
@backends
def test_padding_is_exactly_inert(backend, maximum_over, make_pairs):
    pairs = make_pairs(3, 4, 6, 5, 7, masked_regions=True, dtype=torch.float32)
    options = {"maximum_over": maximum_over, "backend": backend}
    clean = with_gradients(max_similarity, *pairs, **options)
    for junk in (1e9, math.inf, math.nan):
        dirty = pairs._replace(
            regions=pairs.regions.masked_fill(~pairs.region_mask[..., None], junk),
            words=pairs.words.masked_fill(~pairs.word_mask[..., None], junk),
        )
        value, for_regions, for_words = with_gradients(max_similarity, *dirty, **options)
        assert torch.equal(value, clean[0])
        assert for_regions[~pairs.region_mask].eq(0).all()
        assert for_words[~pairs.word_mask].eq(0).all()
        assert torch.equal(for_regions, clean[1])
        assert torch.equal(for_words, clean[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@sides
@backends
def test_a_bad_item_spoils_its_own_row_or_column_only(backend, maximum_over, bad, make_pairs):
    regions, words, mask, _ = make_pairs(3, 4, 6, 5, 7)
    options = {"maximum_over": maximum_over, "backend": backend, "product": "dot"}
    regions[1, 2], words[2, 0] = bad, bad
    finite = max_similarity(regions, words, mask, **options).isfinite()
    expected = torch.ones(3, 4, dtype=torch.bool)
    expected[1], expected[:, 2] = False, False
    assert torch.equal(finite, expected)


@sides
@backends
def test_order_does_not_matter(backend, maximum_over, make_pairs):
    regions, words, word_mask, region_mask = make_pairs(3, 5, 6, 7, 4, masked_regions=True)
    options = {"maximum_over": maximum_over, "backend": backend}
    plain = max_similarity(regions, words, word_mask, region_mask, **options)
    texts, places, spots = (
        torch.tensor([3, 0, 4, 1, 2]),
        torch.arange(7).flip(0),
        [4, 2, 0, 1, 5, 3],
    )
    moved = max_similarity(
        regions[:, spots],
        words[texts][:, places],
        word_mask[texts][:, places],
        region_mask[:, spots],
        **options,
    )
    torch.testing.assert_close(moved, plain[:, texts])


@given(
    sizes=st.tuples(*(st.integers(1, top) for top in (4, 5, 9, 7, 8))),
    seed=st.integers(0, 1000),
    maximum_over=st.sampled_from(MAXIMA_OVER),
    masked_regions=st.booleans(),
    budget=st.sampled_from([1, 700, 2**20]),
    backend=st.sampled_from(ON_CPU),
)
def test_any_size_any_mask_any_budget(
    sizes, seed, maximum_over, masked_regions, budget, backend, make_pairs, assert_gradients
):
    pairs = make_pairs(*sizes, masked_regions=masked_regions, seed=seed)
    options = {"maximum_over": maximum_over, "product": "dot"}
    actual = with_gradients(
        max_similarity, *pairs, backend=backend, memory_budget=budget, **options
    )
    expected = with_gradients(max_similarity, *pairs, backend="einops", **options)
    for one, reference in zip(actual, expected, strict=True):
        assert_gradients(one, reference)


def test_non_contiguous_inputs(make_pairs, naive, assert_values):
    regions, words, mask, _ = make_pairs(2, 3, 12, 5, 6)
    strided = regions.mT.contiguous().mT  # a flattened feature map
    for backend in ON_CPU:
        actual = max_similarity(strided, words, mask, backend=backend)
        assert_values(actual, naive.max_similarity(regions, words, mask))


# Autocast, compiling, empty batches.


@pytest.fixture
def compiled():
    """The function compiled into one graph, with nothing left over from other tests."""
    torch.compiler.reset()
    yield torch.compile(max_similarity, fullgraph=True, backend="aot_eager")
    torch.compiler.reset()


@backends
def test_autocast_changes_nothing(backend, make_pairs):
    pairs = make_pairs(2, 3, 9, 5, 16, dtype=torch.float32)
    plain = max_similarity(*pairs, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(max_similarity(*pairs, backend=backend), plain)


@pytest.mark.parametrize(("maximum_over", "masked_regions"), [("regions", True), ("words", False)])
@backends
def test_compiles_in_one_graph(backend, maximum_over, masked_regions, make_pairs, compiled):
    pairs = make_pairs(2, 3, 5, 4, 6, masked_regions=masked_regions, dtype=torch.float32)
    options = {"maximum_over": maximum_over, "backend": backend}
    for eager, traced in zip(
        with_gradients(max_similarity, *pairs, **options),
        with_gradients(compiled, *pairs, **options),
        strict=True,
    ):
        torch.testing.assert_close(traced, eager)


@sides
@backends
def test_compiled_an_empty_item_scores_zero(backend, maximum_over, make_pairs, compiled):
    regions, words, word_mask, region_mask = make_pairs(3, 3, 5, 4, 6, masked_regions=True)
    word_mask[1], region_mask[2] = False, False
    value, for_regions, for_words = with_gradients(
        compiled,
        regions,
        words,
        word_mask,
        region_mask,
        maximum_over=maximum_over,
        backend=backend,
    )
    assert value[:, 1].eq(0).all()
    assert value[2].eq(0).all()
    assert value[:2, ::2].ne(0).all()
    assert for_words[1].eq(0).all()
    assert for_regions[2].eq(0).all()
    assert for_regions.isfinite().all()
    assert for_words.isfinite().all()


@sides
@backends
@pytest.mark.parametrize("images, texts", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_batch_gives_an_empty_matrix(images, texts, backend, maximum_over):
    regions, words = torch.zeros(images, 5, 4), torch.zeros(texts, 3, 4)
    mask = torch.ones(texts, 3, dtype=torch.bool)
    value, for_regions, for_words = with_gradients(
        max_similarity, regions, words, mask, maximum_over=maximum_over, backend=backend
    )
    assert value.shape == (images, texts)
    assert for_regions.eq(0).all()
    assert for_words.eq(0).all()


@backends
@pytest.mark.parametrize("images, texts", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_batch_gives_two_empty_matrices(images, texts, backend):
    """On several threads, where torch's embedding_bag takes no rows without numbers."""
    regions, words = torch.zeros(images, 5, 4), torch.zeros(texts, 3, 4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        both = max_similarities(regions, words, None, backend=backend)
    finally:
        torch.set_num_threads(before)
    assert [each.shape for each in both] == [(images, texts)] * 2


@backends
def test_vectors_without_numbers_have_products_of_0(backend, make_pairs):
    pairs = make_pairs(2, 3, 5, 4, 6, masked_regions=True)
    pairs = pairs._replace(regions=pairs.regions[..., :0], words=pairs.words[..., :0])
    value, *gradients = with_gradients(at_once, *pairs, backend=backend)
    assert value.shape == (2, 2, 3)
    assert not value.any()
    assert [each.shape for each in gradients] == [pairs.regions.shape, pairs.words.shape]
    assert not max_similarity(*pairs, backend=backend).any()


@sides
@backends
def test_without_a_mask_all_words_are_real(backend, maximum_over, make_pairs):
    regions, words, mask, _ = make_pairs(2, 3, 5, 4, 6)
    options = {"maximum_over": maximum_over, "backend": backend}
    expected = max_similarity(regions, words, torch.ones_like(mask), **options)
    torch.testing.assert_close(max_similarity(regions, words, None, **options), expected)
    with pytest.raises(EmptyTextError, match="words must hold at least one word"):
        max_similarity(regions, words[:, :0], None, **options)


# Bad input.


def test_bad_input_is_named(make_pairs):
    regions, words, mask, region_mask = make_pairs(2, 3, 5, 4, 6, masked_regions=True)
    with pytest.raises(ShapeError, match=r"regions must be \(image, region, dim\); got \(2, 6,"):
        max_similarity(regions.mT.unflatten(2, (5, 1)), words, mask)
    with pytest.raises(ShapeError, match="regions and words must agree in dim; got 6 and 5"):
        max_similarity(regions, words[..., :5], mask)
    with pytest.raises(DtypeError, match="word_mask must be boolean"):
        max_similarity(regions, words, mask.float())
    with pytest.raises(EmptyTextError, match="text 1 has none in word_mask"):
        max_similarity(regions, words, mask.index_fill(0, torch.tensor(1), False))
    with pytest.raises(EmptyImageError, match="image 0 has none in region_mask"):
        max_similarity(regions, words, mask, region_mask.index_fill(0, torch.tensor(0), False))
    with pytest.raises(EmptyImageError, match="regions must hold at least one region"):
        max_similarity(regions[:, :0], words, mask)
    for option, value in [
        ("maximum_over", "images"),
        ("reduction", "max"),
        ("product", "l2"),
        ("backend", "fast"),
        ("memory_budget", 0),
    ]:
        with pytest.raises(OptionError, match=rf"{option} must be .*; got '?{value}"):
            max_similarity(regions, words, mask, **{option: value})


# The choice of a backend.


def test_the_definition_is_always_there(make_pairs):
    regions, words, mask, _ = make_pairs(3, 2, 5, 4, 6)
    problem = MaxSimProblem.of(words.half(), regions.half())
    assert problem == (2, 4, 3, 5, 6, torch.float16, "cpu")
    assert choose(MAXSIM_BACKENDS, problem, "einops") == "einops"
    assert choose(MAXSIM_BACKENDS, problem, "auto") == ON_CPU[0]
    for name in set(MAXSIM_BACKENDS) - set(ON_CPU):
        with pytest.raises(BackendError, match=f"backend {name!r} cannot run this: "):
            max_similarity(regions, words, mask, backend=name)


# The public peer.


@sides
@backends
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_late_interaction_kernels(
    sizes, backend, maximum_over, make_pairs, assert_values, assert_gradients
):
    peer = pytest.importorskip("late_interaction_kernels.reference").maxsim_reference
    pairs = make_pairs(*sizes, masked_regions=True)

    def theirs(regions, words, word_mask, region_mask):
        if maximum_over == "regions":
            return peer(words, regions, word_mask, region_mask, normalize=True).T
        return peer(regions, words, region_mask, word_mask, normalize=True)

    options = {"maximum_over": maximum_over, "reduction": "sum", "backend": backend}
    value, *gradients = with_gradients(max_similarity, *pairs, **options)
    expected, *expected_gradients = with_gradients(theirs, *pairs)
    assert_values(value, expected)
    for one, reference in zip(gradients, expected_gradients, strict=True):
        assert_gradients(one, reference)
