"""`gloria train` on phantoms written to disk: the file-based path, from CSV to a loadable model."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection

import pytest
import torch
from PIL import Image
from torch import nn

import gloria
from gloria import catalog, visualize
from gloria.cli import main, train
from gloria.data import random_sentences
from gloria.errors import CheckpointError
from gloria.registry import Origin, registering_as
from gloria.training import TrainingRecipe, loop
from gloria.types import ImageFeatures, ImageInput

# the vocabulary of twelve reports spells most other words letter by letter
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.TruncatedTextWarning")

QUICK = ["--steps", "4", "--batch-size", "4", "--validate-every", "2", "--checkpoint-every", "1"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    arguments = ["--train", "12", "--val", "8", "--test", "0", "--per-class", "0"]
    assert main(["phantoms", "--out", str(folder), *arguments, "--size", "32", "--quiet"]) == 0
    return folder / "phantoms.csv"


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Curves take as long as a short training; one test has them drawn."""
    if request.function is not test_trains_and_saves:
        monkeypatch.setattr(visualize, "save_figure", lambda figure, path: path.touch())
        monkeypatch.setattr(visualize, "plot_training_curves", lambda history: None)


def run(table, out, *more):
    fixed = ["--image-size", "32", "--workers", "0", "--quiet", *QUICK]
    return main(["train", "--data", str(table), "--out", str(out), *fixed, *more])


def read(table):
    return list(csv.reader(table.read_text().splitlines()))


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


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
    error = capsys.readouterr().err
    assert f"after 4 steps; model in {tmp_path / 'run' / 'model'}\n" in error
    shutil.rmtree(tmp_path / "run" / "best")  # which the run does not need to go on
    assert run(table, tmp_path / "run") == 0
    gone = f"that model is no longer in {tmp_path / 'run' / 'best'}\n"
    assert gone in capsys.readouterr().err
    lowest, best = min(
        (record["validation_loss"], record["step"])
        for record in history
        if "validation_loss" in record
    )
    assert f"validation loss {lowest:.3f}, the lowest, at step {best}; " in error
    assert f"that model in {tmp_path / 'run' / 'best'}\n" in error


def test_every_option_of_training_reaches_it(table, tmp_path, monkeypatch):
    def instead(model, pairs, recipe, **more):
        raise Given(recipe, more["workers"])

    monkeypatch.setattr("gloria.training.train", instead)
    told = {
        "--steps": 7,
        "--batch-size": 3,
        "--mini-batch-size": 2,
        "--learning-rate": 0.25,
        "--weight-decay": 0.5,
        "--clip-norm": 2.5,
        "--precision": "bfloat16",
        "--validate-every": 5,
        "--checkpoint-every": 6,
        "--seed": 8,
        "--workers": 1,
    }
    options = [str(each) for pair in told.items() for each in pair]
    with pytest.raises(Given) as given:
        run(table, tmp_path / "run", *options, "--one-sentence")
    recipe, workers = given.value.args
    assert workers == 1
    assert recipe == TrainingRecipe(
        steps=7,
        batch_size=3,
        mini_batch_size=2,
        learning_rate=0.25,
        weight_decay=0.5,
        clip_norm=2.5,
        precision="bfloat16",
        validate_every=5,
        checkpoint_every=6,
        seed=8,
        text_policy=random_sentences,
    )


