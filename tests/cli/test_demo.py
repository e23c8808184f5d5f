"""`gloria demo`, made small: every file it promises is there, and its figures hang together."""

import contextlib
import io
import json

import pytest
import torch

import gloria
from gloria.cli import main
from gloria.training import demo

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")


@pytest.fixture(scope="module")
def run():
    """A small demo with one seed: ``run(folder)`` is what it printed."""
    settings = demo.DemoSettings(
        train_items=64, validation_items=32, per_class=4, grounding_items=24, steps=3
    )

    def run(folder):
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setitem(demo.PRESETS, "quick", settings)
            command = ["demo", "--out", str(folder), "--quiet", "--seed", "3", "--steps", "2"]
            assert main(command) == 0
        return printed.getvalue()

    return run


@pytest.fixture(scope="module")
def done(run, tmp_path_factory):
    """The folder of a demo, and what it printed."""
    out = tmp_path_factory.mktemp("parent") / "demo"
    return out, run(out)


def test_writes_what_it_promises(done):
    out, printed = done
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["seed"] == 3
    assert metrics["settings"]["steps"] == 2
    for figures in (metrics["trained"], metrics["untrained"]):
        assert 0 <= figures["zero_shot_accuracy"] <= 1
        assert 0 <= figures["image_to_text"]["5"] <= 1
        for which in ("matched", "other_image"):
            assert 0 <= figures["grounding"][which]["auroc"] <= 1
    for picture in ("curves.png", "comparison.png", "attention.png"):
        assert (out / picture).stat().st_size > 10_000
    assert len(json.loads((out / "history.json").read_text())) == 2
    assert gloria.load_model(out / "model").encode_image(torch.zeros(1, 1, 64, 64)).grid == (8, 8)
    assert "no evidence about real" in printed
    assert "precision@5" in printed
    assert "other image" in printed


def test_the_same_seed_gives_the_same_figures(run, done, tmp_path):
    run(tmp_path / "again")
    first, again = (
        json.loads((folder / "metrics.json").read_text())["trained"]
        for folder in (done[0], tmp_path / "again")
    )
    assert first == again


def test_the_help_says_what_the_presets_are(capsys):
    assert main(["demo", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    quick, long = demo.PRESETS["quick"], demo.PRESETS["long"]
    assert f"quick: {quick.train_items:,} phantoms, {quick.steps} steps" in shown
    assert f"long: {long.train_items:,} and {long.steps:,}; default: quick" in shown


@pytest.mark.parametrize("name", ["checkpoints", "best", "left_out.json"])
def test_a_model_of_train_is_not_replaced(tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} holds {name}, of a run of gloria train" in capsys.readouterr().err


def test_wrong_options(tmp_path, capsys):
    assert main(["demo", "--preset", "huge"]) == 2
    assert main(["demo", "--steps", "0", "--out", str(tmp_path)]) == 2
    assert "steps must be at least 1; got 0" in capsys.readouterr().err
