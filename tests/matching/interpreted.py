"""The Triton kernels against the definition in float64; run by ``test_triton.py``.

In Triton's interpreter, on the CPU, which has to be chosen before triton is imported: so these
tests have a process to themselves. Without it (``pytest tests/matching/interpreted.py``) they run
on a GPU.
"""

from __future__ import annotations

import functools
import math
import weakref

import numpy
import pytest
import torch

from gloria.aggregators import masked_logmeanexp, masked_logsumexp
from gloria.errors import BackendError
from gloria.functional import local_similarity
from gloria.matching import (
    ATTENTION_VARIANTS,
    WORD_AGGREGATIONS,
    MatchingInputs,
    MatchingOptions,
    Problem,
    choose_backend,
    einops,
    triton,
)
from gloria.matching.cost import count
from gloria.matching.triton import Blocks, Launch, attention_cosine
from gloria.matching.triton_support import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [
    pytest.mark.usefixtures("true_bfloat16"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0"),  # of Triton 3.6
    # numpy's, of NaN that a test put there or in columns that are not stored
    pytest.mark.filterwarnings("ignore:(invalid|overflow|divide by zero|All-NaN).* encountered"),
    # torch's own, of opcheck
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

# Greatest error over greatest value, of cosines and of gradients.
TOLERANCE = {
    # sums of float32 products; the softmaxes' exponents amplify the error of a score by 1/τ
    torch.float32: (1e-6, 4e-5),
    # scores are exact products of the inputs in both; attention, Gram matrix and score gradient
    # have 8 bits (2e-3), and the radial part of a gradient cancels
    torch.bfloat16: (3e-3, 4e-2),
    torch.float16: (3e-3, 4e-2),
}


@pytest.fixture
def small_blocks(monkeypatch):
    """Few words and regions at a time, so that texts and images take several."""
    launches = Launch(64, 4, 1, 1), Launch(64, 4, 1, 1), Launch(16, 4, 1, 1)
    monkeypatch.setattr(triton, "choose_blocks", lambda *_: Blocks(*launches))


def options(attention="regions", temperature=0.25, budget=2**26):
    return MatchingOptions(attention, temperature, 0.2, "max", budget)


def draw(images, texts, regions, words, dim, *, masked=False, scale=1.0, dtype=torch.float32):
    """Inputs with holes in the masks, zeros under them, and an upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    coin = functools.partial(torch.rand, generator=generator)
    word_mask = coin(texts, words) < 0.6
    word_mask[:1] = True
    word_mask[:, 0] |= ~word_mask.any(1)
    region_mask = None
    regions_, words_ = scale * normal(images, regions, dim), scale * normal(texts, words, dim)
    if masked:
        region_mask = coin(images, regions) < 0.7
        region_mask[:, 0] |= ~region_mask.any(1)
        regions_ = regions_ * region_mask[..., None]
    words_ = words_ * word_mask[..., None]
    inputs = MatchingInputs(regions_.to(dtype), words_.to(dtype), word_mask, region_mask)
    upstream = normal(images, texts, words) * word_mask
    return to_device(inputs), upstream.to(DEVICE)


def to_device(inputs):
    return MatchingInputs(*(None if each is None else each.to(DEVICE) for each in inputs[:4]))


def differentiate(backend, inputs, upstream, chosen):
    """Cosines at real words, and the gradients of regions and words."""
    regions = inputs.regions.detach().requires_grad_()
    words = inputs.words.detach().requires_grad_()
    cosine = backend.word_cosines(inputs._replace(regions=regions, words=words), chosen)
    gradients = torch.autograd.grad(cosine, (regions, words), upstream.to(cosine.dtype))
    return [cosine.detach() * inputs.word_mask, *gradients]


def wide(inputs):
    return inputs._replace(regions=inputs.regions.double(), words=inputs.words.double())


def expected_of(inputs, upstream, chosen):
    """By the definition, without what it gives to masked positions."""
    cosine, regions, words = differentiate(einops, wide(inputs), upstream, chosen)
    if inputs.region_mask is not None:
        regions = regions * inputs.region_mask[..., None]
    return [cosine, regions, words * inputs.word_mask[..., None]]


def error(actual, expected, unit):
    """Greatest error over the greatest value, or over ``unit`` where all are far smaller."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    scale = expected.abs().max().clamp_min(1e-2 * unit)
    return float((actual.double() - expected).abs().max() / scale)


def assert_equals_the_definition(inputs, upstream, chosen, tolerance=None):
    values, gradients = tolerance or TOLERANCE[inputs.regions.dtype]
    actual = differentiate(triton, inputs, upstream, chosen)
    expected = expected_of(inputs, upstream, chosen)
    assert error(actual[0], expected[0], 1.0) <= values
    for part, ours, theirs in zip(inputs[:2], actual[1:], expected[1:], strict=True):
        # of a cosine: dr over the length of what it is a cosine of
        assert error(ours, theirs, upstream.abs().max() / part.abs().max().double()) <= gradients


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1, 1, 1), (3, 2, 7, 1, 5), (2, 4, 37, 13, 20), (1, 3, 1, 16, 33)]
)
def test_equals_the_definition(sizes, attention, masked, small_blocks):
    assert_equals_the_definition(*draw(*sizes, masked=masked), options(attention))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize(
    "sizes", [(2, 3, 49, 9, 100), (1, 2, 361, 3, 8), (1, 3, 5, 97, 64), (1, 1, 3, 256, 768)]
)
def test_equals_the_definition_in_the_blocks_it_chooses(sizes, attention):
    assert_equals_the_definition(*draw(*sizes, scale=sizes[-1] ** -0.25), options(attention))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_half_precision(attention, dtype, small_blocks):
    sizes = (2, 2, 20, 14, 64)
    inputs, upstream = draw(*sizes, masked=True, scale=0.3, dtype=dtype)
    # as a gradient scaler makes it
    assert_equals_the_definition(inputs, 2.0**8 * upstream, options(attention))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_the_blocks_it_chooses(dtype):
    inputs, upstream = draw(1, 3, 70, 20, 64, scale=0.3, dtype=dtype)
    assert_equals_the_definition(inputs, upstream, options("words_then_regions"))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_half_precision_of_large_scores(attention, small_blocks):
    """As raw products of features are: what 1 / τ multiplies must cancel, however a is rounded."""
    inputs, upstream = draw(2, 2, 49, 20, 64, scale=12.5**0.5, dtype=torch.bfloat16)
    assert_equals_the_definition(inputs, upstream, options(attention), (2e-3, 1e-2))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_sharp_attention(attention, small_blocks):
    """Exponents of hundreds; under 'words_then_regions' too they then need a maximum."""
    inputs, upstream = draw(2, 2, 37, 9, 8, masked=True)
    assert_equals_the_definition(inputs, upstream, options(attention, 0.02), (1e-5, 1e-3))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("scale", [1e-5, 3e-5])
