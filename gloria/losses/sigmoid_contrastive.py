"""SigLIP's loss: every image with every text, as a yes-no question of its own."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from gloria.checks import check_finite
from gloria.functional import global_similarity, sigmoid_cross_entropy
from gloria.losses.base import PairLoss
from gloria.losses.temperature import Temperature


class SigmoidContrastiveLoss(PairLoss):
    """Logistic loss on the cosine of every image with every text, of which the diagonal match.

    ``L = -1/B Σ_k Σ_n log σ(z_kn · (cos_kn / τ + b))``, z = 1 for k = n and -1 elsewhere, summed
    over all pairs and divided by the images. No softmax ties the pairs of a batch together.

    Args:
        temperature: τ, divides the cosine. Paper: starts at 1/10 (there exp(t') = 10 multiplies).
        bias: b, added to every logit. Paper: starts at -10, so that the many negatives cost little
            at first.
        learnable, minimum_temperature: learn τ and b, τ above this bound.

    Presets: ``"paper"`` (the defaults).

    At the start a pair costs about 10 and the negatives next to nothing.

    Departures: the paper learns log 1/τ without a bound; here τ has a lower one
    (:class:`~gloria.losses.temperature.Temperature`).

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training (ICCV 2023), Algorithm 1.

    Example:
        >>> import torch
        >>> loss = SigmoidContrastiveLoss()
        >>> loss(torch.randn(8, 128), torch.randn(8, 128)).backward()
    """

    presets: ClassVar = {"paper": {}}

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        bias: float = -10.0,
        learnable: bool = True,
        minimum_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        check_finite("bias", bias)
        self.temperature = Temperature(
            temperature, learnable=learnable, minimum=minimum_temperature
        )
        self.initial_bias = float(bias)
        self.bias: float | Tensor = self.initial_bias
        if learnable:
            # of one axis: fully_shard takes no parameter without
            self.bias = nn.Parameter(torch.empty(1))
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew with the bias; the temperature has a method of its own."""
        if isinstance(self.bias, Tensor):
            self.bias.fill_(self.initial_bias)

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """The loss, a scalar, from ``(image, dim)`` and ``(text, dim)``."""
        return self.total(self.terms(image_embeddings, text_embeddings))

    def terms(self, image_embeddings: Tensor, text_embeddings: Tensor) -> dict[str, Tensor]:
        """``positives`` and ``negatives``: what the B matching and the other pairs add."""
        similarity = self.similarity(image_embeddings, text_embeddings)
        bias = self.bias.squeeze(0) if isinstance(self.bias, Tensor) else self.bias
        return sigmoid_cross_entropy(similarity, self.temperature(), bias)._asdict()

    def similarity(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Cosine of every image with every text, ``(image, text)``; their numbers may differ."""
        return global_similarity(image_embeddings, text_embeddings)

    def extra_repr(self) -> str:
        """Show the bias that it was made with."""
        learned = "learnable from " if isinstance(self.bias, Tensor) else ""
        return f"bias={learned}{self.initial_bias}"
