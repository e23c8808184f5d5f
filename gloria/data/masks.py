"""Masks from what data sets write: run lengths, boxes."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gloria.errors import DataError, DtypeError


class Box(NamedTuple):
    """A rectangle in an image, in pixels, from its upper left corner."""

    x: float
    y: float
    width: float
    height: float


def decode_runs(runs: Sequence[str], height: int, width: int) -> NDArray[np.bool_]:
    """The union of run-length masks as SIIM writes them.

    Pixels are numbered down the columns, from the left column on. A mask is pairs of numbers: how
    many pixels to skip since the last run's end (at first since the image's start), and how many to
    mark. ``-1`` is an empty mask.

    Args:
        runs: masks of one image, each ``"skip mark skip mark ..."``.
        height: of the image, in pixels.
        width: of the image, in pixels.

    Returns:
        ``(height, width)``, True = marked.

    Raises:
        DataError: a mask is no pairs of whole numbers of at least 0, or leaves the image.

    Example:
        >>> decode_runs(["1 2 2 1"], 3, 2).astype(int)
        array([[0, 0],
               [1, 0],
               [1, 1]])
    """
    pixels = np.zeros(height * width, np.bool_)
    for text in runs:
        pairs = parse_runs(text)
        stops = pairs.sum(1).cumsum()
        if len(stops) and stops[-1] > pixels.size:
            raise DataError(
                f"run-length mask {reprlib.repr(text)} needs {stops[-1]} pixels; the image has "
                f"{height} x {width} = {pixels.size}."
            )
        for stop, (_, length) in zip(stops, pairs, strict=True):
            pixels[stop - length : stop] = True
    return pixels.reshape(width, height).T


def encode_runs(mask: NDArray[np.bool_]) -> str:
    """A mask ``(height, width)`` as :func:`decode_runs` reads it; ``-1`` for an empty one.

    Raises:
        DtypeError: it is not boolean: levels and probabilities do not say what is marked.
    """
    if mask.dtype != np.bool_:
        raise DtypeError(f"mask must be boolean, True = marked; got {mask.dtype}.")
    edges = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0, append=0))
    # gaps and runs in turn: both are the differences of the edges
    return " ".join(map(str, np.diff(edges, prepend=0))) or "-1"


def parse_runs(text: str) -> NDArray[np.int64]:
    """The pairs ``(run, 2)`` of a run-length mask: how many pixels to skip, how many to mark.

    Raises:
        DataError: as :func:`decode_runs`, but for the image's size.
    """
    words = text.split()
    if words == ["-1"]:
        return np.empty((0, 2), np.int64)
    # no word at all is a value that is missing, not an empty mask
    if (
        len(words) % 2
        or not words
        or not all(len(word) <= 10 and word.isascii() and word.isdigit() for word in words)
    ):
        raise DataError(
            f"a run-length mask must be pairs of whole numbers of at least 0, or -1; "
            f"got {reprlib.repr(text)}."
        )
    return np.array(words, np.int64).reshape(-1, 2)


def draw_boxes(boxes: Sequence[Box], height: int, width: int) -> NDArray[np.bool_]:
    """The union of boxes, True = the pixel's centre is in one.

    Raises:
        DataError: a box leaves the image.
    """
    mask = np.zeros((height, width), np.bool_)
    # pixel k covers k to k + 1
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    for box in boxes:
        right, bottom = box.x + box.width, box.y + box.height
        if min(box) < 0 or right > width or bottom > height:
            raise DataError(f"{box} leaves the image of {height} x {width} pixels.")
        mask |= (rows > box.y) & (rows < bottom) & (columns > box.x) & (columns < right)
    return mask
