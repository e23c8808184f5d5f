"""The Triton kernels in Triton's interpreter, on the CPU; run by ``test_triton.py``.

The interpreter has to be chosen before triton is imported, so these tests have a process to
themselves.
"""

import pytest
import torch
from tensors import random, with_gradients
from torch.library import opcheck

from gloria.functional import max_similarities, max_similarity
from gloria.losses import FILIPLoss
from gloria.matching.maxsim import MAXIMA_OVER, MaxSimInputs, einops, triton

OPERATORS = torch.ops.gloria
WHOLE = 2**24
sides = pytest.mark.parametrize("maximum_over", MAXIMA_OVER)


pytestmark = [
    pytest.mark.usefixtures("true_bfloat16"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0"),  # of Triton 3.6
]


@sides
@pytest.mark.parametrize(
    "sizes, budget",  # image, text, region, word, dim
    [
        ((1, 1, 1, 1, 1), WHOLE),
        ((2, 3, 5, 4, 3), 1),
        ((3, 9, 20, 17, 7), WHOLE),  # more than one block of keys, more than one step in a key
        ((3, 9, 20, 17, 7), 50_000),  # blocks of keys one after the other
        ((2, 2, 70, 3, 40), WHOLE),  # more than one block of rows, more than one step in dim
        ((1, 3, 150, 2, 33), WHOLE),  # a key that is longer than a tile
    ],
)
def test_equals_the_definition(
    sizes, maximum_over, budget, make_pairs, assert_values, assert_gradients
):
    pairs = make_pairs(*sizes, masked_regions=sizes[0] > 1, dtype=torch.float32)
    wide = pairs._replace(regions=pairs.regions.double(), words=pairs.words.double())
    options = {"maximum_over": maximum_over, "product": "dot"}
    value, *gradients = with_gradients(
        max_similarity, *pairs, backend="triton", memory_budget=budget, **options
    )
    expected, *references = with_gradients(max_similarity, *wide, backend="einops", **options)
    assert_values(value, expected)
    for actual, reference in zip(gradients, references, strict=True):
        assert_gradients(actual, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@sides
def test_half_precision_multiplies_as_it_is(
    maximum_over, dtype, make_pairs, assert_values, assert_gradients
):
    pairs = make_pairs(3, 4, 9, 5, 16, masked_regions=True, dtype=dtype, scale=0.5)
    wide = pairs._replace(regions=pairs.regions.double(), words=pairs.words.double())
    options = {"maximum_over": maximum_over, "product": "dot"}
    value, *gradients = with_gradients(max_similarity, *pairs, backend="triton", **options)
    expected, *references = with_gradients(max_similarity, *wide, backend="einops", **options)
    assert value.dtype == torch.float32
    assert_values(value, expected)
    for actual, reference in zip(gradients, references, strict=True):
        assert actual.dtype == dtype
        assert_gradients(actual, reference)


def test_weights_beyond_the_range_of_float16_count_in_full(make_pairs, assert_gradients):
    """A loss scaler makes them that large."""
    regions, words, mask, _ = make_pairs(3, 4, 9, 5, 16, dtype=torch.float16, scale=1e-3)
    results = []
    for backend, dtype in (("triton", torch.float16), ("einops", torch.float64)):
        leaves = [each.to(dtype).requires_grad_() for each in (regions, words)]
        value = max_similarity(*leaves, mask, product="dot", backend=backend)
        upstream = 1e5 * torch.arange(1, 13).reshape(3, 4).to(value.dtype)
        results.append(torch.autograd.grad(value, leaves, upstream))
        assert upstream.max() > torch.finfo(torch.float16).max
    for actual, reference in zip(*results, strict=True):
        assert_gradients(actual, reference)


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that ran."""
    names = []

    class Spy:
        def __getattr__(self, name):
            names.append(name)
            return getattr(kernels, name)

    kernels = triton.kernels()
    monkeypatch.setattr(triton, "kernels", Spy)
    return names


@sides
@pytest.mark.parametrize("budget", [1, WHOLE])
@pytest.mark.parametrize("needs", ["regions", "words"])
def test_a_frozen_side_costs_nothing(needs, budget, maximum_over, make_pairs, launched):
    pairs = make_pairs(3, 4, 6, 5, 7, masked_regions=True, dtype=torch.float32)
    options = {"maximum_over": maximum_over, "backend": "triton", "memory_budget": budget}
    expected = dict(
        zip(
            ("regions", "words"), with_gradients(max_similarity, *pairs, **options)[1:], strict=True
        )
    )
    launched.clear()
    leaf = getattr(pairs, needs).detach().requires_grad_()
    value = max_similarity(*pairs._replace(**{needs: leaf}), **options)
    value.backward(random(*value.shape, seed=99).to(value.dtype))
    assert torch.equal(leaf.grad, expected[needs])
    searched = needs == maximum_over
    assert ("key_gradient" in launched, "list_rows" in launched) == (searched, searched)
    assert ("query_gradient" in launched) == (not searched)


def test_a_training_step_is_four_launches(make_pairs, launched):
    pairs = make_pairs(3, 4, 6, 5, 7, masked_regions=True, dtype=torch.float32)
    with_gradients(max_similarity, *pairs, backend="triton")
    assert launched == ["sum_maxima", "list_rows", "query_gradient", "key_gradient"]
    launched.clear()
    with_gradients(max_similarity, *pairs[:2], None, backend="triton")  # nothing to list
    assert launched == ["sum_maxima", "query_gradient", "key_gradient"]


def test_both_sides_are_what_each_is(make_pairs, assert_values, assert_gradients):
    pairs = make_pairs(3, 4, 20, 17, 7, masked_regions=True, dtype=torch.float32)

    def stacked(*inputs, **options):
        over_regions, over_words = max_similarities(*inputs, **options)
        return torch.stack([over_regions, over_words])

    wide = pairs._replace(regions=pairs.regions.double(), words=pairs.words.double())
    value, *gradients = with_gradients(stacked, *pairs, backend="triton")
    expected, *references = with_gradients(stacked, *wide, backend="einops")
    assert_values(value, expected)
    for actual, reference in zip(gradients, references, strict=True):
        assert_gradients(actual, reference)


def test_a_step_of_filip_reads_each_mask_once(make_pairs, launches_of, monkeypatch):
    """Each look is a wait for the device; and vectors are normalised once."""
    pairs = make_pairs(3, 3, 6, 5, 7, masked_regions=True, dtype=torch.float32)
    for each in pairs[:2]:
        each.requires_grad_()
    looks, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: looks.append(1) or tolist(self))
    launches = launches_of(triton)
    with launches:
        loss = FILIPLoss(backend="triton", learnable=False)(*pairs)
    assert len(looks) == 2
    assert "_local_scalar_dense" not in launches.names
    assert launches.names.count("sum_maxima") == 2
    assert launches.names.count("linalg_vector_norm") == 4  # of either side, its zeros found first
    launches.names.clear()
    with launches:
        loss.backward()
    assert "_local_scalar_dense" not in launches.names
    assert len(looks) == 2
    for kernel in ("list_rows", "query_gradient", "key_gradient"):
        assert launches.names.count(kernel) == 2


@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_real_rows_are_listed_in_order(share):
    mask = torch.rand(7, 333, generator=torch.Generator().manual_seed(0)) < share
    count, *listed = triton.real_rows(mask).tolist()
    assert listed[:count] == mask.flatten().nonzero().flatten().tolist()


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@sides
def test_padding_is_exactly_inert(maximum_over, make_pairs):
    pairs = make_pairs(3, 4, 6, 5, 7, masked_regions=True, dtype=torch.float32)
    # of a plain product nothing clears the padding before the kernels
    options = {"maximum_over": maximum_over, "backend": "triton", "product": "dot"}
    dirty = pairs._replace(
        regions=pairs.regions.masked_fill(~pairs.region_mask[..., None], torch.nan),
        words=pairs.words.masked_fill(~pairs.word_mask[..., None], torch.nan),
    )
    for clean, changed in zip(
        with_gradients(max_similarity, *pairs, **options),
        with_gradients(max_similarity, *dirty, **options),
        strict=True,
    ):
        assert torch.equal(clean, changed)


# the interpreter multiplies with numpy, which warns
@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@sides
def test_a_bad_item_spoils_its_own_row_or_column_only(maximum_over, bad, make_pairs):
    regions, words, mask, _ = make_pairs(3, 4, 6, 5, 7, dtype=torch.float32)
    regions[1, 2], words[2, 0] = bad, bad
    options = {"maximum_over": maximum_over, "backend": "triton", "product": "dot"}
    finite = max_similarity(regions, words, mask, **options).isfinite()
    expected = torch.ones(3, 4, dtype=torch.bool)
    expected[1], expected[:, 2] = False, False
    assert torch.equal(finite, expected)


def test_of_equal_maxima_the_first_takes_the_gradient():
    regions = torch.ones(1, 40, 1)
    words, mask = torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    _, gradient, _ = with_gradients(
        max_similarity, regions, words, mask, product="dot", backend="triton"
    )
    assert gradient.flatten().nonzero().flatten().tolist() == [0]


@sides
@pytest.mark.parametrize("budget", [1, 500])
def test_winners_kept_or_found_again_are_the_same(budget, maximum_over, make_pairs):
    """To rounding: another number of keys at a time is another order of sums."""
    pairs = make_pairs(3, 4, 6, 5, 7, masked_regions=True, dtype=torch.float32)
    options = {"maximum_over": maximum_over, "backend": "triton"}
    kept = with_gradients(max_similarity, *pairs, **options)
    for one, other in zip(
        kept, with_gradients(max_similarity, *pairs, memory_budget=budget, **options), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_real_tokens_stand_anywhere(make_pairs):
    """Tokens behind the last one are skipped; before it there may be gaps."""
    regions, words, word_mask, region_mask = make_pairs(2, 3, 70, 40, 5, masked_regions=True)
    region_mask[:], word_mask[:] = False, False
    region_mask[0, [3, 69]], region_mask[1, 2] = True, True
    word_mask[0, 39], word_mask[1, [0, 33]], word_mask[2, 7] = True, True, True
    pairs = regions.float(), words.float(), word_mask, region_mask
    options = {"product": "dot", "reduction": "sum"}
    for actual, expected in zip(
        with_gradients(max_similarity, *pairs, backend="triton", **options),
        with_gradients(max_similarity, *pairs, backend="einops", **options),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_items_without_a_real_token_score_zero(make_pairs):
    """Only a compiler's trace lets them pass."""
    pairs = make_pairs(3, 4, 6, 5, 7, masked_regions=True, dtype=torch.float32)
    pairs.word_mask[1], pairs.region_mask[2] = False, False
    words = pairs.words.masked_fill(~pairs.word_mask[..., None], 0).requires_grad_()
    regions = pairs.regions.masked_fill(~pairs.region_mask[..., None], 0).requires_grad_()
    results = []
    for backend in (triton, einops):
        inputs = MaxSimInputs(words, regions, pairs.word_mask, pairs.region_mask)
        scores = backend.summed_maxima(inputs, WHOLE)
        results.append((scores, *torch.autograd.grad(scores.square().sum(), (words, regions))))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@sides
@pytest.mark.parametrize("images, texts", [(0, 3), (2, 0), (0, 0)])
def test_an_empty_batch_gives_an_empty_matrix(images, texts, maximum_over):
    mask = torch.ones(texts, 3, dtype=torch.bool)
    value, *gradients = with_gradients(
        max_similarity, torch.zeros(images, 5, 4), torch.zeros(texts, 3, 4), mask, backend="triton"
    )
    assert value.shape == (images, texts)
    assert not any(gradient.any() for gradient in gradients)


@sides
@pytest.mark.parametrize("budget", [1, WHOLE])
def test_nothing_is_read_that_nobody_wrote(budget, maximum_over, make_pairs):
    """Fresh memory holds NaN here, and the largest integers."""
    pairs = make_pairs(3, 4, 21, 9, 5, masked_regions=True, dtype=torch.float32)
    options = {"maximum_over": maximum_over, "backend": "triton", "memory_budget": budget}
    expected = with_gradients(max_similarity, *pairs, **options)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        actual = with_gradients(max_similarity, *pairs, **options)
    finally:
        torch.use_deterministic_algorithms(deterministic)
    assert all(torch.equal(*each) for each in zip(actual, expected, strict=True))


@sides
def test_a_second_backward_is_the_first(maximum_over, make_pairs):
    pairs = make_pairs(3, 4, 6, 5, 7, masked_regions=True, dtype=torch.float32)
    leaves = [each.detach().requires_grad_() for each in pairs[:2]]
    value = max_similarity(*leaves, *pairs[2:], maximum_over=maximum_over, backend="triton")
    first, second = (torch.autograd.grad(value.sum(), leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(*each) for each in zip(first, second, strict=True))


# opcheck itself looks at the gradients of tensors that are no leaves
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_is_an_operator(make_pairs):
    pairs = make_pairs(2, 2, 3, 3, 4, masked_regions=True, dtype=torch.float32)
    inputs = (pairs.words, pairs.regions, pairs.word_mask, pairs.region_mask)
    leaves = [each.clone().requires_grad_() for each in inputs[:2]]
    opcheck(OPERATORS.maxsim_triton, (*leaves, *inputs[2:], True, WHOLE))
    scores, winners = OPERATORS.maxsim_triton(*inputs, True, WHOLE)
    for needs in ([True, True], [True, False], [False, True]):
        arguments = torch.ones_like(scores), *inputs, winners, needs, WHOLE
        opcheck(OPERATORS.maxsim_triton_backward, arguments)


def test_compiles_in_one_graph(make_pairs):
    pairs = make_pairs(2, 3, 5, 4, 6, dtype=torch.float32)
    compiled = torch.compile(max_similarity, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(*pairs, backend="triton"), max_similarity(*pairs, backend="einops")
    )
