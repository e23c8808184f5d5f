"""Named sets of images that results are reported on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gloria.checks import check_integer, check_names
from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES, EIGHT_CLASSES, PATHOLOGIES, CheXpert
from gloria.data.pairs import LabelledItems
from gloria.data.radiographs import Radiographs
from gloria.data.rows import read_rows
from gloria.errors import DataError, UnknownNameError

TEXT_QUERIES: Mapping[str, tuple[str, ...]] = {
    "Atelectasis": (
        "Linear bibasilar opacities consistent with subsegmental atelectasis.",
        "Left lower lobe volume loss with a raised hemidiaphragm, compatible with atelectasis.",
        "Discoid atelectasis in the right mid lung.",
        "Low lung volumes with crowded vessels and atelectasis at both bases.",
        "Retrocardiac atelectasis.",
    ),
    "Cardiomegaly": (
        "Moderate cardiomegaly.",
        "The cardiothoracic ratio is above one half.",
        "Severely enlarged heart with a globular contour.",
        "Left ventricular enlargement displaces the cardiac apex.",
        "Stable enlargement of the heart compared with the prior film.",
    ),
    "Edema": (
        "Bilateral perihilar haze in a batwing pattern of alveolar edema.",
        "Kerley B lines and thickened septa of interstitial edema.",
        "Cephalization of the pulmonary vessels with mild pulmonary edema.",
        "Diffuse airspace edema of congestive heart failure.",
        "Indistinct vessels and peribronchial cuffing, in keeping with pulmonary edema.",
    ),
    "Fracture": (
        "Acute displaced fracture of the left lateral sixth rib.",
        "Healing fractures of several right posterior ribs with callus.",
        "Fracture of the mid shaft of the right clavicle.",
        "Compression fracture of a thoracic vertebral body.",
        "Nondisplaced fracture of the proximal humerus.",
    ),
    "No Finding": (
        "No acute cardiopulmonary process.",
        "Normal heart size and clear lungs without effusion or pneumothorax.",
        "Unremarkable chest radiograph.",
        "Well expanded lungs with sharp costophrenic angles.",
        "Normal mediastinal contours and normal pulmonary vasculature.",
    ),
    "Pleural Effusion": (
        "Small left pleural effusion with a blunted costophrenic angle.",
        "Large right pleural effusion with a meniscus.",
        "Moderate bilateral pleural effusions layering posteriorly.",
        "Pleural fluid tracks into the minor fissure.",
        "A subpulmonic effusion seems to raise the right hemidiaphragm.",
    ),
    "Pneumonia": (
        "Right lower lobe consolidation with air bronchograms, suspicious for pneumonia.",
        "Lingular airspace disease obscures the left heart border, consistent with pneumonia.",
        "Multifocal patchy opacities of bronchopneumonia.",
        "Lobar pneumonia of the right upper lobe.",
        "New focal infiltrate, most likely infectious.",
    ),
    "Pneumothorax": (
        "Small right apical pneumothorax with a visible visceral pleural line.",
        "Left tension pneumothorax with mediastinal shift to the right.",
        "Deep sulcus sign of a pneumothorax on a supine film.",
        "Collapsed right lung without lung markings in the periphery: complete pneumothorax.",
        "Residual left pneumothorax after removal of the chest tube.",
    ),
}
"""Five queries for each class of 8x200, our own: ConVIRT's were written by a radiologist."""


class ImageQueries(NamedTuple):
    """Images that ask, and images to find.

    Attributes:
        queries: ids, class by class.
        candidates: ids, class by class; none of a patient that a query is of.
    """

    queries: list[str]
    candidates: list[str]


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
    check_names("classes", classes)
    check_integer("per_class", per_class, 1)
    check_integer("seed", seed, 0)
    alone = exclusive(data.labels)
    drawn: list[str] = []
    for name in classes:
        rows = np.flatnonzero(alone[:, column_of(data, name)])
        found = sorted({data.records[index].id for index in rows})
        if len(found) < per_class:
            raise DataError(
                f"{name} has {len(found)} images that are exclusively positive; {per_class} were "
                f"asked for. Give a smaller per_class, or more images."
            )
        # a class's images do not depend on which other classes are drawn
        rng = np.random.default_rng([seed, *name.encode()])
        drawn += [found[index] for index in rng.permutation(len(found))[:per_class]]
    return drawn


