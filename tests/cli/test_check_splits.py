"""`gloria check-splits`: exit code, a report to read, and one to parse."""

import json

import pytest

from gloria.cli import main


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "my.csv"
    rows = [f"{name}.png,p{number},train" for number, name in enumerate("abcdefgh")]
    path.write_text(
        "\n".join(["image,patient,split", *rows, "x.png,p0,val", "b.png,p1,val"]) + "\n"
    )
    return path


def test_a_leak_is_reported_and_is_exit_code_1(table, capsys):
    assert main(["check-splits", "--data", str(table), "--no-files"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "train: 8 images, val: 2 images",
        "patients in more than one split: 2 (2 of 8 in train, 2 of 2 in val)",
        "  p0  train: a.png; val: x.png",
        "  p1  train: b.png; val: b.png",
        "images in more than one split: 1 (1 of 8 in train, 1 of 2 in val)",
        "  b.png  train: b.png; val: b.png",
        "exact copies with other ids: not looked for",
    ]


def test_each_id_list_is_a_split(tmp_path, capsys):
    lists = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in lists:
        path.write_text("x.png\n")
    assert main(["check-splits", "--data", *map(str, lists), "--no-files"]) == 1
    assert capsys.readouterr().out.startswith("a: 1 images, b: 1 images")
    assert main(["check-splits"]) == 2
    assert "required: --data" in capsys.readouterr().err


def test_files_may_be_given_one_by_one(table, tmp_path, capsys):
    (tmp_path / "test.txt").write_text("a.png\n")
    files = ["--data", str(table), "--data", str(tmp_path / "test.txt")]
    assert main(["check-splits", *files, "--no-files"]) == 1
    assert capsys.readouterr().out.startswith("train: 8 images, val: 2 images, test: 1 images\n")


def test_only_the_first_are_shown_and_missing_files_told(table, capsys):
    assert main(["check-splits", "--data", str(table), "--first", "1", "--quiet"]) == 1
    shown = capsys.readouterr().out
    assert "  p0  train: a.png; val: x.png\n  and 1 more\n" in shown
    assert "not checked: exact copies of 10 of 10 files, first: " in shown


def test_clean_splits_are_exit_code_0(table, capsys):
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-2]) + "y.png,q,val\n")
    assert main(["check-splits", "--data", str(table), "--no-files"]) == 0
    assert capsys.readouterr().out.count("in more than one split: none") == 2


def test_a_split_without_a_name_is_seen(table, capsys):
    table.write_text(table.read_text().replace(",val", ","))
    assert main(["check-splits", "--data", str(table), "--no-files"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("train: 8 images, (blank): 2 images\n")
    assert "2 (2 of 8 in train, 2 of 2 in (blank))\n  p0  train: a.png; (blank): x.png\n" in shown


def test_json(table, capsys):
    assert main(["check-splits", "--data", str(table), "--no-files", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["leaks"] is True
    assert report["sizes"] == {"train": 8, "val": 2}
    assert report["images"] == {"b.png": {"train": ["b.png"], "val": ["b.png"]}}
    assert set(report["patients"]) == {"p0", "p1"}
    assert report["duplicates"] is None  # with --no-files


def test_a_changed_id_list_is_an_error(table, tmp_path, capsys):
    (tmp_path / "test.txt").write_text(f"# sha256 {'0' * 64}\na\n")
    assert main(["check-splits", "--data", str(table), str(tmp_path / "test.txt")]) == 2
    assert "test.txt was changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--data", "none.csv"],
        ["--first", "-1"],
        ["--split-column", "fold"],
        ["--no-such-option"],
        ["--patient-pattern", "("],
    ],
)
def test_an_error_is_no_leak(table, wrong, capsys):
    assert main(["check-splits", "--data", str(table), *wrong]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", "a\n", "got one, 'train'. Give a file for each split, or a CSV file with a"),
        ("my.csv", "image\na.png\n", "a column of their names, which --split-column names (now: "),
        ("my.csv", "image,split\na.png,x\n", "got one, 'x'. Give a file for each split"),
        ("my.csv", "", "my.csv must begin with a header, the names of its columns; it is empty"),
        ("my.csv", "\nimage\na.png\n", "names of its columns; its first line is blank"),
        ("my.csv", "image,split\n", "my.csv must have a row for each image below its header"),
        ("train.txt", "", "train.txt: there is no id"),
        ("my.csv", None, "my.csv must be a file; it is a folder"),
        ("train.txt", None, "train.txt must be a file; it is a folder"),
    ],
)
def test_files_without_two_splits_say_what_to_do(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)
    assert main(["check-splits", "--data", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gloria: error: ")
    assert error.count("\n") == 1  # and no progress bar before it
    assert message in error
