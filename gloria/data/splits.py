"""Splits by patient, shares of the labels, and id lists that carry a hash."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gloria.checks import check_integer, check_share
from gloria.data.rows import read_rows, read_text
from gloria.errors import DataError, OptionError, ShapeError
from gloria.files import write_text


def draw_share(
    ids: Sequence[str],
    labels: ArrayLike,
    share: float,
    *,
    seed: int,
    patients: Sequence[str] | None = None,
) -> list[str]:
    """A share of the images, patient by patient, in which every class is about as frequent.

    Patients are sorted by what they have, the rarest class first, in random order among equals; of
    this row, every ``1 / share``-th is taken, from a random start. So the rarest class has its
    share of patients within one, and a few classes have theirs within a few; of many, the most
    frequent are off as by chance. A class with fewer than ``1 / share`` patients may have none.

    Args:
        ids: the images' names, each once.
        labels: ``(image, class)``: 1 positive, 0 negative, -1 uncertain, which counts as negative
            here; a patient has what any of their images has.
        share: of the patients, above 0, at most 1; at least one patient is taken.
        seed: decides; the order of the images does not.
        patients: whose the images are; None = each image is its own.

    Returns:
        The chosen ids, in their order.

    Raises:
        DataError: an id comes twice, a label is not 1, 0 or -1, or a patient is None or NaN.
        ShapeError: ids, labels and patients are not equally many.
        OptionError: ``share`` is out of range.

    Example:
        >>> ids = [f"image{number}" for number in range(100)]
        >>> labels = [[number < 20] for number in range(100)]  # 20 positive ones
        >>> chosen = draw_share(ids, labels, 0.1, seed=0)
        >>> len(chosen), sum(labels[ids.index(name)][0] for name in chosen)
        (10, 2)
    """
    check_share("share", share)
    if share == 0:
        raise OptionError("share must be above 0.")
    check_integer("seed", seed, 0)
    owner, has = _patients(ids, labels, patients)
    rng = np.random.default_rng(seed)
    row = _similar_together(has, rng)
    count = max(round(share * len(has)), 1)
    # exactly count different places: the step is at least 1
    places = ((np.arange(count) + rng.random()) * (len(has) / count)).astype(np.intp)
    taken = np.zeros(len(has), np.bool_)
    taken[row[places]] = True
    return [name for name, patient in zip(ids, owner, strict=True) if taken[patient]]


def draw_splits(
    ids: Sequence[str],
    labels: ArrayLike,
    shares: Mapping[str, float],
    *,
    seed: int,
    patients: Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Disjoint splits by patient, in each of which every class is about as frequent.

    Args:
        ids, labels, seed, patients: as in :func:`draw_share`.
        shares: split: its share; they add up to 1, as ``{"train": 0.7, "val": 0.1, "test": 0.2}``.

    Returns:
        Split: its ids.

    Raises:
        DataError: as :func:`draw_share`, or no patient is left for the last split.
        OptionError: the shares do not add up to 1, or one is not above 0.
    """
    if not shares or not all(value > 0 for value in shares.values()):
        raise OptionError(f"shares must each be above 0; got {dict(shares)}.")
    if not math.isclose(sum(shares.values()), 1):
        raise OptionError(f"shares must add up to 1; {dict(shares)} are {sum(shares.values())}.")
    ids = list(ids)  # by place from here on: a column of pandas is indexed by its own labels
    _patients(ids, labels, patients)  # refuses what does not fit, before anything is drawn
    owners = list(ids if patients is None else patients)
    left = list(range(len(ids)))
    every = np.asarray(labels)
    splits: dict[str, list[str]] = {}
    for number, (name, share) in enumerate(shares.items()):
        if not left:
            raise DataError(
                f"no patient is left for {name!r}: there are {len(set(owners))} in all."
            )
        rest = sum(list(shares.values())[number:])  # for the last split, its own share: all of it
        splits[name] = draw_share(
            [ids[index] for index in left],
            every[left],
            min(share / rest, 1),
            seed=seed + number,
            patients=[owners[index] for index in left],
        )
        chosen = set(splits[name])
        left = [index for index in left if ids[index] not in chosen]
    return splits


