"""Frozen means frozen: no gradient, and eval mode that ``model.train()`` does not undo.

A "frozen" encoder whose BatchNorm still updates its statistics is a different encoder after every
step; published linear probes have been run that way.
"""

from __future__ import annotations

from typing import Self

from torch import nn

from gloria.errors import OptionError


class Freezable(nn.Module):
    """A module that can hold parts of itself frozen."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen_parts: list[str] = []

    def freeze(self, *names: str) -> Self:
        """Freeze the submodules with these dotted names; without names, the whole module."""
        for name in names or ("",):
            try:
                self.get_submodule(name).requires_grad_(False)
            except AttributeError as cause:
                raise OptionError(f"there is no submodule {name!r} to freeze: {cause}.") from cause
            self._frozen_parts.append(name)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and eval mode; frozen parts stay in eval mode."""
        super().train(mode)
        for name in self._frozen_parts:
            part = self.get_submodule(name)
            # the whole module is its own part: nn.Module.train, not this method, or it never ends
            nn.Module.train(part, False)
        return self
