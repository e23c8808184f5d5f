"""The four tasks, held to the functions they are made of."""

import json
from dataclasses import replace
from statistics import mean
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from gloria.data import PhantomMasks, PhantomPairs, Radiographs, Record
from gloria.data.chest_prompts import CHEST_PROMPTS
from gloria.data.phantom import PhantomDataset
from gloria.data.transfer import TASKS, Splits, TransferData
from gloria.errors import DataError, OptionError
from gloria.evaluation.classification import choose_thresholds, multilabel_metrics
from gloria.evaluation.features import encode_images
from gloria.evaluation.phantoms import evaluate_gallery
from gloria.evaluation.tables import as_text
from gloria.evaluation.zero_shot import zero_shot_probabilities
from gloria.training import transfer
from gloria.training.classification import ClassifierRecipe, label_efficiency
from gloria.training.randomness import isolated
from gloria.training.segmentation import SegmentationRecipe, segmentation_efficiency
from gloria.training.small import small_model
from gloria.training.transfer import (
    TransferSettings,
    count_resamples,
    count_work,
    evaluate_task,
    transfer_table,
    why_not,
)

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

SETTINGS = TransferSettings(
    fractions=(0.5, 1.0),
    seeds=2,
    resamples=40,
    classification=ClassifierRecipe(steps=8, validate_every=4),
    segmentation=SegmentationRecipe(steps=2, batch_size=4, validate_every=2),
    width=16,
)


@pytest.fixture(scope="module")
def data():
    return TransferData.phantoms(train=24, val=24, test=40, per_class=4)


@pytest.fixture(scope="module")
def model(data):
    with isolated(0):
        return small_model(data.labelled.train.reports).eval()


@pytest.fixture(scope="module")
def reports(model, data):
    """Every task's report, through JSON, and the work it reported."""
    found = {}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for task in TASKS:
        done, drawn = [], []
        report = evaluate_task(
            task, model, data, SETTINGS, progress=done.append, resampled=drawn.append
        )
        found[task] = json.loads(json.dumps(report, allow_nan=False))
        assert sum(done) == count_work(task, data, SETTINGS)
        assert sum(drawn) == count_resamples(task, SETTINGS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return found


def test_retrieval_and_zero_shot_are_those_of_the_demo(reports, model):
    expected = evaluate_gallery(model, list(PhantomDataset("test_5x4")))
    both = reports["retrieval"]["rows"]["both"]
    assert [cell and cell["value"] for cell in both] == [
        pytest.approx(expected["image_to_text"][5]),
        pytest.approx(expected["image_to_text"][10]),
        None,  # the gallery has 20
    ]
    details = reports["retrieval"]["details"]
    assert details["both"]["text_to_image"]["precision@5"] == pytest.approx(
        expected["text_to_image"][5]
    )
    assert set(details) == {"global", "local", "both"}
    accuracy = reports["zero-shot"]["rows"][""][0]
    assert accuracy["value"] == pytest.approx(expected["zero_shot_accuracy"])
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]


def test_the_supervised_tasks_rows_are_the_means_over_draws(reports):
    for task, row, figure in (
        ("classification", "", lambda run: run["test"]["auroc"]),
        ("segmentation", "positives", lambda run: run["test"]["dice_positives"]),
        ("segmentation", "all images", lambda run: run["test"]["dice_all"]),
    ):
        report = reports[task]
        shares = report["details"]["rows"]["model"]
        assert report["columns"] == list(shares) == ["50%", "100%"]
        for number, share in enumerate(shares.values()):
            runs = [figure(run) for run in share["runs"]]
            assert len(runs) == 2
            cell = report["rows"][row][number]
            assert cell["value"] == pytest.approx(mean(runs))
            assert cell["low"] <= cell["high"]
            spread = report["rows"][f"{row}, over 2 draws of labels".removeprefix(", ")][number]
            assert spread["mean"] == pytest.approx(mean(runs))
            assert spread["sd"] == pytest.approx(np.std(runs, ddof=1))


