"""Segmentation: a U-Net whose contracting half is an image encoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gloria.checks import check_image_encoder, check_integer, require
from gloria.types import HasStages, ImageEncoder, ImageInput, Stage
from gloria.wrapping import unwrapped

LEVELS = 4
"""Maps that are made of an encoder whose own are all of one size."""


def segmentation_model(
    image_encoder: ImageEncoder, classes: int = 1, *, width: int = 256
) -> SegmentationModel:
    """A U-Net on an image encoder, pretrained or not; its decoder is drawn at random.

    Convolutional encoders and hierarchical transformers hand over the map of each stage, and with
    the decoder of segmentation_models_pytorch this is its ``Unet``. Plain transformers hand over
    four blocks, spread evenly, the earlier ones enlarged to 2, 4 and 8 times the last one's grid,
    as in UNETR; any other encoder its regions, four times so.

    Args:
        image_encoder: any; a copy of it becomes part of the model, weights, frozen parts and all.
        classes: masks of an image; they may overlap.
        width: of the decoder's first block; each next is half as wide, 16 at least.

    Returns:
        The model, in training mode.

    Raises:
        OptionError: ``classes`` or ``width`` is below 1.
        ContractError: ``image_encoder`` is no image encoder.
        MissingDependencyError: segmentation_models_pytorch is not installed.

    The paper's is a U-Net on a ResNet-50, with images of 512 pixels.

    Source: Ronneberger et al., U-Net, MICCAI 2015; Hatamizadeh et al., UNETR, WACV 2022.

    Example:
        >>> from gloria.encoders import TimmImageEncoder
        >>> encoder = TimmImageEncoder("resnet10t", in_chans=1)
        >>> segmentation_model(encoder)(torch.zeros(2, 1, 65, 97)).shape
        torch.Size([2, 1, 65, 97])
    """
    check_integer("classes", classes, 1)
    check_integer("width", width, 1)
    check_image_encoder("image_encoder", image_encoder)
    encoder: Any = copy.deepcopy(image_encoder)
    stages: Sequence[Stage] = encoder.stages if isinstance(unwrapped(encoder), HasStages) else ()
    if len({stage.stride for stage in stages}) > 1:
        dims = [stage.dim for stage in stages]
        pyramid: StagePyramid | BlockPyramid = StagePyramid(dims, stages[0].stride)
    else:
        pyramid = BlockPyramid(len(stages), encoder.region_dim, width)
    return SegmentationModel(encoder, pyramid, classes, width)


class SegmentationModel(nn.Module):
    """An image encoder, a pyramid of its feature maps, and the decoder of a U-Net over it.

    :func:`segmentation_model` makes it. Its ``classes`` is a number; the names are those of the
    data (``data.classes``), in their order.
    """

    def __init__(
        self,
        image_encoder: Any,
        pyramid: StagePyramid | BlockPyramid,
        classes: int,
        width: int,
    ) -> None:
        super().__init__()
        unet = require("segmentation_models_pytorch.decoders.unet.decoder", "tasks")
        start = require("segmentation_models_pytorch.base.initialization", "tasks")
        self.image_encoder = image_encoder
        self.image_input: ImageInput = image_encoder.image_input
        self.pyramid = pyramid
        self.classes = int(classes)
        widths = _widths(width, len(pyramid.dims))
        # the decoder asks for the image's channels first, and does not use them
        self.decoder = unet.UnetDecoder((0, *pyramid.dims), widths, n_blocks=len(widths))
        self.head = nn.Conv2d(widths[-1], self.classes, 3, padding=1)
        start.initialize_decoder(self.decoder)
        start.initialize_head(self.head)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.weight.device

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(image, class, height, width)`` of images, normalised as ``image_input`` says.

        They are of the images' height and width, whatever the encoder's strides.

        Args:
            images: ``(image, channel, height, width)``.
        """
        maps = self.pyramid(self.image_encoder, images)
        # each block enlarges to the size of the next map, the last one to that of the images
        logits: Tensor = self.head(self.decoder([images, *maps]))
        return logits


class StagePyramid(nn.Module):
    """The maps of every stage, each coarser than or as fine as the one before.

    An encoder that begins with a coarse map, as one of patches of 4 pixels does, is given empty
    maps before it, so that the decoder enlarges by 2 in each of its blocks.

    Args:
        dims: widths of the stages' maps.
        stride: of the first, in pixels.
    """

    def __init__(self, dims: Sequence[int], stride: float) -> None:
        super().__init__()
        # how often the first map is enlarged by 2 before it is half as large as the image
        self.empty = max(round(math.log2(stride)) - 1, 0)
        self.dims = (*[0] * self.empty, *dims)

    def forward(self, encoder: Any, images: Tensor) -> list[Tensor]:
        """The maps of ``images``, the finest first, each ``(image, dim, height, width)``."""
        height, width = images.shape[-2:]
        empty = [
            images.new_empty(images.shape[0], 0, height >> power, width >> power)
            for power in range(1, self.empty + 1)
        ]
        return [*empty, *encoder.feature_maps(images)]


class BlockPyramid(nn.Module):
    """Four blocks' maps of one size, enlarged 8, 4, 2 times and not at all.

    Args:
        blocks: how many the encoder has; fewer than four are used more than once; 0 = the encoder
            has regions only, which are used four times.
        dim: width of the maps.
        width: of the decoder's first block: enlarged maps are made as narrow as the block that
            they go into.
    """

    def __init__(self, blocks: int, dim: int, width: int) -> None:
        super().__init__()
        self.blocks = [math.ceil(blocks * k / LEVELS) - 1 for k in range(1, LEVELS + 1)]
        narrow = _widths(width, LEVELS)[LEVELS - 2 :: -1]  # the finest map meets the last block
        self.narrow = nn.ModuleList(nn.Conv2d(dim, each, 1) for each in narrow)
        self.dims = (*narrow, dim)

    def forward(self, encoder: Any, images: Tensor) -> list[Tensor]:
        """The maps of ``images``, the finest first, each ``(image, dim, height, width)``."""
        *early, last = self._maps(encoder, images)
        enlarged = [
            # narrowed first: the order does not matter to the result, and this one is cheaper
            interpolate(narrow(each), scale_factor=2.0**power, mode="bilinear")
            for each, narrow, power in zip(early, self.narrow, (3, 2, 1), strict=True)
        ]
        return [*enlarged, last]

    def _maps(self, encoder: Any, images: Tensor) -> list[Tensor]:
        if self.blocks[-1] < 0:
            features = encoder(images)
            regions = features.regions
            if features.region_mask is not None:
                # filled, not multiplied: 0 times NaN is NaN
                regions = regions.masked_fill(~features.region_mask[..., None], 0)
            return [regions.mT.unflatten(2, features.grid)] * LEVELS
        different = sorted(set(self.blocks))
        maps = dict(zip(different, encoder.feature_maps(images, different), strict=True))
        return [maps[block] for block in self.blocks]


def _widths(first: int, count: int) -> tuple[int, ...]:
    return tuple(max(first // 2**block, 16) for block in range(count))
