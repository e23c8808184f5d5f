"""What a model has learned, measured on the phantoms: retrieval, zero-shot, where words attend.

It shows that training works and where words attend. It is no evidence about real radiographs, nor
for or against any paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gloria.data.phantom import (
    FINDINGS,
    RETRIEVAL_CLASSES,
    Mention,
    PhantomItem,
    phantom_prompts,
    split_words,
)
from gloria.errors import DataError
from gloria.evaluation.classification import accuracy
from gloria.evaluation.features import (
    encode_images,
    encode_texts,
    evaluating,
    pair_similarity,
    select_images,
    select_texts,
)
from gloria.evaluation.grounding import attention_auroc, correct_side, pointing_hit
from gloria.evaluation.retrieval import class_relevance, precision_at_k
from gloria.evaluation.zero_shot import zero_shot_scores
from gloria.model import GLoRIA
from gloria.types import ImageFeatures, TextFeatures

TOLERANCE = 4
"""Pixels, at 64: how near a mask a peak must be to count (half a region of the small encoder)."""


class Example(NamedTuple):
    """A mention of a finding in an item's report, and another item that mentions it, as control."""

    item: int
    other: int
    mention: Mention


def evaluate_gallery(
    model: GLoRIA, items: Sequence[PhantomItem], ks: Sequence[int] = (5, 10, 100)
) -> dict[str, Any]:
    """Retrieval and zero-shot classification on a 5xN set; chance is 0.2 for all of them.

    Args:
        model: any; evaluated in eval mode, its modes are left as they were.
        items: a 5xN split, each item with exactly one of the five findings.
        ks: the K of precision@K; those above the number of items are left out.

    Returns:
        ``image_to_text`` and ``text_to_image`` precision@K, each ``{K: figure}``, and
        ``zero_shot_accuracy``: the mean over each class's prompts, an image at a time.
    """
    labels = torch.tensor([_label(number, item) for number, item in enumerate(items)], device="cpu")
    images = encode_images(model, pictures(items))
    texts = encode_texts(model, [item.report for item in items])
    similarity = pair_similarity(model, images, texts).cpu()
    relevant = class_relevance(labels, labels)
    ks = [k for k in ks if k <= len(items)]

    prompts = phantom_prompts()
    scores = zero_shot_scores(model, images, {name: prompts[name] for name in RETRIEVAL_CLASSES})
    return {
        "image_to_text": precision_at_k(similarity, relevant, ks),
        "text_to_image": precision_at_k(similarity.T, relevant, ks),
        "zero_shot_accuracy": accuracy(scores, labels),
    }


def grounding_examples(items: Sequence[PhantomItem]) -> list[Example]:
    """Every positive mention, each with another image of the same finding as control.

    The control is the next item whose report mentions the finding, the first after the last. A
    finding that a single item mentions has no control and is left out. In the order of
    :data:`~gloria.data.phantom.FINDINGS`, then by item.
    """
    examples = []
    for name in FINDINGS:
        found = [
            (index, mention)
            for index, item in enumerate(items)
            for mention in item.mentions
            if mention.finding == name and mention.polarity == "positive"
        ]
        for position, (index, mention) in enumerate(found):
            others = [other for other, _ in found[position + 1 :] + found[:position]]
            other = next((other for other in others if other != index), None)
            if other is not None:
                examples.append(Example(index, other, mention))
    return examples


def evaluate_grounding(model: GLoRIA, items: Sequence[PhantomItem]) -> dict[str, Any]:
    """Where the words that name a finding attend, against the finding's mask.

    Each figure stands beside its control: the same words on another image of the same finding,
    scored against the first image's mask. What the control reaches is what knowing the finding's
    usual place is worth.

    Args:
        model: any; evaluated in eval mode, its modes are left as they were.
        items: any split, all images of one size.

    Returns:
        ``mentions``, how many there are; ``matched`` and ``other_image``, each with
        ``peak_near_mask`` (within :data:`TOLERANCE` pixels at 64), ``auroc`` (mean over mentions
        of the pixel AUROC), ``correct_side`` (of one-sided findings), their numbers
        (``auroc_count``), and the same ``per_finding``. A figure that no mention has is left out.

    Raises:
        DataError: no finding is mentioned by two items, or the text encoder's words are not those
            of :func:`~gloria.data.phantom.split_words`.
        OptionError: the model's loss has no local part.
    """
    examples = grounding_examples(items)
    if not examples:
        raise DataError("items must hold two with the same finding in their reports; none do.")
    images = encode_images(model, pictures(items))
    texts = encode_texts(model, [item.report for item in items])
    matched = mention_maps(model, images, texts, items, examples)
    control = mention_maps(model, images, texts, items, examples, other_image=True)
    return {
        "mentions": len(examples),
        "matched": score_maps(matched, items, examples),
        "other_image": score_maps(control, items, examples),
    }


