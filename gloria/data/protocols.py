"""Named sets of images that results are reported on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gloria.checks import check_integer
from gloria.data.chexpert import COMPETITION_CLASSES, PATHOLOGIES, CheXpert
from gloria.data.radiographs import Radiographs
from gloria.errors import DataError, UnknownNameError


def draw_exclusive(
    data: Radiographs, classes: Sequence[str], per_class: int, *, seed: int
) -> list[str]:
    """As many images of each class, each positive for it and negative for all else.

    Args:
        data: with labels. An uncertain label is not negative.
        classes: what to draw, of ``data.classes``; all other classes of ``data`` must be negative,
            too.
        per_class: images of each class.
        seed: decides; the order of ``data`` does not.

    Returns:
        Ids, class by class.

    Raises:
        UnknownNameError: ``data`` has no such class.
        DataError: a class has too few such images.
    """
    check_integer("per_class", per_class, 1)
    check_integer("seed", seed, 0)
    labels = data.labels
    drawn: list[str] = []
    for name in classes:
        if name not in data.classes:
            raise UnknownNameError(f"there is no class {name!r}; there are {data.classes}.")
        column = data.classes.index(name)
        exclusive = (labels[:, column] == 1) & (np.delete(labels, column, axis=1) == 0).all(1)
        found = sorted({data.records[index].id for index in np.flatnonzero(exclusive)})
        if len(found) < per_class:
            raise DataError(
                f"{name} has {len(found)} images that are exclusively positive; {per_class} were "
                f"asked for."
            )
        # a class's images do not depend on which other classes are drawn
        rng = np.random.default_rng([seed, *name.encode()])
        drawn += [found[index] for index in rng.permutation(len(found))[:per_class]]
    return drawn


def chexpert_5x200(
    path: str | Path, *, seed: int, per_class: int = 200, root: str | Path | None = None
) -> list[str]:
    """The images of a CheXpert 5x200 set: five classes, 200 exclusively positive images each.

    Exclusive is meant as in the published code: of all thirteen findings, the others are negative
    or not mentioned, and none is uncertain. Its own list was drawn without a seed and never
    published; this one has a seed, and :func:`~gloria.data.splits.write_ids` gives it a hash.

    Args:
        path: CheXpert's ``train.csv``.
        seed: another seed is another set.
        per_class: images of each class.
        root: as in :class:`~gloria.data.CheXpert`.

    Returns:
        Ids, class by class. None of their patients should train:
        ``data.without_patients(data.select(ids).patients)``.

    Raises:
        DataError: a class has too few such images.

    Source: Huang et al., GLoRIA, ICCV 2021, section 4.2.
    """
    data = CheXpert(path, size=(1, 1), root=root, classes=PATHOLOGIES, uncertain=-1)
    return draw_exclusive(data, COMPETITION_CLASSES, per_class, seed=seed)
