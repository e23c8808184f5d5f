"""Phantoms on disk hold what the items hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gloria.data.phantom import (
    FINDINGS,
    Mention,
    PhantomDataset,
    PhantomItem,
    phantom_prompts,
    split_words,
    write_phantoms,
)
from gloria.errors import OptionError

COLUMNS = [name.replace(" ", "_") for name in FINDINGS]


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_disk_round_trip(tmp_path: Path) -> None:
    datasets = [PhantomDataset("train", count=6, size=40), PhantomDataset("val_5x2", size=40)]
    steps: list[int] = []
    table = write_phantoms(tmp_path / "new" / "folder", datasets, progress=steps.append)
    assert table == tmp_path / "new" / "folder" / "phantoms.csv"
    assert sum(steps) == 16
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items = [(dataset.split, item) for dataset in datasets for item in dataset]
    assert len(rows) == len(items)
    for row, (split, item) in zip(rows, items, strict=True):
        assert list(row) == [
            "image", "report", "split", *COLUMNS, *(f"{name}_mask" for name in COLUMNS),
            "mentions",
        ]  # fmt: skip
        assert (row["split"], row["report"]) == (split, item.report)
        np.testing.assert_array_equal(read(table.parent / row["image"]), item.image)
        for column, label, mask in zip(COLUMNS, item.labels, item.masks, strict=True):
            assert row[column] == str(label)
            assert bool(row[f"{column}_mask"]) == bool(label)
            if label:
                stored = read(table.parent / row[f"{column}_mask"])
                np.testing.assert_array_equal(stored, mask * np.uint8(255))
        mentions = [Mention(**mention) for mention in json.loads(row["mentions"])]
        assert tuple(mentions) == item.mentions
        for mention in mentions:
            assert 0 <= mention.start < mention.stop <= len(split_words(row["report"]))


def test_the_prompts_are_beside_the_table(tmp_path: Path) -> None:
    write_phantoms(tmp_path, [PhantomDataset("val", count=1, size=32)])
    assert json.loads((tmp_path / "prompts.json").read_text()) == phantom_prompts()


def test_a_second_writing_replaces_the_first(tmp_path: Path) -> None:
    write_phantoms(tmp_path, [PhantomDataset("val", count=3, size=32)])
    table = write_phantoms(tmp_path, [PhantomDataset("val", count=2, size=32, seed=1)])
    with table.open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2
    assert not list(tmp_path.glob("*.part"))


class Breaks(PhantomDataset):
    """Fails at its second item, as a full disk or a kill would."""

    def __getitem__(self, index: int) -> PhantomItem:
        if index == 1:
            raise OSError("disk full")
        return super().__getitem__(index)


def test_an_interrupted_writing_leaves_no_table(tmp_path: Path) -> None:
    write_phantoms(tmp_path, [PhantomDataset("val", count=3, size=32)])
    with pytest.raises(OSError, match="disk full"):
        write_phantoms(tmp_path, [Breaks("val", count=3, size=32)])
    assert not (tmp_path / "phantoms.csv").exists()


def test_a_split_comes_once(tmp_path: Path) -> None:
    twice = [PhantomDataset("val", count=2), PhantomDataset("val", count=2, seed=1)]
    for datasets in (twice, []):
        with pytest.raises(OptionError, match="datasets must be one or more different splits"):
            write_phantoms(tmp_path, datasets)
