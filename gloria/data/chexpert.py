"""CheXpert, and CheXpert Plus, which brings the reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from gloria.checks import check_names
from gloria.data.radiographs import LOOKED_AT, Radiographs, Record, skipping
from gloria.data.reports import FULL_REPORT, ReportPolicy, check_policy, read_report
from gloria.data.rows import check_file, read_label, read_rows, rows_by
from gloria.errors import DataError, OptionError, UnknownNameError

CLASSES = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""Every class that CheXpert and its labeler know, as its files name them."""

PATHOLOGIES = CLASSES[1:]
"""The thirteen that are findings."""

COMPETITION_CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Pleural Effusion",
)
"""The five classes of CheXpert's competition, of GLoRIA's tables and of CheXpert 5x200."""

EIGHT_CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Edema",
    "Fracture",
    "No Finding",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
"""The eight classes of ConVIRT's retrieval sets, CheXpert 8x200."""

UNCERTAIN: Mapping[str, int] = {
    "Atelectasis": 1,
    "Cardiomegaly": 0,
    "Consolidation": 0,
    "Edema": 1,
    "Pleural Effusion": 1,
}
"""What an uncertain label becomes in GLoRIA's tables: U-ones and U-zeros of CheXpert's paper."""

IMAGE_KINDS = (".png", ".jpg", ".dcm")
"""What CheXpert Plus's images are released as; its CSV file calls all of them ``.jpg``."""

_FOLDER = re.compile(r"^CheXpert-v[^/]*/")


def image_id(path: str) -> str:
    """The id of an image: its path without the release's folder, so that releases share it.

    Example:
        >>> image_id("CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg")
        'train/patient00001/study1/view1_frontal.jpg'
    """
    return _FOLDER.sub("", path)


class _CheXpertImages(Radiographs):
    def select(self, ids: Iterable[str]) -> Self:
        """The images of an id list, in its order; paths of any release are ids too."""
        return super().select(map(image_id, ids))


class CheXpert(_CheXpertImages):
    """CheXpert: ``train.csv`` or ``valid.csv`` and JPEG files, with labels.

    A label left blank in the file was not mentioned in the report, and counts as negative.

    Args:
        path: the CSV file, with the columns ``Path`` and one for each class.
        size, channels: as in :class:`~gloria.data.Radiographs`.
        root: the release's folder; None = the folder of ``path``.
        classes: which labels to read, of :data:`CLASSES`.
        uncertain: what an uncertain label becomes, for each class or for all: 1, 0, or -1 to leave
            it uncertain.
        frontal_only: leave out lateral views, as GLoRIA does.

    Raises:
        UnknownNameError: CheXpert has no such class.
        OptionError: ``uncertain`` is no such mapping.
        DataError: the file, a column or the first images are missing; a label is none; an uncertain
            label has no mapping.

    Source: Irvin et al., CheXpert, AAAI 2019.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: tuple[int, int],
        channels: int = 1,
        root: str | Path | None = None,
        classes: Sequence[str] = COMPETITION_CLASSES,
        uncertain: Mapping[str, int] | int = UNCERTAIN,
        frontal_only: bool = True,
    ) -> None:
        path = Path(path)
        root = path.parent if root is None else Path(root)
        mapping = uncertain_mapping(classes, uncertain)
        records = []
        for where, cells in read_rows(path, ["Path", *classes]):
            name = image_id(cells["Path"])
            if frontal_only and not _is_frontal(name, where):
                continue
            labels = read_labels(where, cells, classes, mapping)
            patient = _patient_of(name, where)
            records.append(Record(name, root / name, where, patient, labels=labels))
        super().__init__(records, classes=classes, size=size, channels=channels)


class CheXpertPlus(_CheXpertImages):
    """CheXpert Plus: ``df_chexpert_plus_240401.csv`` with reports, and image files.

    Args:
        path: the CSV file, with the columns ``path_to_image``, ``report``, ``split`` and
            ``section_...``.
        split: ``"train"`` or ``"valid"``; None = all.
        size, channels: as in :class:`~gloria.data.Radiographs`.
        root: the folder that holds ``train/patient.../``; None = the folder of ``path``. Its files
            may be JPEG, PNG or DICOM, all of one kind.
        policy: what of the reports is read; sections come from the file's ``section_`` columns.
        labels: where labels are: CheXpert's own CSV file, or the JSON lines that CheXpert Plus
            brings, such as ``impression_fixed.json``. None = none are read.
        classes: which labels to read; given with ``labels``.
        uncertain: as in :class:`CheXpert`.
        frontal_only: leave out lateral views.
        skip_incomplete: leave out images whose report has no word under the policy, or that have no
            labels; they are listed in ``skipped``. Otherwise they are an error.

    Raises:
        UnknownNameError: there is no such class.
        OptionError: ``uncertain`` is no such mapping, or classes come without labels.
        DataError: as :class:`CheXpert`, and for reports without a word.

    Source: Chambon et al., CheXpert Plus, 2024.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        size: tuple[int, int],
        channels: int = 1,
        root: str | Path | None = None,
        policy: ReportPolicy = FULL_REPORT,
        labels: str | Path | None = None,
        classes: Sequence[str] | None = None,
        uncertain: Mapping[str, int] | int = UNCERTAIN,
        frontal_only: bool = True,
        skip_incomplete: bool = False,
    ) -> None:
        check_policy(policy)
        path = Path(path)
        if labels is None and classes:
            raise OptionError("classes need labels: the file that holds them.")
        classes = (COMPETITION_CLASSES if labels else ()) if classes is None else classes
        known: dict[str, tuple[int, ...]] = {}
        if labels is not None:
            known = _read_label_file(Path(labels), classes, uncertain_mapping(classes, uncertain))
        sections = {name: f"section_{name.replace(' ', '_')}" for name in policy.sections or ()}
        columns = ["path_to_image", "split", *(sections.values() or ["report"])]
        records: list[Record] = []
        skipped: list[str] = []
        for where, cells in read_rows(path, columns):
            name = cells["path_to_image"]
            if split not in (None, cells["split"]):
                continue
            if frontal_only and not _is_frontal(name, where):
                continue
            source = {section: cells[column] for section, column in sections.items()}
            with skipping(skipped if skip_incomplete else None):
                report = read_report(where, source or cells["report"], policy)
                if labels is not None and name not in known:
                    raise DataError(f"{where}: {labels} has no labels of {name}.")
                patient, marks = _patient_of(name, where), known.get(name, ())
                records.append(Record(name, Path(name), where, patient, report, marks))
        if not records and not skipped:
            raise DataError(f"{path} has no image with split {split!r}.")
        located = _locate(records, path.parent if root is None else Path(root))
        super().__init__(located, classes=classes, size=size, channels=channels, skipped=skipped)


