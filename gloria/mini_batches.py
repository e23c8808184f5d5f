"""A batch encoded some pairs at a time, for a loss of the whole batch.

A contrastive loss wants a large batch, and what an encoder keeps of it for the backward is what
fills a device. So nothing is kept but inputs and features, and the backward encodes each mini-batch
again, one at a time. The gradient is that of the whole batch.

Source: GradCache (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup, RepL4NLP 2021), here by torch's activation checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from gloria.types import ImageFeatures, TextFeatures, TokenizedText

Inputs = TypeVar("Inputs", Tensor, TokenizedText)
Features = TypeVar("Features")


def encode_mini_batches(
    model: nn.Module, encode: Callable[[Inputs], Features], mini_batches: Sequence[Inputs]
) -> list[Features]:
    """What ``encode`` gives of each mini-batch; the backward makes it once more.

    The second time dropout is what it was, and the running statistics of batch norms stay.
    """
    return [
        checkpoint(_repeatable(model, encode), each, use_reentrant=False, preserve_rng_state=False)
        for each in mini_batches
    ]


def split_texts(texts: TokenizedText, size: int) -> list[TokenizedText]:
    """Tokenized texts, ``size`` at a time."""
    return [
        TokenizedText(
            {name: tensor[start : start + size] for name, tensor in texts.inputs.items()},
            texts.word_ids[start : start + size],
            texts.tokens[start : start + size],
        )
        for start in range(0, len(texts.tokens), size)
    ]


def join_images(parts: Sequence[ImageFeatures]) -> ImageFeatures:
    """Features of several batches as those of one; those without a ``region_mask`` are all real."""
    mask = None
    if any(part.region_mask is not None for part in parts):
        mask = torch.cat([_region_mask(part) for part in parts])
    return ImageFeatures(
        torch.cat([part.pooled for part in parts]),
        torch.cat([part.regions for part in parts]),
        parts[0].grid,
        mask,
    )


def join_texts(parts: Sequence[TextFeatures]) -> TextFeatures:
    """Features of several batches as those of one, padded to the longest of all texts."""
    longest = max(part.words.shape[1] for part in parts)
    return TextFeatures(
        torch.cat([part.pooled for part in parts]),
        torch.cat([pad(part.words, (0, 0, 0, longest - part.words.shape[1])) for part in parts]),
        torch.cat([pad(part.word_mask, (0, longest - part.word_mask.shape[1])) for part in parts]),
        [tokens for part in parts for tokens in part.tokens],
    )


def _region_mask(images: ImageFeatures) -> Tensor:
    if images.region_mask is not None:
        return images.region_mask
    return torch.ones_like(images.regions[..., 0], dtype=torch.bool)


def _repeatable(
    model: nn.Module, encode: Callable[[Inputs], Features]
) -> Callable[[Inputs], Features]:
    """``encode``, for one mini-batch: every further call repeats the first."""
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    state: list[Tensor] = []

    def encode_as_before(inputs: Inputs) -> Features:
        if state:
            with _as_before(model, device, state):
                return encode(inputs)
        state.extend(_random_state(device))
        return encode(inputs)

    return encode_as_before


@contextmanager
def _as_before(model: nn.Module, device: torch.device, state: list[Tensor]) -> Iterator[None]:
    """Draw the same random numbers once more, and leave running statistics as they are."""
    norms = [each for each in model.modules() if isinstance(each, _NormBase)]
    kept = [(each.momentum, each.num_batches_tracked) for each in norms]
    now = _random_state(device)
    try:
        _set_random_state(device, state)
        for norm, (_, counted) in zip(norms, kept, strict=True):
            norm.momentum = 0.0
            norm.num_batches_tracked = None if counted is None else counted.clone()
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted
        _set_random_state(device, now)


# not by checkpoint's preserve_rng_state, which on MPS keeps nothing, and says nothing
def _generators(device: torch.device) -> list[ModuleType]:
    """Whose states decide what an encoder draws."""
    if device.type in ("cpu", "meta"):
        return [torch.random]
    return [torch.random, torch.get_device_module(device)]


def _random_state(device: torch.device) -> list[Tensor]:
    with torch.accelerator.device_index(device.index):
        return [each.get_rng_state() for each in _generators(device)]


def _set_random_state(device: torch.device, state: list[Tensor]) -> None:
    with torch.accelerator.device_index(device.index):
        for each, of_it in zip(_generators(device), state, strict=True):
            each.set_rng_state(of_it)
