"""Which device to train on."""

from __future__ import annotations

import torch

from gloria.checks import check_device
from gloria.errors import OptionError


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``"auto"``: an accelerator if there is one, else the CPU.

    Raises:
        OptionError: there is no such device here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    device = parse_device(name)
    check_device(device)
    return device


def parse_device(name: str) -> torch.device:
    """The device of that name, here or not.

    Raises:
        OptionError: torch knows none.
    """
    try:
        return torch.device(name)
    except RuntimeError as cause:  # with a list of twenty, most of which nobody has
        raise OptionError(
            f"device must be auto, cpu, cuda (of ROCm, too), cuda:1, mps or another that torch "
            f"knows; got {name!r}."
        ) from cause