def test_short_vectors(scale, attention, small_blocks):
    """At 1e-5 the clamp of the norms' product holds, at 3e-5 for some words."""
    inputs, upstream = draw(2, 2, 20, 9, 4, scale=scale)
    assert_equals_the_definition(inputs, upstream, options(attention))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_long_vectors(attention, small_blocks):
    inputs, upstream = draw(2, 2, 20, 9, 4, scale=1e15)
    assert_equals_the_definition(inputs, upstream, options(attention))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_vectors_whose_length_is_beyond_float32_have_no_cosine(attention, small_blocks):
    inputs, _ = draw(2, 2, 20, 9, 4)
    inputs = inputs._replace(words=inputs.words.sign() * 1e20)
    cosine = triton.word_cosines(inputs, options(attention))
    assert cosine[inputs.word_mask.expand_as(cosine)].isnan().all()


def test_float32_is_float64_within_1e_5(small_blocks):
    inputs, upstream = draw(2, 2, 40, 12, 64, scale=64**-0.25)
    for attention in ATTENTION_VARIANTS:
        actual = triton.word_cosines(inputs, options(attention))
        expected, *_ = expected_of(inputs, upstream, options(attention))
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_strides_do_not_matter(attention, small_blocks):
    inputs, upstream = draw(2, 2, 20, 9, 8, masked=True)
    turned = MatchingInputs(*(each.mT.contiguous().mT for each in inputs[:4]))
    expanded = upstream[..., :1].expand_as(upstream)
    for ours, theirs in zip(
        differentiate(triton, turned, expanded, options(attention)),
        differentiate(triton, inputs, expanded.contiguous(), options(attention)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_the_memory_budget_changes_nothing(attention, small_blocks):
    inputs, upstream = draw(3, 2, 20, 9, 8)
    whole = differentiate(triton, inputs, upstream, options(attention))
    for budget in (1, 20_000):
        parts = differentiate(triton, inputs, upstream, options(attention, budget=budget))
        for ours, theirs in zip(parts, whole, strict=True):
            assert error(ours, theirs.double(), 1.0) <= TOLERANCE[torch.float32][1]


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("budget", [1, 2**18, 2**40])
def test_memory_is_what_was_counted(alive_bytes, attention, budget):
    inputs, _ = draw(4, 3, 60, 12, 32, dtype=torch.float32)
    how = {"attention": attention, "memory_budget": budget}
    matching = MatchingOptions(attention, 0.25, 0.2, "logsumexp", budget)
    problem = Problem(4, 60, 3, 12, 32, torch.float32, "cuda", matching)
    leaves = [each.requires_grad_() for each in inputs[:2]]
    with alive_bytes(*inputs[:3]) as alive:
        similarity = local_similarity(*inputs[:3], backend="triton", **how)
        gradients = torch.autograd.grad(similarity.sum(), leaves)
    peak = alive.peak - sum(each.nbytes for each in gradients)
    expected = count(problem, "triton", int(inputs.word_mask.sum())).memory
    assert peak == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_what_is_kept_is_what_is_computed_again(attention, dtype, small_blocks, monkeypatch):
    inputs, upstream = draw(3, 2, 20, 9, 8, masked=True, scale=0.3, dtype=dtype)
    runs, attend = [], triton.Matcher.attend

    def spy(self, first, last, found, texts):
        runs.append((first, last))
        return attend(self, first, last, found, texts)

    monkeypatch.setattr(triton.Matcher, "attend", spy)
    kept = differentiate(triton, inputs, upstream, options(attention))
    assert runs == [(0, 3)]
    runs.clear()
    made = differentiate(triton, inputs, upstream, options(attention, budget=1))
    assert runs == [(0, 1), (1, 2), (2, 3)] * 2
    # products of another size may be another kernel of the library, on a device
    assert error(made[0], kept[0].double(), 1.0) <= TOLERANCE[dtype][0]
    for ours, theirs in zip(made[1:], kept[1:], strict=True):
        assert error(ours, theirs.double(), 1.0) <= TOLERANCE[dtype][1] / 2


@pytest.mark.parametrize("budget", [1, 2**26])
@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("score", [150, 2e4, 1e7])
def test_float32_of_large_scores_is_as_exact_as_the_definition(
    score, attention, budget, small_blocks
):
    """Where attention is on one region, nothing of what cancels is left over.

    The definition in float32 is off by what the exponent amplifies of a score's rounding.
    """
    inputs, upstream = draw(2, 2, 21, 9, 16, masked=True, scale=(score / 20) ** 0.5)
    expected = expected_of(inputs, upstream, options(attention))
    actual = differentiate(triton, inputs, upstream, options(attention, budget=budget))
    definition = differentiate(einops, inputs, upstream, options(attention))
    for ours, its, exact in zip(actual, definition, expected, strict=True):
        assert error(ours, exact, 0.0) <= max(2 * error(its, exact, 0.0), 1e-5)


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("score", [20, 150, 1000, 2e4])
def test_scores_made_again_may_differ_in_their_last_bits(
    score, attention, small_blocks, monkeypatch
):
    """Products of another size sum in another order, on a device; here they are made to."""
    inputs, upstream = draw(2, 2, 21, 9, 64, masked=True, scale=(score / 40) ** 0.5)
    expected = expected_of(inputs, upstream, options(attention))
    scores_of, pulls_of, once = triton.product_in_float32, torch.bmm, []

    def scores_in_another_order(left, right):
        half = left.shape[1] // 2
        behind = scores_of(left[:, half:], right[half:])
        return scores_of(left[:, :half], right[:half]) + behind if once else scores_of(left, right)

    def pulls_of_another_gram(weights, gram, **out):
        if once and out:  # rounded as its largest elements are
            gram = gram + 2**-24 * gram.abs().max() * (gram > 0)
        return pulls_of(weights, gram, **out)

    monkeypatch.setattr(triton, "product_in_float32", scores_in_another_order)
    monkeypatch.setattr(torch, "bmm", pulls_of_another_gram)
    regions, words = (each.detach().requires_grad_() for each in inputs[:2])
    leaves = inputs._replace(regions=regions, words=words)
    cosine = triton.word_cosines(leaves, options(attention, budget=1))
    once.append(True)
    gradients = torch.autograd.grad(cosine, (regions, words), upstream.to(cosine.dtype))
    for ours, exact in zip(gradients, expected[1:], strict=True):
        assert error(ours, exact, 0.0) <= 1e-4


@pytest.mark.parametrize("budget", [1, 2**26])
@pytest.mark.parametrize("part", ["regions", "words"])
def test_inputs_that_change_before_the_backward_are_refused(part, budget, small_blocks):
    inputs, upstream = draw(2, 2, 20, 9, 8)
    leaves = {name: getattr(inputs, name).requires_grad_() for name in ("regions", "words")}
    # what is no leaf may be changed in place
    changing = {name: leaf * 1 for name, leaf in leaves.items()}
    cosine = triton.word_cosines(inputs._replace(**changing), options(budget=budget))
    changing[part].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(cosine, list(leaves.values()), upstream.to(cosine.dtype))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_upper_bounds_of_the_sizes_do_as_well(attention, small_blocks, monkeypatch):
    """What a captured CUDA graph runs with, for it cannot ask how many words there are."""
    inputs, upstream = draw(2, 2, 20, 9, 8)
    known = differentiate(triton, inputs, upstream, options(attention))
    monkeypatch.setattr(triton, "capturing", lambda _: True)
    for ours, theirs in zip(
        differentiate(triton, inputs, upstream, options(attention)), known, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_the_same_inputs_give_the_same_bits(attention, small_blocks):
    inputs, upstream = draw(2, 2, 20, 9, 8)
    first, second = (differentiate(triton, inputs, upstream, options(attention)) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("sizes", [(0, 3, 5, 4, 8), (2, 0, 5, 4, 8), (0, 0, 5, 4, 8)])
def test_empty_sides(sizes, attention):
    inputs, upstream = draw(*sizes)
    cosine, regions, words = differentiate(triton, inputs, upstream, options(attention))
    assert cosine.shape == (sizes[0], sizes[1], sizes[3])
    assert not regions.any()
    assert not words.any()


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_a_text_or_an_image_without_anything_real_is_zero(attention, small_blocks):
    """Only a compiler's trace lets one through."""
    inputs, upstream = draw(3, 3, 20, 9, 8, masked=True)
    inputs.word_mask[1] = False
    inputs.words[1] = 0
    inputs.region_mask[2] = False
    inputs.regions[2] = 0
    cosine, regions, words = differentiate(triton, inputs, upstream, options(attention))
    assert not cosine[2].any()
    assert not regions[2].any()
    assert not cosine[:, 1].any()
    assert not words[1].any()
    assert cosine[:2, 0].all()
    assert regions.isfinite().all()
    assert words.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_of_zeros_has_no_gradient(dtype, attention, small_blocks):
    """And it leaves the others theirs."""
    inputs, upstream = draw(3, 3, 20, 9, 8, dtype=dtype)
    inputs.regions[2] = 0
    inputs.words[0, 1] = 0
    assert_equals_the_definition(inputs, upstream, options(attention))
    _, regions, words = differentiate(triton, inputs, upstream, options(attention))
    assert not regions[2].any()
    # as one of those that share a region, it has still an influence
    assert words[0, 1].any() == (attention == "words_then_regions")
    assert regions[:2].any()


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_what_is_masked_changes_no_bit(attention, small_blocks):
    inputs, _ = draw(2, 2, 20, 9, 8, masked=True)
    similarity = functools.partial(local_similarity, attention=attention, backend="triton")
    regions = inputs.regions.masked_fill(~inputs.region_mask[..., None], math.nan)
    words = inputs.words.masked_fill(~inputs.word_mask[..., None], math.nan)
    assert torch.equal(similarity(regions, words, *inputs[2:4]), similarity(*inputs[:4]))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_image_or_text_spoils_its_row_or_column_only(bad, attention, small_blocks):
    inputs, _ = draw(2, 3, 20, 9, 8)
    similarity = functools.partial(local_similarity, attention=attention, backend="triton")
    whole = similarity(*inputs[:4])
    for part, axis, index in ((inputs.regions, 0, 1), (inputs.words, 1, 2)):
        kept, value = part.clone(), bad
        part[index, 0, 3] = value
        spoiled = similarity(*inputs[:4])
        part.copy_(kept)
        assert not spoiled.select(axis, index).isfinite().any()
        others = [each for each in range(whole.shape[axis]) if each != index]
        others = torch.tensor(others, device=DEVICE)
        assert torch.equal(spoiled.index_select(axis, others), whole.index_select(axis, others))


def test_regions_that_cancel_give_no_cosine_beyond_1(small_blocks):
    """Of nearly centred regions next to nothing is left, and of its square, rounding only."""
    inputs, _ = draw(2, 3, 40, 9, 8)
    inputs.word_mask[0] = False
    inputs.word_mask[0, 0] = True  # one word attends everywhere alike
    centred = inputs._replace(regions=inputs.regions - inputs.regions.mean(1, keepdim=True))
    cosine = triton.word_cosines(centred, options("words_then_regions"))
    assert cosine.isfinite().all()
    assert cosine.abs().max() <= 1


@pytest.mark.parametrize("known", [True, False])
def test_packing(known):
    """Every real word once, in order, with its length and both tables."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(70, 37, generator=generator) < torch.rand(70, 1, generator=generator)
    mask[3], mask[:, 0] = False, True
    words = torch.randn(70, 37, 5, generator=generator)
    mask, words = mask.to(DEVICE), words.to(DEVICE)
    packed = triton.pack(words, mask, 16, mask.sum(1).tolist() if known else None)
    places = mask.flatten().nonzero()[:, 0]
    real = len(places)
    assert len(packed.words) == len(packed.lengths) == (real if known else mask.numel())
    assert torch.equal(packed.word_of_column[:real].long(), places)
    assert packed.word_of_column[real:].eq(-1).all()
    assert torch.equal(packed.words[:real, :5], words[mask])
    assert not packed.words[:, 5:].any()
    assert not packed.words[real:].any()
    torch.testing.assert_close(packed.lengths[:real], words[mask].norm(dim=1))
    column_of_word = torch.full((70 * 37,), -1, device=DEVICE)
    column_of_word[places] = torch.arange(len(places), device=DEVICE)
    assert torch.equal(packed.column_of_word.long(), column_of_word)
    assert packed.starts.diff().tolist() == mask.sum(1).tolist()


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_is_a_well_behaved_operator(attention, small_blocks):
    inputs, upstream = draw(2, 3, 5, 6, 8, masked=True)
    regions, words = (x.detach().requires_grad_() for x in inputs[:2])
    arguments = (regions, words, *inputs[2:4], attention, 0.25, 2**20)
    torch.library.opcheck(attention_cosine, arguments)
    saved = attention_cosine(*arguments)
    torch.library.opcheck(
        triton.attention_cosine_backward,
        (upstream.float(), *inputs[:4], *(each.detach() for each in saved), attention, 0.25, 2**20),
        # it has no gradient, and says so
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_numbers_of_numpy_and_another_default_device_change_nothing(small_blocks):
    inputs, upstream = draw(3, 2, 5, 6, 8, masked=True)
    expected = differentiate(triton, inputs, upstream, options(budget=2000))
    chosen = options(temperature=numpy.float64(0.25), budget=numpy.int64(2000))
    with torch.device("meta"):
        found = differentiate(triton, inputs, upstream, chosen)
    assert all(torch.equal(*each) for each in zip(found, expected, strict=True))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
def test_compiles_into_one_graph(attention, small_blocks):
    inputs, _ = draw(2, 3, 5, 6, 8)
    regions, words = (x.detach().requires_grad_() for x in inputs[:2])
    similarity = functools.partial(
        local_similarity, word_mask=inputs.word_mask, attention=attention, backend="triton"
    )
    compiled = torch.compile(similarity, fullgraph=True, backend="aot_eager")
    upstream = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for ours, theirs in zip(
        torch.autograd.grad(compiled(regions, words), (regions, words), upstream),
        torch.autograd.grad(similarity(regions, words), (regions, words), upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_takes_half_precision_under_autocast(small_blocks):
    inputs, _ = draw(2, 3, 5, 6, 8, dtype=torch.bfloat16)
    plain = local_similarity(*inputs[:4], backend="triton")
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(local_similarity(*inputs[:4], backend="triton"), plain)
    assert plain.dtype == torch.float32


def test_the_operator_keeps_float32_under_autocast(small_blocks):
    """Where a compiler left autocast on around it."""
    inputs, _ = draw(2, 3, 5, 6, 8)

    def gradient():
        regions = inputs.regions.detach().requires_grad_()
        cosine, *_ = attention_cosine(regions, *inputs[1:4], "regions", 0.25, 2**20)
        return cosine.detach(), *torch.autograd.grad(cosine.sum(), regions)

    plain = gradient()
    with torch.autocast(DEVICE, torch.bfloat16):
        assert all(torch.equal(*each) for each in zip(gradient(), plain, strict=True))


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("budget", [1, 2**26])
def test_nothing_is_read_that_nobody_wrote(budget, captured, attention, small_blocks, monkeypatch):
    """Fresh memory holds NaN here; masks have holes, rows are no whole octets."""
    monkeypatch.setattr(triton, "capturing", lambda _: captured)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # determinism asks for it
    inputs, upstream = draw(2, 3, 21, 9, 5, masked=True)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = differentiate(triton, inputs, upstream, options(attention, budget=budget))
        assert all(each.isfinite().all() for each in found)
    finally:
        torch.use_deterministic_algorithms(deterministic)


def test_a_second_derivative_goes_by_the_definition(small_blocks):
    inputs, upstream = draw(2, 2, 5, 6, 8)

    def second(backend, inputs):
        regions = inputs.regions.requires_grad_()
        cosine = backend.word_cosines(inputs._replace(regions=regions), options())
        (gradient,) = torch.autograd.grad(
            cosine, regions, upstream.to(cosine.dtype), create_graph=True
        )
        return torch.autograd.grad(gradient.square().sum(), regions)[0]

    expected = second(einops, wide(inputs))
    assert error(second(triton, inputs), expected, 1.0) <= 1e-4


def test_a_second_derivative_does_not_see_what_is_masked(small_blocks):
    inputs, _ = draw(2, 3, 5, 6, 8)
    spoiled = inputs.words.masked_fill(~inputs.word_mask[..., None], math.nan)

    def second(words):
        regions, words = inputs.regions.detach().requires_grad_(), words.requires_grad_()
        similarity = local_similarity(regions, words, inputs.word_mask, backend="triton").sum()
        gradients = torch.autograd.grad(similarity, (regions, words), create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in gradients), (regions, words))

    for ours, theirs in zip(second(spoiled), second(inputs.words), strict=True):
        assert torch.equal(ours, theirs)


def test_after_a_backward_nothing_is_held(small_blocks, monkeypatch):
    """A loop that holds on to its last loss would hold the working memory of two batches."""
    matchers, made = [], triton.Matcher.forward

    def spy(self, **how):
        matchers.append(weakref.ref(self))
        found, kept = made(self, **how)
        matchers.append(weakref.ref(kept.scores))
        return found, kept

    monkeypatch.setattr(triton.Matcher, "forward", spy)
    inputs, _ = draw(2, 2, 20, 9, 8)
    similarity = local_similarity(inputs.regions.requires_grad_(), *inputs[1:4], backend="triton")
    assert all(each() is not None for each in matchers)
    similarity.sum().backward()
    assert all(each() is None for each in matchers)


def test_a_second_backward_computes_again(small_blocks):
    inputs, upstream = draw(2, 2, 20, 9, 8, masked=True)
    leaves = [each.detach().requires_grad_() for each in inputs[:2]]
    cosine = triton.word_cosines(MatchingInputs(*leaves, *inputs[2:]), options())
    first, second, third = (
        torch.autograd.grad(cosine, leaves, upstream.to(cosine.dtype), retain_graph=True)
        for _ in range(3)
    )
    for ours, again, theirs in zip(second, third, first, strict=True):
        assert torch.equal(ours, again)
        assert error(ours, theirs.double(), 1.0) <= TOLERANCE[torch.float32][1]


def test_a_second_derivative_of_a_compiled_graph_is_refused(small_blocks):
    inputs, _ = draw(2, 2, 5, 6, 8)
    regions = inputs.regions.requires_grad_()
    cosine, *_ = attention_cosine(regions, *inputs[1:4], "regions", 0.25, 2**20)
    (gradient,) = torch.autograd.grad(cosine.sum(), regions, create_graph=True)
    with pytest.raises(BackendError, match=r"no second derivative. Use backend='einops'"):
        gradient.sum().backward()


def draw_cosines(images, texts, words):
    """Cosines with NaN at padding, a mask whose second text has no word, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    uniform = functools.partial(torch.rand, generator=generator, dtype=torch.float64)
    mask = uniform(texts, words) < 0.6
    mask[:1] = True
    mask[1:2] = False
    cosine = (2 * uniform(images, texts, words) - 1).masked_fill(~mask, math.nan)
    upstream = uniform(texts, images).T  # not contiguous, as of a loss over both directions
    return cosine.to(DEVICE), mask.to(DEVICE), upstream.to(DEVICE)


SOFT_MAXIMA = {False: masked_logsumexp, True: masked_logmeanexp}


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 0.2, 5.0])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 4, 31), (17, 3, 97), (2, 3, 0), (0, 2, 5)])
def test_the_soft_maximum_of_words(sizes, temperature, mean):
    cosine, mask, upstream = draw_cosines(*sizes)
    narrow, wide = (each.requires_grad_() for each in (cosine.float(), cosine.clone()))
    actual = triton.soft_maximum(narrow, mask, temperature, mean=mean)
    expected = SOFT_MAXIMA[mean](wide, mask[None], -1, temperature)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)
    (ours,) = torch.autograd.grad(actual, narrow, upstream.float())
    (theirs,) = torch.autograd.grad(expected, wide, upstream)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6)
    assert not ours.masked_fill(mask, 0.0).any()


