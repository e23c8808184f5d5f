"""What a training loop reads: an image and its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
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
