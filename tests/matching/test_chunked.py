"""The tiled backend against the definition in float64: values, gradients, memory, compilation."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from gloria.functional import local_similarity
from gloria.matching import ATTENTION_VARIANTS, MatchingInputs, MatchingOptions, chunked, einops
from gloria.matching.chunked import STRIP, Matcher, Packing

TINY, AMPLE = 1, 2**30  # bytes: one text and one image at a time; everything kept

attention_variants = pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
budgets = pytest.mark.parametrize("budget", [TINY, AMPLE])
region_masks = pytest.mark.parametrize("masked_regions", [False, True])


def options(attention="regions", temperature=0.25, budget=AMPLE):
    return MatchingOptions(attention, temperature, 0.2, "max", budget)


def inputs_of(pairs):
    """Zeros under the masks, as every backend is given."""
    regions, words, word_mask, region_mask = pairs
    words = words.masked_fill(~word_mask[..., None], 0)
    if region_mask is not None:
        regions = regions.masked_fill(~region_mask[..., None], 0)
    return MatchingInputs(regions, words, word_mask, region_mask)


def with_gradients(backend, inputs, chosen):
    """Cosines of the real words, and gradients of a random upstream gradient on all positions."""
    regions, words = (each.detach().requires_grad_() for each in inputs[:2])
    cosine = backend.word_cosines(inputs._replace(regions=regions, words=words), chosen)
    assert cosine.shape == (len(regions), *words.shape[:2])
    generator = torch.Generator().manual_seed(7)
    upstream = torch.randn(cosine.shape, generator=generator, dtype=torch.float64)
    upstream = (upstream * inputs.word_mask).to(cosine.dtype)
    gradients = torch.autograd.grad(cosine, (regions, words), upstream)
    return cosine.detach() * inputs.word_mask, *gradients


def reference(inputs, chosen):
    wide = inputs._replace(regions=inputs.regions.double(), words=inputs.words.double())
    return with_gradients(einops, wide, chosen)


@budgets
@region_masks
@attention_variants
@pytest.mark.parametrize(
    "sizes",  # image, text, region, word, dim
    [
        (1, 1, 1, 1, 1),
        (3, 2, 1, 5, 4),
        (2, 3, 7, 1, 5),
        (3, 5, 7, 6, 64),
        (2, 7, 49, 11, 100),
        (1, 2, 361, 97, 8),
        (5, 1, 196, 3, 2),
    ],
)
def test_equals_the_definition(
    sizes, attention, masked_regions, budget, make_pairs, assert_values, assert_gradients
):
    inputs = inputs_of(make_pairs(*sizes, masked_regions=masked_regions))
    chosen = options(attention, budget=budget)
    value, *gradients = with_gradients(chunked, inputs, chosen)
    expected, *expected_gradients = reference(inputs, chosen)
    assert_values(value, expected)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert_gradients(actual, wanted)


@given(
    sizes=st.tuples(*(st.integers(1, most) for most in (4, 6, 9, 7, 12))),
    attention=st.sampled_from(ATTENTION_VARIANTS),
    masked_regions=st.booleans(),
    budget=st.sampled_from([TINY, 2_000, 20_000, AMPLE]),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition_at_any_size_and_budget(
    make_pairs, assert_values, assert_gradients, sizes, attention, masked_regions, budget, seed
):
    inputs = inputs_of(make_pairs(*sizes, masked_regions=masked_regions, seed=seed))
    chosen = options(attention, budget=budget)
    value, *gradients = with_gradients(chunked, inputs, chosen)
    expected, *expected_gradients = reference(inputs, chosen)
    assert_values(value, expected)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert_gradients(actual, wanted)


@pytest.mark.parametrize(
    ("regions", "texts", "dim", "uses_gram"),
    [(9, 8, 64, True), (49, 1, 4, False), (2 * STRIP + 10, 80, 256, True)],
)
@attention_variants
def test_both_ways_to_the_norm_are_taken_and_are_right(
    attention, regions, texts, dim, uses_gram, make_pairs, assert_values, assert_gradients
):
    inputs = inputs_of(make_pairs(3, texts, regions, 5, dim))
    packing = Packing.of(inputs.word_mask)
    packed = packing.pack(inputs.words)
    assert Matcher(inputs.regions, packed, None, packing, options()).use_gram is uses_gram
    for chosen in (options(attention), options(attention, budget=TINY)):
        value, *gradients = with_gradients(chunked, inputs, chosen)
        expected, *expected_gradients = reference(inputs, chosen)
        assert_values(value, expected)
        for actual, wanted in zip(gradients, expected_gradients, strict=True):
            assert_gradients(actual, wanted)


@attention_variants
def test_float32_is_within_1e_5_of_float64(attention, make_pairs):
    inputs = inputs_of(make_pairs(4, 5, 361, 97, 256, dtype=torch.float32, scale=0.25))
    ours = with_gradients(chunked, inputs, options(attention))
    for actual, wanted in zip(ours, reference(inputs, options(attention)), strict=True):
        assert (actual.double() - wanted).norm() <= 1e-5 * wanted.norm()


def test_real_words_may_stand_anywhere(make_pairs, assert_values):
    inputs = inputs_of(make_pairs(2, 3, 5, 6, 4))
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    moved = inputs._replace(words=inputs.words[:, order], word_mask=inputs.word_mask[:, order])
    chosen = options("words_then_regions")
    expected = einops.word_cosines(inputs, chosen)[:, :, order]
    assert_values(chunked.word_cosines(moved, chosen), expected)


def test_a_transposed_feature_map_gets_its_gradient(make_pairs, assert_gradients):
    """Regions of a convolution are a transposed view."""
    inputs = inputs_of(make_pairs(3, 4, 6, 5, 7))
    maps = inputs.regions.mT.contiguous().requires_grad_()
    results = [
        torch.autograd.grad(
            backend.word_cosines(inputs._replace(regions=maps.mT), options()).sin().sum(), maps
        )[0]
        for backend in (chunked, einops)
    ]
    assert_gradients(*results)


@attention_variants
def test_gradcheck(attention, make_pairs):
    inputs = inputs_of(make_pairs(2, 2, 4, 3, 3, masked_regions=True))

    def cosines(regions, words):
        words = words.masked_fill(~inputs.word_mask[..., None], 0)
        replaced = inputs._replace(regions=regions, words=words)
        return chunked.word_cosines(replaced, options(attention))

    tensors = [each.detach().requires_grad_() for each in inputs[:2]]
    assert gradcheck(cosines, tensors)
    assert gradgradcheck(cosines, tensors)


def test_a_frozen_side_gets_no_gradient_and_the_other_the_same(make_pairs):
    inputs = inputs_of(make_pairs(2, 3, 5, 4, 6))
    _, *both = with_gradients(chunked, inputs, options())
    for index in range(2):
        tensors = [each.detach() for each in inputs[:2]]
        tensors[index].requires_grad_()
        cosine = chunked.word_cosines(MatchingInputs(*tensors, *inputs[2:]), options())
        upstream = torch.randn(
            cosine.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
        )
        cosine.backward(upstream * inputs.word_mask)
        torch.testing.assert_close(tensors[index].grad, both[index])
        assert tensors[1 - index].grad is None


@budgets
def test_a_second_backward_gives_the_same(budget, make_pairs):
    """What was kept for the first is used up, and what was found is not written to."""
    inputs = inputs_of(make_pairs(2, 3, 5, 4, 6))
    regions = inputs.regions.detach().requires_grad_()
    chosen = options("words_then_regions", budget=budget)
    total = chunked.word_cosines(inputs._replace(regions=regions), chosen).sum()
    first, second = (torch.autograd.grad(total, regions, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(second, first, rtol=1e-14, atol=1e-14)


@attention_variants
@pytest.mark.parametrize("scale", [1e-6, 1e15])
def test_very_short_and_very_long_vectors(scale, attention, make_pairs, assert_values):
    """The cosine's bound of 1e-8 is active for the short ones, and its gradient is the clamp's."""
    inputs = inputs_of(make_pairs(2, 3, 5, 4, 6, scale=scale))
    value, *gradients = with_gradients(chunked, inputs, options(attention))
    expected, *expected_gradients = reference(inputs, options(attention))
    assert_values(value, expected)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert_values(actual * scale, wanted * scale)


@attention_variants
@pytest.mark.parametrize("length", [1.0, 1e12, 1e15])
@budgets
def test_an_image_that_says_nothing_beside_long_words(length, budget, attention, make_pairs):
    """A ReLU may silence an image: it has no gradient, however long the words are."""
    pairs = make_pairs(3, 3, 4, 4, 6, dtype=torch.float32)
    pairs.regions[1] = 0.0
    inputs = inputs_of(pairs._replace(words=pairs.words * length))
    chosen = options(attention, budget=budget)
    value, *gradients = with_gradients(chunked, inputs, chosen)
    expected, *expected_gradients = reference(inputs, chosen)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert (actual.double() - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert not gradients[0][1].any()


@attention_variants
@pytest.mark.parametrize("length", [1.0, 1e12])
@budgets
def test_long_opposite_regions_have_finite_gradients(length, budget, attention, make_pairs):
    """They cancel to the last digit, or not: rounding decides whether the bound is active."""
    pairs = make_pairs(1, 3, 4, 4, 6, dtype=torch.float32)
    pairs.regions[0, 1::2] = -pairs.regions[0, ::2]
    inputs = inputs_of(pairs._replace(words=pairs.words * length, regions=pairs.regions * length))
    for each in with_gradients(chunked, inputs, options(attention, budget=budget)):
        assert each.isfinite().all()


@attention_variants
@pytest.mark.parametrize("temperature", [1 / 8, 1 / 9, 1e-3, 50.0])
def test_any_attention_temperature(temperature, attention, make_pairs, assert_values):
    inputs = inputs_of(make_pairs(2, 3, 5, 4, 6, dtype=torch.float32, masked_regions=True))
    chosen = options(attention, temperature)
    value, *_ = with_gradients(chunked, inputs, chosen)
    expected, *_ = reference(inputs, chosen)
    torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-4)


def test_regions_that_cancel_do_not_spoil_the_norm(make_pairs):
    """One word attends everywhere alike; the mean of nearly centred regions nearly vanishes.

    By the Gram identity the squared norm would be off by 6e-8 · 1000² here.
    """
    pairs = make_pairs(2, 40, 49, 8, 64, dtype=torch.float32)
    alone = torch.arange(8) < 1
    pairs = pairs._replace(
        regions=pairs.regions - 0.999 * pairs.regions.mean(1, keepdim=True),
        word_mask=torch.cat([alone.expand(2, -1), pairs.word_mask[2:]]),
    )
    inputs, chosen = inputs_of(pairs), options("words_then_regions")
    packing = Packing.of(inputs.word_mask)
    assert Matcher(inputs.regions, packing.pack(inputs.words), None, packing, chosen).use_gram
    value, *gradients = with_gradients(chunked, inputs, chosen)
    expected, *expected_gradients = reference(inputs, chosen)
    assert (value.double() - expected)[:, :2].abs().max() < 1e-4
    for actual, wanted in zip(gradients, expected_gradients, strict=True):
        assert (actual.double() - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize("regions", [4, 49])  # the norm from the Gram matrix, and from c
def test_no_cosine_is_beyond_1_where_regions_cancel(regions, make_pairs):
    """Centred regions, and words alone in their text, which attend to all of them alike."""
    for seed in range(20):
        pairs = make_pairs(8, 9, regions, 1, 2, dtype=torch.float32, seed=seed)
        inputs = inputs_of(
            pairs._replace(regions=pairs.regions - pairs.regions.mean(1, keepdim=True))
        )
        value, *gradients = with_gradients(chunked, inputs, options("words_then_regions"))
        assert value.abs().max() <= 1
        assert all(each.isfinite().all() for each in gradients)


def test_backward_inside_autocast_stays_in_full_precision(make_pairs):
    pairs = make_pairs(2, 3, 9, 4, 16, dtype=torch.float32)

    def gradients():
        tensors = [each.detach().requires_grad_() for each in pairs[:2]]
        local_similarity(*tensors, *pairs[2:], backend="chunked").sum().backward()
        return [each.grad for each in tensors]

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gradients()
    torch.testing.assert_close(actual, expected)


# Packing.


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), most=st.integers(0, 30))
def test_blocks_are_runs_of_whole_texts(lengths, most):
    word_mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    packing = Packing.of(word_mask)
    assert sorted(packing.positions.tolist()) == word_mask.flatten().nonzero()[:, 0].tolist()
    start = 0
    for words, groups in packing.blocks(most):
        assert words.start == start
        start = words.stop
        filled = sum(group.texts * group.length for group in groups)
        assert filled == words.stop - words.start
        assert filled <= most or sum(group.texts for group in groups) == 1
    assert start == len(packing.positions) == sum(lengths)
    real = [length for length in lengths if length]
    assert sorted(real) == sorted(
        group.length
        for _, groups in packing.blocks(most)
        for group in groups
        for _ in range(group.texts)
    )


def test_packing_and_unpacking_are_inverse():
    word_mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    words = torch.randn(3, 3, 4) * word_mask[..., None]
    packing = Packing.of(word_mask)
    torch.testing.assert_close(packing.unpack_words(packing.pack(words)), words)


# Memory.


@pytest.mark.parametrize("budget", [2**20, 2**22, 2**24])
@pytest.mark.parametrize("sizes", [(8, 24, 49, 40, 64), (1, 400, 1, 97, 2)])
@attention_variants
def test_forward_and_backward_stay_within_the_budget(
    attention, sizes, budget, make_pairs, peak_bytes
):
    inputs = inputs_of(make_pairs(*sizes, dtype=torch.float32))
    regions, words = (each.detach().requires_grad_() for each in inputs[:2])
    results = inputs.regions.nbytes + 2 * inputs.words.nbytes  # gradients; one is unpacked
    images, texts, _, words_each, _ = sizes
    # a dozen numbers per image and word, as the definition has too
    cosines = 12 * images * texts * words_each * 4

    def run():
        cosine = chunked.word_cosines(
            inputs._replace(regions=regions, words=words), options(attention, budget=budget)
        )
        torch.autograd.grad(cosine, (regions, words), torch.ones_like(cosine))

    run()
    # at least the gradients: a trace without its memory would prove nothing
    assert results / 2 < peak_bytes(run) <= budget + results + cosines


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("budget", "times"), [(AMPLE, 1), (TINY, 2)])
def test_what_fits_the_budget_is_computed_once(budget, times, compiled, make_pairs, monkeypatch):
    inputs = inputs_of(make_pairs(4, 8, 9, 5, 64))
    made = []
    for name in ("gram", "scores", "pull"):
        original = getattr(Matcher, name)

        def spy(self, *args, original=original, name=name, **kwargs):
            made.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Matcher, name, spy)
    regions, words = (each.detach().requires_grad_() for each in inputs[:2])
    match = partial(local_similarity, backend="chunked", memory_budget=budget)
    if compiled:
        match = torch.compile(match, fullgraph=True, backend="aot_eager")
    match(regions, words, inputs.word_mask).sum().backward()
    packing = Packing.of(inputs.word_mask)
    matcher = Matcher(
        *inputs[:1], packing.pack(inputs.words), None, packing, options(budget=budget)
    )
    tiles = len(matcher.chunks) * len(matcher.blocks)
    assert made.count("gram") == times * len(matcher.chunks)
    assert made.count("scores") == made.count("pull") == times * tiles


@pytest.mark.parametrize("compiled", [False, True])
def test_who_only_looks_pays_for_no_slopes(compiled, make_pairs, monkeypatch):
    inputs = inputs_of(make_pairs(2, 3, 5, 4, 6))
    regions = inputs.regions.detach().requires_grad_()
    monkeypatch.setattr(Matcher, "differentiate", None)
    match = partial(local_similarity, backend="chunked", memory_budget=AMPLE)
    if compiled:
        match = torch.compile(match, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        match(regions, inputs.words, inputs.word_mask)


# Compilation.


@region_masks
@attention_variants
def test_compiles_into_one_graph(attention, masked_regions, make_pairs, assert_values):
    inputs = inputs_of(make_pairs(2, 3, 5, 4, 6, masked_regions=masked_regions))

    def cosines(regions, words):
        return chunked.word_cosines(
            inputs._replace(regions=regions, words=words), options(attention)
        )

    compiled = torch.compile(cosines, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    for function in (compiled, cosines):
        tensors = [each.detach().requires_grad_() for each in inputs[:2]]
        value = function(*tensors)
        results.append([value.detach(), *torch.autograd.grad(value.sin().sum(), tensors)])
    for actual, expected in zip(*results, strict=True):
        assert_values(actual, expected)


def test_what_is_exported_keeps_nothing_and_has_gradients(make_pairs, assert_values):
    class Cosines(nn.Module):
        def forward(self, regions, words, word_mask):
            return chunked.word_cosines(MatchingInputs(regions, words, word_mask, None), options())

    inputs = inputs_of(make_pairs(2, 3, 5, 4, 6))
    regions, words = (each.detach().requires_grad_() for each in inputs[:2])
    program = torch.export.export(Cosines(), (regions, words, inputs.word_mask))
    (node,) = [node for node in program.graph.nodes if "word_cosines" in str(node.target)]
    assert node.args[-1] is False
    results = []
    for function in (program.module(), Cosines()):
        value = function(regions, words, inputs.word_mask)
        gradients = torch.autograd.grad(value.sin().sum(), (regions, words))
        results.append([value.detach(), *gradients])
    for actual, expected in zip(*results, strict=True):
        assert_values(actual, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own
@pytest.mark.parametrize("keep", [True, False])
@region_masks
def test_the_operator_keeps_the_rules_of_torch(masked_regions, keep, make_pairs):
    regions, words, *masks, _ = inputs_of(make_pairs(2, 3, 5, 4, 6, masked_regions=masked_regions))
    arguments = (
        regions.requires_grad_(),
        words.requires_grad_(),
        *masks,
        "words_then_regions",
        0.25,
        2**20,
        keep,
    )
    torch.library.opcheck(torch.ops.gloria.chunked_word_cosines.default, arguments)


def test_texts_without_a_word_and_images_without_a_region_score_0_when_nobody_can_look():
    """Inside a compiled graph values cannot be read, so these cases arrive."""
    regions, words = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    word_mask = torch.tensor([[True] * 5, [False] * 5])
    region_mask = torch.tensor([[True] * 3, [False] * 3])
    inputs = inputs_of((regions, words, word_mask, region_mask))
    for attention in ATTENTION_VARIANTS:
        value, *gradients = with_gradients(chunked, inputs, options(attention))
        assert value[1].eq(0).all()
        assert value[:, 1].eq(0).all()
        assert value[0, 0].ne(0).all()
        assert all(each.isfinite().all() for each in gradients)
        assert math.isfinite(value.sum())