def mention_maps(
    model: GLoRIA,
    images: ImageFeatures,
    texts: TextFeatures,
    items: Sequence[PhantomItem],
    examples: Sequence[Example],
    *,
    other_image: bool = False,
    block: int = 64,
) -> Tensor:
    """The attention of each mention's words, averaged, laid over the image.

    Args:
        model: any; evaluated in eval mode, its modes are left as they were.
        images: the features of all ``items``, of :func:`encode_images`.
        texts: the features of all their reports, of :func:`encode_texts`.
        items: all images of one size.
        examples: of :func:`grounding_examples`, at least one.
        other_image: attend to the image of ``example.other`` in place of the report's own.
        block: examples at a time; it does not change the result.

    Returns:
        ``(example, height, width)`` on the CPU, in weight per region.

    Raises what :func:`evaluate_grounding` raises.
    """
    if not examples:
        raise DataError("examples must hold at least one; there is no map to make.")
    size = items[0].image.shape
    maps = []
    for start in range(0, len(examples), block):
        part = examples[start : start + block]
        chosen = select_texts(texts, [each.item for each in part])
        shown = select_images(images, [each.other if other_image else each.item for each in part])
        with evaluating(model):
            weights = model.attention_maps(shown, chosen)
        for row, tokens, each in zip(weights, chosen.tokens, part, strict=True):
            _check_words(tokens, items[each.item].report)
            mean = row[each.mention.start : each.mention.stop].mean(0)
            maps.append(mean.unflatten(-1, images.grid))
    return model.lay_over(torch.stack(maps).cpu(), (int(size[0]), int(size[1])))


def score_maps(
    maps: Tensor, items: Sequence[PhantomItem], examples: Sequence[Example]
) -> dict[str, Any]:
    """The figures of :func:`evaluate_grounding` for any maps, one per example.

    Args:
        maps: ``(example, height, width)``, laid over the image; not negative.
        items: what the examples are of.
        examples: of :func:`grounding_examples`.
    """
    shown = [(items[each.item], each.mention.finding) for each in examples]
    masks = torch.stack(
        [torch.from_numpy(item.masks[FINDINGS.index(finding)]) for item, finding in shown]
    )
    one_sided = [item.sides[finding] in ("left", "right") for item, finding in shown]
    side = maps.new_full((len(examples),), torch.nan, dtype=torch.float64)
    side[one_sided] = correct_side(maps[one_sided], masks[one_sided]).double()
    figures = {
        "peak_near_mask": pointing_hit(maps, masks, TOLERANCE * maps.shape[-1] / 64).double(),
        "auroc": attention_auroc(maps, masks),
        "correct_side": side,
    }
    per_finding = {
        name: _means(figures, [finding == name for _, finding in shown])
        for name in sorted({finding for _, finding in shown})
    }
    return {**_means(figures, [True] * len(shown)), "per_finding": per_finding}


def _means(figures: dict[str, Tensor], chosen: list[bool]) -> dict[str, float]:
    """Mean of each figure over the chosen examples that have one, and how many these are."""
    means: dict[str, float] = {}
    for name, values in figures.items():
        values = values[chosen]
        known = values[~values.isnan()]
        if len(known):
            means |= {name: float(known.mean()), f"{name}_count": len(known)}
    return means


def pictures(items: Sequence[PhantomItem]) -> list[Tensor]:
    """The images as encoders take them, each ``(1, height, width)`` in [0, 1]."""
    return [torch.from_numpy(item.image)[None].float() / 255 for item in items]


def _label(number: int, item: PhantomItem) -> int:
    """The class of an item that shows one finding."""
    names = [finding.name for finding in item.case]
    if len(names) != 1 or names[0] not in RETRIEVAL_CLASSES:
        raise DataError(
            f"items must each show exactly one of {', '.join(RETRIEVAL_CLASSES)}, as a 5xN split "
            f"does; item {number} shows {names}."
        )
    return RETRIEVAL_CLASSES.index(names[0])


def _check_words(tokens: list[str], report: str) -> None:
    expected = split_words(report)
    if [token.lower() for token in tokens] != expected:
        raise DataError(
            f"the text encoder's words {tokens} are not those of the report, {expected}: its "
            f"attention can't be scored by word."
        )
