"""What a model can do, in figures. Functions of tensors, for any model and any data."""

from gloria.evaluation.grounding import attention_auroc, correct_side, left_share, pointing_hit
from gloria.evaluation.retrieval import (
    class_relevance,
    mean_average_precision,
    median_rank,
    precision_at_k,
    recall_at_k,
)
from gloria.evaluation.segmentation import (
    Overlap,
    choose_thresholds,
    count_overlap,
    evaluate_segmentation,
    measure_overlap,
    summarize_overlap,
)
from gloria.evaluation.zero_shot import accuracy, class_scores
from gloria.geometry import upsample_attention

__all__ = [
    "Overlap",
    "accuracy",
    "attention_auroc",
    "class_relevance",
    "choose_thresholds",
    "class_scores",
    "correct_side",
    "count_overlap",
    "evaluate_segmentation",
    "left_share",
    "mean_average_precision",
    "measure_overlap",
    "median_rank",
    "pointing_hit",
    "precision_at_k",
    "recall_at_k",
    "summarize_overlap",
    "upsample_attention",
]
