"""The normalisers of a contrastive loss in blocks; the loss itself is in losses/."""

import pytest
import torch
from tensors import random
from torch.autograd import gradcheck, gradgradcheck

from gloria import contrastive
from gloria.contrastive import cosine_logsumexp
from gloria.functional import (
    contrastive_cross_entropy,
    global_contrastive_loss,
    global_contrastive_terms,
    global_similarity,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(contrastive, "BLOCK_BYTES", 100)


def inputs(images, texts, dim, dtype=torch.float64, tau=0.2):
    """With a zero vector on both sides, and one whose products lie below the clamp."""
    v, t = random(images, dim), random(texts, dim, seed=1)
    v[-1], t[-1] = 0, 0
    v[0] *= 1e-9
    temperature = torch.tensor(tau, dtype=dtype)
    return [each.to(dtype).requires_grad_() for each in (v, t, temperature)]


def whole(v, t, temperature):
    logits = global_similarity(v, t) / temperature
    return logits.logsumexp(1), logits.logsumexp(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("images, texts, dim", [(1, 1, 1), (7, 5, 3), (3, 40, 8), (41, 3, 6)])
def test_any_block_equals_the_whole_matrix(
    images, texts, dim, dtype, assert_values, assert_gradients
):
    narrow, wide = inputs(images, texts, dim, dtype), inputs(images, texts, dim)
    upstream = random(images, seed=2), random(texts, seed=3)
    actual, expected = cosine_logsumexp(*narrow), whole(*wide)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        assert_values(one, other)
    gradients = torch.autograd.grad(actual, narrow, [each.to(dtype) for each in upstream])
    references = torch.autograd.grad(expected, wide, upstream)
    # below the clamp a gradient is of the size of its inverse, 1e8; a zero vector has none
    scales = torch.ones(images, 1), torch.ones(texts, 1), torch.tensor(1.0)
    scales[0][0] = 1e-8
    assert not gradients[0][-1].any()
    assert not gradients[1][-1].any()
    for one, other, scale in zip(gradients, references, scales, strict=True):
        assert_gradients(one * scale, other * scale)


def test_first_and_second_derivatives():
    v, t, temperature = (each.detach() for each in inputs(4, 3, 2))
    v[0], v[-1], t[-1] = random(3, 2, seed=5)  # a finite difference cannot see past the clamp
    leaves = [each.requires_grad_() for each in (v, t, temperature)]
    assert gradcheck(cosine_logsumexp, leaves)
    assert gradgradcheck(cosine_logsumexp, leaves)
    assert gradgradcheck(lambda t: cosine_logsumexp(v.detach(), t, temperature.detach()), leaves[1])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, of its test's copies
def test_is_an_operator_as_compilers_want_it():
    torch.library.opcheck(cosine_logsumexp, inputs(5, 7, 3, torch.float32))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_sum_is_minus_infinity_or_nothing(shape):
    v, t = (torch.zeros(count, 2) for count in shape)
    for actual, expected in zip(
        cosine_logsumexp(v, t, torch.tensor(1.0)), whole(v, t, torch.tensor(1.0)), strict=True
    ):
        assert torch.equal(actual, expected)


def test_a_large_batch_never_holds_the_pair_matrix():
    """Where the loss changes over by itself; the matrix alone would be 4 MiB."""

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            tensors = output if isinstance(output, (tuple, list)) else (output,)
            sizes = [each.numel() for each in tensors if isinstance(each, torch.Tensor)]
            self.elements = max(self.elements, *sizes, 0)
            return output

    v, t = random(1024, 4, dtype=torch.float32), random(1024, 4, seed=1, dtype=torch.float32)
    temperature = torch.tensor(0.1)
    leaves = [each.requires_grad_() for each in (v, t, temperature)]
    with Largest() as largest:
        value = global_contrastive_loss(*leaves[:2], temperature=temperature)
        gradients = torch.autograd.grad(value, leaves)
    assert largest.elements <= 1024 * 4
    terms = contrastive_cross_entropy(global_similarity(v, t), temperature)
    expected = terms.image_to_text + terms.text_to_image
    torch.testing.assert_close(value, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_loss_exports_for_any_batch():
    class Loss(torch.nn.Module):
        def forward(self, v, t):
            return global_contrastive_loss(v, t)

    pair = torch.export.Dim("pair", min=2, max=4096)
    sample = random(6, 3, dtype=torch.float32), random(6, 3, seed=1, dtype=torch.float32)
    exported = torch.export.export(Loss(), sample, dynamic_shapes=({0: pair}, {0: pair})).module()
    for pairs in (3, 1024):
        batch = [random(pairs, 3, seed=seed, dtype=torch.float32) for seed in (2, 3)]
        torch.testing.assert_close(exported(*batch), global_contrastive_loss(*batch))


def test_a_backward_inside_autocast_stays_in_full_precision():
    v, t, _ = inputs(1024, 4, 3, torch.float32)
    t = random(1024, 3, seed=1, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = global_contrastive_terms(v, t).image_to_text
        gradient = torch.autograd.grad(value, t, retain_graph=True)
    assert value.dtype == torch.float32
    torch.testing.assert_close(gradient, torch.autograd.grad(value, t))
