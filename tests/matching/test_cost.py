"""Costs against what runs: counted operations, and tensors that are alive."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gloria.errors import DtypeError, OptionError
from gloria.functional import local_similarity
from gloria.matching import ATTENTION_VARIANTS, MatchingOptions, Problem
from gloria.matching.cost import DEVICES, NUMBERS_PER_COSINE, Device, Work, count

# image, region, text, word, dim; the last has Gram matrices of several strips
SIZES = [(2, 49, 3, 11, 64), (3, 40, 5, 9, 16), (2, 7, 1, 3, 5), (2, 170, 40, 11, 256)]
AMPLE, NONE = 2**40, 1


def problem(sizes, attention="regions", budget=AMPLE, dtype=torch.float32):
    options = MatchingOptions(attention, 0.25, 0.2, "logsumexp", memory_budget=budget)
    return Problem(*sizes, dtype=dtype, device="cpu", options=options)


def inputs(sizes):
    images, regions, texts, words, dim = sizes
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(words) < torch.randint(1, words + 1, (texts, 1), generator=generator)
    leaves = [
        torch.randn(shape, generator=generator).requires_grad_()
        for shape in [(images, regions, dim), (texts, words, dim)]
    ]
    return leaves, mask


IN_PLACE = {
    torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1],
    torch.ops.aten.baddbmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2],
}
"""Products that torch's counter does not know."""


def counted(sizes, **options):
    """Operations of forward and backward, as torch counts them while they run."""
    leaves, mask = inputs(sizes)
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        similarity = local_similarity(*leaves, mask, **options)
        forward = counter.get_total_flops()
        torch.autograd.grad(similarity.sum(), leaves)
    return forward, counter.get_total_flops() - forward, int(mask.sum())


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("budget", [AMPLE, NONE])
@pytest.mark.parametrize("backend", ["einops", "chunked"])
def test_operations_are_those_that_run(backend, budget, sizes, attention):
    """With all or nothing kept for the backward; between them the share is an estimate."""
    options = {"backend": backend, "memory_budget": budget, "attention": attention}
    forward, backward, real_words = counted(sizes, **options)
    cost = count(problem(sizes, attention, budget), backend, real_words)
    assert (cost.forward.operations, cost.backward.operations) == (forward, backward)


@pytest.mark.parametrize("attention", ATTENTION_VARIANTS)
@pytest.mark.parametrize("sizes", [(4, 100, 5, 40, 100), (4, 200, 5, 40, 300), (6, 300, 6, 40, 8)])
def test_memory_of_the_definition_is_what_is_alive_at_its_peak(alive_bytes, sizes, attention):
    leaves, mask = inputs(sizes)
    with alive_bytes(*leaves) as alive:
        similarity = local_similarity(*leaves, mask, attention=attention, backend="einops")
        torch.autograd.grad(similarity.sum(), leaves)
    gradients = sum(4 * leaf.numel() for leaf in leaves)
    expected = count(problem(sizes, attention), "einops").memory
    assert alive.peak - gradients == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("budget", [2**20, 4 * 2**20, AMPLE])
def test_memory_of_the_chunks_is_at_most_the_budget_and_what_they_can_use(alive_bytes, budget):
    sizes = (16, 100, 16, 20, 64)
    leaves, mask = inputs(sizes)
    cost = count(problem(sizes, budget=budget), "chunked", int(mask.sum()))
    with alive_bytes(*leaves) as alive:
        similarity = local_similarity(*leaves, mask, backend="chunked", memory_budget=budget)
        torch.autograd.grad(similarity.sum(), leaves)
    gradients = sum(4 * leaf.numel() for leaf in leaves)
    assert cost.memory <= budget + NUMBERS_PER_COSINE * 4 * 16 * 16 * 20
    assert alive.peak - gradients == pytest.approx(cost.memory, rel=0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(64, 16, 64, 100, 16), (64, 100, 4, 10, 256)])
def test_memory_where_no_text_is_padded_and_of_half_precision(alive_bytes, sizes, dtype):
    """A few numbers of every word and image are most of the first; copies most of the second."""
    (regions, words), mask = inputs(sizes)
    mask = torch.ones_like(mask)
    leaves = [each.detach().to(dtype).requires_grad_() for each in (regions, words)]
    cost = count(problem(sizes, budget=2**21, dtype=dtype), "chunked")
    with alive_bytes(*leaves) as alive:
        similarity = local_similarity(*leaves, mask, backend="chunked", memory_budget=2**21)
        torch.autograd.grad(similarity.sum(), leaves)
    gradients = sum(leaf.nbytes for leaf in leaves)
    assert alive.peak - gradients == pytest.approx(cost.memory, rel=0.2)