def test_processes_of_torchrun_do_not_all_write_one_run(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run(table, tmp_path / "run") == 2
    assert "WORLD_SIZE says 4: start it without torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Given(BaseException):
    """What training was given; no command takes it for an error of its own."""


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


def test_another_loss_with_an_option(table, tmp_path):
    assert run(table, tmp_path, "--loss", "sparc", "--loss-option", "local_weight=0.5") == 0
    model = gloria.load_model(tmp_path / "model")
    assert repr(model.loss).startswith("SPARCLoss(")
    assert model.loss.local_weight == 0.5
    assert model.attention(torch.zeros(1, 32, 32), "Small effusion.").grid_maps.shape[0] == 3
    record = json.loads((tmp_path / "history.json").read_text())[-1]
    assert {"global_image_to_text", "local_text_to_image", "validation_loss"} <= set(record)


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory):
    """The weights of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert run(table, out) == 0
    return weights(out)


@pytest.fixture
def hears_ctrl_c():
    """As a process of a terminal does; one in the background may not, nor the tests in it."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.parametrize(
    ("signals", "stands"),
    [([signal.SIGINT], 2), ([signal.SIGTERM], 2), ([signal.SIGTERM, signal.SIGINT], 0)],
)
@pytest.mark.usefixtures("hears_ctrl_c")
def test_a_run_that_is_stopped_saves_its_step_unless_asked_twice(
    table, tmp_path, capfd, monkeypatch, whole, signals, stands
):
    rarely = ["--checkpoint-every", "100"]
    update, usual = loop.update, [signal.getsignal(number) for number in signals]

    def stopped_in_the_middle(*args, step, **kwargs):
        for number in signals if step == 1 else []:
            os.kill(os.getpid(), number)
        return update(*args, step=step, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", stopped_in_the_middle)
        assert run(table, tmp_path, *rarely) == 130
    assert [signal.getsignal(number) for number in signals] == usual
    error = capfd.readouterr().err
    assert "stopping after this step, which is saved then; once more to stop at once" in error
    on = f"stands at step {stands}; the same command goes on from there"
    assert f"{tmp_path} {on if stands else 'has no checkpoint: the command starts anew'}\n" in error
    search = ["search", "Edema.", "--images", str(table.parent), "--model"]
    for name in (tmp_path / "model", tmp_path) if stands else ():
        assert main([*search, str(name)]) == 2
        told = f"{name} is no saved model yet: the run in {tmp_path} stands at step {stands}. "
        assert told in capfd.readouterr().err
    assert run(table, tmp_path, *rarely) == 0
    assert weights(tmp_path) == whole


def test_a_scheduler_stops_loading_processes_too(table, tmp_path, capfd, monkeypatch):
    update = loop.update

    def stopped_with_all_processes(*args, step, **kwargs):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            for process in multiprocessing.active_children():
                # by another process: torch takes it from us for an end in good order
                subprocess.run(["kill", "-TERM", str(process.pid)], check=True)
                connection.wait([process.sentinel])  # not by join: torch looks after us
        return update(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "update", stopped_with_all_processes)
    assert run(table, tmp_path, "--workers", "1", "--checkpoint-every", "100") == 130
    assert "stands at step 2; the same command goes on" in capfd.readouterr().err


def test_a_run_that_goes_on_says_from_where(table, tmp_path, capsys):
    loud = ["train", "--data", str(table), "--out", str(tmp_path), "--image-size", "32"]
    assert run(table, tmp_path) == 0
    capsys.readouterr()
    assert main([*loud, "--workers", "0", *QUICK]) == 0
    assert f"{tmp_path} stands at step 4 of 4\n" in capsys.readouterr().err


def test_a_model_without_checkpoints_to_go_on_from_is_not_replaced(table, tmp_path, capsys, whole):
    assert run(table, tmp_path) == 0
    shutil.rmtree(tmp_path / "checkpoints")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(table, tmp_path) == 2
    told = f"out must be another folder, or {tmp_path / 'model'} be removed: it is a saved model"
    assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    shutil.rmtree(tmp_path / "model")  # as a run looks that was killed before its first checkpoint
    assert run(table, tmp_path) == 0
    assert weights(tmp_path) == whole


def test_a_thread_can_train(table, tmp_path):
    """Where no signal is heard."""
    with ThreadPoolExecutor() as threads:
        assert threads.submit(run, table, tmp_path, "--steps", "1").result() == 0


def test_without_validation_rows(table, tmp_path, capsys):
    rows = read(table)
    only = write(table.with_name("train_only.csv"), (row for row in rows if row[2] != "val"))
    assert run(only, tmp_path) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert all("validation_loss" not in record for record in history)


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_the_validation_split_may_be_called_otherwise(table, tmp_path, name, capsys):
    rows = [[*row[:2], name if row[2] == "val" else row[2]] for row in read(table)]
    called = write(table.with_name(f"{name}.csv"), rows)
    assert run(called, tmp_path) == 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert "validation_loss" in history[-1]
    assert list(json.loads((tmp_path / "left_out.json").read_text())) == ["train", name]


def test_a_run_that_can_not_begin_leaves_nothing(table, tmp_path, capsys):
    assert run(table, tmp_path / "run", "--batch-size", "99") == 2
    assert "at least one batch of 99 pairs; got 12" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--report-column", "text"], "no column 'text'; it has image, report, split"),
        (
            ["--train-split", "training"],
            "no row with split 'training'; its splits are 'train', 'val'. --train-split names the",
        ),
        (
            ["--val-split", "valid"],
            "no row with split 'valid'; its splits are 'train', 'val'. --val-split names the one",
        ),
        (["--sections", "findings, foo"], "got ('findings', 'foo')"),
        (["--steps", "0"], "steps must be at least 1; got 0"),
        (["--pretrained"], "pretrained needs image-encoder"),
        (["--image-option", "no_such=1"], "no_such"),
        (["--loss-option", "local_weight=-1"], "local_weight must be"),
        (["--text-option", "last_n_layers=3"], "last_n_layers must be from 1 to 2; got 3"),
        (["--clip-norm", "0"], "clip_norm must be"),
        (["--learning-rate", "1e40"], "learning_rate must be a finite number above 0; got 1e+40"),
        (["--learning-rate", "nan"], "learning_rate must be a finite number above 0; got nan"),
        (["--weight-decay", "1e40"], "got 1e+40, too large for float32"),
        (["--embedding-dim", "0"], "embedding-dim must be at least 1; got 0"),
        (["--workers", "-1"], "workers must be at least 0; got -1"),
        (["--image-size", "0"], "image-size must be at least 1; got 0"),
    ],
)
def test_errors_are_one_line(table, tmp_path, capsys, change, message):
    assert run(table, tmp_path, *change) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_lazy_layer_is_told_before_the_data_is_read(tmp_path, capsys):
    origin = Origin("in-process")

    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.LazyLinear(1)

        def forward(self, image_embeddings):
            return self.head(image_embeddings).mean()

    try:
        with registering_as(origin):
            catalog.register_loss("lazy", Lazy)
        assert run(tmp_path / "none.csv", tmp_path / "run", "--loss", "lazy") == 2
    finally:
        catalog.default_catalog().losses.unregister(origin)
    assert "head.weight has none yet, as it is of a lazy layer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--loss", "spark"], "no loss is named 'spark'. Did you mean 'sparc'?"),
        (["--loss-option", "local_weigth=2"], "'local_weigth'. Did you mean 'local_weight'?"),
        (["--preset", "paper", "--loss-option", "learnable=true"], "no option 'learnable'. It has"),
        (["--preset", "papper"], "preset must be one of "),
        (["--image-encoder", "resnet18"], "Did you mean 'timm:resnet18'?"),
        (["--text-encoder", "bert"], "no text encoder is named 'bert'"),
        (["--device", "nonsense"], "device must be auto, cpu, cuda (of ROCm, too)"),
    ],
)
def test_wrong_names_are_told_before_the_data_is_read(tmp_path, capsys, change, message):
    assert run(tmp_path / "none.csv", tmp_path / "run", *change) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_column_names_the_option_that_says_what_it_is_called(table, tmp_path, capsys):
    renamed = write(
        table.with_name("renamed.csv"),
        [["film", "text", "fold"], *(row[:3] for row in read(table)[1:])],
    )
    options = []
    for column, name in (("image", "film"), ("report", "text"), ("split", "fold")):
        assert run(renamed, tmp_path, *options) == 2
        told, hint = capsys.readouterr().err.splitlines()
        assert f"{renamed} has no column '{column}'; it has film, text, fold." in told
        assert hint == f"  --{column}-column is to name one of these."
        options += [f"--{column}-column", name]
    assert run(renamed, tmp_path, *options) == 0
    # not where the option is for another format
    (tmp_path / "files").mkdir()
    for name in ("metadata", "split"):
        columns = ["dicom_id", "study_id", "subject_id", "ViewPosition"]
        write(tmp_path / f"mimic-cxr-2.0.0-{name}.csv", [columns, ["a", "1", "2", "AP"]])
    assert run(tmp_path, tmp_path / "mimic", "--format", "mimic-cxr") == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert "has no column 'split'" in told


