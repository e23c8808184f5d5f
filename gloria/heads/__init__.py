"""Heads: what stands between an encoder and a loss."""

from gloria.heads.classification import ImageClassifier, multilabel_loss
from gloria.heads.projection import Projection

__all__ = ["ImageClassifier", "Projection", "multilabel_loss"]
