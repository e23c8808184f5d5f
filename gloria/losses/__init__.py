"""Drop-in contrastive losses on matching image-text pairs: tensors in, a scalar out.

The losses of segmentation, functions of logits and masks, are in :mod:`gloria.losses.segmentation`.
"""

from gloria.losses.base import (
    LOSS_INPUTS,
    GlobalLocalLoss,
    PairLoss,
    SimilarityLoss,
    inputs_of,
)
from gloria.losses.colbert import ColBERTLoss
from gloria.losses.filip import FILIPLoss
from gloria.losses.global_contrastive import GlobalContrastiveLoss
from gloria.losses.global_local_contrastive import GlobalLocalContrastiveLoss
from gloria.losses.local_contrastive import LocalContrastiveLoss
from gloria.losses.mgca import MGCALoss
from gloria.losses.sigmoid_contrastive import SigmoidContrastiveLoss
from gloria.losses.soft_target_contrastive import SoftTargetContrastiveLoss
from gloria.losses.sparc import SPARCLoss
from gloria.losses.temperature import Temperature

__all__ = [
    "LOSS_INPUTS",
    "ColBERTLoss",
    "FILIPLoss",
    "GlobalContrastiveLoss",
    "GlobalLocalContrastiveLoss",
    "GlobalLocalLoss",
    "LocalContrastiveLoss",
    "MGCALoss",
    "PairLoss",
    "SPARCLoss",
    "SigmoidContrastiveLoss",
    "SimilarityLoss",
    "SoftTargetContrastiveLoss",
    "Temperature",
    "inputs_of",
]
