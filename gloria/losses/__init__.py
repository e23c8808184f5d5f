"""Drop-in contrastive losses on matching image-text pairs: tensors in, a scalar out."""

from gloria.losses.base import LOSS_INPUTS, PairLoss, SimilarityLoss, inputs_of
from gloria.losses.global_contrastive import GlobalContrastiveLoss
from gloria.losses.global_local_contrastive import GlobalLocalContrastiveLoss
from gloria.losses.local_contrastive import LocalContrastiveLoss

__all__ = [
    "LOSS_INPUTS",
    "GlobalContrastiveLoss",
    "GlobalLocalContrastiveLoss",
    "LocalContrastiveLoss",
    "PairLoss",
    "SimilarityLoss",
    "inputs_of",
]