def test_what_fits_the_budget_is_not_computed_again():
    sizes = (48, 361, 48, 97, 768)
    costs = [
        count(problem(sizes, budget=budget), "chunked", 1056)
        for budget in (2**24, 2**26, 2**27, AMPLE)
    ]
    operations = [cost.backward.operations for cost in costs]
    assert operations == sorted(operations, reverse=True)
    assert len(set(operations)) == 4
    assert len({cost.forward.operations for cost in costs}) == 1


def test_the_formulas_of_the_kernels():
    """3 images of 10 regions, 7 real words, 16 dim: 3·10·7 pair elements, 3 Gram matrices."""
    cost = count(problem((3, 10, 2, 4, 16), dtype=torch.bfloat16), "triton", 7)
    scores = pulls = 0
    for _ in range(3):
        scores += 2 * 7 * 10 * 16
        pulls += 2 * 7 * 10 * 10
    gram = 3 * 2 * 10 * 10 * 16
    assert cost.forward.operations == scores + pulls + gram
    # the gradient of the Gram matrix, it times regions; score gradient times words, and regions
    assert cost.backward.operations == pulls + gram + 2 * scores
    inputs = 2 * ((30 + 7) * 16 + 3 * 7)
    # float32 scores twice, weights three times, what is attended twice
    assert cost.forward.bytes == inputs + 210 * (2 * 4 + 3 * 2 + 2 * 2)
    # scores, weights and attended once, both gradients there and back, and one of them again, ...
    assert cost.backward.bytes == 2 * inputs + 210 * (4 + 2 * (2 + 2 * 2 + 1 + 1))
    wide = count(problem((3, 10, 2, 4, 16)), "triton", 7)
    assert wide.forward.operations == cost.forward.operations
    assert wide.forward.bytes == 2 * inputs + 210 * 4 * 7


def test_the_kernels_keep_all_or_nothing():
    """Two gradients, weights and what is attended; scores; Gram matrices, theirs, and regions'."""
    of_image = 16 * 7 * (4 + 4 * 2) + 2 * 2 * (16 * 16 + 16 * 16)  # 10 regions in whole octets
    sizes = (3, 10, 2, 4, 16)
    kept, again = (
        count(problem(sizes, budget=budget, dtype=torch.bfloat16), "triton", 7)
        for budget in (3 * of_image, 3 * of_image - 1)
    )
    assert again.forward == kept.forward
    scores_and_pulls = 3 * 2 * 7 * 10 * (16 + 10) + 3 * 2 * 10 * 10 * 16
    assert again.backward.operations == kept.backward.operations + scores_and_pulls
    found = 2 * 4 * 3 * 7  # two numbers for a word and an image, made again, too
    assert kept.memory - again.memory == of_image - found  # two images, then one
    least = count(problem(sizes, budget=1, dtype=torch.bfloat16), "triton", 7)
    assert kept.memory - least.memory == 2 * of_image - found


@pytest.mark.parametrize("backend", ["einops", "chunked", "triton"])
def test_no_images_or_texts_cost_next_to_nothing(backend):
    for sizes in [(0, 5, 3, 4, 2), (3, 5, 0, 4, 2)]:
        cost = count(problem(sizes), backend)
        assert cost.forward.operations <= 2 * 3 * 5**2 * 2


def test_padding_costs_the_definition_and_nobody_else():
    full, mostly_padding = (
        [count(problem((4, 49, 4, 97, 64)), name, real) for name in ("einops", "chunked", "triton")]
        for real in (4 * 97, 4 * 20)
    )
    assert full[0] == mostly_padding[0]
    for more, less in zip(full[1:], mostly_padding[1:], strict=True):
        assert less.forward.operations < 0.3 * more.forward.operations


def test_roofline():
    device = Device(flops=100.0, bandwidth=10.0)
    assert Work(200, 10).seconds(device) == 2
    assert Work(200, 50).seconds(device) == 5
    assert Work(200, 10) + Work(1, 2) == Work(201, 12)
    for rates in DEVICES.values():
        assert all(0 < rate < float("inf") for device in rates.values() for rate in device)
        assert rates[torch.float32].flops < rates[torch.bfloat16].flops / 2
    with pytest.raises(OptionError, match="bandwidth must be a finite number above 0; got 0"):
        Work(1, 1).seconds(Device(1.0, 0.0))


@pytest.mark.parametrize(
    "backend, real_words, error, message",
    [
        ("fused", 3, OptionError, "backend must be one of 'einops', 'chunked', 'triton'; got 'fu"),
        ("einops", -1, OptionError, "real_words must be from 0 to 12; got -1"),
        ("einops", 13, OptionError, "real_words must be from 0 to 12; got 13"),
        ("einops", 1.5, DtypeError, "real_words must be an integer; got 1.5"),
    ],
)
def test_bad_numbers_are_named(backend, real_words, error, message):
    with pytest.raises(error, match=message):
        count(problem((2, 5, 3, 4, 2)), backend, real_words)
