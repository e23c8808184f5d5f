"""Features and similarities of whole data sets, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gloria.checks import check_integer
from gloria.data.images import normalize
from gloria.errors import DataError
from gloria.model import GLoRIA
from gloria.types import ImageFeatures, TextFeatures


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside: eval mode, no gradients. Afterwards each module is in the mode it came in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        # one by one: a frozen part of a model in training is in eval mode
        for module, mode in training.items():
            module.training = mode


def encode_images(model: GLoRIA, images: Sequence[Tensor], batch_size: int = 64) -> ImageFeatures:
    """Projected features of many images, in eval mode whatever mode the model is in.

    Args:
        model: any; its modes are left as they were.
        images: each ``(channel, height, width)`` in [0, 1], all of one size; normalised here.
        batch_size: images encoded at a time; it does not change the result.

    Returns:
        ``pooled (image, dim)`` and ``regions (image, region, dim)``, on the model's device and
        without gradients.

    Raises:
        DataError: there is no image.
        OptionError: ``batch_size`` is below 1.
    """
    check_integer("batch_size", batch_size, 1)
    if not len(images):
        raise DataError("images must hold at least one image; there is nothing to encode.")
    parts = []
    with evaluating(model):
        for start in range(0, len(images), batch_size):
            batch = torch.stack(list(images[start : start + batch_size])).to(model.device)
            parts.append(model.encode_image(normalize(batch, model.image_encoder.image_input)))
    masks = [part.region_mask for part in parts if part.region_mask is not None]
    return ImageFeatures(
        torch.cat([part.pooled for part in parts]),
        torch.cat([part.regions for part in parts]),
        parts[0].grid,
        torch.cat(masks) if masks else None,
    )


def encode_texts(model: GLoRIA, texts: Sequence[str], batch_size: int = 64) -> TextFeatures:
    """Projected features of many texts, in eval mode whatever mode the model is in.

    Args:
        model: any; its modes are left as they were.
        texts: strings.
        batch_size: texts encoded at a time; it does not change the features of real words.

    Returns:
        ``pooled (text, dim)`` and ``words (text, word, dim)``, padded to the longest of all texts,
        on the model's device and without gradients.

    Raises:
        DataError: there is no text.
        OptionError: ``batch_size`` is below 1.
    """
    check_integer("batch_size", batch_size, 1)
    if not len(texts):
        raise DataError("texts must hold at least one text; there is nothing to encode.")
    with evaluating(model):
        parts = [
            model.encode_text(texts[start : start + batch_size])
            for start in range(0, len(texts), batch_size)
        ]
    longest = max(part.words.shape[1] for part in parts)
    return TextFeatures(
        torch.cat([part.pooled for part in parts]),
        torch.cat([pad(part.words, (0, 0, 0, longest - part.words.shape[1])) for part in parts]),
        torch.cat([pad(part.word_mask, (0, longest - part.word_mask.shape[1])) for part in parts]),
        [tokens for part in parts for tokens in part.tokens],
    )


def pair_similarity(
    model: GLoRIA,
    images: ImageFeatures,
    texts: TextFeatures,
    kind: Literal["global", "local", "both"] | None = None,
    block: int = 32,
) -> Tensor:
    """Similarity of every image with every text, in bounded memory.

    The same as ``model.similarity(images, texts, kind)`` in eval mode and without gradients, for
    ``block`` images at a time; the local matching of these keeps to its own ``memory_budget``.

    Args:
        model: any; its modes are left as they were.
        images: of :func:`encode_images`, at least one.
        texts: of :func:`encode_texts`, at least one.
        kind: as in :meth:`~gloria.model.GLoRIA.similarity`.
        block: images at a time; it does not change the result.

    Returns:
        ``(image, text)``, both in the order given.

    Raises:
        OptionError: ``kind`` is unknown or not in the model's loss, or ``block`` below 1.
        DataError: there is no image or no text.
    """
    check_integer("block", block, 1)
    for name, features in (("images", images), ("texts", texts)):
        if not len(features.pooled):
            raise DataError(f"{name} must hold at least one; there is nothing to compare.")
    with evaluating(model):
        rows = [
            model.similarity(select_images(images, slice(start, start + block)), texts, kind)
            for start in range(0, len(images.pooled), block)
        ]
    return torch.cat(rows)


def select_images(images: ImageFeatures, index: slice | Tensor) -> ImageFeatures:
    """The features of some of the images, ``region_mask`` with them.

    Args:
        images: of ``image`` images.
        index: a slice, or ``(chosen,)`` integers or ``(image,)`` booleans on the features' device.

    Returns:
        ``pooled (chosen, dim)`` and ``regions (chosen, region, dim)``, in the order of ``index``.

    Raises:
        IndexError: an index is beyond the last image.
    """
    return ImageFeatures(
        images.pooled[index],
        images.regions[index],
        images.grid,
        None if images.region_mask is None else images.region_mask[index],
    )


def select_texts(texts: TextFeatures, index: Iterable[int]) -> TextFeatures:
    """The features of some of the texts, ``tokens`` with them.

    Args:
        texts: of ``text`` texts.
        index: which, in any order; one may come twice.

    Returns:
        ``pooled (chosen, dim)`` and ``words (chosen, word, dim)``, as wide as before, in the order
        of ``index``.

    Raises:
        IndexError: an index is beyond the last text.
    """
    chosen = list(index)
    return TextFeatures(
        texts.pooled[chosen],
        texts.words[chosen],
        texts.word_mask[chosen],
        [texts.tokens[i] for i in chosen],
    )
