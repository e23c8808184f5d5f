"""Patients, images and copies of images that are in more than one split."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from gloria.data.chexpert import IMAGE_KINDS, image_id
from gloria.data.images import load_image
from gloria.data.radiographs import Record
from gloria.data.rows import is_blank, list_columns, read_header, read_rows
from gloria.data.splits import read_ids
from gloria.errors import DataError, DtypeError, GloriaError, OptionError

IMAGE_COLUMNS = ("image", "Path", "path_to_image", "ImageId", "dicom_id", "patientId")
PATIENT_COLUMNS = ("patient", "patient_id", "subject_id", "deid_patient_id")
"""The usual ones, in whatever spelling: see :func:`find_patient_columns`."""
PATIENT_PATTERN = r"patient\d+|(?<![^/])p(\d{8})(?![^/])"
"""Where CheXpert's and MIMIC-CXR's paths name the patient; a group, if it matched, is the name."""

Splits = Mapping[str, Sequence[Record]]


@dataclass(frozen=True)
class Leaks:
    """What was found in more than one split.

    Attributes:
        sizes: split: number of its images.
        patients: patient: split: ids of their images there; None = not compared, as not two splits
            say whose images they have.
        images: id, without ``./`` and ``..``, or the path of a file that has several ids: split:
            ids, one for each time it is there.
        duplicates: hash: split: ids of the images that are the same there, though their ids differ;
            None = files were not compared.
        unchecked: what could not be checked, and why.
    """

    sizes: Mapping[str, int]
    patients: Mapping[str, Mapping[str, list[str]]] | None
    images: Mapping[str, Mapping[str, list[str]]]
    duplicates: Mapping[str, Mapping[str, list[str]]] | None
    unchecked: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.patients or self.images or self.duplicates)


def find_leaks(
    splits: Splits,
    *,
    files: bool = True,
    pixels: bool = False,
    progress: Callable[[int], Any] = lambda read: None,
) -> Leaks:
    """Look for patients, images and exact copies that are in more than one split.

    Args:
        splits: split: the records of its images (``data.records`` of a data set).
        files: compare the bytes of files, too.
        pixels: compare decoded pixels instead, which finds a copy that was saved again without
            loss. Slower.
        progress: called with the number of images whose files were looked at since the last call,
            as ``tqdm.update`` is.

    Raises:
        DtypeError: a split has something else than records, as a data set and a list of ids do.
        DataError: there are fewer than two splits.
    """
    if len(splits) < 2:
        raise DataError(f"a leak is between splits; got {', '.join(splits) or 'none'}.")
    for name, records in splits.items():
        if not all(isinstance(record, Record) for record in records):
            raise DtypeError(f"split {name!r} must be records, such as those of data.records.")
    unchecked = []
    patient = attrgetter("patient")
    named = [name for name, records in splits.items() if any(map(patient, records))]
    anonymous = [r for records in splits.values() for r in records if r.patient is None]
    if anonymous:
        total = sum(map(len, splits.values()))
        unchecked.append(
            f"patients of {len(anonymous)} of {total} images, which do not say whose they are "
            f"(patient-column and patient-pattern are where to look); first: {anonymous[0].place}."
        )
    duplicates = None
    if files or pixels:
        duplicates, why = _duplicates(splits, pixels, progress)
        unchecked += why
    # a.png may be ./a.png in another file, or absolute
    by_file = _of_several(_spelled_id, _shared(splits, attrgetter("file")))
    by_id = {
        name: places
        for name, places in _shared(splits, _spelled_id).items()
        if not _all_of(attrgetter("file"), places) <= by_file.keys()
    }
    return Leaks(
        sizes={name: len(records) for name, records in splits.items()},
        patients=_ids(_shared(splits, patient)) if len(named) > 1 else None,
        images=_ids(by_id | by_file),
        duplicates=duplicates,
        unchecked=unchecked,
    )


def check_splits(splits: Splits) -> None:
    """Require that no patient and no image is in more than one split; no file is read.

    Args:
        splits: split: the records of its images.

    Raises:
        DataError: something is; the message has the first offenders and the counts.
    """
    if leaks := find_leaks(splits, files=False):
        raise DataError(f"the splits leak.\n{describe_leaks(leaks)}")


def describe_leaks(leaks: Leaks, first: int = 5) -> str:
    """What was found, in words, with the first few of each kind."""
    lines = [", ".join(f"{_seen(name)}: {count} images" for name, count in leaks.sizes.items())]
    copies = "exact copies with other ids"
    kinds = {"patients": leaks.patients, "images": leaks.images, copies: leaks.duplicates}
    for kind, found in kinds.items():
        if found is None:
            lines.append(f"{kind}: not looked for")
            continue
        lines.append(f"{kind} in more than one split: {_count(found, leaks.sizes)}")
        for key, places in list(found.items())[:first]:
            where = "; ".join(_place(name, ids) for name, ids in places.items())
            lines.append(f"  {key[:12] if kind == copies else key}  {where}")
        if len(found) > first:
            lines.append(f"  and {len(found) - first} more")
    lines += [f"not checked: {reason}" for reason in leaks.unchecked]
    return "\n".join(lines)


def find_patient_columns(header: Sequence[str]) -> list[str]:
    """The columns with a usual name of patients, in the order of :data:`PATIENT_COLUMNS`.

    Capitals, ``_``, ``-`` and spaces do not count.

    Example:
        >>> find_patient_columns(["image", "PatientID", "Patient"])
        ['Patient', 'PatientID']
    """

    def plain(name: str) -> str:
        return re.sub(r"[\s_-]", "", name).casefold()

    return [name for usual in PATIENT_COLUMNS for name in header if plain(name) == plain(usual)]


def read_split_files(
    paths: Sequence[str | Path],
    *,
    split_column: str = "split",
    image_column: str | None = None,
    patient_column: str | None = None,
    patient_pattern: str = PATIENT_PATTERN,
    images: str | Path | None = None,
) -> dict[str, list[Record]]:
    """Splits as they lie on disk: one CSV file with a column, or a file for each.

    A CSV file with the split column adds to the splits that its cells name; any other file, CSV or
    id list, is one split with its own name.

    Args:
        paths: CSV files (``.csv``, ``.tsv``, packed as ``.gz`` or not), and id lists of any other
            ending.
        split_column: of CSV files.
        image_column: of CSV files; None = the first there is of :data:`IMAGE_COLUMNS`.
        patient_column: of CSV files; None = the first of :func:`find_patient_columns`.
        patient_pattern: a regular expression that finds the patient in an image's id, where there
            is no column; its group, if it has one that matched, else all of it.
        images: the folder that the images are in; None = that of the file. With it, an image may
            be at any depth, and be named without its suffix. CheXpert Plus's PNG and DICOM files
            are found under the names that its CSV file gives them, which end in ``.jpg``.

    Raises:
        DataError: a file or a column is missing, a file has no rows, an id list was changed, or two
            files have one name.
        OptionError: ``patient_pattern`` is no regular expression.
    """
    try:
        pattern = re.compile(patient_pattern)
    except re.error as cause:
        raise OptionError(
            f"patient-pattern must be a regular expression; got {patient_pattern!r}: {cause}."
        ) from cause
    files: dict[str, Path] = {}
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(f"{images} is no folder.")
        files = {file.stem: file for file in Path(images).rglob("*") if file.is_file()}
    splits: dict[str, list[Record]] = {}
    for path in map(Path, paths):
        if path.name.removesuffix(".gz").endswith((".csv", ".tsv")):
            split = split_column if split_column in read_header(path) else None
            rows = _read_table(path, split, image_column, patient_column, pattern)
        else:
            ids = read_ids(path)
            rows = [(None, _record(path, f"{path}, {name}", name, "", pattern)) for name in ids]
        if not rows:
            raise DataError(f"{path} must have a row for each image below its header; it has none.")
        own = path.name.partition(".")[0]
        if rows[0][0] is None and own in splits:
            raise DataError(f"{path}: there is a split {own!r} already; rename the file.")
        for split, record in rows:
            file = _find(record.id, Path(images or path.parent), files)
            splits.setdefault(own if split is None else split, []).append(
                record._replace(path=file)
            )
    return splits


def read_split_table(
    path: str | Path,
    split_column: str,
    *,
    image_column: str | None = None,
    patient_column: str | None = None,
) -> dict[str, list[Record]]:
    """As :func:`read_split_files`, of one table, whatever its file is called; no image is sought.

    Raises:
        DataError: the file or a column is missing.
    """
    splits: dict[str, list[Record]] = {}
    pattern = re.compile(PATIENT_PATTERN)
    for split, record in _read_table(
        Path(path), split_column, image_column, patient_column, pattern
    ):
        splits.setdefault(split or "", []).append(record)
    return splits


def _read_table(
    path: Path,
    split: str | None,
    image: str | None,
    patient: str | None,
    pattern: re.Pattern[str],
) -> list[tuple[str | None, Record]]:
    """The images of a table, each with its split.

    Columns of images and patients that are not named are the usual ones; without that of splits
    (None), no row tells its split.
    """
    header = read_header(path)
    image = image or next((name for name in IMAGE_COLUMNS if name in header), None)
    if image is None:
        raise DataError(
            f"{path} has no column {' or '.join(IMAGE_COLUMNS)}; it has "
            f"{list_columns(header, 'image')}. image-column says which it is."
        )
    patient = patient or next(iter(find_patient_columns(header)), None)
    rows = read_rows(path, [name for name in (image, patient, split) if name])
    return [
        (
            cells[split] if split else None,
            _record(path, where, cells[image], cells[patient] if patient else "", pattern),
        )
        for where, cells in rows
    ]


def _record(path: Path, where: str, image: str, patient: str, pattern: re.Pattern[str]) -> Record:
    """An image of a file of splits; whose it is, its path says where its row does not."""
    found = pattern.search(image)
    owner = found[found.lastindex or 0] if found else None
    name = image_id(image)
    return Record(name, path.parent / name, where, owner if is_blank(patient) else patient)


def _count(found: Mapping[str, Mapping[str, list[str]]], sizes: Mapping[str, int]) -> str:
    """How many, and how much of each split they are."""
    touched = {name: sum(len(places.get(name, ())) for places in found.values()) for name in sizes}
    shares = [
        f"{touched[name]} of {sizes[name]} in {_seen(name)}" for name in sizes if touched[name]
    ]
    return f"{len(found)} ({', '.join(shares)})" if found else "none"


def _seen(split: str) -> str:
    """A split's name; of rows whose cell is blank, that."""
    return split or "(blank)"


