"""What a matching backend is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from gloria.checks import check_choice, check_positive

AttentionVariant = Literal["regions", "words_then_regions"]
WordAggregation = Literal["logsumexp", "logmeanexp", "max", "mean"]
AggregatorFunction = Callable[[Tensor, Tensor | None, int], Tensor]

ATTENTION_VARIANTS: tuple[str, ...] = get_args(AttentionVariant)
WORD_AGGREGATIONS: tuple[str, ...] = get_args(WordAggregation)

EPS = 1e-8
"""Lower bound of the product of norms in the cosine, as in the published code."""


@dataclass(frozen=True)
class MatchingOptions:
    """The hyper-parameters of local matching, as in :func:`gloria.functional.local_similarity`."""

    attention: AttentionVariant
    attention_temperature: float
    match_temperature: float
    aggregation: WordAggregation | AggregatorFunction

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ATTENTION_VARIANTS)
        check_positive("attention_temperature", self.attention_temperature)
        check_positive("match_temperature", self.match_temperature)
        if not callable(self.aggregation):
            check_choice("aggregation", self.aggregation, WORD_AGGREGATIONS)


class MatchingInputs(NamedTuple):
    """The tensors of local matching, checked, in one floating dtype of at least 32 bits."""

    regions: Tensor
    """(image, region, dim)"""
    words: Tensor
    """(text, word, dim); padded positions hold zeros"""
    word_mask: Tensor
    """(text, word) boolean"""
    region_mask: Tensor | None
    """(image, region) boolean, or None"""


class Problem(NamedTuple):
    """What a backend looks at to say whether it can run: sizes and options, never values."""

    images: int
    regions: int
    texts: int
    words: int
    dim: int
    dtype: torch.dtype
    device: str
    has_region_mask: bool
    options: MatchingOptions

    @classmethod
    def of(cls, inputs: MatchingInputs, options: MatchingOptions) -> Problem:
        """The problem that these tensors pose."""
        images, regions, dim = inputs.regions.shape
        texts, words, _ = inputs.words.shape
        return cls(
            images,
            regions,
            texts,
            words,
            dim,
            inputs.regions.dtype,
            inputs.regions.device.type,
            inputs.region_mask is not None,
            options,
        )
