"""What a model can do, in figures. Functions of tensors, for any model and any data."""

from gloria.evaluation.bootstrap import Interval, bootstrap, bootstrap_mean
from gloria.evaluation.classification import (
    ClassMetric,
    Thresholds,
    accuracy,
    choose_thresholds,
    multiclass_metrics,
    multilabel_auroc,
    multilabel_metrics,
)
from gloria.evaluation.grounding import (
    attention_auroc,
    contrast_to_noise,
    correct_side,
    left_share,
    pointing_hit,
)
from gloria.evaluation.retrieval import (
    class_relevance,
    evaluate_queries,
    evaluate_retrieval,
    mean_average_precision,
    median_rank,
    precision_at_k,
    recall_at_k,
)
from gloria.evaluation.segmentation import (
    Overlap,
    choose_mask_thresholds,
    count_overlap,
    evaluate_segmentation,
    measure_overlap,
    summarize_overlap,
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
    "Interval",
    "Overlap",
    "Thresholds",
    "accuracy",
    "attention_auroc",
    "bootstrap",
    "bootstrap_mean",
    "choose_mask_thresholds",
    "choose_thresholds",
    "class_relevance",
    "class_scores",
    "contrast_to_noise",
    "correct_side",
    "count_overlap",
    "ensemble_embeddings",
    "evaluate_queries",
    "evaluate_retrieval",
    "evaluate_segmentation",
    "left_share",
    "mean_average_precision",
    "measure_overlap",
    "median_rank",
    "multiclass_metrics",
    "multilabel_auroc",
    "multilabel_metrics",
    "pair_probability",
    "pointing_hit",
    "precision_at_k",
    "recall_at_k",
    "summarize_overlap",
    "upsample_attention",
    "zero_shot_probabilities",
    "zero_shot_scores",
]