def exclusive(labels: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Where an image is positive for a class and negative for all else, ``(image, class)``."""
    alone: NDArray[np.bool_] = (labels == 1) & ((labels != 0).sum(1, keepdims=True) == 1)
    return alone


def chexpert_5x200(
    path: str | Path, *, seed: int, per_class: int = 200, root: str | Path | None = None
) -> list[str]:
    """The images of a CheXpert 5x200 set: five classes, 200 exclusively positive images each.

    Exclusive is meant as in the published code: of all thirteen findings, the others are negative
    or not mentioned, and none is uncertain. Its own list was never published.

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


def chexpert_8x200(
    path: str | Path,
    *,
    seed: int,
    per_class: int = 200,
    queries_per_class: int = 10,
    root: str | Path | None = None,
) -> ImageQueries:
    """The images of a CheXpert 8x200 set, for image-image and text-image retrieval.

    Of each of :data:`~gloria.data.chexpert.EIGHT_CLASSES`, 200 exclusively positive images to find
    and 10 that ask. Exclusive is meant as in :func:`chexpert_5x200`, among all fourteen classes.
    ConVIRT's queries were chosen by an expert; these are drawn, of patients that have no image
    among the candidates, so that no query finds another film of its own patient.

    Args:
        path: CheXpert's ``train.csv``.
        seed: another seed is another set.
        per_class: candidates of each class.
        queries_per_class: images of each class that ask.
        root: as in :class:`~gloria.data.CheXpert`.

    Returns:
        Ids of queries and candidates. None of their patients should train.

    Raises:
        DataError: a class has too few such images.

    Source: Zhang et al., ConVIRT, MLHC 2022. Its own lists are CSV files that
    :class:`~gloria.data.CheXpert` and :func:`read_queries` read.
    """
    data = CheXpert(path, size=(1, 1), root=root, classes=CLASSES, uncertain=-1)
    candidates = draw_exclusive(data, EIGHT_CLASSES, per_class, seed=seed)
    others = data.without_patients(data.select(candidates).patients)
    return ImageQueries(
        draw_exclusive(others, EIGHT_CLASSES, queries_per_class, seed=seed), candidates
    )


def class_labels(data: LabelledItems, classes: Sequence[str]) -> Tensor:
    """Which of the classes each image is positive for.

    Args:
        data: each image positive for exactly one of ``classes``; it may be for others, too.
        classes: of ``data.classes``.

    Returns:
        ``(image,)`` integers, an index into ``classes``.

    Raises:
        UnknownNameError: ``data`` has no such class.
        DataError: an image is positive for none of the classes, or for several.
    """
    check_names("classes", classes)
    columns = [column_of(data, name) for name in classes]
    positive = np.asarray(data.labels)[:, columns] == 1
    wrong = np.flatnonzero(positive.sum(1) != 1)
    if len(wrong):
        first = wrong[0]
        has = [name for name, found in zip(classes, positive[first], strict=True) if found]
        place = data.records[first].place if isinstance(data, Radiographs) else data.ids[first]
        raise DataError(
            f"each image must be positive for exactly one of {', '.join(classes)}; {len(wrong)} "
            f"are not, first: {place}, positive for {' and '.join(has) or 'none'}."
        )
    return torch.from_numpy(positive.argmax(1))


def read_queries(
    path: str | Path,
    classes: Sequence[str] = EIGHT_CLASSES,
    *,
    class_column: str = "Variable",
    query_column: str = "Text",
) -> dict[str, list[str]]:
    """Queries by class, of a CSV file with a row for each, as ConVIRT's are.

    Args:
        path: the CSV file.
        classes: what the file may ask for, and must ask for.
        class_column: name of the column with the class.
        query_column: name of the column with the query: a text, or an image's id.

    Returns:
        ``{class: queries}``, in the order of ``classes``.

    Raises:
        DataError: the file or a column is missing, a query is empty, or a class has none.
        UnknownNameError: a row has another class.
    """
    found: dict[str, list[str]] = {name: [] for name in classes}
    for where, cells in read_rows(Path(path), [class_column, query_column]):
        name, query = cells[class_column], cells[query_column]
        if name not in found:
            raise UnknownNameError(
                f"{where}, column {class_column!r}: there is no class {name!r}; there are "
                f"{', '.join(classes)}."
            )
        if not query:
            raise DataError(f"{where}, column {query_column!r}: no query.")
        found[name].append(query)
    without = [name for name, queries in found.items() if not queries]
    if without:
        raise DataError(f"{path} has no query for {', '.join(without)}.")
    return found


def column_of(data: LabelledItems, name: str) -> int:
    """Where a class is among the labels of ``data``."""
    if name not in data.classes:
        raise UnknownNameError(f"there is no class {name!r}; there are {data.classes}.")
    return list(data.classes).index(name)
