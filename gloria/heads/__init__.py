"""Heads: what stands between an encoder and a loss."""

from gloria.heads.projection import Projection
from gloria.heads.segmentation import SegmentationModel, segmentation_model

__all__ = ["Projection", "SegmentationModel", "segmentation_model"]
