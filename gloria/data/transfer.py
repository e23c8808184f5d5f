"""What the four tasks of the paper's tables are evaluated on: phantoms, or a data set on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gloria.data.leaks import check_splits
from gloria.data.masked import PhantomMasks
from gloria.data.pairs import LabelledItems, Pair, PhantomPairs
from gloria.data.phantom import RETRIEVAL_CLASSES, PhantomDataset, PhantomItem, phantom_prompts
from gloria.data.prompts import PromptSet
from gloria.data.protocols import column_of, draw_exclusive, exclusive
from gloria.data.radiographs import Radiographs
from gloria.data.splits import draw_splits
from gloria.files import signature

TASKS = ("retrieval", "zero-shot", "classification", "segmentation")
"""The tasks, in the paper's order."""

NO_REPORTS = "the images have no reports"
"""Why there is no retrieval, mostly."""

PHANTOM_NOTE = (
    "Phantom radiographs: they show that training works. No evidence about real radiographs, nor "
    "for or against any paper."
)

SPLIT_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
"""How the patients of a data set without splits of its own are split."""


class LabelledPairs(LabelledItems, Protocol):
    """Images with labels and reports."""

    @property
    def labels(self) -> NDArray[np.int8]:
        """As an array."""

    @property
    def reports(self) -> list[str]:
        """All reports; one that is not there is empty."""

    def __getitem__(self, index: int, /) -> Pair:
        """One item."""


class Splits(NamedTuple):
    """Images of three sets of patients that have none in common."""

    train: Any
    val: Any
    test: Any


@dataclass(frozen=True)
class TransferData:
    """What the tasks are evaluated on; the class methods make it.

    Attributes:
        name: what captions call it.
        gallery: images that are each positive for exactly one of ``classes``; without classes, any
            with reports, each of which asks for its own. None = there are none.
        classes: of zero-shot classification and the gallery.
        labelled: splits of images with labels.
        masked: splits of images with masks.
        prompts: by class.
        missing: task: why the data do not permit it.
        note: what must be said wherever the figures stand.
    """

    name: str
    gallery: LabelledPairs | None
    classes: tuple[str, ...]
    labelled: Splits
    masked: Splits
    prompts: Mapping[str, PromptSet | Sequence[str]]
    missing: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def fingerprint(self) -> str:
        """SHA-256 of each image's id, patient, report, labels and mask, and of its file's time.

        Of a file size and time of modification are taken, not its bytes: there may be many. Of a
        mask it is what :func:`functools.partial` holds of it: runs, or boxes.
        """
        parts = [*self.labelled, *([] if self.gallery is None else [self.gallery])]
        facts = [
            [list(part.ids), list(part.patients), part.reports, part.labels.tolist()]
            for part in parts
        ]
        # what is drawn has no files; an image in two parts is looked up once
        records = [
            record
            for part in (*parts, *self.masked)
            if isinstance(part, Radiographs)
            for record in part.records
        ]
        files = [signature(path) for path in dict.fromkeys(record.path for record in records)]
        masks = [getattr(each.mask, "args", None) for each in records]
        found = json.dumps([facts, files, masks], default=str)
        return hashlib.sha256(found.encode()).hexdigest()

    @classmethod
    def phantoms(
        cls,
        *,
        seed: int = 0,
        train: int = 4000,
        val: int = 200,
        test: int = 800,
        per_class: int = 100,
        size: int = 64,
        progress: Callable[[int], Any] = lambda drawn: None,
    ) -> Self:
        """The built-in phantoms, drawn.

        Args:
            seed: of the data; the demo with that seed trains on the first of these images.
            train, val, test: images that train, that choose, and that are tested on.
            per_class: images of each of the five classes in the gallery.
            size: height and width in pixels.
            progress: called with the number of phantoms drawn since the last call, as
                ``tqdm.update`` is.
        """
        counts = {"train": train, "val": val, "test": test, f"test_5x{per_class}": 5 * per_class}
        drawn = [
            list(PhantomDataset(split, count=count, seed=seed, size=size).draw(progress=progress))
            for split, count in counts.items()
        ]
        return cls.of_phantoms(*drawn)

    @classmethod
    def of_phantoms(
        cls,
        train: Sequence[PhantomItem],
        val: Sequence[PhantomItem],
        test: Sequence[PhantomItem],
        gallery: Sequence[PhantomItem],
    ) -> Self:
        """Phantoms that are there already; the gallery is of a 5xN split."""
        segmented = ["pneumothorax"]  # as in SIIM
        return cls(
            name="phantoms",
            gallery=PhantomPairs(gallery),
            classes=RETRIEVAL_CLASSES,
            labelled=Splits(*map(PhantomPairs, (train, val, test))),
            masked=Splits(*(PhantomMasks(items, segmented) for items in (train, val, test))),
            prompts=phantom_prompts(),
            note=PHANTOM_NOTE,
        )

    @classmethod
    def of_radiographs(
        cls,
        name: str,
        splits: Splits,
        prompts: Mapping[str, PromptSet],
        *,
        gallery: Radiographs | None = None,
        classes: Sequence[str] | None = None,
        per_class: int = 200,
        seed: int = 0,
        no_gallery: str = "",
    ) -> Self:
        """A data set on disk; what its labels, reports and masks do not permit is ``missing``.

        Args:
            name: what captions call it.
            splits: :class:`~gloria.data.Radiographs` of three sets of patients, such as
                :func:`draw_patients` gives.
            prompts: by class; capitals and underscores do not count. A class without prompts is
                left out of nothing but makes zero-shot classification missing.
            gallery: images of exactly one class each; None = drawn from the test split, as many of
                each class as there are, at most ``per_class``.
            classes: of the gallery and of zero-shot classification; None = the data's.
            per_class: images of each class in a gallery that is drawn.
            seed: of that draw.
            no_gallery: why there is none and none is drawn, which makes the tasks on it missing.

        Raises:
            DataError: a patient or an image is in two splits, or of the gallery and in a split
                that trains or chooses; the message names the first.
            UnknownNameError: the data have no such class.
        """
        check_splits({name: split.records for name, split in splits._asdict().items()})
        if gallery is not None:
            for part in ("train", "val"):
                check_splits({part: getattr(splits, part).records, "gallery": gallery.records})
        test: Radiographs = splits.test
        classes = tuple(test.classes if classes is None else classes)
        if gallery is None and len(classes) > 1 and not no_gallery:
            alone = exclusive(test.labels)
            found = {each: int(alone[:, column_of(test, each)].sum()) for each in classes}
            lacking = [each for each, count in found.items() if not count]
            if lacking:
                no_gallery = f"no test image shows {' or '.join(lacking)} and nothing else"
            else:
                count = min(per_class, *found.values())
                gallery = test.select(draw_exclusive(test, classes, count, seed=seed))
        return cls(
            name=name,
            gallery=gallery,
            classes=classes,
            labelled=splits,
            masked=splits,
            prompts=_prompts_of(classes, prompts),
            missing=_missing(test, gallery, no_gallery, classes, prompts),
        )

    @classmethod
    def of_pairs(cls, name: str, pairs: LabelledPairs, *, note: str = "") -> Self:
        """Images that ask for their own reports, for which they need no labels.

        Args:
            name: what captions call them.
            pairs: images with reports that the model was not trained on, such as an
                :class:`~gloria.data.ImageReportTable`.
            note: what must be said wherever the figures stand.
        """
        missing = dict.fromkeys(TASKS[1:], "no classes of labels are named")
        if lacking := _lacks_reports(pairs):
            missing["retrieval"] = lacking
        every = Splits(pairs, pairs, pairs)
        return cls(name, pairs, (), every, every, {}, missing, note)


