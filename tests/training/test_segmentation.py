"""Training of segmentation models: it learns, repeats itself, keeps the best, stops at nonsense."""

import json

import pytest
import torch

from gloria.data import MaskedImage, PhantomMasks
from gloria.data.phantom import PhantomDataset
from gloria.encoders import TimmImageEncoder
from gloria.errors import DataError, DtypeError, NonFiniteLossError, OptionError, ShapeError
from gloria.evaluation.segmentation import evaluate_segmentation
from gloria.heads import segmentation_model
from gloria.losses.segmentation import dice_bce
from gloria.training import SegmentationRecipe, segmentation_efficiency, train_segmenter
from gloria.training.augmentation import Augmentation
from gloria.training.randomness import isolated

pytest.importorskip("segmentation_models_pytorch")


def encoder(seed=0):
    with isolated(seed):
        return TimmImageEncoder(
            "resnet10t", in_chans=1, channels=(8, 8, 16, 16), stem_width=8, avg_down=False
        )


def build(classes=1, seed=0):
    with isolated(seed):
        return segmentation_model(encoder(seed), classes, width=16)


class Squares:
    """Noise with a brighter square in two of three images; the mask is where."""

    classes = ("square",)
    masks = 1

    def __init__(self, count, seed=0, numbers=None):
        self.count, self.seed = count, seed
        self.numbers = list(range(count)) if numbers is None else numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        number = self.numbers[index]
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        image = 0.2 * torch.rand(1, 32, 32, generator=generator)
        mask = torch.zeros(1, 32, 32, dtype=torch.bool)
        if number % 3:
            top, left = torch.randint(4, 18, (2,), generator=generator).tolist()
            mask[:, top : top + 10, left : left + 10] = True
        return MaskedImage(image + 0.5 * mask, mask.repeat(self.masks, 1, 1))

    @property
    def ids(self):
        return [f"square{number}" for number in self.numbers]

    @property
    def patients(self):
        return self.ids

    @property
    def labels(self):
        return [[number % 3 > 0] for number in self.numbers]

    def select(self, ids):
        return Squares(self.count, self.seed, [int(name.removeprefix("square")) for name in ids])


TRAIN, VALIDATION, TEST = Squares(24), Squares(9, 1), Squares(9, 2)
QUICK = SegmentationRecipe(steps=6, batch_size=4, validate_every=2, learning_rate=1e-2)


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.mark.parametrize("loss", [SegmentationRecipe().loss, dice_bce])
def test_finds_squares(loss):
    model = build()
    recipe = SegmentationRecipe(steps=40, validate_every=20, learning_rate=1e-2, loss=loss)
    trained = train_segmenter(model, TRAIN, VALIDATION, recipe)
    assert not model.training
    figures = evaluate_segmentation(model, TEST, trained.thresholds)
    assert figures["dice_positives"] > 0.9
    assert figures["dice_all"] > 0.9


def test_the_same_seed_gives_the_same_weights_to_the_bit():
    first, second, other = build(), build(), build()
    before = torch.get_rng_state()
    runs = [train_segmenter(model, TRAIN, VALIDATION, QUICK) for model in (first, second)]
    assert torch.equal(before, torch.get_rng_state())
    assert runs[0] == runs[1]
    assert torch.equal(weights(first), weights(second))
    train_segmenter(other, TRAIN, VALIDATION, SegmentationRecipe(**{**vars(QUICK), "seed": 1}))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize(("count", "batch_size"), [(24, 1), (1, 4)])
def test_one_image_of_one_number_is_no_batch(count, batch_size):
    """At 32 pixels the encoder's last map has one pixel: BatchNorm would have one number."""
    recipe = SegmentationRecipe(steps=2, batch_size=batch_size, augmentation=None)
    told = f"batch_size must be at least 2, .* got batch_size {batch_size} and {count} to train on"
    with pytest.raises(OptionError, match=told):
        train_segmenter(build(), Squares(count), VALIDATION, recipe)


def test_a_last_odd_image_is_no_batch():
    """Three images in batches of two: each epoch has one step, and none of a single image."""
    recipe = SegmentationRecipe(steps=4, batch_size=2, augmentation=None)
    assert len(train_segmenter(build(), Squares(3), VALIDATION, recipe).history) == 4


def test_loading_processes_change_nothing():
    first, second = build(), build()
    train_segmenter(first, TRAIN, VALIDATION, QUICK)
    train_segmenter(second, TRAIN, VALIDATION, QUICK, workers=2)
    assert torch.equal(weights(first), weights(second))


