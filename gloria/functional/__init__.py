"""The numerics as stateless functions: similarities, attention and losses.

Axes are always ``image, text, region, word, dim``, in this order; a pair matrix is
``(image, text)``; a **temperature divides**. Half-precision inputs are widened: everything here is
computed and returned in float32 (float64 for float64 inputs), under autocast too; vectors may be up
to 1e15 long, and from some 1e19 on their cosines are NaN. NaN or infinity in an image or text makes
that row or column non-finite and no other; in a padded position it changes nothing. (Under autocast
call ``backward`` outside the block, as torch advises, or it runs in half precision.)

Unless a function names another source, the defaults are the printed formulas of Huang et al.,
*GLoRIA: A Multimodal Global-Local Representation Learning Framework for Label-efficient Medical
Image Recognition*, ICCV 2021. The constants of the published code, and the ones that learned best
from scratch on the phantoms, are presets of the losses in :mod:`gloria.losses`.
"""

from __future__ import annotations

from gloria.functional.inputs import PRODUCTS, Product
from gloria.functional.pair_losses import (
    ContrastiveTerms,
    SigmoidTerms,
    contrastive_cross_entropy,
    global_contrastive_loss,
    global_contrastive_terms,
    global_local_contrastive_loss,
    local_contrastive_loss,
    sigmoid_cross_entropy,
    soft_target_cross_entropy,
)
from gloria.functional.similarity import (
    LocalMatching,
    MaxSimilarities,
    global_similarity,
    local_attention,
    local_similarity,
    max_similarities,
    max_similarity,
)
from gloria.functional.within_pairs import (
    TokenTerms,
    mgca_cross_entropy,
    sparc_cross_entropy,
    sparse_attention,
)

__all__ = [
    "PRODUCTS",
    "ContrastiveTerms",
    "LocalMatching",
    "MaxSimilarities",
    "Product",
    "SigmoidTerms",
    "TokenTerms",
    "contrastive_cross_entropy",
    "global_contrastive_loss",
    "global_contrastive_terms",
    "global_local_contrastive_loss",
    "global_similarity",
    "local_attention",
    "local_contrastive_loss",
    "local_similarity",
    "max_similarities",
    "max_similarity",
    "mgca_cross_entropy",
    "sigmoid_cross_entropy",
    "soft_target_cross_entropy",
    "sparc_cross_entropy",
    "sparse_attention",
]
