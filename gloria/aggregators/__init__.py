"""Aggregators: reductions of one masked axis, and the merging of word pieces into words."""

from gloria.aggregators.pooling import AttentionPooling, GeM, Weldon, gem, masked_softmax, weldon
from gloria.aggregators.reductions import (
    First,
    LastNMean,
    LastNSum,
    LogMeanExp,
    LogSumExp,
    Max,
    Mean,
    Sum,
    last_n,
    masked_first,
    masked_logmeanexp,
    masked_logsumexp,
    masked_max,
    masked_mean,
    masked_sum,
)
from gloria.aggregators.words import merge_word_pieces

__all__ = [
    "AttentionPooling",
    "First",
    "GeM",
    "LastNMean",
    "LastNSum",
    "LogMeanExp",
    "LogSumExp",
    "Max",
    "Mean",
    "Sum",
    "Weldon",
    "gem",
    "last_n",
    "masked_first",
    "masked_logmeanexp",
    "masked_logsumexp",
    "masked_max",
    "masked_mean",
    "masked_softmax",
    "masked_sum",
    "merge_word_pieces",
    "weldon",
]
