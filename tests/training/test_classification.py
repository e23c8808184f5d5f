"""Supervised classification: beside scikit-learn, frozen, by seed, the best weights tested."""

import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from gloria.data import ImageReport, PhantomPairs, Radiographs, Record, draw_share, hash_ids
from gloria.data.phantom import FINDINGS, PhantomDataset
from gloria.encoders import TimmImageEncoder
from gloria.errors import DataError, DtypeError, NonFiniteLossError, OptionError, ShapeError
from gloria.heads import ImageClassifier
from gloria.training import (
    ClassifierRecipe,
    evaluate_classifier,
    label_efficiency,
    train_classifier,
)
from gloria.training.augmentation import Augmentation
from gloria.training.randomness import isolated
from gloria.training.small import SMALL_IMAGE_OPTIONS
from gloria.types import ImageFeatures, ImageInput


class Quarters(nn.Module):
    """An encoder whose pooled vector is the image's 16 quarters of quarters: known features."""

    pooled_dim = region_dim = 16
    image_input = ImageInput(channels=1, size=None, mean=(0.5,), std=(0.25,))

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        pooled = nn.functional.adaptive_avg_pool2d(images, 4).flatten(1) * self.scale
        return ImageFeatures(pooled, pooled[:, None], (1, 1))


class Labelled:
    """Random images; each class's labels are a noisy linear function of the quarters."""

    classes = ("dense", "faint")

    def __init__(self, count, seed=0, noise=1.0):
        rng = np.random.default_rng(seed)
        truth = np.random.default_rng(99).normal(size=(16, 2))
        self.features = rng.random((count, 16), np.float32)
        logits = (self.features - 0.5) @ truth * 4 + noise * rng.logistic(size=(count, 2)) - 0.5
        self.labels = (logits > 0).astype(np.int8)
        self.ids = [f"{seed}-{index}" for index in range(count)]
        self.patients = [f"{seed}-{index // 2}" for index in range(count)]

    def __len__(self):
        return len(self.features)

    def __getitem__(self, index):
        cells = torch.from_numpy(self.features[index].copy()).reshape(1, 4, 4)
        return ImageReport(cells.repeat_interleave(2, 1).repeat_interleave(2, 2), "")


TRAIN, VALIDATION, TEST = Labelled(240), Labelled(80, 1), Labelled(80, 2)
QUICK = ClassifierRecipe(steps=20, batch_size=16, validate_every=5)


def probe(seed=0, frozen=True, encoder=None):
    with isolated(seed):
        return ImageClassifier(encoder or Quarters(), 2, frozen=frozen)


def small_encoder(seed=0):
    with isolated(seed):
        return TimmImageEncoder("resnet10t", **SMALL_IMAGE_OPTIONS)


def phantoms(split, count):
    return PhantomPairs(list(PhantomDataset(split, count=count, size=32)))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_probe_finds_the_optimum_that_scikit_learn_finds():
    """A convex problem: both must end at the same weights, in units of the normalised features."""
    classifier = probe()
    recipe = ClassifierRecipe(
        steps=600, batch_size=240, learning_rate=0.2, weight_decay=0, validate_every=600
    )
    train_classifier(classifier, TRAIN, VALIDATION, recipe)
    inputs = (TRAIN.features - 0.5) / 0.25
    tested = (TEST.features - 0.5) / 0.25
    head = classifier.head
    weight = (head.weight / head.std).detach()
    bias = (head.bias - weight @ head.mean).detach()
    figure = evaluate_classifier(classifier, TEST)
    for column in range(2):
        oracle = LogisticRegression(C=np.inf, tol=1e-8, max_iter=2000)
        oracle.fit(inputs, TRAIN.labels[:, column])
        np.testing.assert_allclose(weight[column], oracle.coef_[0], atol=2e-3)
        assert float(bias[column]) == pytest.approx(oracle.intercept_[0], abs=2e-3)
        scores = oracle.decision_function(tested)
        expected = roc_auc_score(TEST.labels[:, column], scores)
        assert figure["per_class"][column] == pytest.approx(expected, abs=2e-3)
    assert figure["mean"] == pytest.approx(sum(figure["per_class"]) / 2)