def hash_ids(ids: Iterable[str]) -> str:
    """SHA-256 of a set of ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def write_ids(path: str | Path, ids: Sequence[str], *, about: str = "") -> str:
    """Write an id list: a text file with an id a line, headed by its hash. Whole, or not at all.

    Args:
        path: where.
        ids: each once.
        about: how the list came about, in one line.

    Returns:
        The hash, as :func:`hash_ids` gives it.

    Raises:
        DataError: there is no id, an id comes twice or does not fit into a line.
    """
    _check_ids(ids, str(path))
    for name in [*ids, about or "-"]:
        if name != name.strip() or name.startswith("#") or len(name.splitlines()) != 1:
            raise DataError(f"{path}: {name!r} does not fit into a line of an id list.")
    digest = hash_ids(ids)
    head = [f"# sha256 {digest}", *([f"# {about}"] if about else [])]
    write_text(path, "\n".join([*head, *ids]) + "\n")
    return digest


def read_ids(path: str | Path, column: str | None = None) -> list[str]:
    """Read an id list, and verify its hash if it has one.

    Args:
        path: what :func:`write_ids` wrote, or any text file with an id a line, or a CSV file.
        column: of a CSV file; None = the file is no CSV file.

    Raises:
        DataError: the file is missing, has no id, has an id twice, or is not the list that its hash
            is of.
    """
    path = Path(path)
    if column is not None:
        ids = [cells[column] for _, cells in read_rows(path, [column])]
        _check_ids(ids, str(path))
        return ids
    lines = read_text(path).splitlines()
    ids = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    _check_ids(ids, str(path))
    for line in lines:
        if line.startswith("# sha256 ") and line.split()[2:] != [hash_ids(ids)]:
            raise DataError(
                f"{path} was changed: its {len(ids)} ids have the hash {hash_ids(ids)}, and it says"
                f"{line.removeprefix('# sha256')}. Delete that line if the change is yours."
            )
    return ids


def find_ids(wanted: Iterable[str], ids: Sequence[str]) -> list[int]:
    """Where the wanted ones are among the ids of a data set, in their order.

    Raises:
        DataError: one is not there.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        rows.setdefault(name, []).append(row)
    wanted = list(wanted)
    unknown = [name for name in wanted if name not in rows]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(wanted)} ids are not in this data set; first: "
            f"{', '.join(map(str, unknown[:3]))}. Its ids are like {', '.join(ids[:1])}."
        )
    return [row for name in wanted for row in rows[name]]


def _check_ids(ids: Sequence[str], where: str) -> None:
    if not len(ids):
        raise DataError(f"{where}: there is no id.")
    name, count = Counter(ids).most_common(1)[0]
    if count > 1:
        raise DataError(f"{where}: id {name!r} comes {count} times; it must be there once.")


def _patients(
    ids: Sequence[str], labels: ArrayLike, patients: Sequence[str] | None
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Whose each image is, a number among the sorted patients; and what each patient has."""
    _check_ids(ids, "ids")
    every = np.asarray(labels)
    positive, known = every == 1, np.logical_or.reduce([every == each for each in (-1, 0, 1)])
    owners = ids if patients is None else patients
    if positive.ndim != 2 or not len(ids) == len(positive) == len(owners):
        raise ShapeError(
            f"labels must be (image, class) and patients (image,) for {len(ids)} ids; got "
            f"{positive.shape} and {len(owners)}."
        )
    if not known.all():  # "1" and NaN would count as negative
        image, column = np.argwhere(~known)[0]
        raise DataError(
            f"labels must be 1 (positive), 0 (negative) or -1 (uncertain), as numbers; got "
            f"{every.tolist()[image][column]!r} for id {list(ids)[image]!r}, class {column}."
        )
    # as texts they would all be one patient, "None" or "nan"
    unknown = [name for name, who in zip(ids, owners, strict=True) if who is None or who != who]
    if unknown:
        raise DataError(
            f"the patients of {len(unknown)} of {len(ids)} ids are not known; first: "
            f"{unknown[0]!r}. Leave these images out, or name their patients by their ids."
        )
    people, owner = np.unique(np.asarray(owners, dtype=np.str_), return_inverse=True)
    has = np.zeros((len(people), positive.shape[1]), np.bool_)
    np.logical_or.at(has, owner, positive)
    return owner, has


def _similar_together(has: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """An order of the patients by what they have, the rarest class first, else random."""
    rarest_first = np.argsort(has.sum(0), kind="stable")
    # the last key counts most
    return np.lexsort((rng.random(len(has)), *has[:, rarest_first[::-1]].T))
