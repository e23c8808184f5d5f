"""What segmentation reads: an image and its masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gloria.checks import check_choice
from gloria.data.loading import HasImage, stack_images
from gloria.data.pairs import PhantomItems
from gloria.data.phantom import FINDINGS, PhantomItem
from gloria.errors import DataError, DtypeError, OptionError, ShapeError


class Masked(HasImage, Protocol):
    """An image and its masks, whatever else an item brings."""

    @property
    def mask(self) -> Tensor:
        """``(class, height, width)`` or ``(height, width)``, boolean, True = finding."""


class MaskedImage(NamedTuple):
    """An image and its masks.

    Attributes:
        image: ``(channel, height, width)``, float32 in [0, 1].
        mask: ``(class, height, width)``, boolean, True = finding.
    """

    image: Tensor
    mask: Tensor


class PhantomMasks(PhantomItems):
    """Phantoms with the masks of some findings, for segmentation.

    Args:
        items: a :class:`~gloria.data.phantom.PhantomDataset`, best drawn beforehand, or a list.
        classes: which of :data:`~gloria.data.phantom.FINDINGS`, in the masks' order.

    Raises:
        OptionError: there is no class, or no such finding.

    Example:
        >>> from gloria.data.phantom import PhantomDataset
        >>> masks = PhantomMasks(PhantomDataset("train", count=8), ["pneumothorax"])
        >>> masks[3].image.shape, masks[3].mask.shape, masks.labels[3]
        (torch.Size([1, 64, 64]), torch.Size([1, 64, 64]), array([1], dtype=int8))
    """

    def __init__(self, items: Sequence[PhantomItem], classes: Sequence[str]) -> None:
        if not len(classes):
            raise OptionError("classes must name at least one finding; there is none.")
        for name in classes:
            check_choice("a class", name, FINDINGS)
        super().__init__(items, classes)

    def __getitem__(self, index: int) -> MaskedImage:
        image, item = self._read(index)
        return MaskedImage(image, torch.from_numpy(item.masks[self._findings]))


def stack_masked(items: Sequence[Masked]) -> tuple[Tensor, Tensor]:
    """Stack images and their masks.

    Returns:
        ``(image, channel, height, width)`` and boolean ``(image, class, height, width)``.

    Raises:
        DataError: as :func:`~gloria.data.loading.stack_images`; masks do not have one shape, or an
            image has none.
        ShapeError: a mask is not of its image's size.
        DtypeError: a mask is not boolean.
    """
    images = stack_images(items)
    masks = [item.mask[None] if item.mask.dim() == 2 else item.mask for item in items]
    for mask in masks:
        if mask.dtype != torch.bool:
            raise DtypeError(f"a mask must be boolean, True = finding; got {mask.dtype}.")
        if mask.dim() != 3 or mask.shape[1:] != images.shape[2:]:
            raise ShapeError(
                f"a mask must be (class, height, width) or (height, width) of its image "
                f"{tuple(images.shape[1:])}; got {tuple(mask.shape)}."
            )
        if not len(mask):
            raise DataError("an image has no mask: the data set is none for segmentation.")
    shapes = {tuple(mask.shape) for mask in masks}
    if len(shapes) > 1:
        raise DataError(f"masks of one batch must have one shape; got {sorted(shapes)}.")
    return images, torch.stack(masks)
