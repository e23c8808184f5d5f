"""Training: a plain loop, its recipe and its checkpoints; classifiers on what it trained."""

from gloria.training.augmentation import Augmentation
from gloria.training.classification import (
    FINE_TUNING,
    PROBE,
    ClassifierRecipe,
    evaluate_classifier,
    label_efficiency,
    train_classifier,
)
from gloria.training.loop import TrainingRecipe, train

__all__ = [
    "Augmentation",
    "ClassifierRecipe",
    "FINE_TUNING",
    "PROBE",
    "TrainingRecipe",
    "evaluate_classifier",
    "label_efficiency",
    "train",
    "train_classifier",
]
