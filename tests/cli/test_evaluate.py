"""`gloria evaluate`: tables, files, going on where it stood, and clear refusals."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gloria
from gloria.cli import evaluate, main
from gloria.data.phantom import PhantomDataset
from gloria.training import transfer
from gloria.training.classification import ClassifierRecipe
from gloria.training.randomness import isolated
from gloria.training.segmentation import SegmentationRecipe
from gloria.training.small import small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with isolated(0):
        model = small_model([item.report for item in PhantomDataset("train", count=8)])
    return gloria.save_model(model, folder / "model")


@pytest.fixture
def tiny(monkeypatch):
    """Few phantoms, short trainings."""
    sizes = {"train": 24, "val": 24, "test": 40, "per_class": 4}
    monkeypatch.setattr(evaluate, "PHANTOMS", sizes)
    short = {
        "classification": ClassifierRecipe(steps=4, validate_every=2),
        "segmentation": SegmentationRecipe(steps=1, batch_size=4),
        "width": 16,
        "resamples": 20,
    }
    monkeypatch.setattr(transfer, "PHANTOM_UNET", short)


def run(model, out, *more):
    return main(["evaluate", "--model", str(model), "--out", str(out), "--quiet", *more])


def results(out):
    return json.loads((out / "results.json").read_text())


SHORT = ("--fractions", "50,100", "--seeds", "2")


def test_prints_and_writes_the_four_tables(tiny, model, tmp_path, capsys):
    assert run(model, tmp_path / "out", *SHORT) == 0
    printed = capsys.readouterr()
    markdown = (tmp_path / "out" / "tables.md").read_text()
    for text in (printed.out, markdown):
        for title in ("Image-text retrieval", "Zero-shot", "AUROC by share", "Dice by share"):
            assert title in text
        assert text.count("not comparable") == 4
        assert "No evidence about real radiographs" in text
    found = results(tmp_path / "out")
    (tasks,) = (each["tasks"] for each in found["models"].values())
    assert list(tasks) == ["retrieval", "zero-shot", "classification", "segmentation"]
    assert found["settings"]["seeds"] == "2"
    assert printed.err == ""

    assert run(model, tmp_path / "again", *SHORT, "--json") == 0
    assert json.loads(capsys.readouterr().out) == results(tmp_path / "again") == found


@pytest.fixture
def asked(monkeypatch):
    """The tasks that were evaluated; ``asked.stop_at`` presses Ctrl-C in one."""
    evaluate_task = transfer.evaluate_task

    class Asked(list):
        stop_at = None

        def __call__(self, task, *args, **options):
            if task == self.stop_at:
                raise KeyboardInterrupt
            self.append(task)
            return evaluate_task(task, *args, **options)

    spy = Asked()
    monkeypatch.setattr(transfer, "evaluate_task", spy)
    return spy


def test_goes_on_where_it_was_stopped(tiny, model, asked, tmp_path, capsys, monkeypatch):
    tasks = ("--tasks", "retrieval,zero-shot,classification")
    asked.stop_at = "zero-shot"
    assert run(model, tmp_path, *SHORT, *tasks) == 130
    (stopped,) = results(tmp_path)["models"].values()
    assert list(stopped["tasks"]) == asked == ["retrieval"]

    asked.stop_at = None
    assert run(model, tmp_path, *SHORT, *tasks) == 0
    assert asked == ["retrieval", "zero-shot", "classification"]
    (found,) = results(tmp_path)["models"].values()
    assert found["tasks"]["retrieval"] == stopped["tasks"]["retrieval"]

    monkeypatch.setattr(evaluate, "_read_data", None)  # nothing is left to draw data for
    capsys.readouterr()
    assert run(model, tmp_path, *SHORT, *tasks) == 0
    assert len(asked) == 3
    assert "AUROC by share" in capsys.readouterr().out


def test_results_of_other_settings_models_and_data_stay(tiny, model, tmp_path, capsys):
    own = tmp_path / "model"
    gloria.save_model(gloria.load_model(model), own)
    out = tmp_path / "out"
    short = (*SHORT, "--tasks", "retrieval")
    assert run(own, out, *short) == 0
    before = results(out)

    assert run(own, out, *short, "--seed", "1") == 1
    assert "other settings: seed 0; now: seed 1. Give another --out" in capsys.readouterr().err
    trained = gloria.load_model(own)
    trained.image_encoder.requires_grad_(False)
    next(trained.parameters()).add_(1)
    gloria.save_model(trained, own)
    assert run(own, out, *short) == 1
    assert "written anew since" in capsys.readouterr().err
    assert results(out) == before
    (out / "results.json").write_text("{}")
    assert run(own, out, *short) == 1
    assert "is damaged" in capsys.readouterr().err


def test_several_models_are_rows_of_one_table(tiny, model, tmp_path, capsys):
    other = gloria.save_model(gloria.load_model(model), tmp_path / "other")
    folders = [str(model), str(other)]
    command = ["evaluate", "--model", *folders, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, "--tasks", "zero-shot"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ours = [row[1:] for row in rows if row and row[0] in folders]
    assert len(ours) == 2
    assert ours[0] == ours[1]


@pytest.fixture
def table(tmp_path):
    """A CSV file with two classes, of twenty patients with two images each."""
    rng = np.random.default_rng(0)
    lines = ["image,patient,report,Edema,Cardiomegaly"]
    for number in range(40):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(tmp_path / name)
        edema = number // 2 % 2
        lines.append(
            f"{name},p{number // 2},{'Edema' if edema else 'Large heart'}.,{edema},{1 - edema}"
        )
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def test_a_table_of_your_own_and_what_it_does_not_permit(model, table, tmp_path, capsys):
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly", "--patient-column", "patient")
    asked = ("--tasks", "retrieval,zero-shot,segmentation")
    assert run(model, tmp_path / "out", *given, *asked) == 0
    printed = capsys.readouterr().out
    assert "retrieval skipped: the images have no reports." in printed
    assert "segmentation skipped: the images have no masks." in printed
    assert "csv, 2x4" in printed  # a fifth of 20 patients, 2 of each class, 2 images each
    assert "Phantom" not in printed
    assert "skipped" in (tmp_path / "out" / "tables.md").read_text()

    reports = ("--report-column", "report")
    assert run(model, tmp_path / "reports", *given, *reports, "--tasks", "retrieval") == 0
    assert "Prec@5" in capsys.readouterr().out

    table.write_text(table.read_text().replace("0.png,p0,Large heart.,0,1", "0.png,p0,Edema.,1,0"))
    assert run(model, tmp_path / "out", *given, "--tasks", "zero-shot,classification") == 1
    assert "which changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "detection"], "tasks must be of retrieval, zero-shot"),
        (["--format", "csv"], "--format csv needs --data"),
        (["--format", "phantom", "--data", "x.csv"], "--format phantom takes no --data"),
        (["--data", "x.csv"], "--format csv needs --classes"),
        (["--format", "siim", "--data", "x.csv"], "--format siim needs --images"),
        (["--classes", "Edema"], "classes is not for --format phantom"),
        (["--seeds", "0"], "seeds must be at least 1; got 0"),
        (["--format", "rsna", "--data", "x.csv", "--images", "."], "x.csv does not exist"),
    ],
)
def test_wrong_options(model, tmp_path, capsys, options, message):
    assert run(model, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_percents_and_models(model, tmp_path, capsys):
    assert run(model, tmp_path / "out", "--fractions", "0,10") == 2
    assert "must each be above 0, at most 100" in capsys.readouterr().err
    assert run(model, tmp_path / "out", "--fractions", "some") == 2
    assert run(tmp_path / "none", tmp_path / "out") == 1
    assert "is no saved model" in capsys.readouterr().err


def test_the_code_and_the_commands_of_the_page(capsys):
    """Its Python runs; its commands' options are ours."""
    page = (Path(gloria.__file__).parents[1] / "docs" / "evaluate.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "evaluate.md", "exec"), {"__name__": "docs"})
    assert "| untrained, both |" in capsys.readouterr().out
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    commands = "".join(re.findall(r"```bash\n(.*?)```", page, re.DOTALL)).replace("\\\n", "")
    for command in commands.splitlines():
        words = command.split()
        assert words[:2] == ["gloria", "evaluate"]
        evaluate._check(parser.parse_args(words[2:]))
