"""`gloria evaluate`: tables, files, going on where it stood, and clear refusals."""

import argparse
import json
import os
import re
from dataclasses import replace

import numpy as np
import pages
import pytest
import torch
from PIL import Image

import gloria
from gloria.cli import evaluate, main
from gloria.data import hash_ids, read_ids
from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES
from gloria.data.images import normalize
from gloria.data.phantom import PhantomDataset, phantom_item
from gloria.errors import GloriaWarning, OptionError
from gloria.evaluation import multilabel_auroc
from gloria.training import transfer
from gloria.training.checkpoints import alone_in
from gloria.training.classification import ClassifierRecipe
from gloria.training.randomness import isolated
from gloria.training.segmentation import SegmentationRecipe
from gloria.training.small import small_model

# the vocabulary of eight reports lacks letters of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with isolated(0):
        model = small_model([item.report for item in PhantomDataset("train", count=8)])
    model.trained_image_size = (64, 64)  # as train says
    return gloria.save_model(model, folder / "model")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """A thousand are what takes longest here, where nothing depends on them."""
    usual = evaluate._settings
    monkeypatch.setattr(evaluate, "_settings", lambda args: replace(usual(args), resamples=20))


@pytest.fixture
def tiny(monkeypatch):
    """Few phantoms, short trainings."""
    sizes = {"train": 24, "val": 24, "test": 40, "per_class": 4}
    monkeypatch.setattr(evaluate, "PHANTOMS", sizes)
    short = {
        "classification": ClassifierRecipe(steps=4, validate_every=2),
        "segmentation": SegmentationRecipe(steps=1, batch_size=4),
        "width": 16,
    }
    monkeypatch.setattr(transfer, "PHANTOM_UNET", short)


def run(model, out, *more):
    return main(["evaluate", "--model", str(model), "--out", str(out), "--quiet", *more])


def parse(*given):
    """The arguments, once the size of the images is known."""
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    args = parser.parse_args(["--model", "m", "--out", "o", "--quiet", *given])
    args.image_size = (64, 64)
    return args


def results(out):
    return json.loads((out / "results.json").read_text())


SHORT = ("--fractions", "50,100", "--seeds", "2")
NO_TEST = pytest.mark.filterwarnings("ignore:.*no split test")


def test_a_loss_that_compares_nothing_is_told_before_anything_is_encoded(
    model, tiny, tmp_path, monkeypatch, capsys
):
    def compares_nothing(self):
        raise OptionError("the model's loss compares nothing.")

    monkeypatch.setattr(gloria.GLoRIA, "trained_kind", property(compares_nothing))
    monkeypatch.setattr(gloria.GLoRIA, "encode_image", lambda *_: pytest.fail("encoded"))
    assert run(model, tmp_path / "out") == 2
    assert "the model's loss compares nothing." in capsys.readouterr().err


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
    assert found["settings"]["seeds"] == 2
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


@pytest.mark.skipif(os.name != "posix", reason="only there folders are locked")
def test_two_do_not_write_into_one_folder(tiny, model, tmp_path, capsys):
    """Of two, the later would write its results over the other's."""
    with alone_in(tmp_path):
        assert run(model, tmp_path, *SHORT, "--tasks", "retrieval") == 2
    told = f"gloria: error: another process is writing into {tmp_path}.\n"
    assert capsys.readouterr().err.endswith(told)
    assert run(model, tmp_path, *SHORT, "--tasks", "retrieval") == 0


def test_results_of_other_settings_models_and_data_stay(tiny, model, tmp_path, capsys):
    own = tmp_path / "model"
    gloria.save_model(gloria.load_model(model), own)
    out = tmp_path / "out"
    short = (*SHORT, "--tasks", "retrieval")
    assert run(own, out, *short) == 0
    before = results(out)
    (out / "results.json").write_text(json.dumps(before | {"gloria": "0.0.1"}))
    with pytest.warns(GloriaWarning, match=r"has figures that gloria 0\.0\.1 made; this is"):
        assert run(own, out, *short) == 0
    (out / "results.json").write_text(json.dumps(before))

    assert run(own, out, *short, "--seed", "1") == 2
    assert "other settings: seed was 0, is 1. Give another --out" in capsys.readouterr().err
    trained = gloria.load_model(own)
    trained.image_encoder.requires_grad_(False)
    next(trained.parameters()).add_(1)
    gloria.save_model(trained, own)
    assert run(own, out, *short) == 2
    assert "written anew since" in capsys.readouterr().err
    assert results(out) == before
    (out / "results.json").write_text("{}")
    assert run(own, out, *short) == 2
    assert "is damaged" in capsys.readouterr().err


def test_results_are_of_the_model_that_was_loaded(tiny, model, tmp_path, capsys, monkeypatch):
    """Not of one that a training wrote into the folder in the meantime."""
    own, evaluate_task = tmp_path / "model", transfer.evaluate_task
    gloria.save_model(gloria.load_model(model), own)

    def write_anew(task, trained, *args, **options):
        report = evaluate_task(task, trained, *args, **options)
        other = gloria.load_model(own)
        with torch.no_grad():
            next(other.parameters()).add_(1)
        gloria.save_model(other, own)
        return report

    monkeypatch.setattr(transfer, "evaluate_task", write_anew)
    short = (*SHORT, "--tasks", "retrieval")
    assert run(own, tmp_path / "out", *short) == 0
    assert run(own, tmp_path / "out", *short) == 2
    assert "written anew since" in capsys.readouterr().err


