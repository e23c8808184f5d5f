"""Losses of segmentation against plain loops, torchvision and segmentation_models_pytorch."""

import math

import pytest
import torch

from gloria.errors import DeviceError, DtypeError, OptionError, ShapeError
from gloria.losses.segmentation import dice_bce, focal_log_dice, focal_loss, soft_dice


def draw(images=2, classes=3, height=4, width=5, *, dtype=torch.float64, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (images, classes, height, width)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    masks = torch.rand(shape, generator=generator) < 0.4
    if classes > 1:
        masks[:, 1] = False  # a class that no image has
    return logits.to(dtype), masks


def naive(logits, masks, gamma=2.0, smooth=1.0):
    """Dice of each class, and the means of focal loss and cross-entropy, by loops over floats."""
    focal, entropy, dice = [], [], []
    for c in range(logits.shape[1]):
        both = either = 0.0
        for x, m in zip(
            logits[:, c].flatten().tolist(), masks[:, c].flatten().tolist(), strict=True
        ):
            p = 1 / (1 + math.exp(-x))
            right = p if m else 1 - p
            focal.append((1 - right) ** gamma * -math.log(right))
            entropy.append(-math.log(right))
            both += p * m
            either += p + m
        dice.append((2 * both + smooth) / (either + smooth))
    return dice, math.fsum(focal) / len(focal), math.fsum(entropy) / len(entropy)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_plain_loops(classes, dtype, assert_values):
    logits, masks = draw(classes=classes, dtype=dtype)
    dice, focal, entropy = naive(logits, masks, gamma=1.5, smooth=0.5)
    assert_values(soft_dice(logits, masks, smooth=0.5), dice)
    assert_values(focal_loss(logits, masks, gamma=1.5), focal)
    mean_log = sum(map(math.log, dice)) / classes
    options = {"focal_weight": 3.0, "gamma": 1.5, "smooth": 0.5}
    assert_values(focal_log_dice(logits, masks, **options), 3 * focal - mean_log)
    assert_values(dice_bce(logits, masks, smooth=0.5), 1 - sum(dice) / classes + entropy)


def test_the_defaults_are_the_published_constants(assert_values):
    logits, masks = draw(classes=1)
    (dice,), focal, _ = naive(logits, masks, gamma=2.0, smooth=1.0)
    assert_values(focal_log_dice(logits, masks), 10 * focal - math.log(dice))


def test_equal_torchvision_and_smp(assert_values):
    from segmentation_models_pytorch.losses import DiceLoss
    from torchvision.ops import sigmoid_focal_loss

    logits, masks = draw(classes=1)
    expected = sigmoid_focal_loss(logits, masks.double(), alpha=-1, gamma=2, reduction="mean")
    assert_values(focal_loss(logits, masks), expected)
    # what they call smooth differs between their versions
    theirs = DiceLoss("binary", smooth=0, log_loss=True)(logits, masks.double())
    assert_values(-soft_dice(logits, masks, smooth=1e-13).log().mean(), theirs)


@pytest.mark.parametrize("loss", [focal_log_dice, dice_bce, focal_loss])
def test_gradients(loss):
    logits, masks = draw(images=1, classes=2, height=2, width=2)
    assert torch.autograd.gradcheck(lambda x: loss(x, masks), logits.requires_grad_())


@pytest.mark.parametrize("loss", [focal_log_dice, dice_bce])
def test_an_empty_mask_is_learned_by_marking_nothing(loss):
    """The Dice loss of smp is 0 there, whatever is marked."""
    empty = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    logits = torch.zeros(2, 1, 3, 3, requires_grad=True)
    value = loss(logits, empty)
    value.backward()
    assert value.isfinite()
    assert (logits.grad > 0).all()
    assert loss(torch.full_like(empty, -40, dtype=torch.float32), empty) < 1e-6
    assert loss(torch.full_like(empty, 40, dtype=torch.float32), empty) > 1


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_stay_finite(gamma):
    logits = torch.tensor([[[[-1e4, -100.0, 0.0, 100.0, 1e4]]]], requires_grad=True)
    for masks in (logits > 0, logits < 0):
        value = focal_log_dice(logits, masks, gamma=gamma)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_half_precision_counts_all_pixels():
    """60,000 pixels do not fit into float16."""
    logits = torch.full((1, 1, 300, 300), 2.0, dtype=torch.float16)
    masks = torch.ones(1, 1, 300, 300, dtype=torch.bool)
    assert soft_dice(logits, masks).item() == pytest.approx(2 * 0.880797 / 1.880797, rel=1e-4)
    assert dice_bce(logits, masks).dtype == torch.float32


@pytest.mark.parametrize("loss", [focal_log_dice, dice_bce, focal_loss, soft_dice])
def test_bad_input(loss):
    logits, masks = draw()
    with pytest.raises(DtypeError, match=r"masks must be boolean.*mask\.bool\(\)"):
        loss(logits, masks.long())
    with pytest.raises(ShapeError, match=r"masks must be \(2, 3, 4, 5\) = \(image, class, height"):
        loss(logits, masks[:, :1])
    with pytest.raises(DeviceError, match="masks must be on the device of logits, cpu; got meta"):
        loss(logits, masks.to("meta"))
    with pytest.raises(ShapeError, match=r"logits must be \(image, class, height, width\)"):
        loss(logits[0], masks[0])
    with pytest.raises(DtypeError, match="logits must be a floating-point tensor"):
        loss(masks, masks)
    for nothing in (logits[:0], logits[:, :0], logits[..., :0]):
        with pytest.raises(ShapeError, match="logits must hold at least one image, class and pix"):
            loss(nothing, nothing > 0)


def test_bad_constants():
    for options in ({"focal_weight": -1}, {"gamma": -1}, {"smooth": 0}):
        (name,) = options
        with pytest.raises(OptionError, match=f"{name} must be a (finite )?number"):
            focal_log_dice(*draw(), **options)
