"""The normalisers of a large contrastive loss, without the matrix that they normalise.

Symmetric InfoNCE on embeddings needs two vectors of the (image, text) logits and their diagonal:
the log-sum-exp of every row and of every column. Here the logits are made, used and thrown away in
blocks of rows, forward and again backward: 4 matrix products instead of 3, and a few blocks of
memory instead of ten matrices.

With ``z = cos / τ``, ``cos = <v, t> / max(‖v‖·‖t‖, 1e-8)`` and upstream gradients ``g`` (rows),
``h`` (columns)::

    dz_kn  = g_k · exp(z_kn - row_k) + h_n · exp(z_kn - column_n)
    dτ     = -Σ dz·z / τ
    dv_k   = Σ_n dz_kn / (τ·max(‖v_k‖·‖t_n‖, 1e-8)) · t_n  -  v_k / ‖v_k‖² · Σ_n dz_kn·z_kn

where the last sum leaves out pairs at the clamp; ``dt_n`` likewise. A zero vector's cosines are 0,
without a gradient.

It is an operator (``torch.ops.gloria``), so that a compiler takes it as one node instead of
unrolling its loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from gloria.matching.problem import (
    EPS,
    by_definition,
    cosine_divisor,
    full_precision,
    out_of_reach,
)

BLOCK_BYTES = 8 * 2**20
"""Size of a block of logits on a CPU, whose cache it suits; about six are alive at a time."""

BLOCK_BYTES_OF_ACCELERATORS = 64 * 2**20
"""The same elsewhere, where many small launches would cost more than their work."""


@torch.library.custom_op("gloria::cosine_logsumexp", mutates_args=())
def cosine_logsumexp(
    image_embeddings: Tensor, text_embeddings: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of ``cos / temperature`` over texts and over images, ``(image,)``, ``(text,)``.

    All three in float32 or float64, the temperature without an axis.
    """
    over_texts = image_embeddings.new_empty(len(image_embeddings))
    over_images = text_embeddings.new_full((len(text_embeddings),), -torch.inf)
    for rows, logits, _ in _blocks(image_embeddings, text_embeddings, temperature):
        over_texts[rows] = logits.logsumexp(1)
        over_images = torch.logaddexp(over_images, logits.logsumexp(0))
    return over_texts, over_images


@cosine_logsumexp.register_fake
def _(images: Tensor, texts: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    return images.new_empty(images.shape[0]), texts.new_empty(texts.shape[0])


@torch.library.custom_op("gloria::cosine_logsumexp_backward", mutates_args=())
def _gradients(
    upstream_texts: Tensor,
    upstream_images: Tensor,
    images: Tensor,
    texts: Tensor,
    temperature: Tensor,
    over_texts: Tensor,
    over_images: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for the three inputs of :func:`cosine_logsumexp`."""
    d_images, d_texts = torch.empty_like(images), torch.zeros_like(texts)
    pull_images, pull_texts = torch.empty_like(over_texts), torch.zeros_like(over_images)
    d_temperature = torch.zeros_like(temperature)
    for rows, logits, norms in _blocks(images, texts, temperature):
        d_logits = (logits - over_texts[rows, None]).exp_().mul_(upstream_texts[rows, None])
        d_logits += (logits - over_images).exp_().mul_(upstream_images)
        pull = logits.mul_(d_logits)
        d_temperature -= pull.sum() / temperature
        pull.masked_fill_(norms <= EPS, 0.0)
        pull_images[rows] = pull.sum(1)
        pull_texts += pull.sum(0)
        d_products = d_logits.div_(norms.mul_(temperature))
        d_images[rows] = d_products @ texts
        d_texts.addmm_(d_products.T, images[rows])
    d_images -= _through_norms(pull_images, images)
    d_texts -= _through_norms(pull_texts, texts)
    return d_images, d_texts, d_temperature


@_gradients.register_fake
def _(_: Tensor, __: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(each) for each in inputs[:3])


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    if out_of_reach(upstream[0]):
        inputs = ctx.saved_tensors[:3]
        return tuple(by_definition(_definition, inputs, ctx.needs_input_grad, upstream))
    with full_precision(upstream[0]):
        gradients: tuple[Tensor, ...] = _gradients(*upstream, *ctx.saved_tensors)
        return gradients


def _definition(images: Tensor, texts: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`cosine_logsumexp` gives, with the whole matrix."""
    _, logits = _logits(images, texts, temperature)
    return logits.logsumexp(1), logits.logsumexp(0)


cosine_logsumexp.register_autograd(_backward, setup_context=_save)


def _blocks(
    images: Tensor, texts: Tensor, temperature: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of rows, each with its logits and the clamped products of norms."""
    step = _rows_per_block(texts)
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        norms, logits = _logits(images[rows], texts, temperature)
        yield rows, logits, norms


def _rows_per_block(texts: Tensor) -> int:
    size = BLOCK_BYTES if texts.device.type == "cpu" else BLOCK_BYTES_OF_ACCELERATORS
    return max(1, size // (max(len(texts), 1) * texts.element_size()))


def _through_norms(pull: Tensor, vectors: Tensor) -> Tensor:
    """``pull · v / ‖v‖²``, without the square, which could underflow; 0 for a zero vector."""
    norms = vector_norm(vectors, dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    through: Tensor = vectors / norms * (pull[:, None] / norms)
    return through


def _logits(images: Tensor, texts: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """``cos / τ``, and the divisors of the cosines in it."""
    norms = vector_norm(images, dim=1)[:, None] * vector_norm(texts, dim=1)
    norms = cosine_divisor(norms)
    # one by one: a temperature's gradient would be 0 times the infinite divisor of a zero vector
    return norms, images @ texts.T / norms / temperature
