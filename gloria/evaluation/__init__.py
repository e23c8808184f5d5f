"""What a model can do, in figures. Functions of tensors, for any model and any data."""

from gloria.evaluation.classification import (
    ClassMetric,
    Thresholds,
    accuracy,
    choose_thresholds,
    multiclass_metrics,
    multilabel_auroc,
    multilabel_metrics,
)
from gloria.evaluation.grounding import attention_auroc, correct_side, left_share, pointing_hit
from gloria.evaluation.retrieval import (
    class_relevance,
    mean_average_precision,
    median_rank,
    precision_at_k,
    recall_at_k,
)
from gloria.evaluation.zero_shot import (
    class_scores,
    ensemble_embeddings,
    pair_probability,
    zero_shot_probabilities,
    zero_shot_scores,
)
from gloria.geometry import upsample_attention

__all__ = [
    "ClassMetric",
    "Thresholds",
    "accuracy",
    "attention_auroc",
    "choose_thresholds",
    "class_relevance",
    "class_scores",
    "correct_side",
    "ensemble_embeddings",
    "left_share",
    "mean_average_precision",
    "median_rank",
    "multiclass_metrics",
    "multilabel_auroc",
    "multilabel_metrics",
    "pair_probability",
    "pointing_hit",
    "precision_at_k",
    "recall_at_k",
    "upsample_attention",
    "zero_shot_probabilities",
    "zero_shot_scores",
]
