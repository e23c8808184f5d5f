"""Heads: what stands between an encoder and a loss."""

from gloria.heads.classification import ImageClassifier, LinearHead, multilabel_loss
from gloria.heads.projection import Projection

__all__ = ["ImageClassifier", "LinearHead", "Projection", "multilabel_loss"]
