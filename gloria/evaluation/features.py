"""Features and similarities of whole data sets, in bounded memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gloria.checks import check_fusion_weights, check_integer
from gloria.data.images import check_image, normalize
from gloria.data.loading import load_batches, stack_images
from gloria.errors import DataError, DtypeError, EmptyTextError, UnknownWordWarning
from gloria.matching import AggregatorFunction, WordAggregation
from gloria.mini_batches import join_images, join_texts
from gloria.model import GLoRIA
from gloria.types import ImageFeatures, TellsUnknownWords, TextFeatures, TokenizedText
from gloria.wrapping import unwrapped

_CHANGING_MODES = Lock()
_EVALUATED: dict[nn.Module, tuple[int, dict[nn.Module, bool]]] = {}
"""How many are evaluating a model, and the modes that its modules came in."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside: eval mode, no gradients. Afterwards each module is in the mode it came in.

    Several threads may be inside at once: the first one in changes the modes, the last one out
    changes them back.
    """
    with _CHANGING_MODES:
        inside, training = _EVALUATED.get(model, (0, {}))
        if not inside:
            training = {module: module.training for module in model.modules()}
            model.eval()
        _EVALUATED[model] = inside + 1, training
    try:
        with torch.no_grad():
            yield
    finally:
        with _CHANGING_MODES:
            inside, training = _EVALUATED.pop(model)
            if inside > 1:
                _EVALUATED[model] = inside - 1, training
            else:
                # one by one: a frozen part of a model in training is in eval mode
                for module, mode in training.items():
                    module.training = mode


def encode_images(
    model: GLoRIA,
    images: Iterable[Tensor],
    batch_size: int = 64,
    *,
    progress: Callable[[int], Any] = lambda encoded: None,
) -> ImageFeatures:
    """Projected features of many images, in eval mode whatever mode the model is in.

    Args:
        model: any; its modes are left as they were.
        images: each ``(channel, height, width)`` in [0, 1], all of one size; normalised here, and
            brought to the model's dtype. They are taken a batch at a time, so a generator that
            reads files need not hold them all.
        batch_size: images encoded at a time; it does not change the result.
        progress: called with the number of images encoded since the last call, as ``tqdm.update``.

    Returns:
        ``pooled (image, dim)`` and ``regions (image, region, dim)``, on the model's device and
        without gradients.

    Raises:
        DataError: there is no image, or one is of another size than the first.
        DtypeError, ShapeError, DataError: one is no image, as
            :func:`~gloria.data.images.check_image` says.
        OptionError: ``batch_size`` is below 1.
    """
    check_integer("batch_size", batch_size, 1)
    parts = []
    left = _checked(images)
    encoder: Any = model.image_encoder
    with evaluating(model):
        while batch := list(islice(left, batch_size)):
            stacked = torch.stack(batch).to(model.device)
            fed = normalize(stacked, encoder.image_input)
            # a model may be of half precision, and films are of float32
            weights = (each for each in encoder.parameters() if each.is_floating_point())
            parts.append(model.encode_image(fed.to(next(weights, fed).dtype)))
            progress(len(batch))
    if not parts:
        raise DataError("images must hold at least one image; there is nothing to encode.")
    return join_images(parts)


def encode_items(
    model: GLoRIA,
    items: Any,
    batch_size: int = 64,
    *,
    workers: int = 0,
    progress: Callable[[int], Any] = lambda encoded: None,
) -> ImageFeatures:
    """As :func:`encode_images`, of items with an ``image``; ``workers`` processes load them."""
    check_integer("batch_size", batch_size, 1)
    check_integer("workers", workers, 0)
    batches = in_batches(len(items), batch_size)
    # as one tensor: what another process loaded keeps a file open for each
    loaded = load_batches(items, batches, stack_images, workers=workers)
    images = (image for batch in loaded for image in batch)
    return encode_images(model, images, batch_size, progress=progress)


def in_batches(count: int, size: int) -> list[range]:
    """The numbers of ``count`` items in their order, ``size`` at a time; the last may be fewer."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def encode_texts(
    model: GLoRIA,
    texts: Sequence[str],
    batch_size: int = 64,
    *,
    progress: Callable[[int], Any] = lambda encoded: None,
    tokenized: Callable[[TokenizedText], Any] = lambda batch: None,
) -> TextFeatures:
    """Projected features of many texts, in eval mode whatever mode the model is in.

    Args:
        model: any; its modes are left as they were.
        texts: strings.
        batch_size: texts encoded at a time; it does not change the features of real words.
        progress: called with the number of texts encoded since the last call, as ``tqdm.update``.
        tokenized: called with each batch, as the text encoder's ``tokenize`` gives it.

    Returns:
        ``pooled (text, dim)`` and ``words (text, word, dim)``, padded to the longest of all texts,
        on the model's device and without gradients.

    Raises:
        DataError: there is no text.
        OptionError: ``batch_size`` is below 1.
        DtypeError, EmptyTextError: as :meth:`~gloria.model.GLoRIA.tokenize`.
    """
    check_integer("batch_size", batch_size, 1)
    if not len(texts):
        raise DataError("texts must hold at least one text; there is nothing to encode.")
    parts = []
    with evaluating(model):
        for start in range(0, len(texts), batch_size):
            try:
                batch = model.tokenize(texts[start : start + batch_size])
            except EmptyTextError as cause:
                if not start:
                    raise
                raise EmptyTextError(f"{cause} This counts from texts[{start}] on.") from cause
            tokenized(batch)
            parts.append(model.encode_text(batch))
            progress(len(batch.tokens))
    return join_texts(parts)