def _place(split: str, ids: list[str]) -> str:
    return f"{_seen(split)}: {ids[0]}" + (f" and {len(ids) - 1} more" if len(ids) > 1 else "")


Places = dict[str, list[Record]]
"""Split: what is there of one thing."""


def _shared(splits: Splits, key: Callable[[Record], str | None]) -> dict[str, Places]:
    """What is in more than one split, by its key."""
    keys = {name: [key(record) for record in records] for name, records in splits.items()}
    held_by = Counter(chain.from_iterable(map(set, keys.values())))
    found: dict[str, Places] = {}
    for name, records in splits.items():
        for value, record in zip(keys[name], records, strict=True):
            if value is not None and held_by[value] > 1:
                found.setdefault(value, {}).setdefault(name, []).append(record)
    return found


def _spelled_id(record: Record) -> str:
    return os.path.normpath(record.id)


def _all_of(key: Callable[[Record], str], places: Places) -> set[str]:
    return {key(record) for records in places.values() for record in records}


def _of_several(key: Callable[[Record], str], found: Mapping[str, Places]) -> dict[str, Places]:
    """What has several keys of another kind."""
    return {value: places for value, places in found.items() if len(_all_of(key, places)) > 1}


def _ids(found: Mapping[str, Places]) -> dict[str, dict[str, list[str]]]:
    return {
        value: {split: [record.id for record in records] for split, records in places.items()}
        for value, places in found.items()
    }


