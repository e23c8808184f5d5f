"""Radiographs on disk: what a data set says of each, and the data set that reads them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gloria.checks import check_names, check_size
from gloria.data.dicom import Window
from gloria.data.images import fit, place, read_pixels
from gloria.data.masks import Box
from gloria.data.splits import find_ids
from gloria.errors import BrokenItemError, DataError, DtypeError, IncompleteItemError, OptionError

_KINDS: dict[str, tuple[Any, str]] = {
    "id": (str, "a string"),
    "path": (Path, "a pathlib.Path"),
    "patient": (str | None, "a string, or None where it is not known"),
    "report": (str, "a string"),
    "mask": (Callable | None, "a function of height and width, or None"),
}
"""What is required of a record: numbers and NaN of a table would be other patients, or no text."""

LOOKED_AT = 10
"""How many of the first images are looked for, to tell a wrong folder from a missing image."""


class Record(NamedTuple):
    """What a data set says of one image, before the image is read.

    Attributes:
        id: the image's name in its data set; what id lists hold.
        path: its file.
        where: what an error calls it: a file and a row; empty = its path says it.
        patient: whose image it is; None = the data set does not say.
        report: what is read of its report; empty = none.
        labels: 1 positive, 0 negative, -1 uncertain, in the order of the data set's classes.
        mask: gives the finding's mask, ``mask(height, width)``; None = the data set has no masks.
        boxes: around the finding, in pixels of the file.
    """

    id: str
    path: Path
    where: str
    patient: str | None = None
    report: str = ""
    labels: tuple[int, ...] = ()
    mask: Callable[[int, int], NDArray[np.bool_]] | None = None
    boxes: tuple[Box, ...] = ()

    @property
    def place(self) -> str:
        """What an error calls it."""
        return self.where or str(self.path)

    @property
    def file(self) -> str:
        """The path in its one spelling: absolute, without ``.`` and ``..``; links are kept."""
        return os.path.abspath(self.path)

    def about(self, fault: object) -> str:
        """A fault that names the file, with the place that names the image."""
        return f"{self.where}: {fault}" if self.where else str(fault)


class Radiograph(NamedTuple):
    """One item. Items of one data set stack into batches as they are.

    Attributes:
        image: ``(channel, height, width)``, float32 in [0, 1].
        report: the text; empty if the data set has none.
        labels: ``(class,)``, int8: 1 positive, 0 negative, -1 uncertain.
        mask: ``(mask, height, width)``, boolean, True = finding; with no mask if the data set has
            none, else with one.
    """

    image: Tensor
    report: str
    labels: Tensor
    mask: Tensor


class Radiographs(Dataset[Radiograph]):
    """A data set of radiographs, read when they are asked for.

    The readers of named data sets are subclasses that make the records; anything else can be
    handed in.

    Args:
        records: one for each image.
        classes: what the labels say.
        size: ``(height, width)`` that images and masks are fitted into, aspect kept, padded with
            black.
        channels: 1 (grayscale) or 3.
        bits, window: as in :func:`~gloria.data.load_image`.
        skipped: why records were left out, one line each.

    Raises:
        DtypeError: a record is no :class:`Record`, or a part of it of another kind.
        DataError: there is no record, none of the first :data:`LOOKED_AT` images exists (the folder
            is wrong then), labels and classes differ in number, or a label is none.
        BrokenItemError: when an item is read, its image or mask can't be; the message names where
            it comes from.
        OptionError: ``size`` has a side below 1; or, when an item is read, ``bits`` does not fit
            its image, or ``window`` is none.
    """

    def __init__(
        self,
        records: Iterable[Record],
        *,
        classes: Sequence[str] = (),
        size: tuple[int, int],
        channels: int = 1,
        bits: int | None = None,
        window: Window | None = None,
        skipped: Sequence[str] = (),
    ) -> None:
        check_size(size)
        check_names("classes", classes)
        self.records = list(records)
        self.classes = tuple(classes)
        self.size = size
        self.channels = channels
        self.bits = bits
        self.window = window
        self.skipped = tuple(skipped)
        if not self.records:
            left_out = f"; {len(skipped)} were skipped, first: {skipped[0]}" if skipped else ""
            raise DataError(f"there is no radiograph to read{left_out}.")
        for record in self.records:
            _check(record, self.classes)
        first = self.records[0]
        if not any(os.path.isfile(record.path) for record in self.records[:LOOKED_AT]):
            raise DataError(first.about(f"{first.path} does not exist. Is it the right folder?"))
        # masks and boxes are of the stored pixels; one rule for all, or it would tell who has some
        self._upright = not any(record.mask or record.boxes for record in self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Radiograph:
        if not hasattr(index, "__index__"):  # a slice, or a list
            raise DtypeError(
                f"index must be the number of one image; got {index}. Of several, take "
                f"data.select(data.ids[...])."
            )
        record = self.records[index]
        image, marked = self._read(record)
        fitted = fit(image, self.size).expand(self.channels, -1, -1).contiguous()
        mask = torch.zeros(0, *self.size, dtype=torch.bool, device="cpu")
        if marked is not None:
            mask = fit(marked.float(), self.size) >= 0.5
        labels = torch.tensor(record.labels, dtype=torch.int8, device="cpu")
        return Radiograph(fitted, record.report, labels, mask)

    @property
    def ids(self) -> list[str]:
        """The images' names, in their order."""
        return [record.id for record in self.records]

    @property
    def patients(self) -> list[str]:
        """Whose the images are; where the data set does not say, each image is its own patient."""
        return [record.id if record.patient is None else record.patient for record in self.records]

    @property
    def reports(self) -> list[str]:
        """All reports, without the images."""
        return [record.report for record in self.records]

    @property
    def labels(self) -> NDArray[np.int8]:
        """All labels, ``(image, class)``: 1 positive, 0 negative, -1 uncertain."""
        labels = np.array([record.labels for record in self.records], np.int8)
        return labels.reshape(len(self), len(self.classes))

    def boxes(self, index: int) -> Tensor:
        """Boxes of an item, in pixels of its fitted image: ``(box, 4)``, left, top, right, bottom.

        The file is read for its size.
        """
        record = self.records[index]
        film = read_pixels(record.path, bits=16, window=self.window, upright=False)
        height, width = film.shape[-2:]
        inner, top, left = place((height, width), self.size)
        across, down = inner[1] / width, inner[0] / height
        corners = [
            (x * across + left, y * down + top, (x + w) * across + left, (y + h) * down + top)
            for x, y, w, h in record.boxes
        ]
        return torch.tensor(corners, device="cpu").reshape(-1, 4)

    def select(self, ids: Iterable[str]) -> Self:
        """The images of an id list, in its order.

        Raises:
            DataError: an id is not here.
        """
        return self._with([self.records[row] for row in find_ids(ids, self.ids)])

    def without_patients(self, patients: Collection[str]) -> Self:
        """The images of all other patients: what may train when these are tested.

        Raises:
            DtypeError: ``patients`` is one string, whose letters would be the patients.
            DataError: no image is left.
        """
        check_names("patients", patients)
        held_out = set(patients)
        both = zip(self.records, self.patients, strict=True)
        return self._with([record for record, patient in both if patient not in held_out])

    def without_broken(self, *, progress: Callable[[int], Any] = lambda read: None) -> Self:
        """Read every file now, and leave out those that can't be: they are in ``skipped``.

        Several are read at a time.

        Args:
            progress: called with the number of items read since the last call, as ``tqdm.update``.

        Raises:
            DataError: none can be read.
            OptionError: ``bits`` does not fit an image, or ``window`` is none: the option is wrong.
        """
        whole, broken = [], []
        with ThreadPoolExecutor() as readers:
            # not all at once: what waits in a pool is read, even if an option is wrong
            for start in range(0, len(self), 100):
                some = self.records[start : start + 100]
                for record, fault in zip(some, readers.map(self._fault, some), strict=True):
                    if fault is None:
                        whole.append(record)
                    else:
                        broken.append(fault)
                    progress(1)
        return self._with(whole, broken)

    def fingerprint(self) -> str:
        """SHA-256 of every image's id, report and labels, in their order."""
        labels = self.labels.tolist()  # in Python's numbers, which JSON takes
        facts = [[r.id, r.report, marks] for r, marks in zip(self.records, labels, strict=True)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _read(self, record: Record) -> tuple[Tensor, Tensor | None]:
        """An image, of one channel where its file is gray, and its mask, as large as the file."""
        try:
            image = read_pixels(
                record.path,
                self.channels,
                bits=self.bits,
                window=self.window,
                upright=self._upright,
            )
            if record.mask is None:
                return image, None
            size = tuple(image.shape[-2:])
            mask = record.mask(*size)
            if mask.shape != size or mask.dtype != np.bool_:
                raise DataError(
                    f"a mask must be boolean and {size}, as its image is; got {mask.dtype} and "
                    f"{mask.shape}."
                )
            return image, torch.from_numpy(mask.copy())[None]
        except (DataError, OptionError) as cause:
            kind = OptionError if isinstance(cause, OptionError) else BrokenItemError
            raise kind(record.about(cause)) from cause

    def _fault(self, record: Record) -> str | None:
        """Why a record can't be read; None = it can."""
        try:
            self._read(record)
        except DataError as fault:
            return str(fault)
        return None

    def _with(self, records: list[Record], skipped: Sequence[str] = ()) -> Self:
        if not records:
            reason = f"; first: {skipped[0]}" if skipped else ""
            raise DataError(f"no radiograph is left of {len(self)}{reason}.")
        other = copy.copy(self)
        other.records = records
        other.skipped = (*self.skipped, *skipped)
        return other


def _check(record: Any, classes: Sequence[str]) -> None:
    if not isinstance(record, Record):
        raise DtypeError(f"records must be gloria.data.Record; got {type(record).__name__}.")
    for name, (kind, told) in _KINDS.items():
        value = getattr(record, name)
        if not isinstance(value, kind):
            raise DtypeError(f"{record.place}: {name} of a record must be {told}; got {value!r}.")
    if len(record.labels) != len(classes):
        raise DataError(f"{record.place}: {len(record.labels)} labels for {len(classes)} classes.")
    if not all(label in (-1, 0, 1) for label in record.labels):
        raise DataError(f"{record.place}: labels are 1, 0 or -1; got {record.labels}.")


@contextmanager
def skipping(skipped: list[str] | None) -> Iterator[None]:
    """Inside, a :class:`DataError` ends the block and is listed in ``skipped``.

    Raises:
        IncompleteItemError: instead of it, if ``skipped`` is None.
    """
    try:
        yield
    except DataError as fault:
        if skipped is None:
            raise IncompleteItemError(str(fault)) from fault
        skipped.append(str(fault))
