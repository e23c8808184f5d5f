"""Attention against masks: loops over pixels and scikit-learn as references."""

import math
from statistics import fmean, pvariance

import pytest
import torch
from sklearn.metrics import roc_auc_score

from gloria.errors import DataError, DtypeError, OptionError, ShapeError
from gloria.evaluation.grounding import (
    attention_auroc,
    contrast_to_noise,
    correct_side,
    left_share,
    pointing_hit,
)
from gloria.geometry import upsample_attention

EVERY = (pointing_hit, attention_auroc, contrast_to_noise, correct_side)


def draw(*shape, levels=None):
    generator = torch.Generator().manual_seed(sum(shape))
    maps = torch.rand(*shape, generator=generator)
    if levels:
        maps = (maps * levels).round() / levels
    mask = torch.rand(*shape, generator=generator) < 0.2
    mask[..., 0, 0], mask[..., 0, 1] = True, False
    return maps, mask


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 3, 100])
def test_a_hit_is_the_share_of_highest_pixels_near_the_mask(tolerance):
    maps, mask = draw(12, 9, 7, levels=3)
    for map_, finding, hit in zip(maps, mask, pointing_hit(maps, mask, tolerance), strict=True):
        peaks = [tuple(p) for p in (map_ == map_.max()).nonzero().tolist()]
        pixels = [tuple(p) for p in finding.nonzero().tolist()]
        near = [min(math.dist(peak, pixel) for pixel in pixels) <= tolerance for peak in peaks]
        assert hit.item() == pytest.approx(sum(near) / len(near))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_the_peak_of_a_map_without_a_range(value):
    """The logarithm of a masked region's weight is -inf."""
    maps = torch.tensor([[value, 0.0, 1.0]])
    peak = maps == maps.max()
    assert (pointing_hit(maps, peak).item(), pointing_hit(maps, ~peak).item()) == (1, 0)
    flat = torch.full((2, 2), value)
    assert pointing_hit(flat, torch.tensor([[True, False], [False, False]])).item() == 0.25


def test_a_flat_map_hits_as_often_as_chance():
    _, mask = draw(40, 40)
    expected = mask.double().mean().item()
    assert pointing_hit(torch.full((40, 40), 0.3), mask).item() == pytest.approx(expected)


def test_a_peak_between_pixels_is_all_the_pixels_around_it():
    """A region's centre is between four pixels; rounding must not pick one of them."""
    grid = torch.rand(20, 1, 1, generator=torch.Generator().manual_seed(1)).repeat(1, 8, 8)
    grid[:, 3, 4] = 2
    maps = upsample_attention(grid, (64, 64))
    mask = torch.zeros(20, 64, 64, dtype=torch.bool)
    mask[:, :28] = True  # half of the pixels around (27.5, 35.5)
    assert pointing_hit(maps, mask).tolist() == [0.5] * 20


@pytest.mark.parametrize("levels", [None, 5, 1])
def test_auroc_equals_scikit_learn(levels):
    maps, mask = draw(6, 11, 13, levels=levels)
    expected = [
        roc_auc_score(finding.flatten(), map_.flatten())
        for map_, finding in zip(maps, mask, strict=True)
    ]
    torch.testing.assert_close(
        attention_auroc(maps, mask), torch.tensor(expected, dtype=torch.float64)
    )


def test_auroc_depends_on_the_order_only():
    maps, mask = draw(5, 9, 9)
    expected = attention_auroc(maps, mask)
    assert torch.equal(attention_auroc(maps.double() * 7 - 3, mask), expected)
    torch.testing.assert_close(attention_auroc(-maps, mask), 1 - expected)


def test_auroc_is_one_half_for_a_flat_map():
    _, mask = draw(9, 9)
    assert attention_auroc(torch.zeros(9, 9), mask).item() == 0.5


def test_contrast_to_noise_equals_a_loop_over_pixels():
    maps, mask = draw(6, 11, 13)
    for map_, finding, ratio in zip(maps, mask, contrast_to_noise(maps, mask), strict=True):
        inside, outside = map_[finding].tolist(), map_[~finding].tolist()
        noise = math.sqrt(pvariance(inside) + pvariance(outside))
        assert ratio.item() == pytest.approx((fmean(inside) - fmean(outside)) / noise)