def test_several_models_are_rows_of_one_table(tiny, model, tmp_path, capsys):
    other = gloria.save_model(gloria.load_model(model), tmp_path / "other")
    folders = [str(model), str(other)]
    command = ["evaluate", "--model", *folders, "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, "--tasks", "zero-shot"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    ours = [row[1:] for row in rows if row and row[0] in folders]
    assert len(ours) == 2
    assert ours[0] == ours[1]


def test_options_that_take_several_may_be_given_one_by_one(tiny, model, tmp_path, capsys):
    other = gloria.save_model(gloria.load_model(model), tmp_path / "other")
    more = ("--tasks", "zero-shot", "--tasks", "classification", "--seeds", "1")
    more += ("--fractions", "50", "--fractions", "100", "--model", str(other))
    assert run(model, tmp_path / "out", *more) == 0
    found = results(tmp_path / "out")
    assert list(found["models"]) == [str(model), str(other)]
    assert all(
        list(each["tasks"]) == ["zero-shot", "classification"] for each in found["models"].values()
    )
    assert found["settings"]["fractions"] == [0.5, 1.0]


def test_models_of_other_channels_are_refused(model, tmp_path, capsys):
    colour = small_model(["a report"], image_options={"in_chans": 3})
    gloria.save_model(colour, tmp_path / "colour")
    command = ["evaluate", "--model", str(model), str(tmp_path / "colour"), "--quiet"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "equally many channels; they take [1, 3]" in capsys.readouterr().err


def test_phantoms_have_one_channel(tiny, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "_read_data", None)  # told before anything is drawn
    colour = small_model(["a report"], image_options={"in_chans": 3})
    folder = gloria.save_model(colour, tmp_path / "colour")
    assert run(folder, tmp_path / "out", "--image-size", "64") == 2
    assert f"phantoms have 1 channel; {folder} takes 3: give --data" in capsys.readouterr().err


def test_images_are_of_the_size_of_training(tiny, model, tmp_path, capsys):
    def evaluate_on(size, out, *more):
        trained = gloria.load_model(model)
        trained.trained_image_size = size
        folder = gloria.save_model(trained, tmp_path / "model")
        code = run(folder, tmp_path / out, "--tasks", "zero-shot", *more)
        return code, capsys.readouterr().err

    assert evaluate_on((32, 32), "trained")[0] == 0
    assert evaluate_on(None, "asked", "--image-size", "32")[0] == 0
    assert evaluate_on((32, 32), "other", "--image-size", "64")[0] == 0
    tasks = {}
    for out in ("trained", "asked", "other"):
        found = results(tmp_path / out)
        (each,) = found["models"].values()
        tasks[out] = each["tasks"]["zero-shot"]["details"]
        assert found["settings"]["image_size"] == ([64, 64] if out == "other" else [32, 32])
    assert tasks["trained"] == tasks["asked"] != tasks["other"]

    code, told = evaluate_on(None, "unknown")
    assert code == 2
    assert "image-size must be given" in told
    assert "does not say on which it was trained" in told
    code, told = evaluate_on((32, 64), "wide")
    assert code == 2
    assert "image-size must be given for phantoms, which are square; " in told
    assert f"{tmp_path / 'model'}'s is 32 x 64" in told
    code, told = evaluate_on((32, 32), "none", "--image-size", "0")
    assert code == 2
    assert "image-size must be at least 1; got 0" in told


def test_models_trained_on_different_sizes_need_one(tiny, model, tmp_path, capsys):
    other = gloria.load_model(model)
    other.trained_image_size = (32, 32)
    gloria.save_model(other, tmp_path / "other")
    command = ["evaluate", "--model", str(model), str(tmp_path / "other"), "--quiet"]
    command += ["--out", str(tmp_path / "out"), "--tasks", "retrieval"]
    assert main(command) == 2
    assert (
        f"theirs differ: {model} 64 x 64, {tmp_path / 'other'} 32 x 32" in capsys.readouterr().err
    )
    assert main([*command, "--image-size", "32"]) == 0


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
    table.write_text(table.read_text().replace(",report,", ",text,"))
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly", "--patient-column", "patient")
    asked = ("--tasks", "retrieval,zero-shot")
    assert run(model, tmp_path / "out", *given, *asked) == 0
    printed = capsys.readouterr().out
    assert "retrieval skipped: the images have no reports; --report-column names" in printed
    assert "segmentation" not in printed  # which was not asked for
    assert "published" not in printed + (tmp_path / "out" / "tables.md").read_text()
    assert "csv, 2x4" in printed  # a fifth of 20 patients, 2 of each class, 2 images each
    assert "Phantom" not in printed
    assert "skipped" in (tmp_path / "out" / "tables.md").read_text()
    # the images of each part, and the hashes of the lists
    lists = {path.stem: read_ids(path) for path in (tmp_path / "out" / "ids").glob("*.txt")}
    assert {"train", "val", "test", "gallery"} == set(lists)
    assert set(lists["gallery"]) <= set(lists["test"])
    assert set(lists["train"]).isdisjoint([*lists["val"], *lists["test"]])
    hashes = json.loads((tmp_path / "out" / "results.json").read_text())["ids"]
    assert hashes == {name: hash_ids(ids) for name, ids in lists.items()}

    reports = ("--report-column", "text")
    assert run(model, tmp_path / "reports", *given, *reports, "--tasks", "retrieval") == 0
    assert "Prec@5" in capsys.readouterr().out

    table.write_text(table.read_text().replace("0.png,p0,Large heart.,0,1", "0.png,p0,Edema.,1,0"))
    assert run(model, tmp_path / "out", *given, "--tasks", "zero-shot,classification") == 2
    assert "which changed since" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [(), ("--classes", "Edema,Cardiomegaly")])
def test_figures_of_data_that_changed_are_not_shown_again(model, table, tmp_path, capsys, labels):
    given = ("--data", str(table), "--tasks", "retrieval", *labels)
    out = tmp_path / "out"
    assert run(model, out, *given) == 0
    before = capsys.readouterr().out, results(out)
    assert run(model, out, *given) == 0
    assert (capsys.readouterr().out, results(out)) == before

    first = tmp_path / "0.png"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(first)
    assert run(model, out, *given) == 2
    printed = capsys.readouterr()
    assert "which changed since" in printed.err
    assert printed.out == ""
    assert results(out) == before[1]


def recalls(out):
    """Recall@1 of each kind's images, in percent as in the table."""
    (each,) = results(out)["models"].values()
    rows = each["tasks"]["retrieval"]["rows"]
    return {kind: cells[0]["value"] for kind, cells in rows.items()}


def test_images_find_their_own_reports_without_labels(model, tmp_path, capsys):
    """Of a table as `gloria train` reads it; the text of two images is one candidate."""
    items = list(PhantomDataset("test", count=12))
    reports = [f"{item.sentences[0].text} {number}" for number, item in enumerate(items)]
    reports[11] = reports[8]
    lines = ["image,report,split"]
    for number, (item, report) in enumerate(zip(items, reports, strict=True)):
        Image.fromarray(item.image).save(tmp_path / f"{number}.png")
        lines.append(f'{number}.png,"{report}",{"train" if number < 4 else "val"}')
    table = tmp_path / "my.csv"
    table.write_text("\n".join(lines))
    assert run(model, tmp_path / "out", "--data", str(table)) == 0
    printed = capsys.readouterr().out
    assert "Recall@1" in printed
    assert "8 images: each asks for its own of 7 different reports" in printed
    assert "none for Recall@10: there are 7 reports" in printed
    assert "by which `gloria train` chose the model in best/" in printed
    assert "classification skipped: no classes of labels are named" in printed
    assert [path.stem for path in (tmp_path / "out" / "ids").iterdir()] == ["gallery"]
    assert read_ids(tmp_path / "out" / "ids" / "gallery.txt") == [f"{n}.png" for n in range(4, 12)]

    trained = gloria.load_model(model)
    pixels = torch.stack([torch.from_numpy(item.image)[None] / 255 for item in items[4:]])
    fed = normalize(pixels, trained.image_encoder.image_input)
    with torch.no_grad():
        similarity = trained.similarity(
            trained.encode_image(fed), trained.encode_text(reports[4:11]), "global"
        )
    right = torch.tensor([*range(7), 4])  # the last image's report is the fifth text
    expected = (similarity.argmax(1) == right).double().mean().item()
    assert recalls(tmp_path / "out")["global similarity"] == pytest.approx(expected)

    table.write_text(table.read_text().replace(",train", ",test"))
    assert run(model, tmp_path / "test", "--data", str(table)) == 0
    printed = capsys.readouterr().out
    assert "4 images: each" in printed
    assert "best/" not in printed
    table.write_text(table.read_text().replace(",test", ",train").replace(",val", ",train"))
    with pytest.warns(GloriaWarning, match="no split val, but 'train': all its images"):
        assert run(model, tmp_path / "all", "--data", str(table)) == 0
    assert "12 images: each" in capsys.readouterr().out


def test_splits_of_pairs_that_share_an_image_or_a_patient_are_refused(model, tmp_path, capsys):
    image = phantom_item("test", 0).image
    table = tmp_path / "my.csv"
    for name in ("a", "b"):  # of what trained there need be no file
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    rows = ["a.png,One.,0,test", "b.png,Two.,1,test"]
    for other, shared in (("a.png,One.,2,train", "a.png"), ("c.png,Three.,1,train", "patients")):
        table.write_text("\n".join(["image,report,patient,split", *rows, other]))
        assert run(model, tmp_path / "out", "--data", str(table)) == 2
        told = capsys.readouterr().err
        assert "the splits leak" in told
        assert shared in told
    table.write_text("\n".join(["image,report,patient,split", *rows, "c.png,Three.,3,train"]))
    assert run(model, tmp_path / "out", "--data", str(table)) == 0


@pytest.mark.parametrize("labels", [(), ("--classes", "Edema,Cardiomegaly")])
def test_columns_are_called_as_in_training(model, table, tmp_path, capsys, labels):
    header, *rows = table.read_text().splitlines()
    splits = ["train"] * 16 + ["val"] * 8 + ["test"] * 16
    rows = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    named = header.replace("image", "path") + ",part"
    table.write_text("\n".join([named, *rows]))
    columns = ("--image-column", "path", "--split-column", "part")
    given = ("--data", str(table), "--tasks", "retrieval", *labels)
    assert run(model, tmp_path / "out", *given, *columns) == 0
    held = {f"{number}.png" for number in range(24, 40)}
    found = tmp_path / "out" / "ids" / ("test.txt" if labels else "gallery.txt")
    assert set(read_ids(found)) == held
    capsys.readouterr()
    assert run(model, tmp_path / "other", *given) == 2
    assert "has no column 'image'; it has path" in capsys.readouterr().err
    # a slip must not test on what has trained
    assert run(model, tmp_path / "other", *given, *columns[:3], "parts") == 2
    assert "has no column 'parts'; it has path" in capsys.readouterr().err


def test_pairs_need_reports_that_differ(model, table, tmp_path, capsys):
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *(row for row in rows if "Edema." in row)]))
    assert run(model, tmp_path / "out", "--data", str(table), "--tasks", "retrieval") == 2
    why = "retrieval: Recall@1 needs more different reports than 1; there are 1."
    assert f"nothing that was asked for can be evaluated. {why}" in capsys.readouterr().err
    table.write_text(table.read_text().replace("report", "text"))
    assert run(model, tmp_path / "out", "--data", str(table)) == 2
    assert "needs reports or labels: " in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_task_that_was_asked_for_alone_is_not_skipped(model, table, tmp_path, capsys):
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly")
    for _ in range(2):
        assert run(model, tmp_path, *given, "--tasks", "segmentation") == 2
        assert "evaluated. segmentation: the images have no masks." in capsys.readouterr().err
    assert run(model, tmp_path, *given, "--tasks", "segmentation,zero-shot") == 0
    # which is noted by now
    assert run(model, tmp_path, *given, "--tasks", "segmentation") == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--classes", "Gout,Gout"),
        ("--classes", "Gout,"),
        ("--classes", "Edema"),  # which is there
        ("--tasks", "zero-shot,zero-shot"),
    ],
)
def test_a_list_has_each_name_once(model, table, tmp_path, capsys, option, value):
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly")
    assert run(model, tmp_path / "out", *given, option, value) == 2
    assert f"{option}: must be names, each once, as A,B; got {value!r}" in capsys.readouterr().err


