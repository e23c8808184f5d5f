"""InfoNCE with soft targets: other reports that say the same are no negatives."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gloria.checks import check_positive, check_share
from gloria.functional import global_similarity, soft_target_cross_entropy
from gloria.losses.base import SimilarityLoss


class SoftTargetContrastiveLoss(SimilarityLoss):
    """InfoNCE on the cosine of pooled embeddings, whose targets are a softmax of similarities.

    ``L = w_it · CE(cos / τ, y over rows) + w_ti · CE(cos / τ, y over columns)`` with
    ``y = α · 1[k = n] + (1 - α) · softmax(s / τ_y)``, where ``s_kn`` says how much image k and
    text n have in common.

    MedCLIP takes for ``s`` the cosine of the images' and the texts' label vectors. In a loop of
    your own, give it as ``target_similarity`` (with ``preset="paper"``). Without it, as in
    ``gloria train``, ``s`` is the cosine of the batch's text embeddings among themselves, through
    which nothing is learned: reports that say the same share their targets.

    Args:
        temperature: τ, divides the cosine. MedCLIP: learned from 0.07.
        target_temperature: τ_y, divides ``s``. MedCLIP: 1, on label vectors. The default, ours,
            is for cosines of text embeddings, which lie close together.
        pair_weight: α, from 0 to 1, the share of the targets that stays on the matching pair.
            MedCLIP: 0, as its images and texts are not paired. The default, ours, is above 0
            because with targets from the texts themselves, texts that are all alike would
            otherwise leave nothing to learn.
        learnable, minimum_temperature: learn τ, starting from ``temperature``, above this bound.
        image_to_text_weight, text_to_image_weight: w_it and w_ti. MedCLIP: 1/2 each.

    Presets: ``"paper"``: MedCLIP's constants; made for label similarities.

    The loss is never below the mean entropy of its targets, and is 0 only where these are certain.

    Departures: MedCLIP's published code takes the dot product of the label vectors for ``s``; give
    ``image_labels @ text_labels.T``. It bounds 1/τ to [1, 100]; here τ has a lower bound only.

    Source: Wang et al., MedCLIP: Contrastive Learning from Unpaired Medical Images and Text
    (EMNLP 2022), the semantic matching loss.

    Example:
        >>> import torch
        >>> loss = SoftTargetContrastiveLoss.from_preset("paper")
        >>> images, texts = torch.randn(8, 128), torch.randn(8, 128)
        >>> labels = torch.randint(0, 2, (8, 5)).float()  # (pair, class)
        >>> loss(images, texts, global_similarity(labels, labels)).backward()
    """

    presets: ClassVar = {"paper": {"target_temperature": 1.0, "pair_weight": 0.0}}
    _shown = (*SimilarityLoss._shown, "target_temperature", "pair_weight")

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        target_temperature: float = 0.07,
        pair_weight: float = 0.5,
        learnable: bool = True,
        minimum_temperature: float = 0.01,
        image_to_text_weight: float = 0.5,
        text_to_image_weight: float = 0.5,
    ) -> None:
        super().__init__(
            temperature=temperature,
            learnable=learnable,
            minimum_temperature=minimum_temperature,
            image_to_text_weight=image_to_text_weight,
            text_to_image_weight=text_to_image_weight,
        )
        check_positive("target_temperature", target_temperature)
        check_share("pair_weight", pair_weight)
        self.target_temperature = target_temperature
        self.pair_weight = pair_weight

    def forward(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        target_similarity: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            image_embeddings: ``(image, dim)``.
            text_embeddings: ``(text, dim)``.
            target_similarity: s, ``(image, text)``; with it the numbers of images and texts may
                differ. None: the texts' own, text k belonging to image k.
        """
        return self.total(self.terms(image_embeddings, text_embeddings, target_similarity))

    def terms(
        self,
        image_embeddings: Tensor,
        text_embeddings: Tensor,
        target_similarity: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``image_to_text`` and ``text_to_image``, each an unweighted scalar."""
        similarity = self.similarity(image_embeddings, text_embeddings)
        if target_similarity is None:
            texts = text_embeddings.detach()
            target_similarity = global_similarity(texts, texts)
        return soft_target_cross_entropy(
            similarity,
            target_similarity,
            self.temperature(),
            self.target_temperature,
            self.pair_weight,
        )._asdict()

    def similarity(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Cosine of every image with every text, ``(image, text)``; their numbers may differ."""
        return global_similarity(image_embeddings, text_embeddings)
