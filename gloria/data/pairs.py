"""What a training reads: images with reports, or with labels."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence, Sized
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gloria.checks import check_names
from gloria.data.loading import HasImage
from gloria.data.phantom import FINDINGS, PhantomItem
from gloria.data.splits import find_ids


class Pair(HasImage, Protocol):
    """An image and its report, whatever else an item brings."""

    @property
    def report(self) -> str:
        """The text."""


class LabelledItems(Sized, Protocol):
    """Items with labels, names and patients, by which shares of them are drawn."""

    @property
    def classes(self) -> Sequence[str]:
        """What the labels say."""

    @property
    def labels(self) -> ArrayLike:
        """``(image, class)``: 1 positive, 0 negative, -1 uncertain."""

    @property
    def ids(self) -> Sequence[str]:
        """The images' names, each once."""

    @property
    def patients(self) -> Sequence[str]:
        """Whose the images are."""


class ImageReport(NamedTuple):
    """One pair.

    Attributes:
        image: ``(channel, height, width)``, float32 in [0, 1].
        report: the text.
    """

    image: Tensor
    report: str


class PhantomItems(Dataset[Any]):
    """What phantoms are known by: names, patients and labels; subclasses say what an item is.

    Args:
        items: a :class:`~gloria.data.phantom.PhantomDataset`, best drawn beforehand, or a list.
        classes: which of :data:`~gloria.data.phantom.FINDINGS` are labels, in their order.
    """

    def __init__(self, items: Sequence[PhantomItem], classes: Sequence[str] = FINDINGS) -> None:
        check_names("classes", classes)
        self.items = items
        self.classes = tuple(classes)
        self._rows = list(range(len(items)))
        self._findings = [FINDINGS.index(name) for name in classes]

    def __len__(self) -> int:
        return len(self._rows)

    def _read(self, index: int) -> tuple[Tensor, PhantomItem]:
        """An image, ``(1, height, width)`` in [0, 1], and the phantom that it is of."""
        item = self.items[self._rows[index]]
        return torch.from_numpy(item.image)[None].float() / 255, item

    @property
    def ids(self) -> list[str]:
        """Names of the items: their numbers in ``items``."""
        return [f"{row:05d}" for row in self._rows]

    @property
    def patients(self) -> list[str]:
        """Whose the images are: each is its own patient."""
        return self.ids

    @property
    def labels(self) -> NDArray[np.int8]:
        """All labels, ``(image, class)``: 1 positive, 0 negative; the truth, as the film shows."""
        labels = [self.items[row].labels[self._findings] for row in self._rows]
        return np.array(labels, np.int8).reshape(len(self), len(self.classes))

    def select(self, ids: Iterable[str]) -> Self:
        """The items of an id list, in its order; :func:`~gloria.data.draw_share` draws one.

        Raises:
            DataError: an id is not here.
        """
        other = copy.copy(self)
        other._rows = [self._rows[place] for place in find_ids(ids, self.ids)]
        return other


class PhantomPairs(PhantomItems):
    """Phantoms as pairs for training, with labels for classifiers.

    Args:
        items: a :class:`~gloria.data.phantom.PhantomDataset`, best drawn beforehand, or a list.
    """

    def __init__(self, items: Sequence[PhantomItem]) -> None:
        super().__init__(items)

    def __getitem__(self, index: int) -> ImageReport:
        image, item = self._read(index)
        return ImageReport(image, item.report)

    @property
    def reports(self) -> list[str]:
        """All reports, without the images."""
        return [self.items[row].report for row in self._rows]