def test_whose_the_images_are_is_told_if_it_is_known(model, table, tmp_path, capsys):
    given = ["evaluate", "--model", str(model), "--data", str(table)]
    given += ["--classes", "Edema,Cardiomegaly", "--tasks", "zero-shot"]
    assert main([*given, "--out", str(tmp_path / "a")]) == 0  # in the usual column
    assert "drawn, patient by patient" in capsys.readouterr().err
    assert results(tmp_path / "a")["note"] == ""
    written = table.read_text()
    table.write_text(written.replace(",patient,", ",PatientID,"))
    assert main([*given, "--out", str(tmp_path / "c")]) == 0
    assert "drawn, patient by patient" in capsys.readouterr().err
    table.write_text(written.replace(",patient,", ",who,"))
    assert main([*given, "--out", str(tmp_path / "b"), "--patient-column", "who"]) == 0
    assert "drawn, patient by patient" in capsys.readouterr().err
    split = {name: read_ids(tmp_path / name / "ids" / "test.txt") for name in "abc"}
    assert split["a"] == split["b"] == split["c"]
    for number, (unknown, whose) in enumerate(
        ((",who,", ""), (",patient,", ""), (",patient,", "nan"))
    ):
        rows = written.replace(",patient,", unknown).replace("7.png,p3,", f"7.png,{whose},")
        table.write_text(rows)
        assert main([*given, "--out", str(tmp_path / f"unknown{number}")]) == 0
        told = "drawn image by image, since it is not told whose they are"
        printed = capsys.readouterr()
        assert told.replace("drawn", "drawn,") in printed.err
        for text in (printed.out, (tmp_path / f"unknown{number}" / "tables.md").read_text()):
            assert f"Splits were {told}: a patient in two splits makes figures too good" in text


