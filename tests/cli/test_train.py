"""`gloria train` on phantoms written to disk: the file-based path, from CSV to a loadable model."""

import csv
import json
import signal
import subprocess
import sys

import pytest
import torch

import gloria
from gloria.cli import main

QUICK = ["--steps", "4", "--batch-size", "4", "--validate-every", "2", "--checkpoint-every", "1"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    arguments = ["--train", "12", "--val", "8", "--test", "0", "--size", "32", "--quiet"]
    assert main(["phantoms", "--out", str(folder), *arguments]) == 0
    return folder / "phantoms.csv"


def run(table, out, *more):
    fixed = ["--image-size", "32", "--workers", "0", "--quiet", *QUICK]
    return main(["train", "--data", str(table), "--out", str(out), *fixed, *more])


def test_trains_and_saves(table, tmp_path, capsys):
    assert run(table, tmp_path / "run") == 0
    model = gloria.load_model(tmp_path / "run" / "model")
    attention = model.attention(torch.zeros(1, 32, 32), "Small left effusion.")
    assert attention.words == ["Small", "left", "effusion", "."]
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    assert "validation_loss" in history[-1]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    assert "model in" in capsys.readouterr().err


def test_other_encoders_and_losses_by_name(table, tmp_path):
    assert (
        run(
            table,
            tmp_path,
            *("--image-encoder", "timm:convnext_atto", "--loss", "global_contrastive"),
            *("--channels", "3"),
        )
        == 0
    )
    assert gloria.load_model(tmp_path / "model").image_encoder.image_input.channels == 3


def test_a_killed_run_goes_on_to_the_same_weights(table, tmp_path):
    assert run(table, tmp_path / "whole") == 0
    command = [sys.executable, "-m", "gloria", "train", "--data", str(table), "--out"]
    command += [str(tmp_path / "killed"), "--image-size", "32", "--workers", "0", "--quiet", *QUICK]
    process = subprocess.Popen(command)
    first = tmp_path / "killed" / "checkpoints"
    while process.poll() is None and not (first.exists() and any(first.glob("step-*"))):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(table, tmp_path / "killed") == 0
    weights = [
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "killed")
    ]
    assert weights[0] == weights[1]


def test_without_validation_rows(table, tmp_path, capsys):
    rows = list(csv.reader(table.open()))
    only = table.with_name("train_only.csv")
    with only.open("w", newline="") as file:
        csv.writer(file).writerows(row for row in rows if row[2] != "val")
    assert run(only, tmp_path) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert all("validation_loss" not in record for record in history)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--report-column", "text"], "no column 'text'; it has image, report, split"),
        (["--train-split", "training"], "no row with split 'training'; its splits are train, val"),
        (["--batch-size", "99"], "at least one batch of 99 pairs; got 12"),
        (["--device", "nonsense"], "device 'nonsense' can't be used here"),
        (["--steps", "0"], "steps must be an integer of at least 1; got 0"),
        (["--loss", "nonsense"], "nonsense"),
    ],
)
def test_errors_are_one_line(table, tmp_path, capsys, change, message):
    assert run(table, tmp_path, *change) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_missing_file_is_named(tmp_path, capsys):
    assert run(tmp_path / "none.csv", tmp_path) == 1
    assert "none.csv does not exist" in capsys.readouterr().err


def test_a_broken_image_names_its_row(table, tmp_path, capsys):
    rows = list(csv.reader(table.open()))
    broken = table.with_name("broken.csv")
    rows[3][0] = "broken.png"
    (table.parent / "broken.png").write_bytes(b"no image")
    with broken.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert run(broken, tmp_path, "--batch-size", "12") == 1
    error = capsys.readouterr().err
    assert "row 4" in error
    assert "broken.png" in error
