"""Region grids on the image: against interpolate, and against maps that are known everywhere."""

import pytest
import torch
from torch.nn.functional import interpolate

from gloria.errors import DtypeError, OptionError, ShapeError
from gloria.geometry import upsample_attention


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
        ({"size": (4.0, 4)}, OptionError, "size"),
        ({"size": (4, 4, 4)}, OptionError, "size"),
        ({"stride": 0.0}, OptionError, "stride must be .* above 0"),
        ({"stride": (1, 2, 3)}, OptionError, r"stride must be a number or \(vertical"),
        ({"offset": float("nan")}, OptionError, "offset must be finite"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        upsample_attention(**{"maps": torch.ones(3, 3), "size": (6, 6), **arguments})
