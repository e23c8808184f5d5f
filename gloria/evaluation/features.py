"""Features and similarities of whole data sets, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from gloria.data.images import normalize
from gloria.model import GLoRIA
from gloria.types import ImageFeatures, TextFeatures


@torch.no_grad()
def encode_images(model: GLoRIA, images: Sequence[Tensor], batch_size: int = 64) -> ImageFeatures:
    """Projected features of many images.

    Args:
        model: put it in eval mode first.
        images: each ``(channel, height, width)`` in [0, 1], all of one size; normalised here.
        batch_size: images encoded at a time; it does not change the result.
    """
    parts = []
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


@torch.no_grad()
def encode_texts(model: GLoRIA, texts: Sequence[str], batch_size: int = 64) -> TextFeatures:
    """Projected features of many texts, padded to the longest; ``model`` in eval mode."""
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


@torch.no_grad()
def pair_similarity(
    model: GLoRIA,
    images: ImageFeatures,
    texts: TextFeatures,
    kind: Literal["global", "local", "both"] = "both",
    block: int = 32,
) -> Tensor:
    """Similarity of every image with every text, ``(image, text)``.

    ``block`` images and texts at a time; texts of like length together, since padding costs as
    much as words.
    """
    order = texts.word_mask.sum(1).argsort()
    columns = []
    for chosen in order.split(block):
        part = select_texts(texts, chosen.tolist())
        longest = max(len(tokens) for tokens in part.tokens)
        part = part._replace(words=part.words[:, :longest], word_mask=part.word_mask[:, :longest])
        rows = [
            model.similarity(select_images(images, slice(start, start + block)), part, kind)
            for start in range(0, len(images.pooled), block)
        ]
        columns.append(torch.cat(rows))
    return torch.cat(columns, dim=1)[:, order.argsort()]


def select_images(images: ImageFeatures, index: slice | Tensor) -> ImageFeatures:
    """The features of some of the images."""
    return ImageFeatures(
        images.pooled[index],
        images.regions[index],
        images.grid,
        None if images.region_mask is None else images.region_mask[index],
    )


def select_texts(texts: TextFeatures, index: Iterable[int]) -> TextFeatures:
    """The features of some of the texts."""
    chosen = list(index)
    return TextFeatures(
        texts.pooled[chosen],
        texts.words[chosen],
        texts.word_mask[chosen],
        [texts.tokens[i] for i in chosen],
    )