@pytest.mark.parametrize("mean", [False, True])
def test_nan_in_a_word_spoils_the_soft_maximum_of_its_pair_only(mean):
    cosine, mask, _ = draw_cosines(3, 4, 40)
    whole = triton.soft_maximum(cosine.float(), mask, 0.2, mean=mean)
    assert whole.isfinite().all()
    cosine[1, 2, mask[2].nonzero()[-1]] = math.nan
    leaf = cosine.float().requires_grad_()
    spoiled = triton.soft_maximum(leaf, mask, 0.2, mean=mean)
    (gradient,) = torch.autograd.grad(spoiled.sum(), leaf)
    for each in (spoiled.isnan(), gradient.isnan().any(-1)):
        assert each.nonzero().tolist() == [[1, 2]]
    others = ~spoiled.isnan()
    assert torch.equal(spoiled[others], whole[others])


@pytest.mark.parametrize("mean", [False, True])
def test_a_second_derivative_of_the_soft_maximum_goes_by_the_definition(mean):
    cosine, mask, upstream = draw_cosines(2, 3, 9)

    def second(reduce, cosine):
        leaves = cosine.requires_grad_(), upstream.to(cosine.dtype).requires_grad_()
        gradients = torch.autograd.grad(reduce(leaves[0]), leaves[0], leaves[1], create_graph=True)
        return torch.autograd.grad(gradients[0].square().sum(), leaves)

    expected = second(lambda r: SOFT_MAXIMA[mean](r, mask[None], -1, 0.2), cosine.clone())
    actual = second(lambda r: triton.soft_maximum(r, mask, 0.2, mean=mean), cosine.float())
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregation", WORD_AGGREGATIONS)
def test_similarities_of_all_aggregations(aggregation, small_blocks):
    inputs, _ = draw(2, 3, 20, 9, 8, masked=True)
    upstream = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).to(DEVICE)

    def found(backend, inputs):
        leaves = [each.detach().requires_grad_() for each in inputs[:2]]
        similarity = local_similarity(
            *leaves, *inputs[2:4], aggregation=aggregation, backend=backend
        )
        return similarity, *torch.autograd.grad(similarity, leaves, upstream.to(similarity.dtype))

    for ours, theirs in zip(found("triton", inputs), found("einops", wide(inputs)), strict=True):
        assert error(ours.detach(), theirs.detach(), 1.0) <= TOLERANCE[torch.float32][1]


