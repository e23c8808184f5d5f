"""MGCA: a global loss, and tokens against what they attend to in their own pair."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gloria.checks import check_positive
from gloria.functional import local_attention, mgca_cross_entropy
from gloria.losses.base import GlobalLocalLoss
from gloria.losses.global_contrastive import GlobalContrastiveLoss
from gloria.losses.temperature import Temperature


class MGCALoss(GlobalLocalLoss):
    """MGCA's instance-wise and token-wise alignment: ``global_weight · L_I + local_weight · L_T``.

    ``L_I`` is InfoNCE on the cosine of pooled embeddings, its two directions added. ``L_T``
    contrasts, inside each pair, every word with the regions it attends to, and every region with
    the words it attends to (:func:`gloria.functional.mgca_cross_entropy`).

    Args:
        global_temperature: divides the cosine of ``L_I``; published code: 0.07.
        attention_temperature: divides the cosines of the attention; published code: 0.1.
        local_temperature: divides the cosines of ``L_T``; published code: 0.1.
        global_weight: of ``L_I``; published code: 1.
        local_weight: of ``L_T``; published code: 1 from its command line (0.7 is the default of
            its constructor).

    Presets: ``"official"`` (the defaults): the constants of the published code.

    At random initialisation the loss is about ``2 ln(batch) + ln(words) + ln(regions)``.

    Departures from the published code:

    - Its third part, which assigns images and texts to learned disease prototypes, is left out.
    - Words, and the patches of a ViT, are weighted there by the attention that the encoder's last
      layer pays them from [CLS]; here all weigh alike, as the regions of a CNN do there.
    - There, padded words are candidates of the contrast between words; here they play no part.
    - There, what the patches of a ViT attend to is not normalised; here, as for a CNN, it is.
    - Learned query, key and value projections, an option there, are left out; project the features
      (:mod:`gloria.heads`).

    Source: Wang et al., Multi-Granularity Cross-modal Alignment for Generalized Medical Visual
    Representation Learning (NeurIPS 2022), instance-wise and token-wise cross-modal alignment.

    Example:
        >>> import torch
        >>> loss = MGCALoss.from_preset("official", local_weight=0.7)
        >>> pooled, regions = torch.randn(4, 64), torch.randn(4, 49, 64)
        >>> words, word_mask = torch.randn(4, 9, 64), torch.ones(4, 9, dtype=torch.bool)
        >>> loss(pooled, pooled, regions, words, word_mask).shape
        torch.Size([])
    """

    presets: ClassVar = {"official": {}}
    _shown = (*GlobalLocalLoss._shown, "attention_temperature")

    def __init__(
        self,
        *,
        global_temperature: float = 0.07,
        attention_temperature: float = 0.1,
        local_temperature: float = 0.1,
        global_weight: float = 1.0,
        local_weight: float = 1.0,
    ) -> None:
        check_positive("global_temperature", global_temperature)
        super().__init__(
            GlobalContrastiveLoss(temperature=global_temperature),
            global_weight=global_weight,
            local_weight=local_weight,
        )
        check_positive("attention_temperature", attention_temperature)
        self.attention_temperature = attention_temperature
        self.local_temperature = Temperature(local_temperature, name="local_temperature")

    def local_terms(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``words`` and ``regions``: the two sides of ``L_T``, each an unweighted scalar."""
        return mgca_cross_entropy(
            regions,
            words,
            word_mask,
            region_mask,
            attention_temperature=self.attention_temperature,
            temperature=self.local_temperature(),
        )._asdict()

    def local_weights(self) -> dict[str, float]:
        """The weights of the two sides of ``L_T``."""
        return {"words": 1.0, "regions": 1.0}

    def attention_maps(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> Tensor:
        """Where each word of text k looks in image k, ``(pair, word, region)``."""
        return local_attention(
            regions,
            words,
            word_mask,
            region_mask,
            product="cosine",
            attention_temperature=self.attention_temperature,
        )
