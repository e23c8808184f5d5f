"""Training: a plain loop, its recipe and its checkpoints; and what is trained on an encoder."""

from gloria.training.augmentation import Augmentation
from gloria.training.loop import TrainingRecipe, train
from gloria.training.segmentation import (
    SegmentationRecipe,
    SegmentationTraining,
    segmentation_efficiency,
    train_segmenter,
)

__all__ = [
    "Augmentation",
    "SegmentationRecipe",
    "SegmentationTraining",
    "TrainingRecipe",
    "segmentation_efficiency",
    "train",
    "train_segmenter",
]
