"""Batches come in order, whoever loads them, and errors come as they are."""

import os
import signal

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
        return ImageReport(torch.full((1, 2, 2), float(index)), "")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_items_of_their_indices(workers):
    before = torch.get_rng_state()
    batches = load_batches(Items(), [[3, 1], [5], [0, 2, 4]], stack_images, workers=workers)
    assert [batch[:, 0, 0, 0].tolist() for batch in batches] == [[3, 1], [5], [0, 2, 4]]
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
