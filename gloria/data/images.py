"""From an image file to what an encoder wants to be fed."""

from __future__ import annotations

from collections.abc import Sized
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gloria.checks import (
    check_finite,
    check_integer,
    check_positive,
    check_size,
    check_tensor,
    require,
)
from gloria.data.dicom import Window, check_window, is_dicom, read_dicom
from gloria.errors import DataError, DtypeError, GloriaError, OptionError, ShapeError, reason
from gloria.types import ImageInput


def load_image(
    path: str | Path, channels: int = 1, *, bits: int | None = None, window: Window | None = None
) -> Tensor:
    """Read an image file of 8 or 16 bits, or a DICOM file.

    A 16-bit file may hold pixels of fewer bits, as radiographs of 12 bits do, and does not say so:
    you say it. A DICOM file says it itself, and how it should be shown: see
    :func:`~gloria.data.dicom.read_dicom`.

    A picture comes out as viewers show it: turned and mirrored as its EXIF orientation says, which
    side is left depends on it; what is transparent over black; a TIFF file's white where it says
    that 0 is white.

    Args:
        path: DICOM, or anything Pillow reads.
        channels: 1 (grayscale) or 3.
        bits: how many bits the pixels of a 16-bit grayscale file have: they are divided by
            ``2**bits - 1``. None = 16, and a file that does not look like it is an error. Files of
            8 bits are divided by 255, whatever this says.
        window: centre and width of the pixel values to spread over [0, 1], instead of the file's
            whole range (or a DICOM file's own window); everything beyond is black or white.

    Returns:
        ``(channel, height, width)``, float32 in [0, 1].

    Raises:
        DataError: the file is missing or damaged, has several frames, float pixels, which have no
            range, or colours of 16 bits, of which Pillow would read 8; ``window`` makes the
            film nearly of one gray; or a DICOM file has no pixels, or needs a ``window``, as
            :func:`~gloria.data.dicom.read_dicom` says.
        OptionError: a pixel has more bits than ``bits``; ``bits`` is None and no pixel needs more
            than 12; ``window`` has no centre or no width; or ``channels`` is neither 1 nor 3.
    """
    image = read_pixels(path, channels, bits=bits, window=window)
    return image.expand(channels, -1, -1).contiguous()