def test_intervals_are_of_means_over_all_classes(reports, model, data):
    """The probe's, against a plain loop over resamples that have every class."""
    logits = []
    label_efficiency(
        {"model": model.image_encoder},
        *data.labelled,
        fractions=[1.0],
        seeds=SETTINGS.drawn,
        recipe=SETTINGS.classification,
        on_scores=lambda row, fraction, seed, scores: logits.append(scores.numpy()),
    )
    labels = np.asarray(data.labelled.test.labels)
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    draws = []
    for _ in range(SETTINGS.resamples):
        index = torch.randint(len(labels), (len(labels),), generator=generator).numpy()
        if (labels[index].min(0) == 0).all() and (labels[index].max(0) == 1).all():
            draws.append(mean(roc_auc_score(labels[index], each[index]) for each in logits))
    cell = reports["classification"]["rows"][""][1]
    assert cell["left_out"] == SETTINGS.resamples - len(draws)
    ends = np.quantile(draws, [0.025, 0.975])
    assert (cell["low"], cell["high"]) == pytest.approx(tuple(ends), abs=1e-6)


def test_both_dice_are_of_the_same_resamples(reports, model, data):
    """A plain loop over the resamples, of the mean over draws of the means over images."""
    counts = []
    segmentation_efficiency(
        {"model": model.image_encoder},
        *data.masked,
        fractions=[1.0],
        seeds=SETTINGS.drawn,
        recipe=SETTINGS.segmentation,
        width=SETTINGS.width,
        on_overlap=lambda row, fraction, seed, overlap: counts.append(overlap),
    )
    dice = np.mean([each.dice[:, 0].numpy() for each in counts], axis=0)
    positive = counts[0].marked[:, 0].numpy() > 0
    generator = torch.Generator().manual_seed(SETTINGS.seed)
    drawn = [
        torch.randint(len(dice), (len(dice),), generator=generator).numpy()
        for _ in range(SETTINGS.resamples)
    ]
    kept = {"all images": drawn, "positives": [index[positive[index]] for index in drawn]}
    for row, parts in kept.items():
        draws = [dice[part].mean() for part in parts if len(part)]
        cell = reports["segmentation"]["rows"][row][1]
        assert cell["left_out"] == len(drawn) - len(draws)
        ends = np.quantile(draws, [0.025, 0.975])
        assert (cell["low"], cell["high"]) == pytest.approx(tuple(ends), abs=1e-6)


def test_the_caption_says_how_many_resamples_lack_a_class(reports):
    report = reports["zero-shot"]
    worst = max(cell["left_out"] for cell in report["rows"][""])
    assert worst > 0  # of twenty images
    caption = transfer_table("zero-shot", {"mine": report}).caption
    assert caption.endswith(
        f"; in up to {worst} of 40 resamples a class has no value; they are left out"
    )
    whole = [cell and {**cell, "left_out": 0} for cell in report["rows"][""]]
    caption = transfer_table("zero-shot", {"mine": {**report, "rows": {"": whole}}}).caption
    assert caption == report["protocol"]


@pytest.mark.parametrize("task", TASKS)
def test_a_table_shows_every_model_with_what_was_published_apart(reports, task):
    table = transfer_table(task, {"mine": reports[task], "yours": reports[task]})
    assert len(table.rows) == 2 * len(reports[task]["rows"])
    assert all(name.startswith(("mine", "yours")) for name in table.rows)
    text = as_text(table)
    assert "phantoms" in text
    assert text.index("yours") < text.index("not comparable") < text.index("GLoRIA, ICCV")