def test_a_missing_file_is_named(tmp_path, capsys):
    assert run(tmp_path / "none.csv", tmp_path) == 2
    assert "none.csv does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_image_names_its_row_and_column(table, tmp_path, capsys, workers):
    rows = read(table)
    rows[3][0] = "broken.png"
    (table.parent / "broken.png").write_bytes(b"no image")
    broken = write(table.with_name("broken.csv"), rows)
    assert run(broken, tmp_path, "--batch-size", "12", "--workers", workers) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gloria: error: {broken}, row 4, column 'image': image ")
    assert "broken.png can't be read" in error
    assert error.splitlines()[1:] == ["  --skip-broken leaves such images out."]


def test_a_run_that_a_broken_image_stopped_says_how_to_leave_it_out(table, tmp_path, capsys):
    rows = read(table)
    rows[3][0] = "late.png"
    shutil.copy(table.parent / rows[1][0], table.parent / "late.png")
    late = write(table.with_name("late.csv"), rows)
    assert run(late, tmp_path / "run", "--steps", "1") == 0
    (table.parent / "late.png").write_bytes(b"no image")
    capsys.readouterr()
    assert run(late, tmp_path / "run", "--steps", "1", "--batch-size", "12") == 2
    refused = capsys.readouterr().err
    weights = tmp_path / "run" / "checkpoints" / "step-000001" / "model"
    assert refused.endswith(f"the weights of this one: `gloria train --model {weights}`.\n")
    (table.parent / "late.png").unlink()
    assert run(late, tmp_path / "run") == 2
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  --skip-broken leaves such images out.",
        f"  {tmp_path / 'run'} goes on with all its images only: give another --out, too. --model "
        f"{weights} starts from its weights.",
    ]
    assert run(late, tmp_path / "new", "--skip-broken", "--model", str(weights)) == 0