@pytest.mark.parametrize("labels", [(), ("--classes", "Edema,Cardiomegaly")])
def test_own_splits_that_do_not_say_whose_images_are_carry_a_note(model, table, tmp_path, labels):
    header, *rows = table.read_text().replace("7.png,p3,", "7.png,,").splitlines()
    splits = ["train"] * 16 + ["val"] * 8 + ["test"] * 16
    rows = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    given = ("--data", str(table), "--tasks", "retrieval", *labels)
    for column, count in (("Patient", 1), ("who", 40)):
        table.write_text("\n".join([f"{header},split".replace("patient", column), *rows]))
        assert run(model, tmp_path / column, *given) == 0
        told = (
            f"It is not told whose {count} of 40 images are: a patient in two splits makes figures"
        )
        assert told in results(tmp_path / column)["note"]


@pytest.mark.parametrize("labels", [(), ("--classes", "Edema,Cardiomegaly")])
@pytest.mark.parametrize("unknown", ["7.png,p3,", "7.png,,"])
def test_own_splits_that_share_a_patient_are_refused(
    model, table, tmp_path, capsys, labels, unknown
):
    header, *rows = table.read_text().replace("7.png,p3,", unknown).splitlines()
    splits = ["train"] * 15 + ["val"] * 9 + ["test"] * 16  # of p7 in both
    rows = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    table.write_text("\n".join([f"{header},split", *rows]))
    assert run(model, tmp_path / "out", "--data", str(table), *labels) == 2
    assert "  p7  train: 14.png; val: 15.png" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [(), ("--classes", "Edema,Cardiomegaly")])
def test_splits_of_other_names_are_told(model, table, tmp_path, capsys, labels):
    header, *rows = table.read_text().splitlines()
    splits = ["Train"] * 24 + [""] * 8 + ["Test"] * 8
    rows = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    table.write_text("\n".join([f"{header},split", *rows]))
    command = ["evaluate", "--model", str(model), "--data", str(table), *labels]
    command += ["--tasks", "retrieval", "--out"]
    with pytest.warns(GloriaWarning, match="has no split t.*, but '', 'Test', 'Train': all its"):
        assert main([*command, str(tmp_path / "all")]) == 0
    table.write_text(table.read_text().replace(",Test", ",test"))
    if not labels:
        capsys.readouterr()
        assert main([*command, str(tmp_path / "test")]) == 0
        assert "rows of other splits are not read: '', 'Train'" in capsys.readouterr().err


