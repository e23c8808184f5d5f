"""The global contrastive loss: image against report."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gloria.functional import global_contrastive_terms, global_similarity
from gloria.losses.base import SimilarityLoss


class GlobalContrastiveLoss(SimilarityLoss):
    """Symmetric InfoNCE on the cosine of pooled embeddings.

    ``L = w_it · CE(cos / τ, rows) + w_ti · CE(cos / τ, columns)``, text k belonging to image k.

    Args:
        temperature: τ, divides the cosine. Paper and published code: 0.1 (a scale of 10).
        learnable, minimum_temperature: learn τ, starting from ``temperature``, above this bound.
            SPARC (2024) found a learned one better for every method that it compared.
        image_to_text_weight, text_to_image_weight: w_it and w_ti.

    Presets: ``"paper"``, ``"official"`` and ``"stable"`` (all τ = 0.1), ``"convirt"``
    (Zhang et al., 2020, eq. 4: 0.75 and 0.25, τ = 0.1).

    At random initialisation the loss is about ``2 ln(batch)``. From 1,024 pairs on it keeps no
    ``(image, text)`` matrix, forward or backward (:mod:`gloria.contrastive`).

    Source: GLoRIA (Huang et al., ICCV 2021), section 3, the global contrastive loss; weights as in
    ConVIRT.

    Example:
        >>> import torch
        >>> loss = GlobalContrastiveLoss(learnable=True)
        >>> loss(torch.randn(8, 128), torch.randn(8, 128)).backward()
    """

    presets: ClassVar = {
        "paper": {"temperature": 0.1},
        "official": {"temperature": 0.1},
        "stable": {"temperature": 0.1},
        "convirt": {
            "temperature": 0.1,
            "image_to_text_weight": 0.75,
            "text_to_image_weight": 0.25,
        },
    }

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """The loss, a scalar, from ``(image, dim)`` and ``(text, dim)``."""
        return self.total(self.terms(image_embeddings, text_embeddings))

    def terms(self, image_embeddings: Tensor, text_embeddings: Tensor) -> dict[str, Tensor]:
        """``image_to_text`` and ``text_to_image``, each an unweighted scalar."""
        if type(self).similarity is not GlobalContrastiveLoss.similarity:  # a subclass's own
            return self.terms_of(self.similarity(image_embeddings, text_embeddings))
        temperature = self.temperature()
        return global_contrastive_terms(image_embeddings, text_embeddings, temperature)._asdict()

    def similarity(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Cosine of every image with every text, ``(image, text)``; their numbers may differ."""
        return global_similarity(image_embeddings, text_embeddings)
