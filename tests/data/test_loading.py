"""Batches come in order, whoever loads them, and errors come as they are."""

import os
import signal

import numpy as np
import pytest
import torch

from gloria.data import ImageReport
from gloria.data.loading import load_batches, stack_images
from gloria.errors import DataError


class Items:
    """Item k is an image of k's; the last can't be read."""

    def __getitem__(self, index):
        if index == 9:
            raise DataError("list, row 9: damaged.")
        return ImageReport(torch.full((1, 2, 2), index / 8), "")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_items_of_their_indices(workers):
    before = torch.get_rng_state()
    batches = load_batches(Items(), [[3, 1], [5], [0, 2, 4]], stack_images, workers=workers)
    found = [(8 * batch[:, 0, 0, 0]).tolist() for batch in batches]
    assert found == [[3, 1], [5], [0, 2, 4]]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_not_wrapped(workers):
    batches = load_batches(Items(), [[1], [9]], stack_images, workers=workers)
    assert next(batches).shape == (1, 1, 2, 2)
    with pytest.raises(DataError, match=r"^list, row 9: damaged\.$"):
        next(batches)


def test_images_of_one_batch_have_one_shape():
    items = [ImageReport(torch.zeros(1, 2, side), "") for side in (2, 3)]
    with pytest.raises(DataError, match=r"one shape; got \[\(1, 2, 2\), \(1, 2, 3\)\]"):
        stack_images(items)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.zeros(1, 2, 2), "x"), "an item must have an image, a tensor; got a tuple"),
        (ImageReport(np.zeros((1, 2, 2)), "x"), "a tensor; got a ndarray"),
        (ImageReport(torch.zeros(2, 2), "x"), r"in \[0, 1\]; got torch.float32 of shape \(2, 2\)"),
        (ImageReport(torch.zeros(1, 0, 2), "x"), r"of shape \(1, 0, 2\)"),
        (ImageReport(torch.zeros(1, 2, 2).byte(), "x"), "got torch.uint8"),
        (ImageReport(torch.full((1, 2, 2), 255.0), "x"), r"values in \[0, 1\]; got 255 to 255"),
        (ImageReport(torch.full((1, 2, 2), -2.1), "x"), r"values in \[0, 1\]; got -2.1 to -2.1"),
    ],
)
def test_an_image_that_is_not_as_said(item, message):
    with pytest.raises(DataError, match=message):
        stack_images([item])


def test_images_are_float32_and_may_overshoot_as_cubic_resizing_does():
    stripes = (torch.arange(16) % 4 // 2).double().expand(1, 1, 16, 16)
    image = torch.nn.functional.interpolate(stripes, size=37, mode="bicubic")[0]
    assert image.min() < -0.05
    assert image.max() > 1.05
    stacked = stack_images([ImageReport(image, "x"), ImageReport(torch.rand(1, 37, 37), "x")])
    assert stacked.dtype == torch.float32
    assert torch.equal(stacked[0], image.float())


def test_a_loading_process_leaves_ctrl_c_to_the_one_it_loads_for():
    class Interrupted:
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGINT)
            return index

    assert list(load_batches(Interrupted(), [[0], [1]], list, workers=1)) == [[0], [1]]


def test_a_loading_process_that_is_killed_is_told():
    class Killed:
        def __getitem__(self, index):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=r"was killed .*workers=1 were asked for; 0 load in this"):
        list(load_batches(Killed(), [[0], [1]], list, workers=1))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_an_item_raises_is_not_taken_for_a_kill(workers):
    class Faulty:
        def __getitem__(self, index):
            raise RuntimeError("a bug of the data's own")

    with pytest.raises(RuntimeError, match="a bug of the data's own"):
        list(load_batches(Faulty(), [[0]], list, workers=workers))
