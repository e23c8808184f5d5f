"""From an image file to what an encoder wants to be fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gloria.checks import check_integer, check_tensor, require
from gloria.errors import DataError, ShapeError
from gloria.types import ImageInput


def load_image(path: str | Path, channels: int = 1, *, bits: int | None = None) -> Tensor:
    """Read an 8- or 16-bit image file.

    A 16-bit file may hold pixels of fewer bits, as radiographs of 12 bits do, and does not say so.
    Scaled as 16 bits they would be nearly black; scaled by their own maximum, one film would be
    brighter than the next. So you say it.

    Args:
        path: anything Pillow reads.
        channels: 1 (grayscale) or 3.
        bits: how many bits the pixels of a 16-bit grayscale file have: they are divided by
            ``2**bits - 1``. None = 16, and a file that does not look like it is an error. Files of
            8 bits are divided by 255, whatever this says.

    Returns:
        ``(channel, height, width)``, float32 in [0, 1].

    Raises:
        DataError: the file is missing, damaged or of a pixel type that has no range; a pixel has
            more bits than ``bits``; or ``bits`` is None and no pixel needs more than 12.
    """
    if bits is not None:
        check_integer("bits", bits, 1, 16)
    image_module = require("PIL.Image", "tasks")
    path = Path(path)
    try:
        with image_module.open(path) as image:
            if image.mode.startswith("I"):
                # convert("L") would clip 16 bits to 8
                deep = np.asarray(image).astype("float32")[None]
                _check_bits(path, int(deep.min()), int(deep.max()), bits)
                scaled = torch.from_numpy(deep / ((1 << (bits or 16)) - 1))
                return scaled.expand(channels, -1, -1).contiguous()
            if image.mode == "F":
                raise DataError(f"{path} has float pixels without a range; save it as 16 bits.")
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except FileNotFoundError as cause:
        raise DataError(f"image {path} does not exist.") from cause
    except DataError:
        raise
    except Exception as cause:
        # a damaged file makes Pillow raise OSError, SyntaxError, struct.error and more
        raise DataError(f"image {path} can't be read: {cause}.") from cause
    tensor = torch.from_numpy(pixels).float() / 255
    return tensor[None] if channels == 1 else tensor.permute(2, 0, 1).contiguous()


def fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize to fit into ``size`` with the aspect kept, and pad with black to fill it.

    Args:
        image: ``(channel, height, width)``.
        size: ``(height, width)`` in pixels.

    Raises:
        ShapeError: ``image`` has not three axes.
        OptionError: a side of ``size`` is below 1.
    """
    check_tensor("image", image, ("channel", "height", "width"))
    check_size(size)
    height, width = image.shape[-2:]
    scale = min(size[0] / height, size[1] / width)
    inner = (max(round(height * scale), 1), max(round(width * scale), 1))
    if inner != (height, width):
        image = interpolate(image[None], inner, mode="bilinear", antialias=True)[0].clamp(0, 1)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return pad(image, (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top))


def normalize(images: Tensor, image_input: ImageInput) -> Tensor:
    """Subtract the mean and divide by the standard deviation that an encoder was made for.

    Args:
        images: ``(..., channel, height, width)`` in [0, 1].
        image_input: the encoder's ``image_input``.

    Raises:
        ShapeError: the images have another number of channels than the encoder wants.
    """
    if images.dim() < 3 or images.shape[-3] != image_input.channels:
        # one channel would spread over three without a word
        raise ShapeError(
            f"images must be (..., channel, height, width) with {image_input.channels} channels, "
            f"as the image encoder wants; got {tuple(images.shape)}."
        )
    mean = torch.tensor(image_input.mean, device=images.device)[:, None, None]
    std = torch.tensor(image_input.std, device=images.device)[:, None, None]
    return (images - mean) / std


def check_size(size: tuple[int, int]) -> None:
    """Require a height and a width of at least one pixel."""
    check_integer("height in size", size[0], 1)
    check_integer("width in size", size[1], 1)


def _check_bits(path: Path, lowest: int, highest: int, bits: int | None) -> None:
    if lowest < 0 or highest >= 1 << (bits or 16):
        raise DataError(
            f"{path} has pixels outside {bits or 16} bits: they are from {lowest} to {highest}."
        )
    if bits is None and highest < 1 << 12:
        raise DataError(
            f"{path} has 16 bits a pixel and uses {highest.bit_length()}: it would be nearly "
            f"black. Say how many bits its pixels have: bits=12, or bits=16 if it is so dark."
        )