def test_one_image_of_one_number_is_no_batch_for_fine_tuning():
    encoder = TimmImageEncoder("resnet10t", in_chans=1, channels=(8, 8, 16, 16), stem_width=8)
    train, validation = phantoms("train", 5), phantoms("val", 20)
    recipe = ClassifierRecipe(steps=1, batch_size=1)
    classifier = ImageClassifier(encoder, len(train.classes))
    with pytest.raises(OptionError, match=r"at least 2, .* got batch_size 1 and 5 to train on"):
        train_classifier(classifier, train, validation, recipe)
    frozen = ImageClassifier(encoder, len(train.classes), frozen=True)  # no BatchNorm learns
    train_classifier(frozen, train, validation, recipe)
    train_classifier(classifier, train, validation, replace(recipe, steps=3, batch_size=2))


def test_pos_weight_and_class_weight_are_those_of_scikit_learn():
    classifier = probe()
    recipe = ClassifierRecipe(
        steps=600, batch_size=240, learning_rate=0.2, weight_decay=0, validate_every=600
    )
    train_classifier(
        classifier, TRAIN, VALIDATION, recipe, pos_weight=[3.0, 1.0], class_weight=[2.0, 0.0]
    )
    oracle = LogisticRegression(C=np.inf, tol=1e-8, max_iter=2000, class_weight={1: 3.0, 0: 1.0})
    oracle.fit((TRAIN.features - 0.5) / 0.25, TRAIN.labels[:, 0])
    weight = (classifier.head.weight / classifier.head.std).detach()
    np.testing.assert_allclose(weight[0], oracle.coef_[0], atol=2e-3)
    untouched = probe().head  # a class that weighs nothing
    assert torch.equal(classifier.head.weight[1], untouched.weight[1])


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_frozen_is_frozen_to_the_bit(augmentation):
    classifier = ImageClassifier(small_encoder(), len(FINDINGS), frozen=True)
    before = state(classifier)
    data = phantoms("train", 12)
    recipe = ClassifierRecipe(
        steps=3, batch_size=4, validate_every=1, weight_decay=0.1, augmentation=augmentation
    )
    train_classifier(classifier, data, phantoms("val", 30), recipe)
    assert changed(before, state(classifier)) == {
        f"head.{name}" for name in ("weight", "bias", "mean", "std")
    }


def test_fine_tuning_changes_the_encoder():
    """The control of the test above."""
    classifier = ImageClassifier(small_encoder(), len(FINDINGS))
    before = state(classifier)
    recipe = ClassifierRecipe(steps=1, batch_size=4)
    train_classifier(classifier, phantoms("train", 12), phantoms("val", 30), recipe)
    assert {
        "image_encoder.model.conv1.0.weight",
        "image_encoder.model.bn1.running_mean",
        "head.weight",
    } <= (changed(before, state(classifier)))
    assert not any(module.training for module in classifier.modules())


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_the_best_weights_are_kept_and_not_the_last(frozen, augmentation):
    """Validation labels are the opposite of what is learned: every step makes it worse."""
    opposite = Labelled(80, 1)
    opposite.labels = 1 - opposite.labels
    classifier = probe(frozen=frozen)
    seen = {}

    def on_step(record):
        seen[record["step"]] = state(classifier)

    recipe = replace(QUICK, augmentation=augmentation, learning_rate=0.05)
    result = train_classifier(classifier, TRAIN, opposite, recipe, on_step=on_step)
    aurocs = {r["step"]: r["validation_auroc"] for r in result.history if "validation_auroc" in r}
    assert list(aurocs) == [5, 10, 15, 20]
    assert result.best_step == max(aurocs, key=aurocs.get) < 20
    assert result.validation_auroc == aurocs[result.best_step]
    assert changed(seen[result.best_step], state(classifier)) == set()
    assert changed(seen[20], state(classifier))
    figure = evaluate_classifier(classifier, opposite, augmentation=augmentation)
    assert figure["mean"] == pytest.approx(result.validation_auroc)


def test_of_equally_good_weights_the_first_are_kept():
    easy = Labelled(20, 3, noise=0.0)
    easy.labels = np.repeat(easy.features[:, :1] > 0.5, 2, axis=1).astype(np.int8)
    easy.features[:] = easy.labels[:, :1]
    result = train_classifier(probe(), easy, easy, replace(QUICK, learning_rate=0.1))
    assert [r["validation_auroc"] for r in result.history if "validation_auroc" in r] == [1] * 4
    assert result.best_step == 5