def test_the_seed_decides(model, data, reports):
    for task in ("zero-shot", "classification"):
        again = evaluate_task(task, model, data, SETTINGS)
        assert json.loads(json.dumps(again)) == reports[task]
    assert (
        evaluate_task("zero-shot", model, data, replace(SETTINGS, seed=1)) != reports["zero-shot"]
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_default_device_changes_nothing(model, data, reports, task):
    with torch.device("meta"):
        again = evaluate_task(task, model, data, SETTINGS)
    assert json.loads(json.dumps(again)) == reports[task]


class Watched(PhantomPairs):
    read: ClassVar[list[int]] = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_do_not_change_a_figure_whoever_loads_them(model, data, reports, workers):
    Watched.read.clear()
    data = replace(data, gallery=Watched(list(PhantomDataset("test_5x4"))))
    small = TransferSettings(resamples=2, batch_size=3, workers=workers)
    found = evaluate_task("retrieval", model, data, small)["details"]
    for kind, expected in reports["retrieval"]["details"].items():
        for direction, figures in expected.items():
            assert found[kind][direction] == pytest.approx(figures, abs=1e-5)
    found = evaluate_task("zero-shot", model, data, small)["details"]
    assert found["accuracy"] == reports["zero-shot"]["details"]["accuracy"]
    assert Watched.read == ([] if workers else 2 * list(range(20)))  # by this process


def test_the_chance_of_retrieval_is_that_of_the_gallery(reports, model, data):
    assert (
        "5x4: an image asks for reports of its class; chance 20;"
        in (reports["retrieval"]["protocol"])
    )
    items = list(PhantomDataset("test_5x4"))
    uneven = replace(data, gallery=PhantomPairs(items[:5] + items[5::5]))  # 4, 1, 1, 1, 1
    report = evaluate_task("retrieval", model, uneven, TransferSettings(ks=(5,), resamples=2))
    assert "8 images: an image asks for reports of its class; chance 31;" in report["protocol"]


def test_a_gallery_smaller_than_every_k_is_an_error(model, data):
    settings = TransferSettings(ks=(21, 100))
    with pytest.raises(
        DataError, match="Prec@21 needs as many images of one class each; there are 2"
    ):
        evaluate_task("retrieval", model, data, settings)


class TwoOfEach(PhantomPairs):
    """Every phantom twice, as two films of one patient."""

    def __init__(self, items):
        super().__init__([item for item in items for _ in range(2)])

    patients = property(lambda self: [f"{row // 2}" for row in self._rows])


class TwoMasksOfEach(PhantomMasks):
    def __init__(self, items):
        super().__init__([item for item in items for _ in range(2)], ["pneumothorax"])

    patients = TwoOfEach.patients


@pytest.mark.parametrize("task", TASKS)
def test_a_second_film_of_every_patient_is_no_second_patient(model, data, reports, task):
    """It says nothing new, so no interval may be narrower for it."""
    twice = replace(
        data,
        gallery=TwoOfEach(data.gallery.items),
        labelled=data.labelled._replace(test=TwoOfEach(data.labelled.test.items)),
        masked=data.masked._replace(test=TwoMasksOfEach(data.masked.test.items)),
    )
    expected = reports[task]
    if task == "retrieval":  # of classes, the candidates would be others
        expected = evaluate_task(task, model, TransferData.of_pairs("p", data.gallery), SETTINGS)
        twice = TransferData.of_pairs("p", twice.gallery)
    found = evaluate_task(task, model, twice, SETTINGS)
    for row, cells in expected["rows"].items():
        for cell, other in zip(cells, found["rows"][row], strict=True):
            assert other == pytest.approx(cell, abs=1e-6)


@pytest.fixture
def pneumothorax(tmp_path):
    """Phantoms as a data set with one class and masks, as SIIM is."""

    def split(name, count):
        records = []
        for number, item in enumerate(PhantomDataset(name, count=count)):
            path = tmp_path / f"{name}{number}.png"
            Image.fromarray(item.image).save(path)
            records.append(
                Record(
                    id=path.stem,
                    path=path,
                    where=path.name,
                    labels=(int(item.labels[5]),),
                    mask=lambda height, width, mask=item.masks[5]: mask,
                )
            )
        return Radiographs(records, classes=("Pneumothorax",), size=(64, 64))

    splits = Splits(split("train", 12), split("val", 24), split("test", 24))
    return TransferData.of_radiographs("films", splits, CHEST_PROMPTS)


def test_one_class_is_told_by_pairs_of_prompts_and_thresholds_of_validation(model, pneumothorax):
    report = evaluate_task("zero-shot", model, pneumothorax, SETTINGS)
    prompts = {"Pneumothorax": CHEST_PROMPTS["Pneumothorax"]}
    scores, labels = {}, {}
    for name in ("val", "test"):
        items = getattr(pneumothorax.labelled, name)
        images = encode_images(model, [items[k].image for k in range(len(items))])
        scores[name] = zero_shot_probabilities(model, images, prompts)
        labels[name] = torch.as_tensor(items.labels)
    thresholds = choose_thresholds(scores["val"], labels["val"])
    expected = multilabel_metrics(scores["test"], labels["test"], thresholds)
    cells = dict(zip(report["columns"], report["rows"][""], strict=True))
    for column, name in (("Acc", "accuracy"), ("Sens", "sensitivity"), ("F1", "f1")):
        assert cells[column]["value"] == pytest.approx(expected[name]["mean"])
    assert count_work("zero-shot", pneumothorax, SETTINGS) == 48


def test_a_whole_split_is_told_some_images_at_a_time(model, pneumothorax, monkeypatch):
    """Of all images at once, the regions may be tens of gigabytes."""
    whole = evaluate_task("zero-shot", model, pneumothorax, SETTINGS)
    scored = []

    def count(model, images, prompts):
        scored.append(len(images.regions))
        return zero_shot_probabilities(model, images, prompts)

    monkeypatch.setattr(transfer, "zero_shot_probabilities", count)
    monkeypatch.setattr(transfer, "BLOCK", 10)
    done = []
    parts = evaluate_task("zero-shot", model, pneumothorax, SETTINGS, progress=done.append)
    assert scored == [10, 10, 4] * 2
    assert sum(done) == count_work("zero-shot", pneumothorax, SETTINGS)
    for one, other in zip(whole["rows"][""], parts["rows"][""], strict=True):
        assert one == pytest.approx(other)


def test_masks_of_a_data_set_on_disk_are_segmented(model, pneumothorax):
    settings = TransferSettings(
        fractions=(1.0,),
        seeds=1,
        resamples=5,
        segmentation=SETTINGS.segmentation,
        width=16,
    )
    report = evaluate_task("segmentation", model, pneumothorax, settings)
    assert list(report["rows"]) == ["positives", "all images"]
    assert "Pneumothorax" in report["protocol"]
    assert "one draw of labels" in report["protocol"]


@pytest.mark.parametrize("label", [0, 1])
def test_splits_that_define_no_figure_say_so_before_anything_is_trained(pneumothorax, label):
    def constant(part):
        records = [record._replace(labels=(label,)) for record in part.records]
        return Radiographs(records, classes=part.classes, size=part.size)

    for name in ("val", "test"):
        parts = pneumothorax.labelled
        parts = parts._replace(**{name: constant(getattr(parts, name))})
        data = replace(pneumothorax, labelled=parts, masked=parts)
        for task in ("zero-shot", "classification"):
            assert why_not(task, data, SETTINGS) == (
                f"no class has positive and negative images in the split {name}"
            )
        masks = "" if label else f"a class has no image with a mask in the split {name}"
        assert why_not("segmentation", data, SETTINGS) == masks
    assert not any(why_not(task, pneumothorax, SETTINGS) for task in TASKS[1:])


def test_the_caption_counts_the_classes_that_have_an_auroc(model, pneumothorax):
    def doubled(part):
        records = [record._replace(labels=(*record.labels, 0)) for record in part.records]
        return Radiographs(records, classes=("Pneumothorax", "Edema"), size=part.size)

    parts = Splits(*map(doubled, pneumothorax.labelled))
    report = evaluate_task("classification", model, replace(pneumothorax, labelled=parts), SETTINGS)
    assert "mean over 1 class of 2, the others in all test images or in none" in report["protocol"]


def test_settings_are_told_alike_in_every_process():
    """A function's address would make a run that goes on another one."""
    described = SETTINGS.description()
    assert json.loads(json.dumps(described)) == described
    assert "0x" not in json.dumps(described)
    assert "focal_log_dice" in described["segmentation"]["loss"]
    assert TransferSettings(workers=3).description() == TransferSettings().description()
    assert TransferSettings(seeds=1).description() != TransferSettings().description()


def test_what_can_not_be_evaluated_says_why(model, data, pneumothorax):
    with pytest.raises(OptionError, match="task must be one of 'retrieval'"):
        evaluate_task("detection", model, data)
    with pytest.raises(DataError, match="retrieval can't be evaluated on films: it needs two cl"):
        evaluate_task("retrieval", model, pneumothorax)
    with pytest.raises(OptionError, match="seeds must be at least 1"):
        TransferSettings(seeds=0)
    with pytest.raises(OptionError, match="fractions must hold at least one, each once"):
        TransferSettings(fractions=(0.1, 0.1))
    with pytest.raises(OptionError, match="ks must hold at least one"):
        TransferSettings(ks=())
