"""What a model can do, in figures. Functions of tensors, for any model and any data."""

from gloria.evaluation.grounding import attention_auroc, correct_side, left_share, pointing_hit
from gloria.evaluation.retrieval import (
    class_relevance,
    evaluate_queries,
    evaluate_retrieval,
    mean_average_precision,
    median_rank,
    precision_at_k,
    recall_at_k,
)
from gloria.evaluation.zero_shot import accuracy, class_scores
from gloria.geometry import upsample_attention

__all__ = [
    "accuracy",
    "attention_auroc",
    "class_relevance",
    "class_scores",
    "correct_side",
    "evaluate_queries",
    "evaluate_retrieval",
    "left_share",
    "mean_average_precision",
    "median_rank",
    "pointing_hit",
    "precision_at_k",
    "recall_at_k",
    "upsample_attention",
]