def test_history_has_every_step():
    records = []
    result = train_classifier(probe(), TRAIN, VALIDATION, QUICK, on_step=records.append)
    assert records == result.history
    assert [record["step"] for record in records] == list(range(1, 21))
    assert records[0]["learning_rate"] == QUICK.learning_rate
    assert {"loss", "gradient_norm"} <= records[0].keys()
    assert records[-1]["loss"] < records[0]["loss"]
    falling = [record["learning_rate"] for record in records]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_seed_decides_to_the_bit_and_the_global_generator_is_left_alone(frozen):
    recipe = replace(QUICK, augmentation=Augmentation(), steps=6, learning_rate=0.05)
    before = torch.get_rng_state()
    runs = []
    for seed, workers in ((0, 0), (0, 2), (1, 0)):
        classifier = probe(frozen=frozen)
        seeded = replace(recipe, seed=seed)
        result = train_classifier(classifier, TRAIN, VALIDATION, seeded, workers=workers)
        runs.append((result.history, state(classifier)))
    assert torch.equal(before, torch.get_rng_state())
    assert runs[0][0] == runs[1][0]
    assert changed(runs[0][1], runs[1][1]) == set()
    assert changed(runs[0][1], runs[2][1])


def test_the_seed_decides_the_augmentation():
    """All images are in every batch, so their order makes no difference but in rounding."""
    found = []
    for gain in (0.5, 0.0):
        for seed in (0, 1):
            augmentation = Augmentation(shift=0, gain=gain, offset=0)
            recipe = replace(QUICK, batch_size=240, augmentation=augmentation, seed=seed)
            classifier = probe()
            train_classifier(classifier, TRAIN, VALIDATION, recipe)
            found.append(classifier.head.weight)
    assert (found[0] - found[1]).abs().max() > 1e-3
    torch.testing.assert_close(found[2], found[3])


def test_encoding_once_is_encoding_every_time():
    nothing = Augmentation(shift=0, gain=0, offset=0)  # images go through in every step
    cached, anew = probe(), probe()
    first = train_classifier(cached, TRAIN, VALIDATION, QUICK)
    second = train_classifier(anew, TRAIN, VALIDATION, replace(QUICK, augmentation=nothing))
    assert first.best_step == second.best_step
    torch.testing.assert_close(cached.head.weight, anew.head.weight)


def test_a_crop_is_trained_at_random_and_tested_in_the_middle():
    seen = []
    classifier = probe()
    classifier.image_encoder.register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(inputs[0].shape[2:]))
    )
    crop = Augmentation(shift=0, gain=0, offset=0, crop=4)
    train_classifier(classifier, TRAIN, VALIDATION, replace(QUICK, augmentation=crop))
    evaluate_classifier(classifier, TEST, augmentation=crop)
    assert set(seen) == {(4, 4)}
    whole = evaluate_classifier(classifier, TEST)["mean"]
    assert seen[-1] == (8, 8)
    assert whole != evaluate_classifier(classifier, TEST, augmentation=crop)["mean"]


def test_a_class_whose_labels_are_all_uncertain_learns_nothing_and_disturbs_nothing():
    known, unknown = Labelled(240), Labelled(240)
    unknown.labels[:, 1] = -1
    recipe = replace(QUICK, weight_decay=0.0, validate_every=20)
    classifier = probe()
    before = state(classifier)
    train_classifier(classifier, unknown, VALIDATION, recipe)
    assert torch.equal(classifier.head.weight[1], before["head.weight"][1])
    other = probe()
    train_classifier(other, known, VALIDATION, recipe, class_weight=[1.0, 0.0])
    # AdamW does not feel that the loss is over half as many labels, but for the clipping
    torch.testing.assert_close(classifier.head.weight[0], other.head.weight[0], atol=1e-4, rtol=0)


def test_uncertain_validation_labels_do_not_choose():
    doubtful = Labelled(80, 1)
    doubtful.labels[::2] = -1
    certain = Labelled(80, 1)
    for name in ("features", "labels"):
        setattr(certain, name, getattr(certain, name)[1::2])
    first = train_classifier(probe(), TRAIN, doubtful, QUICK)
    second = train_classifier(probe(), TRAIN, certain, QUICK)
    assert first.best_step == second.best_step
    assert first.validation_auroc == pytest.approx(second.validation_auroc)


