"""A loss with named terms and a preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, pdist
from torch.nn.functional import normalize

from gloria.errors import ShapeError
from gloria.losses import PairLoss


class AlignmentLoss(PairLoss):
    """Alignment and uniformity: an image lies near its text, and all lie apart.

    With unit vectors x of the images and y of the texts::

        alignment   mean ‖x - y‖²  over the pairs
        uniformity  log mean exp(-2 ‖x - x'‖²)  over two different images; likewise of the texts;
                    half their sum

    Args:
        uniformity_weight: of uniformity; alignment has 1.

    Source: Wang and Isola, "Understanding Contrastive Representation Learning through Alignment
    and Uniformity on the Hypersphere", ICML 2020, section 4.1 (α = t = 2).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {"uniformity_weight": 1.0}}

    def __init__(self, uniformity_weight: float = 1.0) -> None:
        super().__init__()
        self.uniformity_weight = uniformity_weight

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """The loss, a scalar; both are ``(pair, dim)``, of two pairs or more, or ShapeError."""
        return self.total(self.terms(image_embeddings, text_embeddings))

    def terms(self, image_embeddings: Tensor, text_embeddings: Tensor) -> dict[str, Tensor]:
        """``alignment`` and ``uniformity``, each an unweighted scalar."""
        images, texts = normalize(image_embeddings), normalize(text_embeddings)
        return {
            "alignment": (images - texts).square().sum(-1).mean(),
            "uniformity": (_uniformity(images) + _uniformity(texts)) / 2,
        }

    def weights(self) -> dict[str, float]:
        """The weights of the terms."""
        return {"uniformity": self.uniformity_weight}


def _uniformity(vectors: Tensor) -> Tensor:
    if len(vectors) < 2:
        raise ShapeError(f"uniformity is between pairs: give two or more; got {len(vectors)}.")
    return pdist(vectors).square().mul(-2).exp().mean().log()