def test_a_gallery_too_small_for_retrieval_stops_no_other_task(model, table, tmp_path, capsys):
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly", "--report-column", "report")
    given += ("--per-class", "2", "--tasks", "retrieval,zero-shot")
    assert run(model, tmp_path / "out", *given) == 0
    printed = capsys.readouterr().out
    assert (
        "retrieval skipped: Prec@5 needs as many images of one class each; there are 4" in printed
    )
    assert "Zero-shot classification" in printed


def test_prompts_of_one_class_without_negative_ones_stop_no_other_task(
    model, table, tmp_path, capsys, monkeypatch
):
    report = {"protocol": "", "columns": [], "rows": {}, "resamples": 1}
    monkeypatch.setattr(transfer, "evaluate_task", lambda *given, **options: report)
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"Edema": ["edema"]}')
    given = ("--data", str(table), "--classes", "Edema", "--prompts", str(prompts))
    assert run(model, tmp_path / "out", *given) == 0
    told = "zero-shot skipped: a class alone needs negative prompts, too, and Edema has none; in a"
    assert f"{told} file of prompts they are under its key 'negative'." in capsys.readouterr().out
    (each,) = results(tmp_path / "out")["models"].values()
    assert list(each["tasks"]) == ["classification"]


def test_results_of_other_prompts_stay(model, table, tmp_path, capsys):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"Edema": ["edema"], "Cardiomegaly": ["large heart"]}')
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly", "--prompts", str(prompts))
    assert run(model, tmp_path / "out", *given, "--tasks", "zero-shot") == 0
    before = results(tmp_path / "out")
    prompts.write_text('{"Edema": ["fluid"], "Cardiomegaly": ["large heart"]}')
    capsys.readouterr()
    assert run(model, tmp_path / "out", *given, "--tasks", "zero-shot") == 2
    assert "is of other settings: prompts" in capsys.readouterr().err
    assert results(tmp_path / "out") == before


def test_a_model_with_other_files_of_its_text_encoder_is_another(tiny, model, tmp_path, capsys):
    own = gloria.save_model(gloria.load_model(model), tmp_path / "model")
    assert run(own, tmp_path / "out", "--tasks", "retrieval") == 0
    files = {"config.json", "model.safetensors"}
    others = sorted(p for p in own.rglob("*") if p.is_file() and p.name not in files)
    others[0].write_bytes(others[0].read_bytes() + b"\n")
    assert run(own, tmp_path / "out", "--tasks", "retrieval") == 2
    assert "written anew since" in capsys.readouterr().err


def test_a_model_of_the_hub_is_named_as_it_is_there(hub, tiny, model, tmp_path, capsys):
    hub("someone/films", model, "1" * 40)
    asked = ("--tasks", "zero-shot")
    assert run(model, tmp_path / "folder", *asked) == 0
    assert run("someone/films", tmp_path / "out", *asked) == 0
    (expected,) = results(tmp_path / "folder")["models"].values()
    assert results(tmp_path / "out")["models"] == {"someone/films": expected}
    assert run("someone/none", tmp_path / "none", *asked) == 2
    capsys.readouterr()
    command = ["evaluate", "--model", "someone/none", "--out", str(tmp_path / "none")]
    assert main(command) == 2
    asks, error = capsys.readouterr().err.splitlines()
    assert asks == "someone/none is no folder here: looking for it on the Hugging Face hub"
    assert "someone/none is no folder here, and as a repository" in error


@pytest.mark.parametrize("labels", [(), ("--classes", "Edema,Cardiomegaly")])
@pytest.mark.parametrize("again", ["7.png", "./7.png"])
def test_an_image_of_two_rows_is_told_before_films_are_read(
    model, table, tmp_path, capsys, labels, again
):
    table.write_text(f"{table.read_text()}\n{again},p3,Edema.,1,0")
    (tmp_path / "0.png").write_bytes(b"no image")
    assert run(model, tmp_path / "out", "--data", str(table), "--skip-broken", *labels) == 2
    error = capsys.readouterr().err
    assert (
        f"error: {table}, row 42, column 'image': {tmp_path / '7.png'} is there already, in "
        in (error)
    )
    assert f"already, in {table}, row 9, column 'image'. To evaluate, each image must be" in error
    assert "left out" not in error


def test_broken_images_are_left_out_if_asked(model, table, tmp_path, capsys):
    (tmp_path / "7.png").write_bytes(b"no image")
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly", "--report-column", "report")
    given += ("--tasks", "retrieval", "--skip-broken")
    assert run(model, tmp_path / "out", *given) == 0
    told = capsys.readouterr().err
    assert f"1 images left out, first: {table}, row 9" in told
    lists = [read_ids(path) for path in (tmp_path / "out" / "ids").glob("[!g]*.txt")]
    assert {name for each in lists for name in each} == {f"{n}.png" for n in range(40) if n != 7}
    (reason,) = results(tmp_path / "out")["left_out"]["data"]
    assert reason.startswith(f"{table}, row 9, column 'image': image ")
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert "left out of data: 1 images, which results.json names." in tables


def test_a_broken_image_names_the_option_that_leaves_it_out(model, table, tmp_path, capsys):
    for image in tmp_path.glob("*.png"):
        image.write_bytes(b"no image")
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly", "--tasks", "zero-shot")
    assert run(model, tmp_path / "out", *given) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert "can't be read: Pillow knows no such image" in error
    assert hint == "  --skip-broken leaves such images out."


