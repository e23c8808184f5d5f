"""Dice and IoU against sets of pixels, torchmetrics and scikit-learn."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score
from torch import nn
from torchmetrics.segmentation import DiceScore

from gloria.data import MaskedImage
from gloria.errors import DataError, DeviceError, DtypeError, OptionError, ShapeError
from gloria.evaluation.segmentation import (
    Overlap,
    choose_mask_thresholds,
    count_overlap,
    evaluate_segmentation,
    measure_overlap,
    summarize_overlap,
)
from gloria.types import ImageInput


def draw(images=6, classes=2, height=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    predicted, masks = torch.rand(2, images, classes, height, width, generator=generator) < 0.4
    masks[:2] = False  # two empty masks, one of which is predicted empty
    predicted[0] = False
    predicted[3] = False  # a mask of which nothing is found
    return predicted, masks


def pixels(mask):
    return {tuple(place) for place in mask.nonzero().tolist()}


def test_equal_sets_of_pixels_and_scikit_learn():
    predicted, masks = draw()
    overlap = count_overlap(predicted, masks)
    assert overlap.dice.dtype == torch.float64
    for i in range(6):
        for c in range(2):
            found, true = pixels(predicted[i, c]), pixels(masks[i, c])
            counts = [int(each[i, c]) for each in overlap]
            assert counts == [len(found & true), len(found), len(true)]
            truth, guess = masks[i, c].flatten().numpy(), predicted[i, c].flatten().numpy()
            # told to, scikit-learn counts a pair of empty masks as 1, too
            expected = f1_score(truth, guess, zero_division=1)
            assert overlap.dice[i, c].item() == pytest.approx(expected, abs=1e-12)
            expected = jaccard_score(truth, guess, zero_division=1)
            assert overlap.iou[i, c].item() == pytest.approx(expected, abs=1e-12)


def test_equals_torchmetrics_where_it_is_defined():
    """Two empty masks are NaN or 0 there."""
    predicted, masks = draw()
    oracle = DiceScore(2, average="none", aggregation_level="samplewise", input_format="one-hot")
    oracle.update(predicted[1:].long(), masks[1:].long())
    ours = count_overlap(predicted, masks).dice[1:].mean(0)
    torch.testing.assert_close(oracle.compute().double(), ours, rtol=0, atol=1e-6)


def test_of_positives_and_of_all():
    """By hand: 4 images, masks of 4, 2, 0 and 0 pixels."""
    both, predicted, marked = torch.tensor(
        [[[3], [0], [0], [0]], [[4], [0], [0], [5]], [[4], [2], [0], [0]]]
    )
    figures = summarize_overlap(Overlap(both, predicted, marked))
    assert figures["dice_positives"] == pytest.approx((6 / 8 + 0) / 2)
    assert figures["iou_positives"] == pytest.approx((3 / 5 + 0) / 2)
    assert figures["dice_all"] == pytest.approx((6 / 8 + 0 + 1 + 0) / 4)
    assert figures["iou_all"] == pytest.approx((3 / 5 + 0 + 1 + 0) / 4)
    assert (figures["images"], figures["per_class"][0]["positives"]) == (4, 2)


def test_a_class_without_positives_has_no_figure_on_them():
    both, predicted, marked = torch.tensor([[[1, 0]], [[1, 0]], [[3, 0]]])
    figures = summarize_overlap(Overlap(both, predicted, marked))
    assert figures["dice_positives"] == 0.5  # of the first class alone
    assert figures["dice_all"] == 0.75
    assert "dice_positives" not in figures["per_class"][1]
    nothing = summarize_overlap(Overlap(*torch.zeros(3, 4, 1, dtype=torch.long)))
    assert nothing["dice_all"] == 1
    assert "dice_positives" not in nothing
    assert json.loads(json.dumps(figures)) == figures


class Sees(nn.Module):
    """A model whose probability is the pixel itself, in as many classes as there are channels."""

    def __init__(self, classes=1):
        super().__init__()
        self.classes = classes
        self.image_input = ImageInput(classes, None, (0.25,) * classes, (0.5,) * classes)
        self.device = torch.device("cpu")
        self.norm = nn.BatchNorm2d(classes)

    def forward(self, images):
        assert not self.training
        return torch.logit(images * 0.5 + 0.25)


# in float32, the model's probabilities are off by a rounding; no threshold is that near
LEVELS = torch.tensor([0.02, 0.22, 0.42, 0.62, 0.82])


def scenes(images=7, classes=1, seed=0):
    """Images of few brightnesses; class c's mask is what is brighter than 0.3 or 0.7."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, classes, 6, 8)
    bright = LEVELS[torch.randint(5, shape, generator=generator)]
    bright[1] = 0.02
    cuts = torch.tensor([0.3, 0.7])[:classes, None, None]
    return [MaskedImage(image, image > cuts) for image in bright]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 0), (7, 0), (16, 0), (3, 2)])
