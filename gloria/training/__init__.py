"""Training: a plain loop, its recipe and its checkpoints."""

from gloria.training.augmentation import Augmentation
from gloria.training.loop import TrainingRecipe, train

__all__ = ["Augmentation", "TrainingRecipe", "train"]
