"""The hard-maximum losses train the small model on phantoms."""

import math

import pytest

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
