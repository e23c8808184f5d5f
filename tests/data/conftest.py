"""Small files in the formats of real data sets."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_rows():
    """Write a CSV file, header first."""

    def write_rows(path, *rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return path

    return write_rows


@pytest.fixture
def write_image():
    """Write a grayscale file of 20 x 10 pixels, or the given ones."""

    def write_image(path, pixels=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            pixels = np.random.default_rng(len(str(path))).integers(0, 256, (20, 10), np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write_image