def read_pixels(
    path: str | Path,
    channels: int = 1,
    *,
    bits: int | None = None,
    window: Window | None = None,
    upright: bool = True,
) -> Tensor:
    """As :func:`load_image`, but a grayscale file has one channel, whatever ``channels`` says.

    Three equal ones would take three times as long to fit. ``upright`` is for
    :func:`~gloria.data.dicom.read_dicom`.
    """
    if channels not in (1, 3):
        raise OptionError(f"channels must be 1 or 3; got {channels}.")
    if bits is not None:
        check_integer("bits", bits, 1, 16)
    if window is not None:
        if not isinstance(window, Sized) or len(window) != 2:
            raise OptionError(f"window must be (center, width); got {window!r}.")
        check_finite("centre in window", window[0])
        check_positive("width in window", window[1])
    path = Path(path)
    try:
        if is_dicom(path):
            pixels = read_dicom(path, window, upright=upright)[None]
        else:
            pixels = _read_picture(path, channels, bits, window)
    except FileNotFoundError as cause:
        raise DataError(f"image {path} does not exist.") from cause
    except GloriaError:
        raise
    except Exception as cause:
        # a damaged file makes Pillow and pydicom raise anything
        raise DataError(f"image {path} can't be read: {reason(cause)}.") from cause
    return torch.from_numpy(np.ascontiguousarray(pixels))


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
    inner, top, left = place((height, width), size)
    if inner != (height, width):
        image = _resize(image, inner).clamp(0, 1)
    return pad(image, (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if size[1] == 1 < size[0]:  # torch's antialiasing goes wrong where one pixel is left of a row
        return _resize(image.mT, size[::-1]).mT
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def center_crop(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of images ``(..., height, width)`` that are at least as large as ``size``."""
    check_crop(images, size)
    height, width = images.shape[-2:]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def check_crop(images: Tensor, size: tuple[int, int]) -> None:
    """Require images ``(..., height, width)`` that are at least as large as ``size``."""
    given = tuple(images.shape[-2:])
    if given[0] < size[0] or given[1] < size[1]:
        raise ShapeError(f"images must be at least {size}, the crop's size; got {given}.")


def place(shape: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], int, int]:
    """Where :func:`fit` puts an image: its size there, and the padding above and to the left."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    inner = (max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1))
    return inner, (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2


def normalize(images: Tensor, image_input: ImageInput) -> Tensor:
    """Subtract the mean and divide by the standard deviation that an encoder was made for.

    Args:
        images: ``(..., channel, height, width)`` in [0, 1].
        image_input: the encoder's ``image_input``.

    Raises:
        DtypeError: the images are integers.
        ShapeError: the images have another number of channels than the encoder wants.
    """
    if not images.is_floating_point():
        raise DtypeError(f"images must be floating-point, in [0, 1]; got {images.dtype}.")
    if images.dim() < 3 or images.shape[-3] != image_input.channels:
        # one channel would spread over three without a word
        raise ShapeError(
            f"images must be (..., channel, height, width) with {image_input.channels} channels, "
            f"as the image encoder wants; got {tuple(images.shape)}."
        )
    mean = torch.tensor(image_input.mean, device=images.device)[:, None, None]
    std = torch.tensor(image_input.std, device=images.device)[:, None, None]
    return (images - mean) / std


OVERSHOOT = 0.5
"""How far out of [0, 1] pixel values may be; resizing by cubic curves adds less at edges."""


def check_image(name: str, image: Any) -> None:
    """Require a floating-point ``(channel, height, width)`` in [0, 1].

    8-bit levels, or values that are normalised already, an encoder would take for another film.
    """
    check_tensor(name, image, ("channel", "height", "width"))
    if not image.numel():
        raise DataError(f"{name} must have pixels; got {tuple(image.shape)}.")
    low, high = (float(value) for value in image.aminmax())
    if low != low:
        raise DataError(f"{name} holds NaN.")
    if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
        raise DataError(
            f"{name} must have values in [0, 1]; got {low:.3g} to {high:.3g}. Divide what goes to "
            f"255, and leave normalising out: it is done after this."
        )


_GRAY = ("1", "L", "LA", "La")


def _read_picture(
    path: Path, channels: int, bits: int | None, window: Window | None
) -> NDArray[np.float32]:
    """``(channel, height, width)`` of what Pillow reads; one channel where the file is gray."""
    # not opened by its path: Pillow would map a plain TIFF file into memory, and not turn it
    with path.open("rb") as file:
        picture = _open(path, file)
        require("PIL.ImageOps", "tasks").exif_transpose(picture, in_place=True)
        deep = picture.mode.startswith("I")  # convert("L") would clip 16 bits to 8
        if deep:
            pixels = np.asarray(picture).astype(np.float32)[None]
        else:
            gray = channels == 1 or picture.mode in _GRAY
            levels = np.asarray(_over_black(picture).convert("L" if gray else "RGB"))
            pixels = np.atleast_3d(levels).transpose(2, 0, 1).astype(np.float32, order="C")
    if deep and window is None:
        _check_bits(path, int(pixels.min()), int(pixels.max()), bits)
    if window is None:
        pixels /= np.float32((1 << (bits or 16)) - 1 if deep else 255)
    else:
        center, width = window
        values = pixels
        pixels = ((values - np.float32(center - width / 2)) / np.float32(width)).clip(0, 1)
        check_window(path, values, pixels, window)
    # of 8 bits, Pillow does it
    zero_is_white = deep and picture.format == "TIFF" and picture.tag_v2.get(262) == 0
    return 1 - pixels if zero_is_white else pixels


def _open(path: Path, file: BinaryIO) -> Any:
    """A picture of one frame, whose pixels have a range and which Pillow reads whole."""
    pillow = require("PIL.Image", "tasks")
    try:
        picture = pillow.open(file)
    except pillow.UnidentifiedImageError as cause:  # its text would be about the stream
        raise DataError(f"image {path} can't be read: Pillow knows no such image.") from cause
    if picture.format == "EPS":  # whatever the file is called
        raise DataError(f"image {path} is PostScript, a program; it is not run. Save it as PNG.")
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a JPEG file with its preview
        raise DataError(f"image {path} has {frames} frames; one was expected.")
    if picture.mode == "F":
        raise DataError(f"{path} has float pixels without a range; save it as 16 bits.")
    if not picture.mode.startswith("I") and ";16" in str(picture.tile):
        raise DataError(f"{path} has colours of 16 bits; Pillow would read 8. Save it in gray.")
    return picture


def _over_black(picture: Any) -> Any:
    """What is seen of a picture with transparent pixels on a black screen."""
    if not picture.has_transparency_data:
        return picture
    pillow = require("PIL.Image", "tasks")
    black = pillow.new("RGBA", picture.size, "black")
    return pillow.alpha_composite(black, picture.convert("RGBA"))


def _check_bits(path: Path, lowest: int, highest: int, bits: int | None) -> None:
    """A file that does not fit is whole: the option is wrong, and with it every such file."""
    if lowest < 0 or highest >= 1 << (bits or 16):
        raise OptionError(
            f"{path} has pixels outside {bits or 16} bits: they are from {lowest} to {highest}."
        )
    if bits is None and highest < 1 << 12:
        raise OptionError(
            f"{path} has 16 bits a pixel and uses {highest.bit_length()}: it would be nearly "
            f"black. Say how many bits its pixels have, most radiographs 12: bits=12, or --bits 12."
        )