@pytest.mark.parametrize("aggregation", WORD_AGGREGATIONS)
def test_a_text_without_a_word_scores_0_in_a_captured_graph(aggregation, monkeypatch, small_blocks):
    """Which has no look at the mask."""
    monkeypatch.setattr("gloria.functional.inputs.capturing", lambda _: True)
    monkeypatch.setattr(triton, "capturing", lambda _: True)
    inputs, _ = draw(2, 3, 20, 9, 8)
    inputs.word_mask[1] = False
    leaves = [each.requires_grad_() for each in inputs[:2]]
    similarity = local_similarity(
        *leaves, inputs.word_mask, aggregation=aggregation, backend="triton"
    )
    regions, words = torch.autograd.grad(similarity.sum(), leaves)
    assert not similarity[:, 1].any()
    assert not words[1].any()
    assert similarity[:, 0].all()
    assert regions.isfinite().all()
    assert words.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("budget", [1, 2**26])
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_changes_nothing_for_the_other(frozen, budget, dtype, small_blocks):
    inputs, upstream = draw(2, 2, 21, 9, 8, masked=True, scale=0.3, dtype=dtype)
    both = differentiate(triton, inputs, upstream, options(budget=budget))[1:]
    leaves = [each.detach() for each in inputs[:2]]
    leaf = leaves[1 - frozen].requires_grad_()
    cosine = triton.word_cosines(MatchingInputs(*leaves, *inputs[2:]), options(budget=budget))
    (gradient,) = torch.autograd.grad(cosine, leaf, upstream.to(cosine.dtype))
    assert torch.equal(gradient, both[1 - frozen])


