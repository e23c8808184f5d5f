"""Search: the images of a store that fit a text best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gloria.checks import check_integer
from gloria.errors import DataError, OptionError
from gloria.evaluation.embeddings import StoredImages
from gloria.evaluation.features import encode_prompts, evaluating, map_images, pair_similarity
from gloria.model import GLoRIA
from gloria.types import TextFeatures

BLOCK = 256
"""Images whose regions are in memory at a time."""


class Found(NamedTuple):
    """An image that was found, and the model's similarity of it with the text."""

    id: str
    path: Path
    score: float


def search_images(
    model: GLoRIA,
    images: StoredImages,
    text: str,
    *,
    top: int = 10,
    shortlist: int = 200,
    progress: Callable[[int], Any] = lambda compared: None,
) -> list[Found]:
    """The images that fit a text best, best first; among equals the earlier one.

    A model that trains both similarities ranks all images by the global one, exactly, and then the
    best ``shortlist`` of them by :meth:`~gloria.model.GLoRIA.similarity`. A model without a local
    similarity needs no second look; the pooled embeddings of one without a global similarity mean
    nothing, so it looks at every image's regions, and the shortlist is all.

    Args:
        model: the one that ``images`` were stored with, or a copy of it: the scores of other
            weights mean nothing. Evaluated in eval mode.
        images: of :func:`~gloria.evaluation.embeddings.store_images`.
        text: what to look for.
        top: how many images to give, if there are so many.
        shortlist: how many images are compared region by region; at least ``top``.
        progress: called with the number of images compared region by region since the last call.

    Raises:
        OptionError: ``top`` is below 1, or ``shortlist`` below ``top``; or ``images`` were stored
            with another model, or this one was trained since.
        DataError: a similarity is NaN, or the store is damaged.

    Warns:
        UnknownWordWarning: the model's vocabulary lacks a word of the text.
    """
    check_counts(top, shortlist)
    if not images.is_of(model):
        raise OptionError(
            "model must be the one that images were stored with; it has other weights. Store them "
            "with it: store_images(folder, model, ...)."
        )
    texts = encode_prompts(model, [text], stacklevel=3)
    chosen = list(range(len(images)))
    if model.trained_kind != "local":
        scores = _global_scores(model, images, texts)
        if model.trained_kind == "both":
            chosen = sorted(_best(scores, shortlist))
    if model.trained_kind != "global":
        parts = []
        for start in range(0, len(chosen), BLOCK):
            stored = images.features(chosen[start : start + BLOCK])
            block = map_images(stored, lambda each: each.to(model.device))
            parts.append(pair_similarity(model, block, texts, progress=progress)[:, 0].cpu())
        scores = torch.cat(parts)
    if scores.isnan().any():
        raise DataError(f"the model's similarity of {text!r} with an image is NaN.")
    best = _best(scores, top)
    return [
        Found(images.ids[chosen[place]], images.paths[chosen[place]], float(scores[place]))
        for place in best
    ]


def check_counts(top: int, shortlist: int) -> None:
    """Require ``1 <= top <= shortlist``."""
    check_integer("top", top, 1)
    check_integer("shortlist", shortlist)
    if shortlist < top:
        raise OptionError(f"shortlist must be at least top, {top}; got {shortlist}.")


def _global_scores(model: GLoRIA, images: StoredImages, texts: TextFeatures) -> Tensor:
    """Similarity of every image's pooled vector with the text's, ``(image,)``."""
    scores = torch.empty(len(images), device="cpu")
    with evaluating(model):
        for indices, pooled in images.pooled():
            compared = model.global_similarity(pooled.to(model.device), texts.pooled)
            scores[indices] = compared[:, 0].float().cpu()
    return scores


def _best(scores: Tensor, count: int) -> list[int]:
    """The places of the highest scores, highest first; among equals the lower one."""
    best: list[int] = scores.argsort(descending=True, stable=True)[:count].tolist()
    return best