def test_the_best_weights_are_kept():
    """Of a run that is led astray after half its steps."""
    records, snapshots = [], {}
    model = build()

    def look(record):
        records.append(record)
        snapshots[record["step"]] = weights(model)

    def loss(logits, masks):
        return dice_bce(logits, masks if len(records) < 20 else ~masks)

    recipe = SegmentationRecipe(
        steps=40, batch_size=4, validate_every=5, learning_rate=0.01, loss=loss
    )
    trained = train_segmenter(model, TRAIN, VALIDATION, recipe, on_step=look)
    assert records == trained.history
    assert [record["step"] for record in records] == list(range(1, 41))
    dice = {r["step"]: r["validation_dice"] for r in records if "validation_dice" in r}
    assert list(dice) == list(range(5, 41, 5))
    assert trained.validation_dice == max(dice.values())
    assert trained.best_step == min(step for step, d in dice.items() if d == max(dice.values()))
    assert torch.equal(weights(model), snapshots[trained.best_step])
    assert trained.best_step < 40
    assert not torch.equal(weights(model), snapshots[40])
    again = evaluate_segmentation(model, VALIDATION, trained.thresholds, batch_size=2)
    assert again["dice_all"] == pytest.approx(trained.validation_dice, abs=1e-6)


def test_image_and_mask_are_moved_together():
    """A shift that only moved one would leave a square's bright pixels unmarked."""
    seen = []

    def look(logits, masks):
        seen.append(masks)
        return dice_bce(logits, masks)

    model = build()
    inputs = []
    model.register_forward_pre_hook(lambda module, given: inputs.append((module.training, given)))
    vary = Augmentation(shift=0.3, gain=0, offset=0)
    recipe = SegmentationRecipe(steps=3, batch_size=8, loss=look, augmentation=vary)
    train_segmenter(model, TRAIN, VALIDATION, recipe)
    shown = [images for training, (images,) in inputs if training]
    assert len(shown) == len(seen) == 3
    mean, std = model.image_input.mean[0], model.image_input.std[0]
    for images, masks in zip(shown, seen, strict=True):
        assert torch.equal(images * std + mean > 0.4, masks)
        assert any(mask[:, 0].any() or mask[:, :, 0].any() for mask in masks)  # squares don't touch


def test_fewer_images_than_a_batch_are_one_batch():
    seen = []

    def look(logits, masks):
        seen.append(len(masks))
        return dice_bce(logits, masks)

    recipe = SegmentationRecipe(steps=2, batch_size=8, loss=look)
    train_segmenter(build(), Squares(3), VALIDATION, recipe)
    assert seen == [3, 3]


def test_shares_of_the_masks_of_several_encoders():
    """The table's cells are what each step by hand gives."""
    done = []
    rows = {"pretrained": encoder(1), "random": encoder(2)}
    before = weights(rows["pretrained"])
    table = segmentation_efficiency(
        rows,
        TRAIN,
        VALIDATION,
        TEST,
        fractions=(0.25, 1),
        seeds=(0, 1),
        recipe=QUICK,
        width=16,
        progress=done.append,
    )
    assert torch.equal(weights(rows["pretrained"]), before)
    assert sum(done) == 8
    assert json.loads(json.dumps(table)) == table
    assert table["recipe"]["loss"] == "gloria.losses.segmentation:focal_log_dice"
    runs = {name: row["25%"]["runs"] for name, row in table["rows"].items()}
    assert [run["images"] for run in runs["random"]] == [6, 6]
    assert [run["share"] for run in runs["random"]] == [run["share"] for run in runs["pretrained"]]
    assert runs["random"][0]["share"] != runs["random"][1]["share"]
    cell = table["rows"]["pretrained"]["100%"]
    figures = [run["test"]["dice_all"] for run in cell["runs"]]
    assert cell["dice_all"]["mean"] == pytest.approx(sum(figures) / 2)
    assert cell["dice_all"]["sd"] == pytest.approx(abs(figures[0] - figures[1]) / 2**0.5)

    with isolated(0):
        model = segmentation_model(rows["pretrained"], width=16)
    trained = train_segmenter(model, TRAIN, VALIDATION, QUICK)
    expected = evaluate_segmentation(model, TEST, trained.thresholds, batch_size=4)
    expected["per_class"] = dict(zip(["square"], expected["per_class"], strict=True))
    assert cell["runs"][0]["test"] == expected
    # one class: its figures are the means over classes
    assert table["classes"] == list(cell["per_class"]) == ["square"]
    assert cell["per_class"]["square"]["dice_all"] == cell["dice_all"]
    assert cell["runs"][0]["best_step"] == trained.best_step


