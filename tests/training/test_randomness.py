"""What is random in a step depends on the seed and the step, and leaves no trace elsewhere."""

import random

import numpy as np
import pytest
import torch
from emulated import emulated

from gloria.training.augmentation import Augmentation
from gloria.training.randomness import StepBatches, derive_seed, isolated


def test_seeds_of_different_parts_differ():
    seeds = {derive_seed(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert derive_seed(1, 2) == derive_seed(1, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1) == derive_seed(1, 0)


def test_isolated_repeats_itself_and_restores_the_global_state():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    with isolated(3, 4):
        first = torch.rand(5)
    with isolated(3, 4):
        second = torch.rand(5)
    assert torch.equal(first, second)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()


@pytest.mark.parametrize("kind", ["mps", "cuda", "xpu"])
def test_isolated_restores_the_generator_of_an_accelerator(kind, monkeypatch):
    module, put_back = torch.get_device_module(kind), []
    with emulated(kind):
        monkeypatch.setattr(module, "get_rng_state", lambda device: f"state of {device}")
        monkeypatch.setattr(module, "set_rng_state", lambda *given: put_back.append(given))
        with isolated(3):
            assert not put_back
    assert put_back == [("state of 0", 0)]


@pytest.mark.parametrize(("length", "batch"), [(10, 3), (7, 7), (5, 1)])
def test_an_epoch_has_every_item_at_most_once(length, batch):
    per_epoch = length // batch
    batches = list(StepBatches(length, batch, 0, range(2 * per_epoch)))
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        seen = [index for indices in epoch for index in indices]
        assert len(seen) == len(set(seen)) == per_epoch * batch
    assert length < 5 or batches[:per_epoch] != batches[per_epoch:]


def test_batches_can_start_at_any_step():
    whole = list(StepBatches(23, 4, 7, range(40)))
    assert list(StepBatches(23, 4, 7, range(17, 40))) == whole[17:]
    assert list(StepBatches(23, 4, 8, range(40))) != whole


def test_augmentation_shifts_each_image_and_never_flips():
    images = torch.zeros(64, 1, 20, 20)
    images[:, 0, 10, 6] = 1
    images[:, 0, 10, 8] = 2
    moved = Augmentation(shift=0.2, gain=0, offset=0)(images, torch.Generator().manual_seed(0))
    peaks = {tuple(divmod(int(image.argmax()), 20)) for image in moved}
    assert all(6 <= y <= 14 and 4 <= x <= 12 for y, x in peaks)
    assert len(peaks) > 20
    assert {y for y, _ in peaks} == set(range(6, 15))
    for image, (y, x) in zip(moved, [divmod(int(i.argmax()), 20) for i in moved], strict=True):
        assert image[0, y, x - 2] == 1  # what was to the left stays to the left


def test_augmentation_repeats_with_its_generator():
    images = torch.rand(4, 1, 16, 16)
    first, second = (Augmentation()(images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, images)
