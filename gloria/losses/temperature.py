"""The temperature that divides a loss's similarities, fixed or learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gloria.checks import check_boolean, check_positive
from gloria.errors import OptionError


class Temperature(nn.Module):
    """A positive number; learnable if asked, and then never below ``minimum``.

    A learned temperature is ``minimum + softplus(raw)``: bounded without a clamp, whose gradient
    would be zero once the bound is reached.

    Args:
        initial: the (starting) value.
        learnable: make it a parameter.
        minimum: lower bound of a learned temperature; CLIP's is 0.01.
        name: of the option that gives ``initial``, for errors.
    """

    def __init__(
        self,
        initial: float,
        *,
        learnable: bool = False,
        minimum: float = 0.01,
        name: str = "temperature",
    ) -> None:
        super().__init__()
        check_boolean("learnable", learnable)
        check_positive(name, initial)
        check_positive("minimum_temperature", minimum)
        self.initial, self.minimum = float(initial), float(minimum)
        self.raw = None
        if learnable:
            if initial <= minimum:
                raise OptionError(
                    f"{name} must start above its minimum_temperature {minimum} to be learnable; "
                    f"got {initial}."
                )
            # of one axis: fully_shard takes no parameter without
            self.raw = nn.Parameter(torch.empty(1))
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew, as after memory was given to a loss that was made on the meta device."""
        if self.raw is not None:
            above = self.initial - self.minimum
            # in float64, so that the starting value survives the round trip
            self.raw.fill_(above + math.log(-math.expm1(-above)))

    def forward(self) -> float | Tensor:
        """The current value; a tensor without axes if it is learned."""
        if self.raw is None:
            return self.initial
        return self.minimum + nn.functional.softplus(self.raw.squeeze(0))

    def extra_repr(self) -> str:
        """Show what it was made with; what was learned may be spread over processes."""
        if self.raw is None:
            return f"{self.initial}"
        return f"learnable from {self.initial}, minimum={self.minimum}"
