"""Which device to train on."""

from __future__ import annotations

import torch

from gloria.errors import OptionError


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``"auto"``: an accelerator if there is one, else the CPU.

    Raises:
        OptionError: there is no such device here.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as cause:
        # an unknown name, a build without that device, no such card: each raises its own
        raise OptionError(f"device {name!r} can't be used here: {cause}") from cause
    return device
