"""From an image file to what an encoder wants to be fed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gloria.checks import require
from gloria.errors import DataError
from gloria.types import ImageInput


def load_image(path: str | Path, channels: int = 1) -> Tensor:
    """Read an 8- or 16-bit image file.

    Args:
        path: anything Pillow reads.
        channels: 1 (grayscale) or 3.

    Returns:
        ``(channel, height, width)``, float32 in [0, 1].

    Raises:
        DataError: the file is missing, damaged or of a pixel type that has no range.
    """
    image_module = require("PIL.Image", "tasks")
    path = Path(path)
    try:
        with image_module.open(path) as image:
            if image.mode.startswith("I"):
                # convert("L") would clip 16 bits to 8
                pixels = np.asarray(image).astype("float32")[None] / 65535
                if pixels.min() < 0 or pixels.max() > 1:
                    raise DataError(f"{path} has pixels outside 16 bits.")
                return torch.from_numpy(pixels).expand(channels, -1, -1).contiguous()
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
    """
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
    """
    mean = torch.tensor(image_input.mean, device=images.device)[:, None, None]
    std = torch.tensor(image_input.std, device=images.device)[:, None, None]
    return (images - mean) / std
