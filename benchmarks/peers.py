"""What is measured side by side: the definition, the published code, a compiler, ours, and a floor.

| peer | what |
|---|---|
| `definition` | the einops backend, padded |
| `compiled` | `torch.compile` of it |
| `published` | the loop of the published code over captions, written anew from its formulas |
| `chunked`, `triton` | ours, those that can run |
| `chunked-compiled` | `torch.compile` of `chunked` |
| `products` | the matrix products that ours cannot avoid, and nothing else: a floor |
| `matrix`, `blocks` | the global loss on its pair matrix, and ours without one |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from workloads import Inputs, Workload

from gloria.functional import global_contrastive_loss, local_similarity, pair_losses
from gloria.matching import BACKENDS
from gloria.matching.chunked import (
    CACHE_TILE,
    add_symmetric,
    gram_is_cheaper,
    mirror,
    whole_lines,
)

Run = Callable[[], list[Tensor]]
"""Computes once; returns the result and, in mode fwdbwd, the gradients."""


def local_peers(inputs: Inputs, workload: Workload, attention: str, mode: str) -> dict[str, Run]:
    """The peers of local matching that can run these inputs."""
    problem = workload.problem(attention, inputs.regions.device.type, inputs.regions.dtype)
    peers: dict[str, Run] = {
        name: run_of(partial(similarity, attention=attention), inputs, mode)
        for name, similarity in SIMILARITIES.items()
        if name not in BACKENDS or not BACKENDS[name].reasons_not_supported(problem)
    }
    return peers | {"products": partial(products, inputs, mode)}


def run_of(similarity: Callable[..., Tensor], inputs: tuple[Any, ...], mode: str) -> Run:
    """The similarity, and in mode fwdbwd the gradients of a weighted sum, its weights drawn now.

    Args:
        similarity: a function of the inputs.
        inputs: two batches of vectors, and what else it takes.
        mode: ``"fwd"`` or ``"fwdbwd"``.
    """
    shape = len(inputs[0]), len(inputs[1])
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].device)

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [similarity(*inputs)]

    def forward_backward() -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in inputs[:2]]
        pairs = similarity(*leaves, *inputs[2:])
        return [pairs.detach(), *torch.autograd.grad(pairs, leaves, upstream.to(pairs.dtype))]

    return forward if mode == "fwd" else forward_backward


def published(regions: Tensor, words: Tensor, word_mask: Tensor, attention: str) -> Tensor:
    """Local similarity as the published code computes it: one caption after the other.

    Each caption is repeated for every image; log of the sum of exp(5 cosine). Our own writing of
    its formulas; it has no ``"regions"`` attention, which here leaves out its first softmax.
    """
    columns = []
    for text, mask in zip(words, word_mask, strict=True):
        caption = text[mask].expand(len(regions), -1, -1)
        scores = torch.bmm(regions, caption.mT)
        if attention == "words_then_regions":
            scores = scores.softmax(2)
        attended = torch.bmm((4 * scores.mT).softmax(2), regions)
        columns.append((5 * cosine_similarity(caption, attended, dim=2)).exp().sum(1).log() / 5)
    return torch.stack(columns, dim=1)


def products(inputs: Inputs, mode: str) -> list[Tensor]:
    """The matrix products of the chunked backend, on tiles of the same size, recomputing nothing.

    Their operands are whatever is at hand; only their shapes, and where their rows are, matter.
    """
    regions, words = inputs.regions, inputs.words[inputs.word_mask]
    images, across, dim = regions.shape
    tile = CACHE_TILE // 4 if regions.device.type == "cpu" else 2**24
    together = max(1, min(images, tile // (len(words) * across)))
    use_gram = gram_is_cheaper(across, len(words), dim)
    grad_words, grad_regions = torch.zeros_like(words), torch.empty_like(regions)
    for start in range(0, images, together):
        here = slice(start, start + together)
        part, grads = regions[here], grad_regions[here]
        flat = part.flatten(0, 1)
        scores, pulls = (on_lines(words, len(words), len(flat)) for _ in range(2))
        by_image, pulls = (  # image, word, region
            each.unflatten(1, part.shape[:2]).transpose(0, 1) for each in (scores, pulls)
        )
        torch.mm(words, flat.mT, out=scores)
        if use_gram:
            gram = part.new_empty(len(part), across, across)
            add_symmetric(gram, part, part.mT, beta=0)
            torch.bmm(by_image, mirror(gram), out=pulls)
        else:
            attended = torch.bmm(by_image, part)
        if mode == "fwd":
            continue
        grad_words.addmm_(scores, flat)
        torch.mm(scores.mT, words, out=grads.flatten(0, 1))
        if use_gram:
            add_symmetric(gram, by_image.mT, by_image)
            grads.baddbmm_(mirror(gram), part)
        else:
            torch.bmm(attended, part.mT, out=pulls)
            grads.baddbmm_(by_image.mT, attended)
    return []


def on_lines(like: Tensor, rows: int, columns: int) -> Tensor:
    """Room for a result whose rows are on cache lines."""
    return like.new_empty(rows, whole_lines(columns, like.element_size()))[:, :columns]


def global_peers(pairs: int, device: str, dtype: torch.dtype) -> dict[str, Run]:
    """The global loss with a learned temperature, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(pairs, 512, generator=generator).to(device, dtype) for _ in range(2)]
    leaves.append(torch.tensor(0.1, device=device))

    def run(keep_matrix: bool) -> list[Tensor]:
        for leaf in leaves:
            leaf.requires_grad_()
        changeover = pair_losses.LEAN_FROM
        pair_losses.LEAN_FROM = pairs**2 + 1 if keep_matrix else 0
        try:
            loss = global_contrastive_loss(*leaves[:2], temperature=leaves[2])
        finally:
            pair_losses.LEAN_FROM = changeover
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    return {"matrix": partial(run, True), "blocks": partial(run, False)}


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Values and gradients agree, to a share of the largest."""
    for one, other in zip(actual, expected, strict=True):
        share = 3e-2 if torch.bfloat16 in (one.dtype, other.dtype) else 1e-3
        largest = float(other.abs().max())
        torch.testing.assert_close(one.float(), other.float(), rtol=share, atol=share * largest)


@cache
def _compiled(attention: str, backend: str) -> Callable[..., Tensor]:
    similarity = partial(local_similarity, attention=attention, backend=backend)
    return torch.compile(similarity, fullgraph=True, dynamic=False)


def compiled(regions: Tensor, words: Tensor, word_mask: Tensor, **options: str) -> Tensor:
    """A compiled backend, ``options`` its name and the attention."""
    return _compiled(**options)(regions, words, word_mask)


SIMILARITIES: dict[str, Callable[..., Tensor]] = {
    "definition": partial(local_similarity, backend="einops"),
    "compiled": partial(compiled, backend="einops"),
    "published": published,
    **{name: partial(local_similarity, backend=name) for name in BACKENDS if name != "einops"},
    "chunked-compiled": partial(compiled, backend="chunked"),
}
"""Peers of local matching: functions of regions, words and word mask, and of ``attention=``.

What is added here is a peer in ``measure.py``, its tables and ``pytest benchmarks``.
"""