def uncertain_mapping(
    classes: Sequence[str], uncertain: Mapping[str, int] | int
) -> Mapping[str, int]:
    """What an uncertain label becomes, class by class: 1, 0 or -1."""
    check_names("classes", classes)
    mapping = dict.fromkeys(classes, uncertain) if isinstance(uncertain, int) else dict(uncertain)
    for name in (*classes, *mapping):
        if name not in CLASSES:
            raise UnknownNameError(f"CheXpert has no class {name!r}; it has {', '.join(CLASSES)}.")
    for name, value in mapping.items():
        if value not in (-1, 0, 1):
            raise OptionError(f"uncertain must map {name!r} to 1, 0 or -1; got {value!r}.")
    return mapping


def read_labels(
    where: str, cells: Mapping[str, str], classes: Sequence[str], uncertain: Mapping[str, int]
) -> tuple[int, ...]:
    """The labels of one row, blanks negative and uncertain ones mapped."""
    labels = []
    for name in classes:
        label = read_label(f"{where}, column {name!r}", cells[name], blank=0)
        if label == -1 and name not in uncertain:
            raise DataError(
                f"{where}, column {name!r}: the label is uncertain, and uncertain= maps only "
                f"{', '.join(uncertain)}. Say what it becomes: 1, 0, or -1 to leave it so."
            )
        labels.append(uncertain[name] if label == -1 else label)
    return tuple(labels)


def _is_frontal(name: str, where: str) -> bool:
    view = re.search(r"_(frontal|lateral)\.\w+$", name)
    if view is None:
        raise DataError(f"{where}: {name!r} must end as view1_frontal.jpg or view2_lateral.jpg.")
    return view[1] == "frontal"


def _patient_of(name: str, where: str) -> str:
    patient = re.search(r"patient\d+", name)
    if patient is None:
        raise DataError(f"{where}: {name!r} names no patient, such as patient00001.")
    return patient[0]


def _read_label_file(
    path: Path, classes: Sequence[str], uncertain: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Labels by image id, of CheXpert's CSV or of JSON lines."""
    if path.suffix != ".json":
        return {
            image_id(name): read_labels(where, cells, classes, uncertain)
            for name, (where, cells) in rows_by(path, "Path", classes).items()
        }
    check_file(path)
    found: dict[str, tuple[int, ...]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            entry: dict[str, Any] = json.loads(line)
            values = {name: entry[name] for name in classes}
            cells = {name: "" if value is None else str(value) for name, value in values.items()}
            image = image_id(entry["path_to_image"])
        except (ValueError, KeyError, TypeError) as cause:
            raise DataError(
                f"{where}: must be a JSON object with path_to_image and {', '.join(classes)}; "
                f"{type(cause).__name__}: {cause}."
            ) from cause
        labels = read_labels(where, cells, classes, uncertain)
        if found.setdefault(image, labels) != labels:
            raise DataError(f"{where}: {image} has other labels in a line before.")
    return found


def _locate(records: list[Record], root: Path) -> list[Record]:
    """Records with their files: of the kind that the first ones have."""
    if not records:
        return records
    first = [root / record.path for record in records[:LOOKED_AT]]
    kinds = (first[0].suffix, *IMAGE_KINDS)
    there = (kind for kind in kinds if any(path.with_suffix(kind).is_file() for path in first))
    kind = next(there, first[0].suffix)
    return [record._replace(path=root / record.path.with_suffix(kind)) for record in records]
