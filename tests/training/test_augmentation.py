"""Augmentation beyond what tests/training/test_randomness.py says of its randomness."""

import pytest
import torch

from gloria.data.images import center_crop
from gloria.errors import OptionError, ShapeError
from gloria.training.augmentation import PUBLISHED, Augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (1, 1), (5, 64)])
def test_shape_and_dtype_stay(size):
    images = torch.rand(3, 2, *size, generator=generator())
    varied = Augmentation()(images, generator())
    assert varied.shape == images.shape
    assert varied.dtype == images.dtype


@pytest.mark.parametrize("size", [(7, 11), (9, 9), (64, 40)])
def test_without_shift_an_image_of_any_size_stays_in_place(size):
    images = torch.rand(4, 1, *size, generator=generator())
    assert torch.equal(Augmentation(shift=0, gain=0, offset=0)(images, generator()), images)


def test_the_reach_of_a_shift_is_a_fraction_of_each_side():
    """A quarter of 8 rows is 2, of 20 columns 5."""
    places = torch.arange(8)[:, None] * 100 + torch.arange(20.0)
    images = places.expand(300, 1, 8, 20)
    moved = Augmentation(shift=0.25, gain=0, offset=0)(images, generator())
    steps = moved[:, 0, 4, 10] - places[4, 10]
    down, right = (steps / 100).round(), steps - (steps / 100).round() * 100
    assert {*down.tolist()} == set(range(-2, 3))
    assert {*right.tolist()} == set(range(-5, 6))


def test_the_border_is_repeated():
    """Every row holds the original's values in order, its ends once or more, and nothing new."""
    images = torch.arange(1.0, 11.0).expand(50, 1, 10, 10)
    for row in Augmentation(shift=0.3, gain=0, offset=0)(images, generator())[:, 0, 0]:
        first = int(row[5]) - 5
        assert row.tolist() == [min(max(first + column, 1), 10) for column in range(10)]


def test_gain_and_offset_are_one_of_each_per_image():
    images = torch.rand(2000, 1, 2, 2, generator=generator())
    varied = Augmentation(shift=0, gain=0.1, offset=0.03)(images, generator())
    x, y = images.flatten(1).double(), varied.flatten(1).double()
    gain = (y[:, 0] - y[:, 3]) / (x[:, 0] - x[:, 3])
    offset = y[:, 0] - gain * x[:, 0]
    torch.testing.assert_close(gain[:, None] * x + offset[:, None], y, rtol=0, atol=1e-3)
    steady = (x[:, 0] - x[:, 3]).abs() > 0.1  # where the division is exact enough
    assert float(gain[steady].mean()) == pytest.approx(1, abs=0.01)
    assert float(gain[steady].std()) == pytest.approx(0.1, rel=0.1)
    assert float(offset[steady].mean()) == pytest.approx(0, abs=0.005)
    assert float(offset[steady].std()) == pytest.approx(0.03, rel=0.1)


def test_neither_the_images_nor_the_global_generator_change():
    images = torch.rand(2, 1, 6, 6, generator=generator())
    before, state = images.clone(), torch.get_rng_state()
    Augmentation()(images, generator())
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_crop_is_any_part_of_the_image_and_the_center_its_middle():
    places = torch.arange(5)[:, None] * 100 + torch.arange(7.0)
    crop = Augmentation(shift=0, gain=0, offset=0, crop=4)
    images = places.expand(300, 1, 5, 7)
    parts = crop(images, generator())
    assert parts.shape == (300, 1, 4, 4)
    corners = set()
    for part in parts[:, 0]:
        top, left = divmod(int(part[0, 0]), 100)
        assert torch.equal(part, places[top : top + 4, left : left + 4])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(2) for left in range(4)}
    assert torch.equal(crop.center(images)[0, 0], places[0:4, 1:5])
    assert torch.equal(Augmentation().center(images), images)


def test_the_published_recipe_only_crops():
    images = torch.rand(2, 1, 256, 256, generator=generator())
    part = PUBLISHED(images, generator())[0, 0]
    windows = images[0, 0].unfold(0, 224, 1).unfold(1, 224, 1)
    assert any(torch.equal(part, window) for row in windows for window in row)


def test_an_image_smaller_than_the_crop():
    with pytest.raises(ShapeError, match=r"at least \(8, 8\), the crop's size; got \(9, 7\)"):
        Augmentation(crop=8)(torch.zeros(1, 1, 9, 7), generator())
    with pytest.raises(ShapeError, match=r"at least \(8, 8\), the crop's size; got \(9, 7\)"):
        center_crop(torch.zeros(9, 7), (8, 8))
    with pytest.raises(OptionError, match="crop must be at least 1; got 0"):
        Augmentation(crop=0)


@pytest.mark.parametrize("name", ["shift", "gain", "offset"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_how_much_to_vary_is_a_number_of_at_least_zero(name, value):
    with pytest.raises(OptionError, match=f"{name} must be a finite number of at least 0"):
        Augmentation(**{name: value})


@pytest.mark.parametrize("crop", [None, 12])
def test_masks_move_with_their_images(crop):
    """Masks that are the images' bright pixels still are, wherever these went."""
    images = (torch.rand(50, 1, 16, 20, generator=generator()) > 0.5).float()
    masks = torch.cat([images > 0.5, images < 0.5], 1)
    vary = Augmentation(shift=0.2, gain=0, offset=0, crop=crop)
    moved, followed = vary.with_masks(images, masks, generator())
    assert followed.dtype == torch.bool
    assert torch.equal(followed, torch.cat([moved > 0.5, moved < 0.5], 1))
    assert torch.equal(moved, vary(images, generator()))
    assert not torch.equal(moved, images if crop is None else vary.center(images))
    assert torch.equal(images, masks[:, :1].float())


def test_masks_are_not_brightened():
    images, masks = torch.rand(4, 3, 8, 8, generator=generator()), torch.ones(4, 1, 8, 8).bool()
    moved, followed = Augmentation(gain=5, offset=5).with_masks(images, masks, generator())
    assert torch.equal(moved, Augmentation(gain=5, offset=5)(images, generator()))
    assert followed.all()
    with pytest.raises(ShapeError, match=r"masks must be .* of images \(4, 3, 8, 8\); got"):
        Augmentation().with_masks(images, masks[:, :, :4], generator())
