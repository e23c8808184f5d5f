"""The hard-maximum losses train the small model on phantoms."""

import math

import pytest

from gloria.cli import main
from gloria.data import PhantomPairs
from gloria.data.phantom import PhantomDataset
from gloria.training import TrainingRecipe, train
from gloria.training.randomness import isolated
from gloria.training.small import small_model


@pytest.mark.parametrize("loss", ["filip", "colbert"])
def test_the_loss_falls_below_chance(loss):
    dataset = PhantomDataset("train", count=16, size=32)
    pairs = PhantomPairs([dataset[index] for index in range(16)])
    with isolated(0):
        model = small_model(pairs.reports, embedding_dim=32, loss=loss)
    recipe = TrainingRecipe(steps=16, batch_size=8, augmentation=None)
    losses = [record["loss"] for record in train(model, pairs, recipe)]
    chance = math.log(8)
    assert losses[0] > 0.8 * chance
    assert sum(losses[-4:]) / 4 < 0.6 * chance


@pytest.mark.filterwarnings("ignore::gloria.errors.TruncatedTextWarning")
def test_the_command_line_takes_its_name(tmp_path):
    counts = ["--train", "8", "--val", "0", "--test", "0", "--per-class", "0", "--size", "32"]
    assert main(["phantoms", "--out", str(tmp_path), *counts, "--quiet"]) == 0
    arguments = ["--data", str(tmp_path / "phantoms.csv"), "--out", str(tmp_path / "run")]
    arguments += ["--image-size", "32", "--workers", "0", "--steps", "2", "--batch-size", "4"]
    assert main(["train", *arguments, "--loss", "filip", "--quiet"]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
