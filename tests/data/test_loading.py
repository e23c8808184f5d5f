"""Batches come in order, whoever loads them, and errors come as they are."""

import os
import signal

import numpy as np
import pytest
import torch

from gloria.data import ImageReport
from gloria.data.loading import load_batches, stack_images
from gloria.errors import DataError, DtypeError, ShapeError


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


def test_a_path_is_no_data_set():
    with pytest.raises(DtypeError, match=r"image, .*; got str\. gloria\.data\.ImageReportTable\("):
        next(load_batches("films.csv", [[0, 1]], stack_images))


def test_images_of_one_batch_have_one_shape():
    items = [ImageReport(torch.zeros(1, 2, side), "") for side in (2, 3)]
    with pytest.raises(DataError, match=r"one shape; got \[\(1, 2, 2\), \(1, 2, 3\)\]"):
        stack_images(items)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((1, 2, 2)), DtypeError, r"image of an item must be a tensor .*; got ndarray"),
        (torch.zeros(2, 2), ShapeError, r"must be \(channel, height, width\); got \(2, 2\)"),
        (torch.zeros(1, 0, 2), DataError, r"must have pixels; got \(1, 0, 2\)"),
        (torch.zeros(1, 2, 2).byte(), DtypeError, r"floating-point .*; got dtype torch.uint8"),
        (torch.full((1, 2, 2), 255.0), DataError, r"values in \[0, 1\]; got 255 to 255"),
        (torch.full((1, 2, 2), -2.1), DataError, r"values in \[0, 1\]; got -2.1 to -2.1"),
        (torch.full((1, 2, 2), torch.nan), DataError, "image of an item holds NaN"),
    ],
)
def test_an_image_that_is_not_as_said(image, error, message):
    with pytest.raises(error, match=message):
        stack_images([ImageReport(image, "x")])


def test_an_item_without_an_image():
    message = r"must have an attribute image, such as gloria\.data\.ImageReport\(.*; got tuple"
    with pytest.raises(DtypeError, match=message):
        stack_images([(torch.zeros(1, 2, 2), "x")])


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


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm)")


def test_a_batch_that_finds_no_room_in_shared_memory_is_told_and_not_waited_for(capfd):
    with pytest.raises(DataError, match=r"was killed .* shared memory\? workers=1 were asked for"):
        list(load_batches([Unsendable(), Unsendable()], [[0], [1]], list, workers=1))
    assert "unable to allocate shared memory(shm)\n" in capfd.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_what_an_item_raises_is_not_taken_for_a_kill(workers):
    class Faulty:
        def __getitem__(self, index):
            raise RuntimeError("a bug of the data's own")

    with pytest.raises(RuntimeError, match="a bug of the data's own"):
        list(load_batches(Faulty(), [[0]], list, workers=workers))
