"""What encoders return, and the protocols that plugins implement.

Axes always carry these words, in this order: ``image, text, region, word, dim``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class ImageFeatures(NamedTuple):
    """What an image encoder returns for a batch of images.

    Attributes:
        pooled: one vector per image, ``(image, pooled_dim)``.
        regions: one vector per image region, ``(image, region, region_dim)``; regions run row by
            row over ``grid``, so ``regions.unflatten(1, grid)`` is the feature map.
        grid: ``(height, width)`` of the region grid; ``height * width == region``.
        region_mask: ``(image, region)`` boolean, True = a real region; None = all are real.
    """

    pooled: Tensor
    regions: Tensor
    grid: tuple[int, int]
    region_mask: Tensor | None = None


class TextFeatures(NamedTuple):
    """What a text encoder returns for a batch of texts.

    Attributes:
        pooled: one vector per text, ``(text, pooled_dim)``.
        words: one vector per word, ``(text, word, word_dim)``; padded at the end.
        word_mask: ``(text, word)`` boolean, True = a real word.
        tokens: the words as strings: ``tokens[n][i]`` is the word at ``words[n, i]``; one list per
            text, as long as the text has positions up to its last real word.
    """

    pooled: Tensor
    words: Tensor
    word_mask: Tensor
    tokens: list[list[str]]


class TokenizedText(NamedTuple):
    """Texts as tensors, ready for a text encoder (so that tokenizing can happen in a data loader).

    Attributes:
        inputs: what the underlying model is called with, each ``(text, token)``;
            for example ``input_ids`` and ``attention_mask``.
        word_ids: ``(text, token)`` integers: the index of the word a token belongs to,
            -1 for special tokens and padding.
        tokens: the words as strings, aligned with the word indices.
    """

    inputs: dict[str, Tensor]
    word_ids: Tensor
    tokens: list[list[str]]

    def to(self, device: torch.device | str) -> TokenizedText:
        """The same texts with every tensor on ``device``."""
        moved = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return TokenizedText(moved, self.word_ids.to(device), self.tokens)


class ImageInput(NamedTuple):
    """What an image encoder wants to be fed.

    Attributes:
        channels: number of input channels.
        size: ``(height, width)`` in pixels that the encoder was made for; None = any.
        mean: per-channel mean to subtract, of pixel values in [0, 1].
        std: per-channel standard deviation to divide by.
    """

    channels: int
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


class RegionGeometry(NamedTuple):
    """Where the regions of an image are, in pixels; pixel k has its centre at coordinate k.

    Region i is centred at ``offset + stride * i``. One number holds down and across alike; a pair
    is ``(vertical, horizontal)``.

    Attributes:
        stride: pixels between the centres of neighbouring regions.
        offset: pixel coordinate of the first region's centre.
    """

    stride: float | tuple[float, float]
    offset: float | tuple[float, float]


class Stage(NamedTuple):
    """The feature map of one stage of an image encoder.

    Attributes:
        dim: its width.
        stride: pixels to a row of it, of an image of the encoder's own size.
    """

    dim: int
    stride: float


class Recipe(NamedTuple):
    """How to make an architecture again, without its weights.

    Attributes:
        name: registry name, such as ``"timm:resnet50"``. A name ending in ``:.`` means that the
            files beside the recipe are the source.
        options: JSON-serialisable keyword arguments for ``create_*``.
        files: more keyword arguments, each the name of a file beside the recipe;
            ``{"vocabulary": "vocabulary.txt"}``, say. ``create_*`` is given the file's path.
    """

    name: str
    options: dict[str, Any]
    files: Mapping[str, str] = {}


@runtime_checkable
class ImageEncoder(Protocol):
    """An ``nn.Module`` that turns images into :class:`ImageFeatures`.

    ``pooled_dim`` and ``region_dim`` are read off the model, never typed by hand.
    ``image_input`` says what it wants to be fed. More is optional:

    - ``recipe(folder: Path) -> Recipe``: the encoder can be saved and loaded by name; it writes the
      files it needs (if any) into ``folder`` and returns how to make it again;
    - ``region_geometry: RegionGeometry | None``: where its regions are; without it, or None, they
      are taken to tile the image, as a ViT's patches do;
    - the feature maps of its stages: :class:`HasStages`.

    ``gloria train`` gives a maker that takes an argument ``in_chans`` the number of channels of its
    images.
    """

    pooled_dim: int
    region_dim: int
    image_input: ImageInput

    def __call__(self, images: Tensor) -> ImageFeatures:
        """Encode ``images (image, channel, height, width)``."""


@runtime_checkable
class HasStages(Protocol):
    """An image encoder that also gives the feature maps of its stages, for segmentation."""

    @property
    def stages(self) -> Sequence[Stage]:
        """What there is to choose from, in ascending order of their stride."""

    def feature_maps(self, images: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
        """The maps ``(image, dim, height, width)`` of some stages, in ascending order; or of all.

        Args:
            images: as in :meth:`ImageEncoder.__call__`.
            stages: which; None = all.
        """


@runtime_checkable
class TextEncoder(Protocol):
    """An ``nn.Module`` that turns texts into :class:`TextFeatures`.

    Called with what its own ``tokenize`` returns, or with plain strings.
    ``recipe(folder)`` is optional, as for :class:`ImageEncoder`; so is :class:`TellsUnknownWords`.

    A maker that takes an argument ``reports`` is given the training reports, to build a vocabulary
    from; its recipe should bring that vocabulary along.
    """

    pooled_dim: int
    word_dim: int

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """Turn strings into tensors, on the CPU.

        The list of words of a text that has none is empty, or EmptyTextError is raised; a model
        raises it for such a text.
        """

    def __call__(self, texts: TokenizedText | Sequence[str]) -> TextFeatures:
        """Encode texts."""


@runtime_checkable
class TellsUnknownWords(Protocol):
    """A text encoder that can tell the words it reads as unknown, for a warning."""

    def unknown_words(self, texts: TokenizedText) -> list[str]:
        """Words that the vocabulary lacks, or a piece of, each once, in their order."""


@runtime_checkable
class Aggregator(Protocol):
    """A callable that reduces one masked axis.

    ``values`` is any tensor, ``mask`` a boolean tensor that broadcasts to its shape (True = keep;
    None = keep all), ``dim`` the axis that disappears. What the mask leaves out, NaN included, has
    no influence and no gradient; where nothing is kept, the result is 0.
    """

    def __call__(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        """Reduce ``dim``."""


@runtime_checkable
class ScheduledLoss(Protocol):
    """A loss that changes while it trains: before each step it is told which one it is."""

    def at_step(self, step: int) -> None:
        """Get ready for step ``step``, counted from 0."""


@runtime_checkable
class SavesRecipe(Protocol):
    """An encoder that can be made again from a :class:`Recipe`."""

    def recipe(self, folder: Path) -> Recipe:
        """Write what is needed beside the weights into ``folder``; return how to rebuild."""
