"""`gloria phantoms` writes every split, and the prompts."""

import csv
import json
from collections import Counter

import pytest

from gloria.cli import main
from gloria.data.phantom import FINDINGS, RETRIEVAL_CLASSES, phantom_item


def run(folder, *more):
    small = ["--train", "3", "--val", "2", "--test", "1", "--size", "32", "--quiet"]
    return main(["phantoms", "--out", str(folder), *small, *more])


def read(folder):
    with (folder / "phantoms.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_split_is_written(tmp_path, capsys):
    assert run(tmp_path, "--per-class", "2") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'phantoms.csv'}\n"
    rows = read(tmp_path)
    counts = {"train": 3, "val": 2, "test": 1, "val_5x2": 10, "test_5x2": 10}
    assert Counter(row["split"] for row in rows) == counts
    exclusive = [row for row in rows if row["split"] == "val_5x2"]
    for row, name in zip(exclusive, RETRIEVAL_CLASSES * 2, strict=True):
        shown = [finding for finding in FINDINGS if row[finding.replace(" ", "_")] == "1"]
        assert shown == [name]
    assert list(json.loads((tmp_path / "prompts.json").read_text())) == list(FINDINGS)


def test_no_5xn_splits(tmp_path):
    assert run(tmp_path, "--per-class", "0", "--seed", "4") == 0
    rows = read(tmp_path)
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    assert rows[1]["report"] == phantom_item("train", 1, seed=4).report


def pictures(folder):
    return {str(path.relative_to(folder)) for path in folder.glob("*/*/*.png")}


def named(folder):
    masks = [f"{finding.replace(' ', '_')}_mask" for finding in FINDINGS]
    rows = read(folder)
    return {row[column] for row in rows for column in ("image", *masks) if row[column]}


def test_phantoms_of_an_earlier_run_are_replaced_and_other_files_stay(tmp_path):
    assert run(tmp_path, "--per-class", "2", "--train", "40") == 0
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "images" / "train" / "mine.png").write_text("mine")
    assert run(tmp_path, "--per-class", "0", "--val", "0") == 0
    assert pictures(tmp_path) == named(tmp_path) | {"images/train/mine.png"}
    assert not (tmp_path / "images" / "val_5x2").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_was_stopped_is_replaced(tmp_path, monkeypatch):
    def stop(self, count=1):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gloria.cli.progress.Progress.advance", stop)
        assert run(tmp_path, "--per-class", "2") == 130
    assert pictures(tmp_path)
    assert not (tmp_path / "phantoms.csv").exists()
    assert run(tmp_path, "--per-class", "0") == 0
    assert pictures(tmp_path) == named(tmp_path)


@pytest.mark.parametrize("name", ["images", "masks", "prompts.json"])
def test_what_it_did_not_write_is_not_overwritten(tmp_path, capsys, name):
    mine = tmp_path / name / "train" / "00000.png" if "." not in name else tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"must be empty, or of earlier phantoms; it holds {name} and no phantoms.csv" in error
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--per-class", "-1"], "per-class must be at least 0; got -1"),
        (["--train", "-1"], "train must be at least 0; got -1"),
        (
            ["--train", "0", "--val", "0", "--test", "0", "--per-class", "0"],
            "train, val, test and per-class must not all be 0",
        ),
        (["--size", "8"], "size must be at least 32; got 8"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, change, message):
    assert run(tmp_path, *change) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