def test_an_empty_report_names_the_option_that_leaves_it_out(table, tmp_path, capsys):
    rows = read(table)
    rows[3][1] = "-"
    empty = write(table.with_name("empty.csv"), rows)
    assert run(empty, tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gloria: error: {empty}, row 4, column 'report': empty report")
    assert error.splitlines()[1:] == ["  --skip-incomplete leaves such images out."]


def test_broken_and_empty_pairs_are_left_out_and_told_if_asked(table, tmp_path, capsys):
    rows = read(table)
    rows[3][0] = "cut.png"
    (table.parent / "cut.png").write_bytes(b"no image")
    rows[4][1] = "-"
    changed = write(table.with_name("incomplete.csv"), rows)
    assert run(changed, tmp_path, "--skip-broken", "--skip-incomplete") == 0
    error = capsys.readouterr().err
    assert (
        f"train: 2 images left out, first: {changed}, row 5, column 'report': empty report" in error
    )
    listed = json.loads((tmp_path / "left_out.json").read_text())
    assert listed["val"] == []
    assert [reason.split(",")[1] for reason in listed["train"]] == [" row 5", " row 4"]


def test_a_missing_image_is_left_out_as_a_broken_one_if_asked(table, tmp_path, capsys):
    rows = read(table)
    rows[1][0] = "none.png"
    changed = write(table.with_name("missing.csv"), rows)
    assert run(changed, tmp_path, "--skip-incomplete") == 2
    told, hint = capsys.readouterr().err.splitlines()
    assert "row 2, column 'image'" in told
    assert hint == "  --skip-broken leaves such images out."
    assert run(changed, tmp_path, "--skip-broken") == 0
    listed = json.loads((tmp_path / "left_out.json").read_text())["train"]
    assert len(listed) == 1
    assert "row 2, column 'image': image" in listed[0]
    assert listed[0].endswith("none.png does not exist.")


@pytest.fixture(scope="module")
def saved(table, tmp_path_factory):
    """A model of another loss than the default, on images of another size, that can be frozen."""
    out = tmp_path_factory.mktemp("saved")
    options = ["--loss", "sparc", "--image-size", "48", "--image-option", "frozen=true"]
    assert run(table, out, *options) == 0
    return out / "model"


def test_training_goes_on_from_a_saved_model(table, tmp_path, saved):
    """From its weights, with its loss, image size and vocabulary; what it had frozen stays so."""
    fixed = ["--workers", "0", "--quiet", "--batch-size", "4", "--learning-rate", "1e-9"]
    other = table.with_name("other.csv")
    other.write_text(table.read_text().replace("pleural effusion", "pleural fluid"))
    command = ["train", "--data", str(other), "--out", str(tmp_path), "--model", str(saved)]
    assert main([*command, *fixed, "--steps", "2"]) == 0
    assert main([*command, *fixed, "--steps", "2", "--image-size", "48"]) == 0  # the same run
    before, after = gloria.load_model(saved), gloria.load_model(tmp_path / "model")
    assert repr(after.loss) == repr(before.loss)
    assert after.trained_image_size == before.trained_image_size == (48, 48)
    weights = dict(after.named_parameters())
    for name, weight in before.named_parameters():
        assert torch.allclose(weights[name], weight, atol=1e-6), name
        assert weights[name].requires_grad == weight.requires_grad == ("image_encoder" not in name)
    assert any(not torch.equal(weights[name], weight) for name, weight in before.named_parameters())


def test_a_run_from_a_model_goes_on_from_the_same_model_only(table, tmp_path, saved, capsys):
    start = tmp_path / "start"
    shutil.copytree(saved, start)
    out = tmp_path / "run"
    assert run(table, out, "--model", str(start), "--steps", "2") == 0
    expected = weights(out)
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        update = loop.update

        def killed(*args, step, **kwargs):
            if step == 1:
                raise KeyboardInterrupt
            return update(*args, step=step, **kwargs)

        patch.setattr(loop, "update", killed)
        assert run(table, out, "--model", str(start), "--steps", "2") == 130
    assert run(table, out, "--model", str(saved), "--steps", "2") == 0  # the same model elsewhere
    assert weights(out) == expected
    capsys.readouterr()
    shutil.copytree(out / "model", start, dirs_exist_ok=True)
    assert run(table, out, "--model", str(start), "--steps", "2") == 2
    assert "other settings: model changed. Resume" in capsys.readouterr().err
    assert run(table, out, "--steps", "2") == 2
    assert "', is None" in capsys.readouterr().err


def test_what_a_saved_model_has_is_not_asked_for_anew(table, tmp_path, saved, capsys):
    options = ["--loss", "global_local_contrastive", "--image-option", "a=1", "--channels", "1"]
    assert run(tmp_path / "none.csv", tmp_path, "--model", str(saved), *options) == 2
    told = "--model has its own: leave out --channels, --loss, --image-option."
    assert told in capsys.readouterr().err
    assert run(table, saved.parent, "--model", str(saved)) == 2
    assert "out must be another folder" in capsys.readouterr().err
    assert run(table, tmp_path, "--model", str(tmp_path / "none")) == 2
    assert "none is no saved model" in capsys.readouterr().err


def test_reports_that_are_cut_are_counted_and_read_whole_if_asked(
    table, tmp_path, capsys, monkeypatch
):
    rows = read(table)
    rows[3][1] = "Clear. " * 60
    long = write(table.with_name("long.csv"), rows)
    assert run(long, tmp_path / "cut", "--text-option", "max_length=90") == 0
    told = capsys.readouterr().err.splitlines()[0]
    cut, rest = told.split(" of 12 reports that train are longer than the 90 tokens that the text ")
    assert cut == "1"
    assert rest == (
        "encoder reads, and are cut: the longest has 122; --text-option max_length=N reads more"
    )
    monkeypatch.setattr(train, "COUNTED", 5)  # of 12: every other one
    assert run(long, tmp_path / "some", "--text-option", "max_length=90") == 0
    assert "1 of 6 looked at of 12 reports that train are longer" in capsys.readouterr().err
    assert run(long, tmp_path / "whole", "--text-option", "max_length=122") == 0
    assert "are cut" not in capsys.readouterr().err
    saved = tmp_path / "whole" / "model"
    assert gloria.load_model(saved).text_encoder.max_length == 122
    assert run(long, tmp_path / "on", "--model", str(saved)) == 0


def test_what_can_hardly_be_meant_is_told(table, tmp_path, capsys):
    """Rows that nothing reads, pairs that are there twice, and films on both sides."""
    assert run(table, tmp_path / "plain") == 0
    error = capsys.readouterr().err
    assert "there again" not in error
    assert "validated, too" not in error
    rows = read(table)
    rows += [rows[1], [str(table.parent / rows[2][0]), *rows[2][1:]]]  # in another spelling, too
    rows += [[f"./{rows[1][0]}", rows[1][1], "val"], [*rows[3][:2], "Train"]]
    changed = write(table.with_name("doubtful.csv"), rows)
    fixed = ["--image-size", "32", "--workers", "0", *QUICK]
    assert main(["train", "--data", str(changed), "--out", str(tmp_path / "run"), *fixed]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"reading {changed}\n")  # which may take minutes
    assert "rows of other splits are not read: 'Train'" in error
    assert "2 of 14 pairs that train are there again: image and report" in error
    # whose they are is not known
    assert "of what trains, 1 images are validated, too: gloria check-splits" in error


def test_a_report_that_a_batch_has_several_times_is_told(table, tmp_path, capsys):
    rows = read(table)
    for row in rows[1:7]:
        row[1] = "No acute process."
    changed = write(table.with_name("normal.csv"), rows)
    for options, told in ((["--batch-size", "4"], True), (["--batch-size", "3"], False)):
        assert run(changed, tmp_path / options[1], *options) == 0
        error = capsys.readouterr().err
        same = "6 of 12 reports that train are 'No acute process.': of a batch of 4 about 2, of"
        assert (same in error) == told
    for row in rows[1:7]:
        row[1] = f"No acute process. No acute process. Film {row[0]}."
    several = write(table.with_name("sentences.csv"), rows)
    assert run(several, tmp_path / "whole", "--batch-size", "6") == 0
    assert "are 'No acute process.'" not in capsys.readouterr().err
    assert run(several, tmp_path / "one", "--batch-size", "8", "--one-sentence") == 0
    told = "4 of 12 sentences drawn of reports that train are 'No acute process.': of a batch of 8"
    assert f"{told} about 3, of" in capsys.readouterr().err
    assert run(changed, tmp_path / "soft", "--loss", "soft_target") == 0
    assert "No acute process" not in capsys.readouterr().err


def test_patients_on_both_sides_are_told(table, tmp_path, capsys):
    header, *rows = read(table)
    shared = [[*row, "" if number == 1 else f"p{number % 17}"] for number, row in enumerate(rows)]
    changed = write(table.with_name("patients.csv"), [[*header, "patient"], *shared])
    tabs = table.with_name("patients.tsv")
    with tabs.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(read(changed))
    told = "of what trains, 0 images and 2 patients are validated, too: gloria check-splits names"
    for data in (changed, tabs):
        assert run(data, tmp_path / data.name) == 0
        assert told in capsys.readouterr().err
        assert main(["check-splits", "--data", str(data), "--no-files"]) == 1
        assert "patients in more than one split: 2 (" in capsys.readouterr().out


def test_an_encoder_that_can_not_be_made_again_is_told_before_it_is_trained(
    table, tmp_path, capsys, monkeypatch
):
    class Mean(nn.Module):
        pooled_dim = region_dim = 4
        image_input = ImageInput(1, None, (0.5,), (0.5,))

        def forward(self, images):
            regions = images.mean((1, 2, 3))[:, None, None].expand(-1, 1, 4)
            return ImageFeatures(regions[:, 0], regions, (1, 1))

    monkeypatch.setattr(catalog, "create_image_encoder", lambda name, **options: Mean())
    assert run(table, tmp_path) == 0
    error = capsys.readouterr().err
    assert error.startswith("the model's weights are saved, but evaluate, search and ")
    assert "can't make it again: its image_encoder, a Mean, has no recipe method." in error
    with pytest.raises(CheckpointError, match="Mean, has no recipe method"):
        gloria.load_model(tmp_path / "model")


def test_a_validation_batch_smaller_than_training_s_is_told(table, tmp_path, capsys):
    told = "pairs are validated in one batch, training's have 12: the two losses can't be compared"
    fixed = ["--data", str(table), "--image-size", "32", "--steps", "2", "--workers", "0"]
    for size in (12, 4):
        out = str(tmp_path / str(size))
        assert main(["train", *fixed, "--out", out, "--batch-size", str(size)]) == 0
        assert (told in capsys.readouterr().err) is (size == 12)


def test_other_formats(tmp_path, capsys):
    """CheXpert Plus, with the findings and impressions of its columns."""
    rows = [["path_to_image", "split", "section_findings", "section_impression"]]
    for number in range(8):
        name = f"train/patient{number:05}/study1/view1_frontal.jpg"
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("L", (40, 32), number).save(tmp_path / name)
        rows.append([name, "valid" if number > 5 else "train", "Clear lungs.", "Normal."])
    path = write(tmp_path / "plus.csv", rows)
    options = ["--format", "chexpert-plus", "--sections", "findings,impression"]
    assert run(path, tmp_path / "run", *options) == 0
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert "validation_loss" in history[-1]
    assert run(path, tmp_path / "run", "--format", "chexpert-plus", "--sections", "lungs") == 2
    assert "sections must be a tuple of" in capsys.readouterr().err
    assert run(path, tmp_path / "run", "--format", "mimic-cxr") == 2
    assert "plus.csv is no folder" in capsys.readouterr().err
    for format_, option in (
        ("chexpert-plus", ["--bits", "12"]),
        ("mimic-cxr", ["--report-column", "text"]),
        ("csv", ["--images", str(tmp_path)]),
    ):
        assert run(path, tmp_path / "run", "--format", format_, *option) == 2
        assert f"{option[0][2:]} is not for --format {format_}" in capsys.readouterr().err


def test_any_encoder_and_loss_can_be_configured(table, tmp_path):
    pytest.importorskip("open_clip")
    assert (
        run(
            table,
            tmp_path,
            *("--image-encoder", "open_clip:ViT-S-32-alt", "--channels", "3"),
            *("--image-option", "image_size=32", "--image-option", "frozen=true"),
            *("--loss-option", "local_weight=0.5", "--loss-option", "global_weight=2"),
            *("--loss-option", 'local_options={"backend": "chunked"}'),
        )
        == 0
    )
    model = gloria.load_model(tmp_path / "model")
    assert model.image_encoder.image_input.size == (32, 32)
    assert not any(weight.requires_grad for weight in model.image_encoder.parameters())
    assert (model.loss.local_weight, model.loss.global_weight) == (0.5, 2)


def test_an_option_is_name_and_value(table, tmp_path, capsys):
    assert run(table, tmp_path, "--image-option", "frozen") == 2
    assert "must be NAME=VALUE; got 'frozen'" in capsys.readouterr().err
    assert train._option("learnable=False") == train._option("learnable=false")
    assert train._option("learnable=False") == ("learnable", False)


def test_gray_images_for_a_colour_encoder(table, tmp_path, capsys):
    options = ["--image-encoder", "timm:convnext_atto", "--image-option", "in_chans=3"]
    assert run(table, tmp_path, *options) == 2
    assert "with 3 channels, as the image encoder wants; got (4, 1, 32, 32)" in (
        capsys.readouterr().err
    )


def test_a_missing_matplotlib_is_said_before_training(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(table, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "matplotlib is needed here" in error
    # at once with what the command would ask for next
    assert "gloria-torch[train,viz]" in error
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_same_model_and_data_only(table, tmp_path, capsys):
    """Another loss, or another report, would go on from weights that are not its own."""
    assert run(table, tmp_path / "run") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    rows = read(table)
    rows[1][1] = "-"
    changed = write(table.with_name("changed.csv"), rows)
    capsys.readouterr()
    for data, options, message in (
        (table, ["--preset", "paper"], "preset was None, is 'paper'"),
        (table, ["--loss-option", "local_weight=2"], "loss_options was {}, is {'local_weight': 2}"),
        (changed, ["--skip-incomplete"], "training_data changed"),
    ):
        assert run(data, tmp_path / "run", *options) == 2
        error = capsys.readouterr().err
        assert "belongs to a run with other settings" in error
        assert message in error
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert after == before


def test_convirts_heads_and_sentences(table, tmp_path, capsys):
    options = ["--projection", "mlp", "--embedding-dim", "16", "--one-sentence"]
    options += ["--text-option", "pooling=max", "--weight-decay", "1e-6", "--clip-norm", "2"]
    assert run(table, tmp_path, *options) == 0
    model = gloria.load_model(tmp_path / "model")
    assert [tuple(weight.shape) for weight in model.text_head.parameters()] == [
        (16, 128),
        (16,),
        (16, 16),
        (16,),
    ]
    assert model.text_encoder.pooling == "max"
    options.remove("--one-sentence")
    assert run(table, tmp_path, *options) == 2
    assert "text_policy was 'gloria.data.reports:random_sentences'" in capsys.readouterr().err


def test_the_text_encoders_own_width(table, tmp_path, capsys):
    assert run(table, tmp_path, "--embedding-dim", "text") == 0
    assert isinstance(gloria.load_model(tmp_path / "model").text_head, torch.nn.Identity)
    assert run(table, tmp_path, "--embedding-dim", "wide") == 2
    assert "must be a number or 'text'; got 'wide'" in capsys.readouterr().err
