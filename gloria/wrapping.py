"""What wraps a module without changing what it computes, and what is inside."""

from __future__ import annotations

from torch import nn


def unwrapped(module: nn.Module) -> nn.Module:
    """What :func:`torch.compile`, or :class:`~gloria.distributed.AcrossRanks`, wraps; or itself.

    Args:
        module: wrapped any number of times, or not at all.

    Example:
        >>> import torch
        >>> unwrapped(torch.compile(nn.Identity()))
        Identity()
    """
    while (inner := wrapped_in(module)) is not None:
        module = inner
    return module


def wrapped_in(module: nn.Module) -> nn.Module | None:
    """What a module itself wraps; None = nothing."""
    for name in ("_orig_mod", "__wrapped__"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return inner
    return None
