"""Frozen means frozen: no gradient, and eval mode that ``model.train()`` does not undo.

A "frozen" encoder whose BatchNorm still updates its statistics is a different encoder after every
step; published linear probes have been run that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Self

from torch import nn

from gloria.errors import DtypeError, OptionError


class Freezable(nn.Module):
    """A module that can hold parts of itself frozen."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen_parts: list[str] = []

    def freeze(self, *names: str) -> Self:
        """Freeze the submodules and parameters of these dotted names; without names, everything.

        Raises:
            OptionError: there is no such submodule or parameter.
        """
        for name in names or ("",):
            self._part(name).requires_grad_(False)
            if name not in self._frozen_parts:
                self._frozen_parts.append(name)
        return self.train(self.training)

    def freeze_as(self, frozen: bool | Sequence[str]) -> Self:
        """Freeze as an option ``frozen`` says: True = everything, False = nothing, or names."""
        if isinstance(frozen, bool):
            return self.freeze() if frozen else self
        if not isinstance(frozen, list | tuple) or not all(isinstance(n, str) for n in frozen):
            raise DtypeError(f"frozen must be True, False or a list of names; got {frozen!r}.")
        return self.freeze(*frozen) if frozen else self

    def frozen_as(self) -> bool | list[str]:
        """What is frozen, as an option that :meth:`freeze_as` takes."""
        return True if "" in self._frozen_parts else list(self._frozen_parts) or False

    def train(self, mode: bool = True) -> Self:
        """Switch between training and eval mode; frozen parts stay in eval mode."""
        super().train(mode)
        for name in self._frozen_parts:
            part = self._part(name)
            if isinstance(part, nn.Module):
                # the whole module is its own part: not this method, or it never ends
                nn.Module.train(part, False)
        return self

    def _part(self, name: str) -> nn.Module | nn.Parameter:
        try:
            part = attrgetter(name)(self) if name else self
        except AttributeError as cause:
            raise OptionError(f"there is no {name!r} to freeze: {cause}.") from cause
        if not isinstance(part, nn.Module | nn.Parameter):
            raise OptionError(f"{name!r} is no submodule or parameter that could be frozen.")
        return part
