"""Phantoms on disk, in the form of anybody's own data: PNG files, one CSV, and the prompts."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gloria.checks import require
from gloria.data.phantom.case import FINDINGS
from gloria.data.phantom.dataset import PhantomDataset, PhantomItem
from gloria.data.phantom.report import phantom_prompts
from gloria.errors import OptionError


def write_phantoms(
    folder: str | os.PathLike[str],
    datasets: Iterable[PhantomDataset],
    *,
    progress: Callable[[int], Any] = lambda written: None,
) -> Path:
    """Write phantom data sets: PNG images and masks, ``prompts.json`` and ``phantoms.csv``.

    The table is put in place last and whole: if it is there, every file it names is. What an
    earlier call wrote into the folder is removed first, whole or stopped; other files stay.

    Columns: ``image`` (path relative to the table), ``report``, ``split`` (the data set's), one 0/1
    column per finding, one ``<finding>_mask`` column per finding (path of a black and white PNG,
    empty where the finding is absent), and ``mentions``: a JSON list of the report's
    :class:`~gloria.data.phantom.Mention`, each an object with ``finding``, ``polarity``, ``start``
    and ``stop`` (in ``split_words(report)``) and ``side``. Spaces in the columns' finding names
    become underscores. ``prompts.json`` holds :func:`~gloria.data.phantom.phantom_prompts`.

    Args:
        folder: where to write; made if missing.
        datasets: what to write, each split once.
        progress: called with the number of items written since the last call, as ``tqdm.update``.

    Returns:
        The path of the table.

    Raises:
        OptionError: if a split comes twice, or the folder has images, masks or prompts that no
            earlier call wrote.
        MissingDependencyError: if pillow is not installed.
    """
    datasets = list(datasets)
    splits = [dataset.split for dataset in datasets]
    if len(set(splits)) < len(splits) or not splits:
        raise OptionError(f"datasets must be one or more different splits; got {splits}.")

    require("PIL.Image", "tasks")  # before anything is removed
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table, draft = folder / "phantoms.csv", folder / "phantoms.csv.part"
    if not table.exists() and not draft.exists():
        _refuse_others(folder)
    draft.touch()  # from here on the folder is ours, even if we are stopped
    table.unlink(missing_ok=True)  # an older table would name files that are about to change
    _remove_pictures(folder)
    (folder / "prompts.json").write_text(json.dumps(phantom_prompts(), indent=2) + "\n")
    with draft.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        columns = [name.replace(" ", "_") for name in FINDINGS]
        masks = [f"{name}_mask" for name in columns]
        rows.writerow(["image", "report", "split", *columns, *masks, "mentions"])
        for dataset in datasets:
            for index, item in enumerate(dataset):
                rows.writerow(_write_item(folder, dataset.split, index, item))
                progress(1)
    os.replace(draft, table)
    return table


def _refuse_others(folder: Path) -> None:
    """Nothing of somebody else's is overwritten."""
    for name in ("images", "masks", "prompts.json"):
        if (folder / name).exists():
            raise OptionError(
                f"{folder} must be empty, or of earlier phantoms; it holds {name} and no "
                f"phantoms.csv. Name another folder."
            )


def _remove_pictures(folder: Path) -> None:
    """Those of an earlier call, which may have written more or other splits."""
    for kind in ("images", "masks"):
        for path in folder.glob(f"{kind}/*/*.png"):
            if re.fullmatch(r"\d{5,}(_[a-z_]+)?", path.stem):
                path.unlink()
        for split in folder.glob(f"{kind}/*"):
            if split.is_dir() and not any(split.iterdir()):
                split.rmdir()


def _write_item(folder: Path, split: str, index: int, item: PhantomItem) -> list[str]:
    image = f"images/{split}/{index:05d}.png"
    _write_png(folder / image, item.image)
    masks = []
    for name, label, mask in zip(FINDINGS, item.labels, item.masks, strict=True):
        path = f"masks/{split}/{index:05d}_{name.replace(' ', '_')}.png" if label else ""
        if path:
            _write_png(folder / path, mask.astype(np.uint8) * 255)
        masks.append(path)
    mentions = json.dumps([mention._asdict() for mention in item.mentions])
    return [image, item.report, split, *map(str, item.labels), *masks, mentions]


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    require("PIL.Image", "tasks").fromarray(pixels).save(path)
