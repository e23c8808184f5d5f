"""Training: a plain loop, its recipe and its checkpoints; and what is trained on an encoder."""

from gloria.training.augmentation import Augmentation
from gloria.training.classification import (
    FINE_TUNING,
    PROBE,
    ClassifierRecipe,
    ClassifierTraining,
    evaluate_classifier,
    label_efficiency,
    train_classifier,
)
from gloria.training.loop import TrainingRecipe, train
from gloria.training.segmentation import (
    SegmentationRecipe,
    SegmentationTraining,
    segmentation_efficiency,
    train_segmenter,
)

__all__ = [
    "Augmentation",
    "ClassifierRecipe",
    "ClassifierTraining",
    "FINE_TUNING",
    "PROBE",
    "SegmentationRecipe",
    "SegmentationTraining",
    "TrainingRecipe",
    "evaluate_classifier",
    "label_efficiency",
    "segmentation_efficiency",
    "train",
    "train_classifier",
    "train_segmenter",
]