@pytest.mark.parametrize(("needed", "most"), [((0, 1), 8), ((0,), 6), ((1,), 5)])
def test_launches_are_few(needed, most, launches_of):
    """At the published batch a device waits for the host: each launch counts."""
    launches = launches_of(triton)
    inputs, _ = draw(2, 2, 9, 12, 16)
    leaves = [each.detach() for each in inputs[:2]]
    wanted = [leaves[side].requires_grad_() for side in needed]
    upstream = torch.ones(2, 2, device=DEVICE)
    with launches:
        similarity = local_similarity(*leaves, inputs.word_mask, backend="triton")
    # on a device, the words of each text are read back, and where each text begins goes there
    copies = 0 if DEVICE == "cpu" else 2
    assert len(launches.names) <= 10 + copies, launches.names
    assert launches.names.count("sum") == 1
    assert "_local_scalar_dense" not in launches.names
    launches.names.clear()
    with launches:
        torch.autograd.grad(similarity, wanted, upstream)
    assert len(launches.names) <= most, launches.names


@pytest.mark.parametrize("aggregation", WORD_AGGREGATIONS)
def test_a_similarity_may_be_changed_in_place(aggregation):
    inputs, _ = draw(2, 3, 5, 6, 8, dtype=torch.float32)
    leaf = inputs.regions.clone().requires_grad_()
    how = {"backend": "triton", "aggregation": aggregation}
    local_similarity(leaf, *inputs[1:3], **how).mul_(10.0).sum().backward()
    twin = inputs.regions.clone().requires_grad_()
    (10.0 * local_similarity(twin, *inputs[1:3], **how)).sum().backward()
    torch.testing.assert_close(leaf.grad, twin.grad)


def test_is_chosen_for_a_gpu_only():
    inputs, _ = draw(2, 2, 5, 6, 8)
    problem = Problem.of(inputs.regions, inputs.words, options())
    assert (choose_backend(problem) == "triton") is (DEVICE == "cuda")
    assert choose_backend(problem, "triton") == "triton"
