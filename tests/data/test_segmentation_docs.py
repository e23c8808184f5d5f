"""docs/segmentation.md: its code runs, on SIIM's files and on phantoms."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pages import read, run

import gloria
from gloria.data.images import normalize
from gloria.data.masks import encode_runs
from gloria.evaluation import count_overlap, evaluate_segmentation
from gloria.heads import segmentation_model
from gloria.training import SegmentationRecipe, train_segmenter
from gloria.training.randomness import isolated

pytest.importorskip("segmentation_models_pytorch")
PAGE = read("docs/segmentation.md")


@pytest.fixture
def siim(write_rows, write_dicom, tmp_path, monkeypatch):
    """Twelve films of 40 x 32 pixels, two in three with a bright square that is marked."""
    monkeypatch.chdir(tmp_path)
    rows = []
    rng = np.random.default_rng(0)
    for number in range(12):
        film = rng.integers(0, 60, (40, 32), np.uint8)
        mask = np.zeros((40, 32), np.bool_)
        if number % 3:
            top, left = rng.integers(2, 18, 2)
            mask[top : top + 12, left : left + 12] = True
        write_dicom(tmp_path / f"siim/dicom-images-train/{number}.dcm", film + 150 * mask)
        rows.append([f"{number}", f" {encode_runs(mask)}"])
    write_rows(tmp_path / "siim/train-rle.csv", ["ImageId", " EncodedPixels"], *rows)
    return gloria.data.SIIM("siim/train-rle.csv", "siim/dicom-images-train", size=(48, 48))


def test_the_code_runs(siim, write_image):
    marked = np.zeros((40, 32), np.uint8)
    marked[10:20, 4:12] = 255
    write_image(Path("films/a.png"), 255 - marked)
    write_image(Path("masks/a.png"), marked)
    with isolated(0):
        names = run(PAGE)
    assert 0 <= names["trained"].validation_dice <= 1
    masks = torch.stack([item.mask for item in names["test"]])
    dice = count_overlap(names["marked"], masks).dice.mean().item()
    assert dice == pytest.approx(names["figures"]["dice_all"], abs=1e-3)
    (item,) = names["mine"]
    assert item.mask.float().mean() == pytest.approx(80 / 40**2, rel=0.1)  # padded to a square
    assert item.image[item.mask].mean() < 0.1 < item.image[~item.mask].mean()
    cell = names["table"]["rows"]["ResNet-18"]["10%"]
    assert cell["runs"][0]["images"] == 4
    unet, model = names["unet"].eval(), names["model"]
    images = normalize(names["test"][0].image[None], model.image_input)
    films = normalize(torch.stack([item.image for item in names["test"]]), model.image_input)
    with torch.no_grad():
        torch.testing.assert_close(unet(images), model(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(unet(films), names["logits"], rtol=0, atol=1e-5)


def test_learns_from_siims_files(siim):
    with isolated(0):
        encoder = gloria.create_image_encoder("timm:resnet10t", in_chans=1, channels=(8, 8, 16, 16))
        model = segmentation_model(encoder, width=16)
    train, rest = siim.select(siim.ids[:9]), siim.select(siim.ids[9:])
    recipe = SegmentationRecipe(steps=40, validate_every=40, learning_rate=1e-2)
    trained = train_segmenter(model, train, rest, recipe)
    figures = evaluate_segmentation(model, siim, trained.thresholds)
    assert figures["images"] == 12
    assert figures["per_class"][0]["positives"] == 8
    assert figures["dice_positives"] > 0.8
