"""`gloria demo`, made small: every file it promises is there, and its figures hang together."""

import json

import pytest
import torch

import gloria
from gloria.cli import main
from gloria.training import demo


@pytest.fixture
def tiny(monkeypatch):
    settings = demo.DemoSettings(
        train_items=64, validation_items=32, per_class=4, grounding_items=24, steps=3
    )
    monkeypatch.setitem(demo.PRESETS, "quick", settings)


def test_writes_what_it_promises(tiny, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--quiet", "--seed", "3"]) == 0
    out = tmp_path / "demo"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["seed"] == 3
    for figures in (metrics["trained"], metrics["untrained"]):
        assert 0 <= figures["zero_shot_accuracy"] <= 1
        assert 0 <= figures["image_to_text"]["5"] <= 1
        for which in ("matched", "other_image"):
            assert 0 <= figures["grounding"][which]["auroc"] <= 1
    for picture in ("curves.png", "comparison.png", "attention.png"):
        assert (out / picture).stat().st_size > 10_000
    assert len(json.loads((out / "history.json").read_text())) == 3
    assert gloria.load_model(out / "model").encode_image(torch.zeros(1, 1, 64, 64)).grid == (8, 8)
    printed = capsys.readouterr().out
    assert "no evidence about real" in printed
    assert "precision@5" in printed
    assert "other image" in printed


def test_the_same_seed_gives_the_same_figures(tiny, tmp_path, capsys):
    for name in ("first", "second"):
        assert main(["demo", "--out", str(tmp_path / name), "--quiet", "--steps", "2"]) == 0
    first, second = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "second")
    )
    assert first["trained"] == second["trained"]
    assert first["settings"]["steps"] == 2


def test_the_help_says_what_the_presets_are(capsys):
    assert main(["demo", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    quick, long = demo.PRESETS["quick"], demo.PRESETS["long"]
    assert f"quick: {quick.train_items:,} phantoms, {quick.steps} steps" in shown
    assert f"long: {long.train_items:,} and {long.steps:,}; default: quick" in shown


def test_wrong_options(tmp_path, capsys):
    assert main(["demo", "--preset", "huge"]) == 2
    assert main(["demo", "--steps", "0", "--out", str(tmp_path)]) == 2
    assert "steps must be at least 1; got 0" in capsys.readouterr().err
