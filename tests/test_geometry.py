"""Region grids on the image: against interpolate, and against maps that are known everywhere."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from gloria.errors import ContractError, DtypeError, OptionError, ShapeError
from gloria.geometry import measure_region_offset, upsample_attention
from gloria.types import ImageFeatures


@pytest.mark.parametrize("grid", [(1, 1), (8, 8), (7, 5), (19, 3)])
@pytest.mark.parametrize("size", [(64, 64), (33, 50), (1, 7)])
def test_by_default_it_is_bilinear_interpolation_of_tiles(grid, size):
    maps = torch.rand(2, 3, *grid, dtype=torch.float64)
    if size[0] < grid[0] or size[1] < grid[1]:
        size = (size[0] * 20, size[1] * 20)
    expected = interpolate(maps, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample_attention(maps, size), expected)


@pytest.mark.parametrize(("stride", "offset"), [(8.0, 0.0), (8.0, 3.5), (7.25, -1.5), (4, 6)])
def test_a_ramp_stays_a_ramp_in_pixels(stride, offset):
    """A map that holds each region's own pixel coordinate holds each pixel's after upsampling."""
    centres = offset + stride * torch.arange(6, dtype=torch.float64)
    maps = centres[:, None].expand(6, 4)
    up = upsample_attention(maps, (60, 30), stride=stride, offset=offset)
    pixels = torch.arange(60, dtype=torch.float64).clamp(centres[0], centres[-1])
    torch.testing.assert_close(up, pixels[:, None].expand(60, 30))


def test_stride_and_offset_go_by_axis():
    maps = torch.zeros(4, 4)
    maps[2, 1] = 1
    up = upsample_attention(maps, (32, 32), stride=(8, 4), offset=(0, 3))
    assert up.flatten().argmax().item() == 16 * 32 + 7
    assert up[16, 7] == 1


def test_numbers_of_numpy_are_numbers():
    maps = torch.tensor([[0.0, 1.0]])
    expected = upsample_attention(maps, (1, 4), stride=2.0, offset=0.5)
    actual = upsample_attention(maps, (1, 4), stride=np.float32(2), offset=np.float32(0.5))
    assert torch.equal(actual, expected)


def test_leading_axes_and_gradients_pass_through():
    maps = torch.rand(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    assert upsample_attention(maps, (9, 8)).shape == (2, 5, 9, 8)
    assert upsample_attention(maps[0, 0], (9, 8)).shape == (9, 8)
    assert upsample_attention(maps[:0], (9, 8)).shape == (0, 5, 9, 8)
    torch.autograd.gradcheck(lambda m: upsample_attention(m, (5, 6), offset=0.0), maps)


def test_the_dtype_stays():
    assert upsample_attention(torch.rand(2, 2).half(), (5, 5)).dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"maps": torch.ones(3, 3, dtype=torch.long)}, DtypeError, "maps .* floating-point.*int64"),
        ({"maps": [[1.0]]}, DtypeError, "maps .*list"),
        ({"maps": torch.ones(9)}, ShapeError, r"maps must be \(..., grid height.*unflatten"),
        ({"maps": torch.ones(2, 0, 3)}, ShapeError, "maps"),
        ({"size": (0, 4)}, OptionError, "size must be .*above 0"),
        ({"size": 4}, OptionError, "size must be .*above 0; got 4"),
        ({"size": (4.0, 4)}, OptionError, "size"),
        ({"size": (4, 4, 4)}, OptionError, "size"),
        ({"stride": 0.0}, OptionError, "stride must be .* above 0"),
        ({"stride": (1, 2, 3)}, OptionError, r"stride must be a number or \(vertical"),
        ({"offset": float("nan")}, OptionError, "offset must be a finite number"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        upsample_attention(**{"maps": torch.ones(3, 3), "size": (6, 6), **arguments})


def patches(size):
    """An encoder of patches: a region sees its own tile and nothing else."""
    layer = torch.nn.Conv2d(1, 6, size, stride=size)
    return lambda images: features(layer(images))


def odd_kernels(strides):
    """An encoder of 3 x 3 convolutions with symmetric padding."""
    widths = [1, *[6] * len(strides)]
    layers = [
        torch.nn.Conv2d(widths[i], 6, 3, stride=stride, padding=1)
        for i, stride in enumerate(strides)
    ]
    return lambda images: features(torch.nn.Sequential(*layers)(images))


def features(maps):
    return ImageFeatures(maps.mean((2, 3)), maps.flatten(2).mT, tuple(maps.shape[2:]))


@pytest.fixture
def noise():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield torch.randn(4, 1, 48, 32)


@pytest.mark.parametrize("size", [4, 8])
def test_patches_are_centred_in_their_tiles(noise, size):
    offset = measure_region_offset(patches(size), noise)
    assert offset == pytest.approx(((size - 1) / 2,) * 2, abs=0.5)


@pytest.mark.parametrize("strides", [(2, 2), (2, 2, 2), (1, 2, 1)])
def test_odd_kernels_with_symmetric_padding_look_at_multiples_of_the_stride(noise, strides):
    assert measure_region_offset(odd_kernels(strides), noise) == pytest.approx((0, 0), abs=0.5)


def test_a_spot_lands_where_the_measured_offset_says(noise):
    """A network that shows where the image is bright, laid back on the image."""
    average = torch.nn.Conv2d(1, 1, 7, stride=8, padding=3, bias=False)
    torch.nn.init.ones_(average.weight)
    image = torch.zeros(1, 1, 48, 32)
    image[0, 0, 24, 16] = 1

    def encoder(images):
        return features(average(images))

    with torch.no_grad():
        maps = encoder(image).regions.squeeze(-1).unflatten(1, (6, 4))[0]
    offset = measure_region_offset(encoder, noise)
    peak = upsample_attention(maps, (48, 32), offset=offset).flatten().argmax().item()
    assert divmod(peak, 32) == (24, 16)
    usual = upsample_attention(maps, (48, 32)).flatten().argmax().item()
    assert divmod(usual, 32) != (24, 16)


def test_measuring_leaves_gradients_and_random_numbers_alone(noise):
    encoder = torch.nn.Conv2d(1, 6, 3, stride=2, padding=1)
    state = torch.get_rng_state()
    measure_region_offset(lambda images: features(encoder(images)), noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.weight.grad is None
    assert not noise.requires_grad


def test_timm_networks_look_where_their_layers_say():
    timm = pytest.importorskip("gloria.encoders.timm_image")
    small = {"in_chans": 1, "channels": (8, 8, 16, 16), "output_stride": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        images = torch.randn(4, 1, 64, 64)
        even_shortcuts = timm.TimmImageEncoder("resnet10t", **small).eval()
        odd = timm.TimmImageEncoder("resnet10t", **small, avg_down=False).eval()
    assert measure_region_offset(odd, images) == pytest.approx((0, 0), abs=0.8)
    # 2 from the average over 2 x 2 at stride 4, 4 from that at stride 8
    assert measure_region_offset(even_shortcuts, images) == pytest.approx((6, 6), abs=0.8)


def test_measuring_where_no_gradients_are_recorded(noise):
    encoder = odd_kernels((2, 2))
    with torch.no_grad():
        found = measure_region_offset(encoder, noise)
    assert found == pytest.approx((0, 0), abs=0.5)


def test_regions_that_do_not_see_the_image_are_an_error(noise):
    def encoder(images):
        return features(0 * torch.nn.functional.avg_pool2d(images, 8))

    with pytest.raises(ContractError, match=r"change with the images; region \(2, 1\)"):
        measure_region_offset(encoder, noise)


def test_an_image_too_small_to_measure_on_is_an_error(noise):
    with pytest.raises(ShapeError, match=r"images must be larger: .*grid of \(1, 1\)"):
        measure_region_offset(patches(32), noise[..., :32, :])
    with pytest.raises(ShapeError, match=r"images must be \(image, channel, height, width\)"):
        measure_region_offset(patches(4), noise[0])
