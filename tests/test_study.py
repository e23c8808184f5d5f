"""The study: it goes on where it stood, and its page is what its results say."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import study
import study_report
import torch

from gloria.errors import NonFiniteLossError, OptionError
from gloria.training.classification import ClassifierRecipe
from gloria.training.segmentation import SegmentationRecipe

# of the few reports that train
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

ABOUT = {name: row.about for name, row in study.ROWS.items()}


def test_the_page_of_the_docs_is_what_the_results_say():
    """Nobody types a figure; ``python benchmarks/study.py report --write`` does."""
    results = study_report.load(study.RESULTS, list(study.ROWS))
    page = study.PAGE.read_text(encoding="utf-8")
    assert page == study_report.replace_between(page, study_report.page(results, ABOUT))
    assert study.PAGE.with_suffix(".png").is_file() == bool(results)
    assert all(result["row"] in study.ROWS for runs in results.values() for result in runs.values())


@pytest.fixture
def small(monkeypatch):
    """Everything in this process, and short."""
    monkeypatch.setattr(
        study, "ProcessPoolExecutor", lambda count, **options: ThreadPoolExecutor(1)
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    short = {
        "classification": ClassifierRecipe(steps=4, validate_every=2),
        "segmentation": SegmentationRecipe(steps=1, batch_size=4),
        "width": 16,
    }
    monkeypatch.setattr(study, "PHANTOM_UNET", short)


def run(out, *more):
    sizes = ["--train", "40", "--val", "24", "--test", "24", "--per-class", "4", "--steps", "2"]
    command = ["run", "--out", str(out), "--device", "cpu", *sizes, *more]
    args = study.parser().parse_args(command)
    return args.function(args)


def test_trains_evaluates_and_goes_on_where_it_stood(small, tmp_path, capsys, monkeypatch):
    assert run(tmp_path, "--rows", "gloria,global", "--seeds", "1") == 0
    printed = capsys.readouterr().out
    assert "2 of 2 to do" in printed
    assert "2/2 global, seed 0" in printed
    gloria, alone = (
        json.loads((tmp_path / f"{row}-0.json").read_text()) for row in ("gloria", "global")
    )
    for result in (gloria, alone):
        assert set(study.TASKS) <= set(result)
        assert result["loss"]["first"] > 0
    assert list(alone["retrieval"]) == ["global"]
    assert gloria["grounding"]["own_attention"]
    assert not alone["grounding"]["own_attention"]
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []

    # a task that is not there yet is evaluated with the model that is; the others are kept
    (tmp_path / "gloria-0.json").write_text(
        json.dumps({name: value for name, value in gloria.items() if name != "zero-shot"})
    )
    monkeypatch.setattr(study, "train_model", None)
    assert run(tmp_path, "--rows", "gloria,global", "--seeds", "1") == 0
    assert "1 of 2 to do" in capsys.readouterr().out
    again = json.loads((tmp_path / "gloria-0.json").read_text())
    assert {**again, "seconds": 0} == {**gloria, "seconds": 0}

    with pytest.raises(OptionError, match="has other settings"):
        run(tmp_path, "--rows", "global", "--steps", "3")
    results = study_report.load(tmp_path / "collected", list(study.ROWS))
    page = study_report.page(results, ABOUT)
    assert "| `global` † |" in page
    assert f"{100 * gloria['retrieval']['both']['image_to_text']['precision@5']:.1f}" in page


def test_begins_nothing_when_the_time_is_up(small, tmp_path, capsys):
    assert run(tmp_path, "--rows", "random", "--seeds", "1", "--minutes", "0") == 0
    assert "random, seed 0: left for another run" in capsys.readouterr().out
    assert not (tmp_path / "random-0.json").exists()
    assert run(tmp_path, "--rows", "random", "--seeds", "1") == 0
    (alone,) = json.loads((tmp_path / "collected" / "results.json").read_text())
    assert alone == json.loads((tmp_path / "random-0.json").read_text())


def test_a_row_that_diverges_is_a_finding_and_the_others_go_on(
    small, tmp_path, monkeypatch, capsys
):
    def diverge(*args):
        raise NonFiniteLossError("step 1: loss is not finite")

    monkeypatch.setattr(study, "train", diverge)
    assert run(tmp_path, "--rows", "official,random", "--seeds", "1") == 0
    failed = json.loads((tmp_path / "official-0.json").read_text())
    assert failed["failed"] == "step 1: loss is not finite"
    assert run(tmp_path, "--rows", "official,random", "--seeds", "1") == 0
    assert "0 of 2 to do" in capsys.readouterr().out
    results = study_report.load(tmp_path / "collected", list(study.ROWS))
    page = study_report.page(results, ABOUT)
    assert "failed with seed 0" in page
    assert "| `random` |" in page


def test_unknown_rows_and_tasks(tmp_path):
    with pytest.raises(OptionError, match=r"rows must be of gloria, .*; got moco"):
        run(tmp_path, "--rows", "gloria,moco")
    with pytest.raises(OptionError, match=r"tasks must be of retrieval, .*; got detection"):
        run(tmp_path, "--tasks", "detection")


def result(row, seed, precision, peak, control):
    """What a run leaves, as far as these tests look."""
    figures = {f"precision@{k}": precision for k in (5, 10, 100)}
    return {
        "row": row,
        "seed": seed,
        "settings": {"sizes": {"steps": 7, "train": 40, "per_class": 4, "test": 9, "contrast": 1}},
        "machine": {"device": "Abacus", "torch": "2", "python": "3", "gloria": "1"},
        "seconds": {"training": 3.0},
        "loss": {"first": 9.0, "last": 1.0},
        "retrieval": {"global": {"image_to_text": figures}},
        "grounding": {
            "own_attention": row != "global",
            "matched": {"peak_near_mask": peak},
            "other_image": {"peak_near_mask": control},
        },
    }


@pytest.fixture
def written(tmp_path):
    """Three seeds each of two rows; the second is worse by .1, .2 and .3."""
    for seed, lower in enumerate((0.1, 0.2, 0.3)):
        for each in (
            result("gloria", seed, 0.8 + lower / 10, 0.9, 0.6),
            result("global", seed, 0.8 + lower / 10 - lower, 0.2, 0.3),
        ):
            (tmp_path / f"{each['row']}-{seed}.json").write_text(json.dumps([each]))
    return study_report.load(tmp_path, list(study.ROWS))


def test_means_spreads_and_paired_differences(written):
    page = study_report.page(written, ABOUT)
    assert "| `gloria` | 82.0 ± 1.0 | 82.0 ± 1.0 | 82.0 ± 1.0 |" in page
    # mean .2, sd .1: t(2) = 4.303, so .2 ± 4.303 * .1 / sqrt(3) = .2 ± .248
    row = next(line for line in page.splitlines() if line.startswith("| `global` | -0.2"))
    assert row.startswith("| `global` | -0.200 [-0.448, +0.048] |")
    assert "**-0.700 [-0.700, -0.700]**" in row
    assert "| `global` † | 0.20 ± 0.00 | 0.30 ± 0.00 |" in page
    assert "no evidence about real radiographs" in page
    assert "Abacus" in page
    assert page.count("not comparable") == 1  # tables without a figure are left out


def test_an_interval_of_differences_is_students():
    low, high = study_report.t_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)
    assert study_report.difference({0: 0.5}, {0: 0.1}) == "–"
    assert study_report.difference({0: 0.5, 1: 0.5}, {2: 0.1, 3: 0.2}) == "–"


def test_the_picture_and_the_page_are_written_between_the_markers(written, tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "study.md"
    page.write_text(f"above\n\n{study_report.BEGIN}\nstale words\n{study_report.END}\n\nbelow\n")
    args = ["report", "--results", str(tmp_path), "--page", str(page), "--write"]
    args = study.parser().parse_args(args)
    assert args.function(args) == 0
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "stale words" not in text
    for name in ("study.png", "study-labels.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    before = text
    assert args.function(args) == 0
    assert page.read_text() == before
    with pytest.raises(SystemExit, match="must have the lines"):
        study_report.replace_between("no markers", "text")


def test_no_results_yet():
    assert study_report.page({}, ABOUT) == "No results yet.\n"
    assert study_report.load(Path("/does/not/exist"), []) == {}


def test_every_row_can_be_made():
    for row in study.ROWS.values():
        model = study.small_model(["a report"], **row.options)
        assert isinstance(model.loss, torch.nn.Module)