def _duplicates(
    splits: Splits, pixels: bool, progress: Callable[[int], Any]
) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Copies with different ids in different splits, and what could not be read."""
    readable: dict[str, list[Record]] = {}
    faults: list[str] = []
    sizes: dict[int, set[str]] = {}
    for name, records in splits.items():
        for record in records:
            if record.path.is_file():
                readable.setdefault(name, []).append(record)
                sizes.setdefault(record.path.stat().st_size, set()).add(name)
            else:
                faults.append(record.about(f"{record.path} does not exist"))
                progress(1)
    digests: dict[Path, str] = {}

    def digest(record: Record) -> str | None:
        progress(1)
        # files of different sizes have different bytes, so most need not be read
        if not pixels and len(sizes[record.path.stat().st_size]) < 2:
            return None
        if record.path not in digests:
            try:
                digests[record.path] = _hash_pixels(record.path) if pixels else _hash(record.path)
            except (GloriaError, OSError) as fault:
                faults.append(record.about(fault))
                digests[record.path] = ""
        return digests[record.path] or None

    found = _of_several(attrgetter("file"), _of_several(_spelled_id, _shared(readable, digest)))
    copies = _ids(found)
    if not faults:
        return copies, []
    total = sum(map(len, splits.values()))
    return copies, [f"exact copies of {len(faults)} of {total} files, first: {faults[0]}."]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_pixels(path: Path) -> str:
    image = load_image(path, bits=16)
    return hashlib.sha256(repr(tuple(image.shape)).encode() + image.numpy().tobytes()).hexdigest()


def _find(name: str, folder: Path, files: Mapping[str, Path]) -> Path:
    """The file of an image, by its path in the folder, else among files by their names."""
    direct = folder / name
    others = map(direct.with_suffix, IMAGE_KINDS) if direct.suffix == ".jpg" else ()
    there = (file for file in (direct, *others) if file.is_file())
    return next(there, files.get(name, direct))