def test_evaluation_does_not_depend_on_the_batch_or_the_mode():
    classifier = ImageClassifier(small_encoder(), len(FINDINGS))
    data = phantoms("test", 30)
    classifier.train()
    expected = evaluate_classifier(classifier, data)
    assert classifier.image_encoder.training
    for batch_size in (1, 7):
        actual = evaluate_classifier(classifier, data, batch_size=batch_size, workers=1)
        assert actual["per_class"] == pytest.approx(expected["per_class"], abs=1e-5)


def test_fine_tuning_learns():
    """Bright squares in one of two corners: told apart in a few steps."""

    class Corners(Labelled):
        def __init__(self, count, seed=0):
            super().__init__(count, seed)
            self.labels[:, 0] = np.arange(count) % 2
            self.labels[:, 1] = 1 - self.labels[:, 0]

        def __getitem__(self, index):
            image = 0.1 * torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(index))
            corner = slice(2, 14) if self.labels[index, 0] else slice(18, 30)
            image[:, corner, corner] += 0.8
            return ImageReport(image, "")

    classifier = ImageClassifier(small_encoder(), 2)
    recipe = ClassifierRecipe(steps=12, batch_size=8, learning_rate=2e-3, validate_every=4)
    train_classifier(classifier, Corners(16), Corners(10, 1), recipe)
    assert evaluate_classifier(classifier, Corners(12, 2))["mean"] == 1


@pytest.fixture(scope="module")
def study():
    """A probe of two untrained encoders on phantoms; with what progress was told."""
    encoders = {"small": small_encoder().train(), "other": small_encoder(1).eval()}
    before = {name: state(encoder) for name, encoder in encoders.items()}
    data = phantoms("train", 160), phantoms("val", 80), phantoms("test", 160)
    told = []
    result = label_efficiency(
        encoders,
        *data,
        fractions=(0.1, 1),
        seeds=(3, 4),
        recipe=ClassifierRecipe(steps=60, batch_size=32, validate_every=20),
        progress=told.append,
    )
    for name, encoder in encoders.items():
        assert changed(before[name], state(encoder)) == set()
        assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert encoders["small"].training
    assert told == [1] * 8
    return encoders, data, result


def test_label_efficiency_is_json_with_a_cell_for_every_row_and_share(study):
    _, _, result = study
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["classes"] == list(FINDINGS)
    assert result["images"] == {"train": 160, "validation": 80, "test": 160}
    assert result["recipe"]["steps"] == 60
    assert {row: list(cells) for row, cells in result["rows"].items()} == {
        "small": ["10%", "100%"],
        "other": ["10%", "100%"],
    }


def test_label_efficiency_learns_from_the_labels(study):
    _, _, result = study
    for cells in result["rows"].values():
        assert cells["100%"]["auroc"]["mean"] > 0.56  # 0.02 is a standard error of chance
        assert cells["100%"]["auroc"]["mean"] > cells["10%"]["auroc"]["mean"] - 0.05


def test_means_and_deviations_are_over_the_seeds(study):
    _, _, result = study
    cell = result["rows"]["small"]["10%"]
    first, second = cell["runs"]
    assert (first["seed"], second["seed"]) == (3, 4)
    aurocs = [first["test"]["auroc"], second["test"]["auroc"]]
    assert cell["auroc"]["mean"] == pytest.approx(statistics.mean(aurocs))
    assert cell["auroc"]["sd"] == pytest.approx(statistics.stdev(aurocs))
    for name in FINDINGS:
        values = [run["test"]["per_class"][name]["auroc"] for run in cell["runs"]]
        assert cell["per_class"][name]["auroc"]["mean"] == pytest.approx(statistics.mean(values))
        assert cell["per_class"][name]["auroc"]["sd"] == pytest.approx(statistics.stdev(values))
    assert first["test"]["auroc"] == pytest.approx(
        statistics.mean(each["auroc"] for each in first["test"]["per_class"].values())
    )


