"""Where the regions of an image are, in pixels.

Pixel k has its centre at coordinate k, so an image of n pixels runs from -0.5 to n - 0.5.
Region i of a grid has its centre at ``offset + stride * i``, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from numbers import Real

import torch
from torch import Tensor

from gloria.checks import check_finite, check_floating, check_positive, check_size
from gloria.errors import ContractError, OptionError, ShapeError
from gloria.types import ImageFeatures


def upsample_attention(
    maps: Tensor,
    size: tuple[int, int],
    *,
    stride: float | tuple[float, float] | None = None,
    offset: float | tuple[float, float] | None = None,
) -> Tensor:
    """Lay maps on a region grid over the image, by linear interpolation between region centres.

    Pixel y lies at ``(y - offset) / stride`` on the grid; beyond the outermost centres a map stays
    constant.

    Args:
        maps: ``(..., grid height, grid width)``; a feature map's regions, unflattened.
        size: ``(height, width)`` of the image in pixels.
        stride: pixels between the centres of neighbouring regions, one number or
            ``(vertical, horizontal)``. None = ``size / grid``.
        offset: pixel coordinate of the first region's centre, one number or
            ``(vertical, horizontal)``. None = ``(stride - 1) / 2``.

    By default the regions tile the image like the patches of a ViT, and the result is that of
    ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``. Many convolutional
    networks look elsewhere, up to half a region away: see :func:`measure_region_offset`.

    Returns:
        ``(..., height, width)``, in the unit of ``maps``.

    Raises:
        ShapeError: ``maps`` has no grid, or an empty one.
        DtypeError: ``maps`` is not floating-point.
        OptionError: ``size`` or ``stride`` is not positive, or ``offset`` not finite.

    Example:
        >>> upsample_attention(torch.tensor([[0.0, 1.0]]), (1, 4))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
        >>> upsample_attention(torch.tensor([[0.0, 1.0]]), (1, 4), offset=0.0)
        tensor([[0.0000, 0.5000, 1.0000, 1.0000]])
    """
    check_floating("maps", maps)
    if maps.dim() < 2 or 0 in maps.shape[-2:]:
        raise ShapeError(
            f"maps must be (..., grid height, grid width); got {tuple(maps.shape)}. "
            f"Unflatten regions first: maps.unflatten(-1, grid)."
        )
    check_size(size)
    strides, offsets = _pair("stride", stride), _pair("offset", offset)
    weights = [
        _linear_weights(maps, cells, pixels, step, start)
        for cells, pixels, step, start in zip(maps.shape[-2:], size, strides, offsets, strict=True)
    ]
    return weights[0] @ maps @ weights[1].mT


@torch.enable_grad()
def measure_region_offset(
    encoder: Callable[[Tensor], ImageFeatures], images: Tensor, *, probes: int = 8
) -> tuple[float, float]:
    """Where an encoder's regions look: the pixel coordinate of the first region's centre.

    A layer with kernel k, stride s and padding p takes its output i from around input
    ``s * i + (k - 1) / 2 - p``. Patches (``k = s``, ``p = 0``) are centred at
    ``s * i + (s - 1) / 2``: their offset is half a region. Odd kernels with symmetric padding
    (``p = (k - 1) / 2``), as in most ResNets, at ``s * i`` exactly: their offset is 0, and shown
    as tiles their maps sit ``(s - 1) / 2`` pixels too low and too far right. Where paths of
    different geometry meet, as with timm's ``avg_down`` shortcuts of even kernels, the centre
    depends on the weights: a trained ``resnet10t`` of stride 8 has its first region at 5.5, where
    tiles would be at 3.5, so its maps drawn as tiles peak 2 pixels too high and too far left.

    So it is measured: the centroid over pixels of the squared gradient of a central region along
    random directions, averaged over four regions. It costs a few backward passes.

    Args:
        encoder: returns :class:`~gloria.types.ImageFeatures`; in eval mode.
        images: ``(image, channel, height, width)``, normalised as the encoder wants them; noise
            serves too. Larger than what a region sees, or the image's border pulls the centroid;
            and of a height and width that the encoder's stride divides, since regions are taken to
            be ``size / grid`` apart, as where :func:`upsample_attention` is given no ``stride``.
        probes: random directions per region.

    Returns:
        ``(vertical, horizontal)`` in pixels, for ``offset`` of :func:`upsample_attention`; good to
        about half a pixel, and less where regions see the whole image, as in a trained ViT.

    Raises:
        ShapeError: ``images`` is not a batch, or the grid is smaller than 2 x 2.
        ContractError: the regions do not change with the images.
    """
    if images.dim() != 4 or not len(images):
        raise ShapeError(
            f"images must be (image, channel, height, width); got {tuple(images.shape)}."
        )
    images = images.detach().requires_grad_()
    features = encoder(images)
    if min(features.grid) < 2:
        raise ShapeError(f"images must be larger: they have a grid of {features.grid} regions.")
    maps = features.regions.unflatten(1, features.grid)
    generator = torch.Generator().manual_seed(0)  # its own: the global one stays as it is
    directions = torch.randn(probes, maps.shape[-1], generator=generator, device="cpu").to(maps)
    offsets = []
    for row, column in product(*((cells // 2 - 1, cells // 2) for cells in features.grid)):
        seen = torch.zeros(images.shape[2:], dtype=torch.float64, device="cpu")
        for direction in directions:
            answer = (maps[:, row, column] @ direction).sum()
            (gradient,) = torch.autograd.grad(answer, images, retain_graph=True)
            seen += gradient.cpu().double().square().sum((0, 1))
        if not seen.sum() > 0:
            raise ContractError(
                f"encoder must give regions that change with the images; region "
                f"({row}, {column}) of its grid {features.grid} does not."
            )
        seen /= seen.sum()
        offsets.append(
            [
                _mean_index(seen.sum(1)) - row * images.shape[2] / features.grid[0],
                _mean_index(seen.sum(0)) - column * images.shape[3] / features.grid[1],
            ]
        )
    offset = torch.tensor(offsets, dtype=torch.float64, device="cpu").mean(0)
    return float(offset[0]), float(offset[1])


def _mean_index(weights: Tensor) -> float:
    return float((weights * torch.arange(len(weights), device="cpu")).sum())


def _linear_weights(
    like: Tensor, cells: int, pixels: int, stride: float | None, offset: float | None
) -> Tensor:
    """How much each cell counts at each pixel of one axis, ``(pixel, cell)``."""
    stride = pixels / cells if stride is None else stride
    check_positive("stride", stride)
    offset = (stride - 1) / 2 if offset is None else offset
    check_finite("offset", offset)
    # in float64, which not every device has
    pixel = torch.arange(pixels, device="cpu", dtype=torch.float64)
    cell = torch.arange(cells, device="cpu", dtype=torch.float64)
    position = ((pixel - offset) / stride).clamp(0, cells - 1)
    return (1 - (position[:, None] - cell).abs()).clamp(min=0).to(like)


def _pair(
    name: str, value: float | tuple[float, float] | None
) -> tuple[float | None, float | None]:
    if value is None or isinstance(value, Real):
        return value, value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise OptionError(f"{name} must be a number or (vertical, horizontal); got {value!r}.")
    return value[0], value[1]
