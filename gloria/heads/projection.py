"""Projections into the shared space: of one vector per item, or of each region or word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gloria.checks import check_choice, check_integer
from gloria.errors import DtypeError, OptionError, ShapeError


class Projection(nn.Module):
    """A linear or two-layer projection of the last axis.

    Used on pooled vectors ``(item, dim)`` (the global head) and on regions or words
    ``(item, position, dim)`` (the local heads), where a linear map of every position is a 1 × 1
    convolution. The published code: linear without bias on regions, linear on the pooled image,
    nothing on the text, whose width is the shared space. ConVIRT: ``kind="mlp"``.

    Args:
        in_dim: width of the encoder's output.
        out_dim: width of the shared space.
        kind: ``"linear"``, or ``"mlp"``: Linear-ReLU-Linear.
        hidden_dim: hidden width of the MLP; default ``out_dim``.
        bias: whether the linear layers have a bias.

    Raises:
        ShapeError: an input's last axis is not ``in_dim`` wide.
        DtypeError: an input is not of the weights' dtype, and there is no autocast.

    Example:
        >>> import torch
        >>> Projection(1024, 768, bias=False)(torch.randn(2, 361, 1024)).shape
        torch.Size([2, 361, 768])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        kind: str = "linear",
        hidden_dim: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_integer("in_dim", in_dim, 1)
        check_integer("out_dim", out_dim, 1)
        check_choice("kind", kind, ("linear", "mlp"))
        self.in_dim = in_dim
        self.out_dim = out_dim
        if kind == "linear":
            if hidden_dim is not None:
                raise OptionError(f"hidden_dim goes with kind='mlp'; got {hidden_dim}.")
            self.layers: nn.Module = nn.Linear(in_dim, out_dim, bias=bias)
        else:
            width = out_dim if hidden_dim is None else hidden_dim
            check_integer("hidden_dim", width, 1)
            self.layers = nn.Sequential(
                nn.Linear(in_dim, width, bias=bias),
                nn.ReLU(),
                nn.Linear(width, out_dim, bias=bias),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Project ``(..., in_dim)`` to ``(..., out_dim)``."""
        if features.shape[-1] != self.in_dim:
            raise ShapeError(
                f"features must be {self.in_dim} wide on the last axis; got "
                f"{tuple(features.shape)}."
            )
        # quantised layers have no parameters, and take what they are given
        dtype = next((each.dtype for each in self.layers.parameters()), features.dtype)
        if features.dtype != dtype and not torch.is_autocast_enabled(features.device.type):
            raise DtypeError(
                f"features must be {dtype} as the projection is; got {features.dtype}. Convert "
                f"one of them, as in encoder.to({dtype}), or work under torch.autocast."
            )
        projected: Tensor = self.layers(features)
        return projected