def test_rows_without_a_report_are_left_out_where_reports_are_read(model, table, tmp_path, capsys):
    table.write_text(table.read_text().replace("7.png,p3,Edema.", "7.png,p3,-"))
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly", "--tasks", "retrieval")
    assert run(model, tmp_path / "out", *given, "--report-column", "report") == 0
    told = capsys.readouterr().err
    assert f"1 images left out, first: {table}, row 9, column 'report': empty report" in told
    (reason,) = results(tmp_path / "out")["left_out"]["data"]
    assert "row 9" in reason
    assert run(model, tmp_path / "usual", *given) == 0  # as `gloria train` calls the column
    assert f"1 images left out, first: {table}, row 9" in capsys.readouterr().err
    written = table.read_text()
    for nothing in ("", "nan"):
        table.write_text(written.replace("7.png,p3,-", f"7.png,p3,{nothing}"))
        assert run(model, tmp_path / f"no{nothing}", *given[:-1], "retrieval,zero-shot") == 0
        told = capsys.readouterr()  # nobody asked for reports at the cost of images
        assert "left out" not in told.err
        why = f"rows without a report: 1, first: {table}, row 9; --report-column report leaves"
        assert f"retrieval skipped: {why} their images out." in told.out


def test_what_is_left_out_is_told_split_by_split(model, table, tmp_path, capsys):
    header, *rows = table.read_text().splitlines()
    splits = ["train"] * 16 + ["val"] * 8 + ["test"] * 16
    rows = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    table.write_text("\n".join([f"{header},split", *rows, "4.png,p2,Edema.,1,0,mine"]))
    for name in ("0", "1", "39"):
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    command = ["evaluate", "--model", str(model), "--out", str(tmp_path / "out")]
    command += ["--data", str(table), "--classes", "Edema,Cardiomegaly", "--skip-broken"]
    assert main([*command, "--tasks", "zero-shot"]) == 0
    left_out = results(tmp_path / "out")["left_out"]
    assert {split: len(reasons) for split, reasons in left_out.items()} == {"train": 2, "test": 1}
    assert "row 41" in left_out["test"][0]
    printed = capsys.readouterr()
    assert "left out of train: 2 images" in printed.out
    assert "rows of other splits are not read: 'mine'" in printed.err


def test_films_of_12_bits(model, table, tmp_path, capsys):
    for film in tmp_path.glob("*.png"):
        pixels = np.asarray(Image.open(film)).astype(np.uint16) * 16
        Image.fromarray(pixels).save(film)
    given = ("--data", str(table), "--classes", "Edema,Cardiomegaly", "--report-column", "report")
    given += ("--tasks", "retrieval")
    for asked in ((), ("--skip-broken",)):  # they are whole: it is the option that is missing
        assert run(model, tmp_path / "out", *given, *asked) == 2
        assert "Say how many bits" in capsys.readouterr().err
    figures = []
    for shown in (("--bits", "12"), ("--window", "2047.5", "4095"), ("--window", "100", "50")):
        out = tmp_path / "-".join(shown)
        assert run(model, out, *given, *shown) == 0
        (each,) = results(out)["models"].values()
        figures.append(each["tasks"]["retrieval"]["details"])
    assert figures[0] == figures[1]  # the window is all of the 12 bits
    assert figures[0] != figures[2]


def test_chexperts_own_files(model, tmp_path, capsys):
    """Its 5xN set is drawn first; these patients are in no split."""
    lines = [",".join(["Path", *CLASSES])]
    for number in range(50):
        path = f"train/patient{number:05}/study1/view1_frontal.jpg"
        shown = COMPETITION_CLASSES[number % 5]
        marks = {shown: "1.0"}
        if number >= 45:  # maybe another one beside it, which the tables count as negative
            marks["Cardiomegaly" if shown == "Consolidation" else "Consolidation"] = "-1.0"
        elif number >= 40:  # a fracture: not exclusive, whatever the tables' five classes say
            marks["Fracture"] = "1.0"
        lines.append(
            ",".join([f"CheXpert-v1.0-small/{path}", *(marks.get(c, "") for c in CLASSES)])
        )
        file = tmp_path / "CheXpert-v1.0-small" / path
        file.parent.mkdir(parents=True)
        Image.fromarray(np.full((64, 64), number, np.uint8)).save(file)
    table = tmp_path / "CheXpert-v1.0-small" / "train.csv"
    table.write_text("\n".join(lines))
    given = ("--format", "chexpert", "--data", str(table), "--per-class", "3")
    out = tmp_path / "out"
    assert run(model, out, *given, "--tasks", "retrieval") == 2
    assert "retrieval: the images have no reports." in capsys.readouterr().err
    args = parse(*given)
    data = evaluate._read_data(args, 1)
    held_out = set(data.gallery.patients)
    assert len(held_out) == 15
    assert data.gallery.labels.sum(0).tolist() == [3] * 5
    assert all(int(patient.removeprefix("patient")) < 40 for patient in held_out)
    more = evaluate._read_data(parse(*given, "--per-class", "9"), 1)
    assert "has 8 images that are exclusively positive; 9 were" in more.missing["zero-shot"]
    assert not held_out & {patient for split in data.labelled for patient in split.patients}

    held = next(iter(data.gallery.records))
    held.path.write_bytes(b"no image")
    args.skip_broken = True
    rest = evaluate._read_data(args, 1)
    assert rest.gallery.labels.sum(0).tolist() == [3] * 5  # another one is drawn
    assert held.id not in {name for part in (*rest.labelled, rest.gallery) for name in part.ids}