def test_rows_are_compared_on_the_same_shares_which_a_seed_changes(study):
    _, (train, _, _), result = study
    for fraction, name in ((0.1, "10%"), (1, "100%")):
        expected = [
            hash_ids(draw_share(train.ids, train.labels, fraction, seed=seed)) for seed in (3, 4)
        ]
        for cells in result["rows"].values():
            assert [run["share"] for run in cells[name]["runs"]] == expected
            assert [run["images"] for run in cells[name]["runs"]] == [fraction * 160] * 2
    small = result["rows"]["small"]
    assert small["10%"]["runs"][0]["share"] != small["10%"]["runs"][1]["share"]
    # all labels, but other first weights and another order
    first, second = small["100%"]["runs"]
    assert first["test"]["auroc"] != second["test"]["auroc"]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_run_is_what_training_and_testing_by_hand_gives(frozen):
    """Of shares by patient, each encoder starting anew."""
    recipe = replace(QUICK, learning_rate=0.05)
    encoder = Quarters()
    result = label_efficiency(
        {"quarters": encoder},
        TRAIN,
        VALIDATION,
        TEST,
        frozen=frozen,
        fractions=(0.25,),
        seeds=(0, 5),
        recipe=recipe,
        pos_weight=[2.0, 0.5],
    )
    assert encoder.scale == 1
    cell = result["rows"]["quarters"]["25%"]
    ids = draw_share(TRAIN.ids, TRAIN.labels, 0.25, seed=5, patients=TRAIN.patients)
    rows = [TRAIN.ids.index(name) for name in ids]
    share = Labelled(240)
    share.features, share.labels = TRAIN.features[rows], TRAIN.labels[rows]
    classifier = probe(seed=5, frozen=frozen)
    by_hand = train_classifier(
        classifier, share, VALIDATION, replace(recipe, seed=5), pos_weight=[2.0, 0.5]
    )
    run = cell["runs"][1]
    assert (run["images"], run["best_step"]) == (60, by_hand.best_step)
    assert run["validation_auroc"] == pytest.approx(by_hand.validation_auroc)
    assert run["test"]["auroc"] == pytest.approx(evaluate_classifier(classifier, TEST)["mean"])


def test_an_undefined_class_is_none_and_not_in_the_mean():
    test = Labelled(80, 2)
    test.labels[:, 1] = 0
    recipe = replace(QUICK, learning_rate=0.1)
    rows = {"quarters": Quarters()}
    result = label_efficiency(
        rows, TRAIN, VALIDATION, test, fractions=(1,), seeds=(0,), recipe=recipe
    )
    cell = result["rows"]["quarters"]["100%"]
    assert cell["per_class"]["faint"] == {"auroc": {"mean": None, "sd": None}}
    assert cell["auroc"]["sd"] is None
    assert cell["auroc"]["mean"] == cell["per_class"]["dense"]["auroc"]["mean"] > 0.5


def test_radiographs_with_one_label_and_shares_by_patient(tmp_path):
    """As RSNA: one label; here with two images for each patient, bright if positive."""
    rng = np.random.default_rng(0)

    def write(split, count):
        records = []
        for index in range(count):
            label = index // 2 % 2
            path = tmp_path / f"{split}{index}.png"
            pixels = rng.integers(0, 100, (8, 8)) + 20 * label
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            records.append(
                Record(path.name, path, path.name, f"{split}{index // 2}", labels=(label,))
            )
        return Radiographs(records, classes=("Pneumonia",), size=(8, 8))

    result = label_efficiency(
        {"quarters": Quarters()},
        write("train", 40),
        write("val", 20),
        write("test", 40),
        fractions=(0.5,),
        seeds=(0,),
        recipe=replace(QUICK, learning_rate=0.1),
        workers=1,
    )
    cell = result["rows"]["quarters"]["50%"]
    assert cell["runs"][0]["images"] == 20
    assert cell["auroc"]["mean"] > 0.9


