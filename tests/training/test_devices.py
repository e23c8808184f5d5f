"""Devices by name."""

import pytest
import torch

from gloria.errors import OptionError
from gloria.training.devices import pick_device


def test_auto_is_the_cpu_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert pick_device() == pick_device("auto") == torch.device("cpu")


def test_auto_is_the_accelerator_where_there_is_one(monkeypatch):
    found = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    assert pick_device("auto") == found


def test_auto_gives_a_device_that_works_here():
    assert torch.zeros(2, device=pick_device()).sum() == 0


def test_a_name_is_taken_as_it_is():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "gpu:0", "CPU0"])
def test_a_name_that_torch_does_not_know_is_answered_with_those_that_it_does(name):
    with pytest.raises(OptionError, match=f"must be auto, cpu, cuda .*; got '{name}'"):
        pick_device(name)


def test_a_device_that_is_not_here_is_an_error_of_one_line():
    for name in ("cuda:99", "mps:99"):
        with pytest.raises(OptionError, match=rf"^device '{name}' can't be used here: .+$"):
            pick_device(name)