def test_phantoms_with_two_findings():
    items = list(PhantomDataset("train", count=12, size=32))
    data = PhantomMasks(items, ("pleural effusion", "cardiomegaly"))
    trained = train_segmenter(build(2), data, data, QUICK)
    assert len(trained.thresholds) == 2
    assert all(record["loss"] > 0 for record in trained.history)
    turned = PhantomMasks(items, ("cardiomegaly", "pleural effusion"))
    with pytest.raises(DataError, match=r"validation must have train's classes \['pleural eff"):
        train_segmenter(build(2), data, turned, QUICK)

    rows = {"random": encoder()}
    once = {"fractions": (1,), "seeds": (0,), "recipe": QUICK, "width": 16}
    table = segmentation_efficiency(rows, data, data, data, **once)
    assert table["classes"] == ["pleural effusion", "cardiomegaly"]
    cell = table["rows"]["random"]["100%"]
    of_class = [cell["per_class"][name]["dice_all"]["mean"] for name in table["classes"]]
    assert of_class[0] != of_class[1]
    assert cell["dice_all"]["mean"] == pytest.approx(sum(of_class) / 2)
    (run,) = cell["runs"]
    for number, name in enumerate(table["classes"]):
        positives = run["test"]["per_class"][name]["positives"]
        assert positives == data.labels[:, number].sum()


def test_nonsense_stops_with_nothing_updated():
    model, untouched = build(), build()
    recipe = SegmentationRecipe(steps=2, loss=lambda logits, masks: logits.mean() * torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"step 1: .*'loss': nan"):
        train_segmenter(model, TRAIN, VALIDATION, recipe)
    pairs = zip(model.parameters(), untouched.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_bad_input():
    with pytest.raises(DtypeError, match="must be a SegmentationModel; got Timm"):
        train_segmenter(encoder(), TRAIN, VALIDATION)
    with pytest.raises(DataError, match="train must hold at least one image"):
        train_segmenter(build(), Squares(0), VALIDATION)
    with pytest.raises(DataError, match="validation must hold at least one image"):
        train_segmenter(build(), TRAIN, Squares(0))
    with pytest.raises(ShapeError, match=r"masks must be \(4, 2, 32, 32\)"):
        train_segmenter(build(2), TRAIN, VALIDATION, QUICK)
    with pytest.raises(DtypeError, match=r"in float32 to be trained; .*conv1.* is in bfloat16"):
        train_segmenter(build().bfloat16(), TRAIN, VALIDATION)
    empty = Squares(24, numbers=[0, 3, 6])
    on_positives = SegmentationRecipe(steps=1, choose_on="positives")
    with pytest.raises(DataError, match="class 0 has no image with a mask"):
        train_segmenter(build(), TRAIN, empty, on_positives)
    with pytest.raises(OptionError, match="choose_on must be one of"):
        SegmentationRecipe(choose_on="some")


def test_what_is_wrong_is_said_before_anything_is_trained():
    trained = []

    def loss(logits, masks):
        trained.append(1)
        return logits.mean()

    recipe = SegmentationRecipe(steps=1, loss=loss)
    rows = {"a": encoder()}
    with pytest.raises(OptionError, match="seeds must be at least 0; got -1"):
        segmentation_efficiency(rows, TRAIN, VALIDATION, TEST, seeds=(0, -1), recipe=recipe)
    with pytest.raises(DataError, match="test must hold at least one image"):
        segmentation_efficiency(rows, TRAIN, VALIDATION, Squares(0), recipe=recipe)
    three = Squares(3)
    three.masks = 3
    with pytest.raises(ShapeError, match="'train': 1, 'validation': 1, 'test': 3"):
        segmentation_efficiency(rows, TRAIN, VALIDATION, three, recipe=recipe)
    circles = Squares(3)
    circles.classes = ("circle",)  # as many, and not the same
    message = r"train's classes \['square'\]; it has \['circle'\]"
    with pytest.raises(DataError, match=f"validation must have {message}"):
        segmentation_efficiency(rows, TRAIN, circles, TEST, recipe=recipe)
    with pytest.raises(DataError, match=f"test must have {message}"):
        segmentation_efficiency(rows, TRAIN, VALIDATION, circles, recipe=recipe)
    assert not trained
