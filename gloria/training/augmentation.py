"""Augmentation that keeps a report true: crop, shift, gain and offset; never a flip.

Reports say left and right. (torchvision's random transforms draw from the global generator, so a
resumed run would not see the same images.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gloria.checks import check_integer, check_weight
from gloria.data.images import center_crop, check_crop
from gloria.errors import ShapeError


@dataclass(frozen=True)
class Augmentation:
    """What to vary, in units of the image.

    Attributes:
        shift: largest shift in either direction, as a fraction of the image's side; the border is
            repeated.
        gain: standard deviation of the factor's difference from 1.
        offset: standard deviation of what is added, pixel values being in [0, 1].
        crop: side of a square in pixels that is cut out at a random place, before all else; None =
            the whole image.

    Raises:
        OptionError: one of them is negative or not finite, or ``crop`` below 1.
    """

    shift: float = 0.08
    gain: float = 0.1
    offset: float = 0.03
    crop: int | None = None

    def __post_init__(self) -> None:
        for name in ("shift", "gain", "offset"):
            check_weight(name, getattr(self, name))
        if self.crop is not None:
            check_integer("crop", self.crop, 1)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Vary each image ``(image, channel, height, width)``, in [0, 1], on its own.

        The only source of randomness is the generator, one of the CPU. Images come out in their
        size, or the crop's; smaller ones than that are a :class:`~gloria.errors.ShapeError`.
        """
        return self.with_masks(images, images[:, :0].bool(), generator)[0]

    def with_masks(
        self, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Vary each image as :meth:`__call__` does, and move its masks along.

        ``masks`` are boolean, ``(image, class, height, width)``; their border is repeated, too.
        Masks of another size than the images are a :class:`~gloria.errors.ShapeError`.
        """
        if masks.shape[0] != images.shape[0] or masks.shape[2:] != images.shape[2:]:
            raise ShapeError(
                f"masks must be (image, class, height, width) of images {tuple(images.shape)}; "
                f"got {tuple(masks.shape)}."
            )
        # moved as more channels of one picture
        moved = self._crop(torch.cat([images, masks.to(images.dtype)], 1), generator)
        moved = self._shift(moved, generator)
        images, masks = moved[:, : images.shape[1]], moved[:, images.shape[1] :] > 0.5
        size = 2, len(images), 1, 1, 1
        vary = torch.randn(size, generator=generator, device="cpu").to(images.device)
        return images * (1 + self.gain * vary[0]) + self.offset * vary[1], masks

    def center(self, images: Tensor) -> Tensor:
        """The middle of the images, of the crop's size: what is validated and tested on."""
        return images if self.crop is None else center_crop(images, (self.crop, self.crop))

    def _shift(self, images: Tensor, generator: torch.Generator) -> Tensor:
        height, width = images.shape[2:]
        reach_y, reach_x = round(self.shift * height), round(self.shift * width)
        padded = pad(images, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
        return _cut_out(padded, height, width, generator)

    def _crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.crop is None:
            return images
        check_crop(images, (self.crop, self.crop))
        return _cut_out(images, self.crop, self.crop, generator)


def _cut_out(images: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A part of each image, at a random place of its own."""
    count, _, whole_height, whole_width = images.shape
    top, left = (
        torch.randint(most + 1, (count,), generator=generator, device="cpu").tolist()
        for most in (whole_height - height, whole_width - width)
    )
    return torch.stack(
        [
            image[:, y : y + height, x : x + width]
            for image, y, x in zip(images, top, left, strict=True)
        ]
    )


PUBLISHED = Augmentation(shift=0, gain=0, offset=0, crop=224)
"""The published code's recipe, on images fitted into 256 x 256: a random crop, and no flip."""