def encode_prompts(model: GLoRIA, texts: Sequence[str], *, stacklevel: int = 2) -> TextFeatures:
    """As :func:`encode_texts`, telling the words that the model's text encoder can't read.

    Args:
        model: any; its modes are left as they were.
        texts: strings.
        stacklevel: of the warning; 2 = the caller's line.

    Warns:
        UnknownWordWarning: there are such words, and the text encoder can tell; it names them.
    """
    encoder: Any = model.text_encoder
    words: list[str] = []

    def collect(batch: TokenizedText) -> None:
        if isinstance(unwrapped(encoder), TellsUnknownWords):
            words.extend(word for word in encoder.unknown_words(batch) if word not in words)

    features = encode_texts(model, texts, tokenized=collect)
    if words:
        more = f" and {len(words) - 10} more" if len(words) > 10 else ""
        warnings.warn(
            f"the model's vocabulary lacks {', '.join(map(repr, words[:10]))}{more}: any such word "
            f"is read as the same unknown one, or letter by letter. Use words of the training "
            f"reports.",
            UnknownWordWarning,
            stacklevel=stacklevel,
        )
    return features


def pair_similarity(
    model: GLoRIA,
    images: ImageFeatures,
    texts: TextFeatures,
    kind: Literal["global", "local", "both"] | None = None,
    block: int = 64,
    *,
    aggregation: WordAggregation | AggregatorFunction | None = None,
    weights: tuple[float, float] = (0.5, 0.5),
    progress: Callable[[int], Any] = lambda compared: None,
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
        aggregation, weights: likewise.
        progress: called with the number of images compared with all texts since the last call.

    Returns:
        ``(image, text)``, both in the order given.

    Raises:
        OptionError: ``kind`` is unknown or not in the model's loss, or ``block`` below 1.
        DtypeError: ``images`` or ``texts`` are no features.
        DataError: there is no image or no text.
    """
    check_integer("block", block, 1)
    check_features("images", images, ImageFeatures)
    check_features("texts", texts, TextFeatures)
    for name, features in (("images", images), ("texts", texts)):
        if not len(features.pooled):
            raise DataError(f"{name} must hold at least one; there is nothing to compare.")
    rows = []
    with evaluating(model):
        for start in range(0, len(images.pooled), block):
            some = select_images(images, slice(start, start + block))
            rows.append(
                model.similarity(some, texts, kind, aggregation=aggregation, weights=weights)
            )
            progress(len(some.pooled))
    return torch.cat(rows)


def similarity_by_kind(
    model: GLoRIA,
    images: ImageFeatures,
    texts: TextFeatures,
    *,
    aggregation: WordAggregation | AggregatorFunction | None = None,
    weights: tuple[float, float] = (0.5, 0.5),
    progress: Callable[[int], Any] = lambda compared: None,
) -> dict[str, Tensor]:
    """Each similarity that the model's loss trains, and their weighted sum if it trains both.

    The rows of a table that compares them, for the cost of one :func:`pair_similarity`.

    Args and errors as in :func:`pair_similarity`.

    Returns:
        ``"global"``, ``"local"`` and ``"both"``, or the one there is; each ``(image, text)``.
    """
    if model.trained_kind != "both":
        alone = pair_similarity(model, images, texts, aggregation=aggregation, progress=progress)
        return {model.trained_kind: alone}
    check_fusion_weights(weights)
    parts = {
        "global": pair_similarity(model, images, texts, "global"),
        "local": pair_similarity(
            model, images, texts, "local", aggregation=aggregation, progress=progress
        ),
    }
    return parts | {"both": weights[0] * parts["global"] + weights[1] * parts["local"]}


def check_features(name: str, value: Any, kind: type[ImageFeatures | TextFeatures]) -> None:
    """Require features, and not what they are made of."""
    if not isinstance(value, kind):
        maker = "encode_images" if kind is ImageFeatures else "encode_texts"
        raise DtypeError(
            f"{name} must be {kind.__name__}, as gloria.evaluation.features.{maker}(model, {name}) "
            f"gives them; got {type(value).__name__}."
        )


def select_images(images: ImageFeatures, index: slice | list[int] | Tensor) -> ImageFeatures:
    """The features of some of the images, in the order of ``index``."""
    return map_images(images, lambda each: each[index])


def map_images(images: ImageFeatures, change: Callable[[Tensor], Tensor]) -> ImageFeatures:
    """Features with each of their tensors changed, ``region_mask`` as well, if there is one."""
    mask = None if images.region_mask is None else change(images.region_mask)
    return ImageFeatures(change(images.pooled), change(images.regions), images.grid, mask)


def select_texts(texts: TextFeatures, index: Iterable[int]) -> TextFeatures:
    """The features of some of the texts, as wide as before, in the order of ``index``."""
    chosen = list(index)
    return TextFeatures(
        texts.pooled[chosen],
        texts.words[chosen],
        texts.word_mask[chosen],
        [texts.tokens[i] for i in chosen],
    )


def _checked(images: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images, each when it is asked for."""
    shape = None
    for number, image in enumerate(images):
        name = f"images[{number}]"
        check_image(name, image)
        shape = shape or image.shape
        if image.shape != shape:
            raise DataError(
                f"images must all be of one size; {name} is {tuple(image.shape)}, the first "
                f"{tuple(shape)}."
            )
        yield image
