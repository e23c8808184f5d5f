"""SPARC: a global loss, and words against the few regions they gather in their own image."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gloria.checks import check_positive
from gloria.functional import sparc_cross_entropy, sparse_attention
from gloria.losses.base import GlobalLocalLoss
from gloria.losses.global_contrastive import GlobalContrastiveLoss
from gloria.losses.temperature import Temperature


class SPARCLoss(GlobalLocalLoss):
    """``L = global_weight · L_g + local_weight · L_f``, each the mean of its two directions.

    ``L_g`` is InfoNCE on the cosine of pooled embeddings. ``L_f`` contrasts, inside each pair, the
    words with the regions that each of them gathers by sparse weights
    (:func:`gloria.functional.sparc_cross_entropy`); its negatives are the other words of the same
    text, so its memory is (pair, word, region) and no (image, text) matter.

    Args:
        global_temperature: divides the cosine of ``L_g``.
        local_temperature: divides the cosine of ``L_f``.
        learnable, minimum_temperature: learn both, starting from these, above this bound.
        global_weight, local_weight: of ``L_g`` and ``L_f``.

    Presets: ``"paper"`` (the defaults): the equations, the threshold 1 / regions, and learned
    temperatures. The paper's two weights and the start of its temperatures could not be checked
    against it when this was written: both weights are 1 and the temperatures start at CLIP's 0.07
    until you set them.

    At random initialisation the loss is about ``ln(batch) + ln(words)``.

    Departures: the mean of ``L_f`` is over the words of a text and then over texts, so that a long
    report weighs no more than a short one; a word to which all regions are alike gathers them all
    equally, where the paper's weights are 0/0.

    Source: Bica et al., Improving fine-grained understanding in image-text pre-training (2024).
    There is no published code.

    Example:
        >>> import torch
        >>> loss = SPARCLoss(local_weight=0.5)
        >>> pooled, regions = torch.randn(4, 64), torch.randn(4, 49, 64)
        >>> words, word_mask = torch.randn(4, 9, 64), torch.ones(4, 9, dtype=torch.bool)
        >>> loss(pooled, pooled, regions, words, word_mask).backward()
    """

    presets: ClassVar = {"paper": {}}

    def __init__(
        self,
        *,
        global_temperature: float = 0.07,
        local_temperature: float = 0.07,
        learnable: bool = True,
        minimum_temperature: float = 0.01,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
    ) -> None:
        check_positive("global_temperature", global_temperature)
        super().__init__(
            GlobalContrastiveLoss(
                temperature=global_temperature,
                learnable=learnable,
                minimum_temperature=minimum_temperature,
                image_to_text_weight=0.5,
                text_to_image_weight=0.5,
            ),
            global_weight=global_weight,
            local_weight=local_weight,
        )
        self.local_temperature = Temperature(
            local_temperature,
            learnable=learnable,
            minimum=minimum_temperature,
            name="local_temperature",
        )

    def local_terms(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``image_to_text`` and ``text_to_image`` of ``L_f``, each an unweighted scalar."""
        return sparc_cross_entropy(
            regions, words, word_mask, region_mask, temperature=self.local_temperature()
        )._asdict()

    def local_weights(self) -> dict[str, float]:
        """The weights of the two directions of ``L_f``."""
        return {"image_to_text": 0.5, "text_to_image": 0.5}

    def attention_maps(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> Tensor:
        """Which regions of image k each word of text k gathers, ``(pair, word, region)``."""
        return sparse_attention(regions, words, word_mask, region_mask)
