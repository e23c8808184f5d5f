"""Phantom items, their splits, and the data set that holds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gloria.checks import check_integer, check_positive
from gloria.data.phantom.case import (
    FINDINGS,
    RETRIEVAL_CLASSES,
    Finding,
    sample_case,
    sample_findings,
)
from gloria.data.phantom.film import draw_film
from gloria.data.phantom.report import Mention, Sentence, write_report
from gloria.errors import OptionError

SPLITS = {"train": 4000, "val": 800, "test": 800, "val_5x100": 500, "test_5x100": 500}
"""The usual splits and their sizes. ``val_5xN`` and ``test_5xN`` exist for every N."""

SMALLEST_SIZE = 32

# Part of every item's random seed: never change a number that was once given.
_SPLIT_IDS = {"train": 0, "val": 1, "test": 2, "val_5x": 3, "test_5x": 4}


class PhantomItem(NamedTuple):
    """A drawn radiograph, its report, and everything that is true about both.

    Arrays over findings are in the order of :data:`~gloria.data.phantom.FINDINGS`.

    Attributes:
        image: the film, uint8 ``(height, width)``, as radiographs are shown: the patient's right
            is on the left of the picture. Never flip it, the report says left and right.
        report: what the radiologist wrote; the sentences joined by spaces.
        sentences: the report's sentences with the place of every finding they mention.
        labels: uint8 ``(finding,)``, 1 = the film shows it. The truth, not what the report says:
            3 % of findings are left unmentioned.
        masks: bool ``(finding, height, width)``, True = the finding covers the pixel's centre.
        case: the findings with their severity, the *patient's* side, and zone.
    """

    image: NDArray[np.uint8]
    report: str
    sentences: tuple[Sentence, ...]
    labels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    case: tuple[Finding, ...]

    @property
    def mentions(self) -> tuple[Mention, ...]:
        """The mentions of all sentences, in the order of the report."""
        return tuple(mention for sentence in self.sentences for mention in sentence.mentions)

    @property
    def sides(self) -> dict[str, str | None]:
        """The patient's side of each finding that the film shows."""
        return {finding.name: finding.side for finding in self.case}


def phantom_item(
    split: str, index: int, *, seed: int = 0, size: int = 64, contrast: float = 1.7
) -> PhantomItem:
    """Draw one phantom chest radiograph with its report, labels and masks.

    The item is a function of the arguments alone, whatever was drawn before it or beside it.
    Another ``size`` or ``contrast`` changes neither findings nor report.
    Phantoms show that training works and where words attend. They are no evidence about real
    radiographs.

    Args:
        split: ``"train"``, ``"val"``, ``"test"``, or a set of five classes with N images each,
            ``"val_5xN"`` and ``"test_5xN"``, in the style of CheXpert 5x200: item k shows
            ``RETRIEVAL_CLASSES[k % 5]`` and no other finding, whatever N is.
        index: which item, from 0.
        seed: another seed is another data set.
        size: height and width in pixels, at least 32; 64 suffices to learn from.
        contrast: how strongly findings stand out: 1.7 clearly, 1.25 is hard.

    Returns:
        The item.

    Raises:
        OptionError: for an unknown split or a number out of range.

    Example:
        >>> from gloria.data.phantom import phantom_item, split_words
        >>> item = phantom_item("train", 3)
        >>> item.image.shape, item.masks.shape
        ((64, 64), (6, 64, 64))
        >>> [(finding.name, finding.side) for finding in item.case]
        [('atelectasis', 'right'), ('cardiomegaly', None), ('pneumothorax', 'left')]
        >>> item.sentences[3].text
        'There is a mild left apical pneumothorax.'
        >>> mention = item.sentences[3].mentions[0]
        >>> split_words(item.report)[mention.start : mention.stop]
        ['apical', 'pneumothorax']
    """
    dataset = PhantomDataset(split, seed=seed, size=size, contrast=contrast)
    check_integer("index", index, 0)
    if "_5x" in split and index >= len(dataset):
        raise OptionError(f"index must be below {len(dataset)} in split {split!r}; got {index}.")
    return dataset._draw(index)


class PhantomDataset:
    """A split of phantom items: a map-style data set, as ``torch.utils.data.DataLoader`` takes it.

    An item is drawn when it is asked for (2 or 3 ms at 64 px), or all at once by :meth:`draw`.

    Args:
        split: as in :func:`phantom_item`.
        count: number of items; None = the size in :data:`SPLITS`. A 5xN split has its size in its
            name and takes no other.
        seed, size, contrast: as in :func:`phantom_item`.

    Raises:
        OptionError: for an unknown split or a number out of range.

    Example:
        >>> dataset = PhantomDataset("test_5x2")
        >>> len(dataset), [item.case[0].name for item in dataset][:3]
        (10, ['atelectasis', 'cardiomegaly', 'consolidation'])
    """

    def __init__(
        self,
        split: str,
        *,
        count: int | None = None,
        seed: int = 0,
        size: int = 64,
        contrast: float = 1.7,
    ) -> None:
        family, per_class = _parse(split)
        usual = SPLITS[split] if per_class is None else 5 * per_class
        if count is not None:
            check_integer("count", count, 1)
        if per_class is not None and count not in (None, usual):
            raise OptionError(
                f"count must be left out for split {split!r}, which has {usual} items; got "
                f"{count}. Put another number in the split's name."
            )
        check_integer("seed", seed, 0)
        check_integer("size", size, SMALLEST_SIZE)
        check_positive("contrast", contrast)
        self.split = split
        self.seed = seed
        self.size = size
        self.contrast = contrast
        self._count = usual if count is None else count
        self._family = family
        self._items: list[PhantomItem] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> PhantomItem:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}; got {index}.")
        index = int(index) % len(self)
        return self._items[index] if self._items is not None else self._draw(index)

    def __iter__(self) -> Iterator[PhantomItem]:
        return (self[index] for index in range(len(self)))

    def draw(self, *, progress: Callable[[int], Any] = lambda drawn: None) -> PhantomDataset:
        """Draw every item now and keep it in memory (30 kB each at 64 px).

        Args:
            progress: called with the number of items drawn since the last call, as
                ``tqdm.update`` is.

        Returns:
            This data set.
        """
        items = []
        for index in range(len(self)):
            items.append(self._draw(index))
            progress(1)
        self._items = items
        return self

    def _draw(self, index: int) -> PhantomItem:
        rng = np.random.default_rng([self.seed, _SPLIT_IDS[self._family], index])
        case_rng, film_rng, report_rng = rng.spawn(3)
        if self._family.endswith("_5x"):
            case = sample_findings(case_rng, [RETRIEVAL_CLASSES[index % 5]])
        else:
            case = sample_case(case_rng)
        image, masks = draw_film(film_rng, case, size=self.size, contrast=self.contrast)
        sentences = write_report(report_rng, case)
        shown = {finding.name for finding in case}
        return PhantomItem(
            image=image,
            report=" ".join(sentence.text for sentence in sentences),
            sentences=sentences,
            labels=np.array([name in shown for name in FINDINGS], np.uint8),
            masks=masks,
            case=case,
        )


def _parse(split: str) -> tuple[str, int | None]:
    """The family of a split, and N for a 5xN split."""
    match = re.fullmatch(r"((?:val|test)_5x)([1-9]\d*)", split) if isinstance(split, str) else None
    if match:
        return match[1], int(match[2])
    if split not in ("train", "val", "test"):
        raise OptionError(
            f"split must be 'train', 'val', 'test', 'val_5xN' or 'test_5xN' with a number for N; "
            f"got {split!r}."
        )
    return split, None