def test_contrast_is_of_no_unit_and_has_a_sign():
    maps, mask = draw(5, 9, 9)
    expected = contrast_to_noise(maps, mask)
    torch.testing.assert_close(contrast_to_noise(maps.double() * 7 - 3, mask), expected)
    torch.testing.assert_close(contrast_to_noise(-maps, mask), -expected)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_contrast_is_infinite_without_noise_and_of_no_scale(scale):
    mask = torch.tensor([[True, True, False, False]])
    assert contrast_to_noise(scale * mask.float(), mask).item() == math.inf
    assert contrast_to_noise(-scale * mask.float(), mask).item() == -math.inf
    maps = torch.tensor([[1.0, 2.0, 0.0, 1.0]])
    assert contrast_to_noise(scale * maps, mask).item() == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-30])
def test_a_flat_map_has_no_contrast(value):
    _, mask = draw(9, 9)
    assert contrast_to_noise(torch.full((9, 9), value), mask).item() == 0


@pytest.mark.parametrize("width", [6, 7])
def test_a_map_and_its_mirror_are_on_opposite_sides(width):
    maps, _ = draw(8, 5, width)
    mask = torch.zeros(8, 5, width, dtype=torch.bool)
    mask[:, 2, :2] = True
    on_left = maps[..., : width // 2].sum((1, 2)) > maps[..., -(width // 2) :].sum((1, 2))
    assert on_left.any()
    assert not on_left.all()
    assert torch.equal(correct_side(maps, mask), on_left.double())
    assert torch.equal(correct_side(maps.flip(-1), mask), 1 - on_left.double())
    assert torch.equal(correct_side(maps, mask.flip(-1)), 1 - on_left.double())
    torch.testing.assert_close(left_share(maps) + left_share(maps.flip(-1)), torch.ones(8).double())


def test_a_balanced_map_is_on_no_side():
    mask = torch.tensor([[True, False, False]])
    assert correct_side(torch.full((1, 3), 0.25), mask).item() == 0.5


@pytest.mark.parametrize("function", EVERY)
def test_any_leading_axes(function):
    maps, mask = draw(2, 3, 8, 8)
    mask[..., :2] = True
    result = function(maps, mask)
    assert result.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert function(maps[i, j], mask[i, j]).item() == pytest.approx(result[i, j].item())
    assert function(maps[:, :0], mask[:, :0]).shape == (2, 0)


@pytest.mark.parametrize("function", EVERY)
def test_bad_input_is_named(function):
    maps, mask = draw(3, 6, 6)
    with pytest.raises(DtypeError, match="mask must be a boolean"):
        function(maps, mask.float())
    with pytest.raises(DtypeError, match="maps must be a floating-point"):
        function(mask, mask)
    with pytest.raises(ShapeError, match=r"mask must be of the shape .*upsample_attention"):
        function(maps, mask[0])
    with pytest.raises(ShapeError, match=r"maps must be \(\.\.\., height, width\); got \(6,\)"):
        function(maps[0, 0], mask[0, 0])
    with pytest.raises(DataError, match="mask must hold a finding"):
        function(maps, mask & torch.tensor([True, False, True])[:, None, None])
    with pytest.raises(DataError, match="maps holds NaN"):
        function(maps.where(maps < 0.9, float("nan")), mask)


def test_what_has_no_answer_is_an_error():
    maps, mask = draw(3, 6, 6)
    with pytest.raises(OptionError, match=r"tolerance must be .* at least 0; got -1"):
        pointing_hit(maps, mask, -1)
    with pytest.raises(DataError, match="mask must leave pixels outside"):
        attention_auroc(maps, mask | True)
    with pytest.raises(DataError, match="mask must leave pixels outside"):
        contrast_to_noise(maps, mask | True)
    with pytest.raises(DataError, match="maps must be finite"):
        contrast_to_noise(maps.where(maps < 0.9, math.inf), mask)
    with pytest.raises(DataError, match="mask must have a side"):
        correct_side(maps, mask | mask.flip(-1))
    for wrong in (maps - 0.5, maps * 0, maps / 0):
        with pytest.raises(DataError, match="maps must be weights"):
            left_share(wrong)
