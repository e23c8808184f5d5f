"""A reduction of one masked axis."""

from __future__ import annotations

from torch import Tensor, nn

from gloria.aggregators import masked_max


class MidRange(nn.Module):
    """Half-way between the lowest and the highest kept value."""

    def forward(self, values: Tensor, mask: Tensor | None, dim: int) -> Tensor:
        """Reduce ``dim``; what ``mask`` leaves out has no influence."""
        return masked_max(values, mask, dim) / 2 - masked_max(-values, mask, dim) / 2
