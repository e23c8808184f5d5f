"""Heads: what stands between an encoder and a loss."""

from gloria.heads.classification import ImageClassifier, LinearHead, multilabel_loss
from gloria.heads.projection import Projection
from gloria.heads.segmentation import SegmentationModel, segmentation_model

__all__ = [
    "ImageClassifier",
    "LinearHead",
    "Projection",
    "SegmentationModel",
    "multilabel_loss",
    "segmentation_model",
]
