"""Batches come in order, whoever loads them, and errors come as they are."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys

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


class Interrupted:
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGINT)
        return index


def test_a_loading_process_leaves_ctrl_c_to_the_one_it_loads_for():
    assert list(load_batches(Interrupted(), [[0], [1]], list, workers=1)) == [[0], [1]]


class Killed:
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loading_process_that_is_killed_is_told():
    with pytest.raises(DataError, match=r"ended \(DataL.*workers=1 were asked for; 0 load in this"):
        list(load_batches(Killed(), [[0], [1]], list, workers=1))


class Unsendable:
    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm)")


class Unsendables:
    def __getitem__(self, index):
        return Unsendable()


@pytest.fixture
def spawned():
    """Processes are begun as on macOS and Windows."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(usual, force=True)


@pytest.mark.usefixtures("spawned")  # so that its stderr is ours
def test_a_batch_that_finds_no_room_in_shared_memory_is_told_and_not_waited_for(capfd):
    with pytest.raises(DataError, match=r"ended .* shared memory\? .*workers=1 were asked for"):
        list(load_batches(Unsendables(), [[0], [1]], list, workers=1))
    assert "unable to allocate shared memory(shm)\n" in capfd.readouterr().err


class Faulty:
    def __getitem__(self, index):
        raise RuntimeError("a bug of the data's own")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_an_item_raises_is_not_taken_for_a_kill(workers):
    with pytest.raises(RuntimeError, match="a bug of the data's own"):
        list(load_batches(Faulty(), [[0]], list, workers=workers))


def test_a_fault_of_the_call_is_not_taken_for_one_of_sending():
    with pytest.raises(TypeError, match="not iterable"):
        next(load_batches(range(4), 5, list))


@pytest.mark.usefixtures("spawned")
def test_items_that_a_process_which_is_not_forked_cannot_get():
    class Local:
        def __getitem__(self, index):
            return index

    assert next(load_batches(Items(), [[1]], stack_images, workers=1)).shape == (1, 1, 2, 2)
    batches = load_batches(Local(), [[0]], list, workers=1)
    with (
        pytest.warns(UserWarning, match="pickle error"),  # torch's
        pytest.raises(DataError, match=r"be sent .*Local.*at the top of a module, or .*=0\.$"),
    ):
        next(batches)


def test_a_script_that_such_a_process_cannot_import(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import multiprocessing
from gloria.data.loading import load_batches
multiprocessing.set_start_method("spawn", force=True)
print(list(load_batches(range(4), [[0, 1], [2, 3]], list, workers=1)))
""")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert re.search(r"ended \(.* lack its 'if __name__ == \"__main__\":'\? workers=1", run.stderr)
