"""Losses of segmentation: logits and masks in, a scalar out.

Half precision cannot add up the pixels of an image: it is widened to float32.

An empty mask is as well defined as any: ``smooth`` keeps Dice above 0, and marking nothing is what
lowers every loss there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from gloria.aggregators.reductions import widen
from gloria.checks import check_mask, check_positive, check_same_device, check_tensor, check_weight
from gloria.errors import ShapeError

_AXES = ("image", "class", "height", "width")


def focal_log_dice(
    logits: Tensor,
    masks: Tensor,
    *,
    focal_weight: float = 10.0,
    gamma: float = 2.0,
    smooth: float = 1.0,
) -> Tensor:
    """The paper's loss: ``focal_weight * focal - log(Dice)``, its mean over the classes.

    Args:
        logits: ``(image, class, height, width)``.
        masks: boolean, same shape, True = the class covers the pixel.
        focal_weight: of the focal part.
        gamma: as in :func:`focal_loss`.
        smooth: as in :func:`soft_dice`.

    Raises:
        ShapeError: the shapes do not fit, or there is no image, class or pixel.
        DtypeError: ``logits`` is not floating-point, or ``masks`` not boolean.
        OptionError: a constant is out of range.

    Source: Huang et al., GLoRIA, ICCV 2021, and its published code for the constants.

    Example:
        >>> mask = torch.tensor([[[[True, False]]]])
        >>> round(focal_log_dice(torch.tensor([[[[2.0, -2.0]]]]), mask).item(), 4)
        0.1008
    """
    check_weight("focal_weight", focal_weight)
    focal = focal_loss(logits, masks, gamma=gamma)
    return focal_weight * focal - soft_dice(logits, masks, smooth=smooth).log().mean()


def dice_bce(logits: Tensor, masks: Tensor, *, smooth: float = 1.0) -> Tensor:
    """``1 - Dice + BCE``: the mean over classes, and over all pixels.

    Args:
        logits, masks: as in :func:`focal_log_dice`.
        smooth: as in :func:`soft_dice`.

    Raises what :func:`focal_log_dice` raises.

    Example:
        >>> mask = torch.tensor([[[[True, False]]]])
        >>> round(dice_bce(torch.tensor([[[[2.0, -2.0]]]]), mask).item(), 4)
        0.2064
    """
    dice = soft_dice(logits, masks, smooth=smooth).mean()
    logits = widen(logits)
    return 1 - dice + binary_cross_entropy_with_logits(logits, masks.to(logits.dtype))


def focal_loss(logits: Tensor, masks: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that well classified pixels count less in, its mean over all pixels.

    ``mean((1 - p)**gamma * -log p)``, with p the probability of what a pixel is.

    Args:
        logits, masks: as in :func:`focal_log_dice`.
        gamma: 0 = plain cross-entropy. The two classes weigh the same, as in the published code.

    Raises what :func:`focal_log_dice` raises.

    Source: Lin et al., Focal loss for dense object detection, ICCV 2017, equation 4.

    Example:
        >>> mask = torch.tensor([[[[True, False]]]])
        >>> round(focal_loss(torch.zeros(1, 1, 1, 2), mask).item(), 4)  # log(2) / 4
        0.1733
    """
    _check(logits, masks)
    check_weight("gamma", gamma)
    logits = widen(logits)
    surprise = binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none")
    # above 0: a root has no slope there
    missed = (-torch.expm1(-surprise)).clamp_min(torch.finfo(logits.dtype).tiny)
    return (missed**gamma * surprise).mean()


def soft_dice(logits: Tensor, masks: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Dice of each class over all pixels of all images, of probabilities.

    ``(2 sum(p m) + smooth) / (sum(p) + sum(m) + smooth)``.

    Args:
        logits, masks: as in :func:`focal_log_dice`.
        smooth: pixels added above and below; above 0.

    Returns:
        ``(class,)``, above 0, at most 1.

    Raises what :func:`focal_log_dice` raises.

    Example:
        >>> mask = torch.tensor([[[[True, False]]]])
        >>> soft_dice(torch.zeros(1, 1, 1, 2), mask).item()  # (1 + 1) / (1 + 1 + 1)
        0.6666666865348816
    """
    _check(logits, masks)
    check_positive("smooth", smooth)
    probability = widen(logits).sigmoid()
    both = (probability * masks).sum((0, 2, 3))
    either = probability.sum((0, 2, 3)) + masks.sum((0, 2, 3))
    return (2 * both + smooth) / (either + smooth)


def _check(logits: Tensor, masks: Tensor) -> None:
    check_tensor("logits", logits, _AXES)
    if 0 in logits.shape:
        raise ShapeError(
            f"logits must hold at least one image, class and pixel; got {tuple(logits.shape)}."
        )
    check_mask("masks", masks, tuple(logits.shape), _AXES)
    check_same_device("masks", masks, "logits", logits)