def test_counts_of_a_model_in_any_batches(batch_size, workers):
    items, thresholds, seen = scenes(classes=2), (0.1, 0.5, 0.9), []
    model = Sees(2).train()
    model.norm.eval()
    overlap = measure_overlap(
        model, items, thresholds, batch_size=batch_size, workers=workers, progress=seen.append
    )
    assert sum(seen) == 7
    assert model.training
    assert not model.norm.training
    assert overlap.both.shape == (7, 2, 3)
    for i, item in enumerate(items):
        for t, threshold in enumerate(thresholds):
            expected = count_overlap(item.image > threshold, item.mask)
            assert [each[i, :, t].tolist() for each in overlap] == [e.tolist() for e in expected]


def test_thresholds_are_chosen_for_each_class():
    thresholds = (0.1, 0.3, 0.5, 0.7, 0.9)
    overlap = measure_overlap(Sees(2), scenes(classes=2), thresholds)
    assert choose_mask_thresholds(overlap, thresholds) == (0.3, 0.7)
    figures = evaluate_segmentation(Sees(2), scenes(classes=2), (0.3, 0.7))
    assert figures["dice_all"] == figures["iou_positives"] == 1
    assert figures["thresholds"] == [0.3, 0.7]
    one_for_all = evaluate_segmentation(Sees(2), scenes(classes=2), np.float32(0.3))
    assert one_for_all["per_class"][0]["dice_all"] == 1
    assert one_for_all["per_class"][1]["dice_all"] < 1


def test_among_equal_thresholds_the_nearest_to_a_half():
    thresholds = (0.25, 0.35, 0.38, 0.9)  # the three first mark the same pixels
    overlap = measure_overlap(Sees(), scenes(), thresholds)
    assert choose_mask_thresholds(overlap, thresholds) == (0.38,)


def test_what_a_threshold_is_chosen_on():
    """Three empty masks that a low threshold spoils, one that only it finds."""
    both = torch.tensor([[4, 0], [0, 0], [0, 0], [0, 0]])[:, None]
    predicted = torch.tensor([[4, 0], [1, 0], [1, 0], [1, 0]])[:, None]
    marked = torch.tensor([4, 0, 0, 0])[:, None, None].expand(4, 1, 2)
    overlap = Overlap(both, predicted, marked)
    assert choose_mask_thresholds(overlap, (0.2, 0.8), "all") == (0.8,)
    assert choose_mask_thresholds(overlap, (0.2, 0.8), "positives") == (0.2,)


def test_a_mask_without_a_class_axis_and_a_data_set_of_masks():
    items = [MaskedImage(item.image, item.mask[0]) for item in scenes()]
    assert evaluate_segmentation(Sees(), items, 0.3)["dice_all"] == 1


def test_bad_input():
    predicted, masks = draw()
    with pytest.raises(DtypeError, match="predicted must be a boolean tensor"):
        count_overlap(predicted.float(), masks)
    with pytest.raises(DtypeError, match="masks must be boolean"):
        count_overlap(predicted, masks.long())
    with pytest.raises(DeviceError, match="masks must be on the device of predicted, cpu"):
        count_overlap(predicted, masks.to("meta"))
    with pytest.raises(ShapeError, match=r"masks must be \(6, 2, 5, 7\)"):
        count_overlap(predicted, masks[:, :1])
    with pytest.raises(ShapeError, match=r"predicted must be \(\.\.\., height, width\)"):
        count_overlap(predicted[0, 0, 0], masks)
    with pytest.raises(DataError, match="at least one image"):
        measure_overlap(Sees(), [])
    with pytest.raises(ShapeError, match="masks must be"):
        measure_overlap(Sees(2), [MaskedImage(i, m[:1]) for i, m in scenes(classes=2)])
    with pytest.raises(OptionError, match="a threshold must be a number from 0 to 1; got 2"):
        measure_overlap(Sees(), scenes(), [2])
    with pytest.raises(OptionError, match="thresholds must hold at least one"):
        measure_overlap(Sees(), scenes(), [])
    with pytest.raises(OptionError, match="one for each of 2 classes; got"):
        evaluate_segmentation(Sees(2), scenes(classes=2), [0.1, 0.2, 0.3])
    beyond = [MaskedImage(image + 0.6, mask) for image, mask in scenes()]  # no logit of those
    with pytest.raises(DataError, match="output is NaN, in items 0"):
        measure_overlap(Sees(), beyond)
    overlap = measure_overlap(Sees(), scenes(), (0.2, 0.8))
    with pytest.raises(ShapeError, match=r"with 3 thresholds; got \(7, 1, 2\)"):
        choose_mask_thresholds(overlap, (0.1, 0.2, 0.3))
    with pytest.raises(OptionError, match="on must be one of"):
        choose_mask_thresholds(overlap, (0.2, 0.8), "negatives")
    empty = Overlap(*torch.zeros(3, 4, 1, 2, dtype=torch.long))
    with pytest.raises(DataError, match="class 0 has no image with a mask"):
        choose_mask_thresholds(empty, (0.2, 0.8), "positives")
    with pytest.raises(ShapeError, match=r"counts must be \(image, class\)"):
        summarize_overlap(overlap)
    with pytest.raises(DataError, match="at least one image"):
        summarize_overlap(Overlap(*torch.zeros(3, 0, 1)))
    with pytest.raises(DataError, match="at least one image"):
        choose_mask_thresholds(Overlap(*torch.zeros(3, 0, 1, 2)), (0.2, 0.8))
