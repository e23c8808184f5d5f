"""Images and texts as the published code prepares them when it scores.

For :func:`gloria.load_published`: a model sees best what it was trained on. Everything else of this
library fits a whole image into the size asked for, and drops no word.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gloria.checks import check_integer, check_tensor
from gloria.data.images import center_crop, load_image
from gloria.errors import EmptyTextError, ShapeError


def published_image(image: str | Path | Tensor, *, size: int = 256, crop: int = 224) -> Tensor:
    """The 299 pixels square that the published code makes of a film, before it normalises.

    The longer side is shrunk to ``size``, each new pixel the mean of the area it covers, and
    rounded to 8 bits; the shorter side is filled up with black; the middle ``crop`` pixels are cut
    out and enlarged to 299, corner on corner.

    Args:
        image: a file for :func:`~gloria.data.load_image`, or what that returned, ``(1, height,
            width)`` in [0, 1]; so with its ``bits`` and ``window``, which the published code lacks.
        size, crop: the checkpoint's ``data.image.imsize`` and ``transforms.random_crop.crop_size``.

    Returns:
        ``(3, 299, 299)``, float32 in [0, 1], for :func:`~gloria.evaluation.features.encode_images`;
        or for a model, after :func:`~gloria.data.normalize`.

    Raises:
        DataError: the file can't be read.
        ShapeError: ``image`` is no tensor of one channel, or ``crop`` is above ``size``.
        OptionError: ``size`` or ``crop`` is below 1.

    Equal to the published code, whose means are OpenCV's ``INTER_AREA``, but for ties in rounding:
    one level of 255.
    """
    check_integer("size", size, 1)
    check_integer("crop", crop, 1)
    film = image if isinstance(image, Tensor) else load_image(image)
    check_tensor("image", film, ("channel", "height", "width"))
    if len(film) != 1:
        raise ShapeError(f"image must be (1, height, width); got {tuple(film.shape)}.")
    longest = max(film.shape[1:])
    height, width = (
        # fractions are cut off
        size if side == longest else max(int(side * (size / longest)), 1)
        for side in film.shape[1:]
    )
    levels = (255 * film[0]).round().double()
    rows, columns = _areas(film.shape[1], height), _areas(film.shape[2], width)
    shrunk = (rows @ levels @ columns.T).round().float() / 255
    top, left = (size - height) // 2, (size - width) // 2
    square = pad(shrunk, (left, size - width - left, top, size - height - top))
    middle = center_crop(square[None, None], (crop, crop))
    large = interpolate(middle, (299, 299), mode="bilinear", align_corners=True)[0]
    return large.expand(3, -1, -1).contiguous()


def published_text(text: str) -> str:
    """The words that the published code makes of a text: lower case, no punctuation.

    Sentences end at every full stop, and a number before it goes with it, as in a list. Those of
    one word are dropped, and so is what is not ASCII. The model cuts the end off longer texts than
    it takes, as there.

    Raises:
        EmptyTextError: nothing is left, where the published code would go on.

    Example:
        >>> published_text("1. Small left-sided effusion. Unchanged. Nodule of 1.5 cm.")
        'small left sided effusion nodule of 5 cm'
    """
    kept = []
    for sentence in re.split(r"[0-9]*\.", text):
        words = re.findall(r"\w+", sentence.lower())
        if len(words) > 1:
            kept += [word.encode("ascii", "ignore").decode("ascii") for word in words]
    prepared = " ".join(filter(None, kept))
    if not prepared:
        raise EmptyTextError(
            f"text must have a sentence of two words: the published code drops shorter ones; got "
            f"{text!r}."
        )
    return prepared


def _areas(source: int, target: int) -> Tensor:
    """How much each of ``source`` pixels is in each of ``target``, ``(target, source)``."""
    edges = torch.arange(target + 1, dtype=torch.float64, device="cpu") * source / target
    pixels = torch.arange(source, dtype=torch.float64, device="cpu")
    shared = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return shared.clamp(min=0) * target / source