def test_a_class_without_images_stops_only_the_tasks_that_need_it(
    model, tmp_path, capsys, monkeypatch
):
    report = {"protocol": "", "columns": [], "rows": {}, "resamples": 1}
    monkeypatch.setattr(transfer, "evaluate_task", lambda *given, **options: report)
    lines = [",".join(["Path", *CLASSES])]
    for number in range(60):
        path = f"train/patient{number:05}/study1/view1_frontal.jpg"
        # an edema is never alone
        shown = (COMPETITION_CLASSES[number % 5], "Fracture" if number % 5 == 3 else "")
        marks = ("1.0" if each in shown else "" for each in CLASSES)
        lines.append(",".join([path, *marks]))
        (tmp_path / path).parent.mkdir(parents=True)
        Image.fromarray(np.full((64, 64), number, np.uint8)).save(tmp_path / path)
    (tmp_path / "train.csv").write_text("\n".join(lines))
    given = ("--format", "chexpert", "--data", str(tmp_path / "train.csv"), "--per-class", "2")
    assert run(model, tmp_path / "out", *given) == 0
    why = "Edema has 0 images that are exclusively positive; 2 were asked for"
    printed = capsys.readouterr().out
    assert f"zero-shot skipped: {why}. Give a smaller --per-class, or more images." in printed
    assert "retrieval skipped: the images have no reports." in printed
    (each,) = results(tmp_path / "out")["models"].values()
    assert list(each["tasks"]) == ["classification"]
    lists = [read_ids(path) for path in (tmp_path / "out" / "ids").glob("*.txt")]
    assert sum(map(len, lists)) == 60  # nobody is held out for a set that is not there


@NO_TEST
def test_chexpert_plus_tells_once_what_it_left_out(model, tmp_path, capsys):
    """Though its files are read twice: for the tables' classes, and for all findings."""
    given = write_chexpert_plus(tmp_path, ["train"] * 50)
    given += ("--per-class", "3", "--tasks", "retrieval")
    table = tmp_path / "plus.csv"
    table.write_text(table.read_text().replace("A long history of film 0.", ""))
    assert run(model, tmp_path / "out", *given) == 0
    assert capsys.readouterr().err.count("1 images left out") == 1
    (reason,) = results(tmp_path / "out")["left_out"]["data"]
    assert reason.startswith(f"{table}, row 2: ")


def write_chexpert_plus(folder, splits):
    """One patient a row; the options that name the files."""
    lines, labels = ["path_to_image,split,report,section_impression"], []
    for number, split in enumerate(splits):
        path = f"train/patient{number:05}/study1/view1_frontal.jpg"
        lines.append(f"{path},{split},A long history of film {number}.,Film {number}.")
        marks = dict.fromkeys(CLASSES) | {COMPETITION_CLASSES[number % 5]: 1.0}
        if number % 20 >= 15:
            marks["Fracture"] = 1.0  # not exclusive, whatever the tables' five classes say
        labels.append(json.dumps({"path_to_image": path, **marks}))
        (folder / path).parent.mkdir(parents=True)
        Image.fromarray(np.full((64, 64), number, np.uint8)).save(folder / path)
    (folder / "plus.csv").write_text("\n".join(lines))
    (folder / "labels.json").write_text("\n".join(labels))
    files = ("--data", str(folder / "plus.csv"), "--labels", str(folder / "labels.json"))
    return ("--format", "chexpert-plus", *files)


def test_chexpert_plus_is_tested_on_a_split_test_of_your_own(model, tmp_path, capsys):
    """`gloria train` reads train and valid: whoever is in test was not seen."""
    given = write_chexpert_plus(tmp_path, [*["train"] * 20, *["valid"] * 20, *["test"] * 20])
    out = tmp_path / "out"
    assert run(model, out, *given, "--per-class", "3", "--tasks", "retrieval") == 0
    held = {f"train/patient{number:05}/study1/view1_frontal.jpg" for number in range(40, 60)}
    assert set(read_ids(out / "ids" / "test.txt")) == held
    gallery = read_ids(out / "ids" / "gallery.txt")
    assert len(gallery) == 15
    assert {int(name[13:18]) for name in gallery} == set(range(40, 55))
    capsys.readouterr()
    assert run(model, tmp_path / "more", *given, "--per-class", "4", "--tasks", "retrieval") == 2
    assert "3 images that are exclusively positive; 4 were asked for" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["chexpert-plus", "csv"])
def test_patients_that_training_saw_are_not_tested_on_silently(kind, model, table, tmp_path):
    """`gloria train` reads the splits that there are."""
    if kind == "csv":
        header, *rows = table.read_text().splitlines()
        rows = [f"{row},{'train' if number < 30 else 'val'}" for number, row in enumerate(rows)]
        table.write_text("\n".join([f"{header},split", *rows]))
        given = ("--data", str(table), "--classes", "Edema,Cardiomegaly")
    else:
        table = tmp_path / "plus.csv"
        given = write_chexpert_plus(tmp_path, [*["train"] * 30, *["valid"] * 30])
        given += ("--per-class", "3")
    there = f"'train', '{'val' if kind == 'csv' else 'valid'}'"
    warning = re.escape(f"{table} has no split test, but {there}: all its images are split anew, ")
    with pytest.warns(GloriaWarning, match=f"{warning}.* Write test into the column split"):
        assert run(model, tmp_path / "out", *given, "--tasks", "zero-shot") == 0
    # whoever reads the figures is told, too
    too_good = "Figures are too good if `gloria train` saw what is tested on."
    assert too_good in results(tmp_path / "out")["note"]
    assert too_good in (tmp_path / "out" / "tables.md").read_text()


