"""What a training reads: images with reports, or with labels."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gloria.data.loading import HasImage
from gloria.data.phantom import FINDINGS, PhantomItem


class Pair(HasImage, Protocol):
    """An image and its report, whatever else an item brings."""

    @property
    def report(self) -> str:
        """The text."""
        ...


class LabelledItems(Sized, Protocol):
    """Items with labels, names and patients, by which shares of them are drawn."""

    @property
    def classes(self) -> Sequence[str]:
        """What the labels say."""
        ...

    @property
    def labels(self) -> ArrayLike:
        """``(image, class)``: 1 positive, 0 negative, -1 uncertain."""
        ...

    @property
    def ids(self) -> Sequence[str]:
        """The images' names, each once."""
        ...

    @property
    def patients(self) -> Sequence[str]:
        """Whose the images are."""
        ...


class ImageReport(NamedTuple):
    """One pair.

    Attributes:
        image: ``(channel, height, width)``, float32 in [0, 1].
        report: the text.
    """

    image: Tensor
    report: str


class PhantomPairs(Dataset[ImageReport]):
    """Phantoms as pairs for training, with labels for classifiers.

    Args:
        items: a :class:`~gloria.data.phantom.PhantomDataset`, best drawn beforehand, or a list.

    Attributes:
        classes: what the labels say.
    """

    classes = FINDINGS

    def __init__(self, items: Sequence[PhantomItem]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> ImageReport:
        item = self.items[index]
        return ImageReport(torch.from_numpy(item.image)[None].float() / 255, item.report)

    @property
    def reports(self) -> list[str]:
        """All reports, without the images."""
        return [item.report for item in self.items]

    @property
    def ids(self) -> list[str]:
        """Names of the items, in their order: their numbers."""
        return [f"{index:05d}" for index in range(len(self.items))]

    @property
    def patients(self) -> list[str]:
        """Whose the images are: each is its own patient."""
        return self.ids

    @property
    def labels(self) -> NDArray[np.int8]:
        """All labels, ``(image, class)``: 1 positive, 0 negative; the truth, as the film shows."""
        return np.array([item.labels for item in self.items], np.int8)
