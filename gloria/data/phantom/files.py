"""Phantoms on disk, in the form of anybody's own data: PNG files and one CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gloria.checks import require
from gloria.data.phantom.case import FINDINGS
from gloria.data.phantom.dataset import PhantomDataset, PhantomItem
from gloria.errors import OptionError


def write_phantoms(
    folder: str | os.PathLike[str],
    datasets: Iterable[PhantomDataset],
    *,
    progress: Callable[[int], Any] = lambda written: None,
) -> Path:
    """Write phantom data sets as PNG images, PNG masks and one table, ``phantoms.csv``.

    The table is put in place last and whole: if it is there, every file it names is.

    Columns: ``image`` (path relative to the table), ``report``, ``split`` (the data set's), one 0/1
    column per finding, and one ``<finding> mask`` column per finding (path of a black and white
    PNG, empty where the finding is absent). Spaces in finding names become underscores.

    Args:
        folder: where to write; made if missing.
        datasets: what to write, each split once.
        progress: called with the number of items written since the last call, as ``tqdm.update``.

    Returns:
        The path of the table.

    Raises:
        OptionError: if a split comes twice.
        MissingDependencyError: if pillow is not installed.
    """
    datasets = list(datasets)
    splits = [dataset.split for dataset in datasets]
    if len(set(splits)) < len(splits) or not splits:
        raise OptionError(f"datasets must be one or more different splits; got {splits}.")

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table, draft = folder / "phantoms.csv", folder / "phantoms.csv.part"
    table.unlink(missing_ok=True)  # an older table would name files that are about to change
    with draft.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        columns = [name.replace(" ", "_") for name in FINDINGS]
        rows.writerow(["image", "report", "split", *columns, *(f"{name}_mask" for name in columns)])
        for dataset in datasets:
            for index, item in enumerate(dataset):
                rows.writerow(_write_item(folder, dataset.split, index, item))
                progress(1)
    os.replace(draft, table)
    return table


def _write_item(folder: Path, split: str, index: int, item: PhantomItem) -> list[str]:
    image = f"images/{split}/{index:05d}.png"
    _write_png(folder / image, item.image)
    masks = []
    for name, label, mask in zip(FINDINGS, item.labels, item.masks, strict=True):
        path = f"masks/{split}/{index:05d}_{name.replace(' ', '_')}.png" if label else ""
        if path:
            _write_png(folder / path, mask.astype(np.uint8) * 255)
        masks.append(path)
    return [image, item.report, split, *map(str, item.labels), *masks]


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    require("PIL.Image", "tasks").fromarray(pixels).save(path)