@NO_TEST
def test_reports_are_read_as_in_training(model, tmp_path, capsys):
    given = write_chexpert_plus(tmp_path, ["train"] * 60)
    given += ("--per-class", "3", "--tasks", "retrieval")
    sections = ("--sections", "impression")
    data = evaluate._read_data(parse(*given, *sections), 1)
    assert all(re.fullmatch(r"Film \d+\.", report) for report in data.gallery.reports)
    assert run(model, tmp_path / "out", *given, *sections) == 0
    assert run(model, tmp_path / "out", *given) == 2
    assert "sections was ['impression'], is None" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["siim", "rsna"])
def test_dicom_files_with_masks_or_boxes(kind, model, tmp_path, capsys, write_dicom):
    lines = {"siim": ["ImageId,EncodedPixels"], "rsna": ["patientId,x,y,width,height,Target"]}[kind]
    rng = np.random.default_rng(0)
    for number in range(40):
        write_dicom(tmp_path / "films" / f"{number}.dcm", rng.integers(0, 256, (64, 64)))
        there = number % 2
        if kind == "siim":
            lines.append(f"{number},{'3 20' if there else '-1'}")
        else:
            lines.append(f"{number},{'3,4,20,20' if there else ',,,'},{there}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    given = ("--format", kind, "--data", str(tmp_path / "labels.csv"))
    images = ("--images", str(tmp_path / "films"))
    short = ("--tasks", "retrieval,zero-shot", "--seeds", "1")
    assert run(model, tmp_path / "out", *given, *images, *short) == 0
    printed = capsys.readouterr().out
    assert "retrieval skipped: it needs two classes or more" in printed
    assert f"{kind}, 8 test images" in printed
    assert "threshold chosen on 4 other images" in printed
    assert "segmentation" not in results(tmp_path / "out")["skipped"]
    assert ("RSNA pneumonia" in printed) == ("published" in printed) == (kind == "rsna")
    assert "CheXpert" not in printed
    before, other = {"siim": ("1,3 20", "1,3 21"), "rsna": ("1,3,4,20", "1,3,5,20")}[kind]
    text = (tmp_path / "labels.csv").read_text()
    (tmp_path / "labels.csv").write_text(text.replace(f"\n{before}", f"\n{other}", 1))
    assert run(model, tmp_path / "out", *given, *images, *short) == 2
    assert "which changed since (rows, masks, or" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "detection"], "tasks must be one of 'retrieval', 'zero-shot'"),
        (["--tasks", "zeroshot"], "got 'zeroshot'. Did you mean 'zero-shot'?"),
        (["--format", "csv"], "--format csv needs --data"),
        (["--format", "phantom", "--data", "x.csv"], "--format phantom takes no --data"),
        (["--data", "x.csv"], "x.csv does not exist"),
        (["--data", "x.csv", "--per-class", "5"], "per-class is for a csv with --classes"),
        (["--format", "siim", "--data", "x.csv"], "--format siim needs --images"),
        (["--format", "chexpert-plus", "--data", "x.csv"], "--format chexpert-plus needs --labels"),
        (["--sections", "findings"], "sections is not for --format phantom"),
        (["--skip-broken"], "skip-broken is not for --format phantom"),
        (["--classes", "Edema"], "classes is not for --format phantom"),
        (["--split-column", "part"], "split-column is not for --format phantom"),
        (["--per-class", "0"], "per-class must be at least 1; got 0"),
        (["--workers", "-1"], "workers must be at least 0; got -1"),
        (["--seeds", "0"], "seeds must be at least 1; got 0"),
        (["--fractions", "10,10"], "fractions must hold at least one, each once"),
        (["--format", "rsna", "--data", "x.csv", "--images", "."], "x.csv does not exist"),
    ],
)
def test_wrong_options(model, tmp_path, capsys, options, message):
    assert run(model, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_percents_and_models(model, tmp_path, capsys):
    assert run(model, tmp_path / "out", "--fractions", "0,10") == 2
    assert "must each be above 0, at most 100" in capsys.readouterr().err
    assert run(model, tmp_path / "out", "--fractions", "some") == 2
    assert run(tmp_path / "none", tmp_path / "out") == 2
    assert "is no saved model" in capsys.readouterr().err


def test_the_code_and_the_commands_of_the_page(capsys):
    """Its Python runs; its commands' options are ours."""
    page = pages.read("docs/evaluate.md")
    names = pages.run(page)
    assert "| untrained, both |" in capsys.readouterr().out
    one, two = (multilabel_auroc(names[which], names["labels"]) for which in ("one", "two"))
    assert names["found"].value == pytest.approx(one["mean"] - two["mean"])
    assert names["found"].low < names["found"].value < names["found"].high
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    commands = "".join(pages.blocks(page, "bash")).replace("\\\n", "")
    for command in commands.splitlines():
        words = command.split()
        assert words[:2] == ["gloria", "evaluate"]
        evaluate._check(parser.parse_args(words[2:]))


def test_the_folder_of_results_is_tried_before_the_data_is_read(model, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    arguments = ["--out", str(tmp_path / "taken" / "run"), "--data", "none.csv", "--classes", "A"]
    assert main(["evaluate", "--model", str(model), *arguments]) == 2
    assert "out must be a folder that can be written into" in capsys.readouterr().err
