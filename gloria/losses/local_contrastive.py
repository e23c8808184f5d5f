"""The local contrastive loss: regions against words."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gloria.checks import check_choice
from gloria.functional import PRODUCTS, Product, local_attention, local_similarity
from gloria.losses.base import RegionWordLoss
from gloria.losses.temperature import Temperature
from gloria.matching import (
    BACKENDS,
    AggregatorFunction,
    AttentionVariant,
    MatchingOptions,
    WordAggregation,
)
from gloria.matching.problem import memory_budget_on


class LocalContrastiveLoss(RegionWordLoss):
    """Symmetric InfoNCE on the local similarity ``Z``.

    ``Z`` is defined in :func:`gloria.functional.local_similarity`;
    ``L = w_it · CE(Z / τ, rows) + w_ti · CE(Z / τ, columns)``, text k belonging to image k.

    Args:
        attention: ``"regions"`` (the printed formula) or ``"words_then_regions"`` (the published
            code).
        product: ``"dot"``, ``"scaled_dot"`` (by 1/√dim) or ``"cosine"`` (L2-normalised vectors).
        attention_temperature: divides the attention's scores; published: 1/4.
        aggregation: ``"logsumexp"``, ``"logmeanexp"``, ``"max"``, ``"mean"``, or a callable
            ``(values, mask, dim)``.
        match_temperature: τ of logsumexp and logmeanexp; published: 1/5. To learn it, a
            :class:`~gloria.losses.Temperature`, which keeps above a minimum, or a parameter of your
            own, which must be kept above 0.
        temperature: τ, divides Z.
        learnable, minimum_temperature: learn τ, starting from ``temperature``, above this bound.
        image_to_text_weight, text_to_image_weight: w_it and w_ti.
        backend, memory_budget: as in :func:`~gloria.functional.local_similarity`.

    Presets:
        - ``"paper"`` (the defaults): the printed formulas; ``"regions"`` on raw products, 1/4,
          1/5, τ = 1/10.
        - ``"official"``: what the published code computes and its weights were trained with;
          ``"words_then_regions"``, and τ = 1/50, since the code drops the outer 1/5 from Z and
          scales by 10. Its valid words are every word and the leading [CLS].
        - ``"stable"``: what learned best from scratch on the phantoms; ``"regions"`` on
          L2-normalised vectors, 1/12, ``"logmeanexp"``, τ = 1/50. Try it first when training
          small encoders from scratch, or when the raw products saturate the attention.

    At random initialisation the loss is about ``2 ln(batch)``.

    Source: GLoRIA (Huang et al., ICCV 2021), section 3, the local contrastive loss.

    Example:
        >>> import torch
        >>> loss = LocalContrastiveLoss.from_preset("official")
        >>> regions, words = torch.randn(4, 361, 64), torch.randn(4, 20, 64)
        >>> word_mask = torch.arange(20) < torch.tensor([[20], [12], [5], [1]])
        >>> loss(regions, words, word_mask).shape
        torch.Size([])
    """

    presets: ClassVar = {
        "paper": {},
        "official": {"attention": "words_then_regions", "temperature": 1 / 50},
        "stable": {
            "product": "cosine",
            "attention_temperature": 1 / 12,
            "aggregation": "logmeanexp",
            "temperature": 1 / 50,
        },
    }
    _shown = (
        *("attention", "product", "attention_temperature", "aggregation", "match_temperature"),
        *RegionWordLoss._shown,
        "backend",
    )

    def __init__(
        self,
        *,
        attention: AttentionVariant = "regions",
        product: Product = "dot",
        attention_temperature: float = 1 / 4,
        aggregation: WordAggregation | AggregatorFunction = "logsumexp",
        match_temperature: float | Tensor | Temperature = 1 / 5,
        temperature: float = 0.1,
        learnable: bool = False,
        minimum_temperature: float = 0.01,
        image_to_text_weight: float = 1.0,
        text_to_image_weight: float = 1.0,
        backend: str = "auto",
        memory_budget: int | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            learnable=learnable,
            minimum_temperature=minimum_temperature,
            image_to_text_weight=image_to_text_weight,
            text_to_image_weight=text_to_image_weight,
        )
        # checks its values, so that a wrong one is an error here and not at the first batch
        budget = memory_budget_on("cpu", memory_budget)
        match = _value(match_temperature)
        MatchingOptions(attention, attention_temperature, match, aggregation, budget)
        check_choice("product", product, PRODUCTS)
        check_choice("backend", backend, ("auto", *BACKENDS))
        self.attention: AttentionVariant = attention
        self.product: Product = product
        self.attention_temperature = attention_temperature
        self.aggregation: WordAggregation | AggregatorFunction = aggregation
        self.match_temperature = match_temperature
        self.backend = backend
        self.memory_budget = memory_budget

    def similarity(
        self,
        regions: Tensor,
        words: Tensor,
        word_mask: Tensor,
        region_mask: Tensor | None = None,
        *,
        aggregation: WordAggregation | AggregatorFunction | None = None,
    ) -> Tensor:
        """``Z`` of every image with every text, ``(image, text)``; their numbers may differ.

        ``aggregation`` replaces the one of training: the published code trains with
        ``"logsumexp"`` and scores with ``"max"``.
        """
        return local_similarity(
            regions,
            words,
            word_mask,
            region_mask,
            attention=self.attention,
            product=self.product,
            attention_temperature=self.attention_temperature,
            aggregation=self.aggregation if aggregation is None else aggregation,
            match_temperature=_value(self.match_temperature),
            backend=self.backend,
            memory_budget=self.memory_budget,
        )

    def attention_maps(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> Tensor:
        """Where each word of text k looks in image k, ``(pair, word, region)``."""
        return local_attention(
            regions,
            words,
            word_mask,
            region_mask,
            attention=self.attention,
            product=self.product,
            attention_temperature=self.attention_temperature,
        )


def _value(temperature: float | Tensor | Temperature) -> float | Tensor:
    return temperature() if isinstance(temperature, Temperature) else temperature
