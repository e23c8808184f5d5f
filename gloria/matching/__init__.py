"""Local region-word matching: one definition, interchangeable backends."""

from gloria.matching.dispatch import BACKENDS, choose_backend, explain_backends
from gloria.matching.problem import (
    ATTENTION_VARIANTS,
    WORD_AGGREGATIONS,
    AggregatorFunction,
    AttentionVariant,
    MatchingInputs,
    MatchingOptions,
    Problem,
    WordAggregation,
)

__all__ = [
    "ATTENTION_VARIANTS",
    "BACKENDS",
    "WORD_AGGREGATIONS",
    "AggregatorFunction",
    "AttentionVariant",
    "MatchingInputs",
    "MatchingOptions",
    "Problem",
    "WordAggregation",
    "choose_backend",
    "explain_backends",
]