def draw_patients(data: Radiographs, *, seed: int) -> Splits:
    """Three splits of a data set by patient, each class about as frequent in each of them.

    Args:
        data: with labels or without.
        seed: decides; shares are those of :data:`SPLIT_SHARES`.

    Raises:
        DataError: there are too few patients.
    """
    drawn = draw_splits(data.ids, data.labels, SPLIT_SHARES, seed=seed, patients=data.patients)
    return Splits(*(data.select(ids) for ids in drawn.values()))


def _prompts_of(classes: Sequence[str], prompts: Mapping[str, PromptSet]) -> dict[str, PromptSet]:
    """Those of classes, by their own names; else capitals and underscores do not count."""

    def plain(name: str) -> str:
        return name.casefold().replace("_", " ")

    by_plain = {plain(name): each for name, each in prompts.items()}
    found = {name: prompts.get(name, by_plain.get(plain(name))) for name in classes}
    return {name: each for name, each in found.items() if each is not None}


def _lacks_reports(pairs: LabelledPairs) -> str:
    """Why images can't ask for reports; empty = each has its own."""
    without = [name for name, report in zip(pairs.ids, pairs.reports, strict=True) if not report]
    if len(without) in (0, len(pairs)):
        return NO_REPORTS if without else ""
    return f"{len(without)} of {len(pairs)} images have no report, first: {without[0]}"


def _missing(
    test: Radiographs,
    gallery: Radiographs | None,
    no_gallery: str,
    classes: Sequence[str],
    prompts: Mapping[str, PromptSet],
) -> dict[str, str]:
    missing = {}
    alone = gallery is None and len(classes) == 1
    if not classes:
        missing = dict.fromkeys(TASKS[:3], "the data have no labels")
    elif alone:
        missing["retrieval"] = "it needs two classes or more"
    else:
        if gallery is None:
            missing = dict.fromkeys(("retrieval", "zero-shot"), no_gallery)
        if lacking := _lacks_reports(test if gallery is None else gallery):
            missing["retrieval"] = lacking  # first of all: more images would not mend it
    found = _prompts_of(classes, prompts)
    without = [name for name in classes if name not in found]
    if without:
        there = ", ".join(prompts) or "none"
        missing["zero-shot"] = f"there are no prompts for {', '.join(without)}; for these: {there}"
    elif alone and not found[classes[0]].negative_prompts:
        missing["zero-shot"] = (
            f"a class alone needs negative prompts, too, and {classes[0]} has none; in a file of "
            f"prompts they are under its key 'negative'"
        )
    if not all(record.mask for record in test.records):
        missing["segmentation"] = "the images have no masks"
    return missing