def test_nothing_is_written_when_a_run_is_stopped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stop(record):
        if record["step"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(probe(), TRAIN, VALIDATION, QUICK, on_step=stop)
    assert list(tmp_path.iterdir()) == []


def with_labels(labels, count=40):
    data = Labelled(count)
    data.labels = labels
    return data


NAN = np.zeros((40, 2), np.float32)
NAN[3, 1] = np.nan


@pytest.mark.parametrize(
    ("train", "validation", "error", "message"),
    [
        (with_labels(NAN), VALIDATION, DataError, "labels of train .* got nan at image 3, class 1"),
        (TRAIN, with_labels(NAN), DataError, "labels of validation .* at image 3, class 1"),
        (with_labels(NAN + 2), VALIDATION, DataError, r"must be 1 \(positive\), .* got 2.0"),
        (with_labels(np.zeros(40)), VALIDATION, ShapeError, r"must be \(40, 2\) = \(image, class"),
        (with_labels(np.zeros((39, 2))), VALIDATION, ShapeError, r"got \(39, 2\)"),
        (with_labels(np.zeros((40, 3))), VALIDATION, ShapeError, r"got \(40, 3\)"),
        (with_labels(np.zeros((0, 2)), 0), VALIDATION, DataError, "train must hold at least one"),
        (with_labels(np.full((40, 2), -1)), VALIDATION, DataError, "every label .* uncertain"),
        (TRAIN, with_labels(np.ones((40, 2), int)), DataError, "validation must have a class"),
        (TRAIN, with_labels(np.full((40, 2), -1)), DataError, "none of its 2 classes has both"),
    ],
)
def test_labels_that_cannot_train(train, validation, error, message):
    classifier = probe()
    before = state(classifier)
    with pytest.raises(error, match=message):
        train_classifier(classifier, train, validation, QUICK)
    assert changed(before, state(classifier)) == set()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_classifier_is_trained_in_float32(frozen):
    classifier = ImageClassifier(Quarters(), 2, frozen=frozen)
    classifier.head.double()
    with pytest.raises(
        DtypeError, match=r"in float32 to be trained; (head\.)?weight is in float64"
    ):
        train_classifier(classifier, TRAIN, VALIDATION, QUICK)


def test_an_encoder_is_no_classifier():
    for act in (
        lambda: train_classifier(Quarters(), TRAIN, VALIDATION),
        lambda: evaluate_classifier(Quarters(), TEST),
    ):
        with pytest.raises(DtypeError, match="must be an ImageClassifier; got Quarters"):
            act()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pos_weight": [1.0]}, ShapeError, "pos_weight must hold a number for each of the 2"),
        ({"pos_weight": [1.0, float("nan")]}, OptionError, "pos_weight must be a finite number"),
        ({"class_weight": [1.0, -1.0]}, OptionError, "class_weight must be .* at least 0; got -1"),
        ({"workers": -1}, OptionError, "workers must be at least 0"),
    ],
)
def test_options_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        train_classifier(probe(), TRAIN, VALIDATION, QUICK, **options)


@pytest.mark.parametrize(
    "option",
    [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"weight_decay": -1}, {"seed": -1}],
)
def test_a_recipe_out_of_range(option):
    with pytest.raises(OptionError, match=next(iter(option))):
        ClassifierRecipe(**option)


def test_a_loss_that_is_not_finite_stops_and_updates_nothing():
    classifier = probe(frozen=False)
    before = state(classifier)
    classifier.register_forward_pre_hook(lambda module, args: (args[0] * np.nan,))
    recipe = replace(QUICK, batch_size=40)
    with pytest.raises(NonFiniteLossError, match=r"step 1: .*'loss': nan"):
        train_classifier(classifier, Labelled(40), VALIDATION, recipe)
    assert changed(before, state(classifier)) == set()


def test_classes_in_another_order_are_others():
    renamed = Labelled(80, 2)
    renamed.classes = ("faint", "dense")
    classifier = probe()
    before = state(classifier)
    fault = (
        r"validation must have train's classes \['dense', 'faint'\]; it has \['faint', 'dense'\]"
    )
    with pytest.raises(DataError, match=fault):
        train_classifier(classifier, TRAIN, renamed, QUICK)
    assert changed(before, state(classifier)) == set()


def test_a_table_is_refused_before_it_is_trained():
    renamed = Labelled(80, 2)
    renamed.classes = ("faint", "dense")
    rows = {"quarters": Quarters()}
    with pytest.raises(OptionError, match=r"seeds must hold .* each once"):
        label_efficiency(rows, TRAIN, VALIDATION, TEST, seeds=(1, 1))
    with pytest.raises(DataError, match=r"test must have train's classes \['dense', 'faint'\]"):
        label_efficiency(rows, TRAIN, VALIDATION, renamed)
    negative = with_labels(np.zeros((40, 2), np.int8))
    with pytest.raises(DataError, match="test must have a class with positive and negative"):
        label_efficiency(rows, TRAIN, VALIDATION, negative, recipe=QUICK)
