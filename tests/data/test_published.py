"""What the published code makes of a film and a text, against its definition in plain loops."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from gloria.data import load_image, published_image, published_text
from gloria.errors import DataError, EmptyTextError, OptionError, ShapeError


def shrink(row, count):
    """Means of equal parts of a row of numbers; a number on an edge counts for both parts."""
    width = len(row) / count
    means = []
    for part in range(count):
        start, end = part * width, (part + 1) * width
        total = 0.0
        for index, value in enumerate(row):
            total += value * max(0.0, min(end, index + 1) - max(start, index))
        means.append(total / width)
    return means


def enlarge(row, count):
    """Between the neighbours, first on first and last on last."""
    values = []
    for index in range(count):
        place = index * (len(row) - 1) / (count - 1)
        left = min(math.floor(place), len(row) - 2)
        values.append(row[left] + (place - left) * (row[left + 1] - row[left]))
    return values


def both_ways(rows, change, height, width):
    rows = [change(row, width) for row in rows]
    return [
        list(row) for row in zip(*(change(c, height) for c in zip(*rows, strict=True)), strict=True)
    ]


def prepare(pixels, size, crop):
    height, width = pixels.shape
    longest = max(height, width)
    inner = [size if side == longest else int(side * (size / longest)) for side in pixels.shape]
    shrunk = both_ways(pixels.tolist(), shrink, *inner)
    square = np.zeros((size, size))
    top, left = (size - inner[0]) // 2, (size - inner[1]) // 2
    square[top : top + inner[0], left : left + inner[1]] = np.round(shrunk)
    start = (size - crop) // 2
    middle = square[start : start + crop, start : start + crop] / 255
    return torch.tensor(both_ways(middle.tolist(), enlarge, 299, 299), dtype=torch.float64)


def film(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# taller, wider (with an odd border), square; and smaller than what it becomes
@pytest.mark.parametrize("shape", [(71, 52), (40, 87), (64, 64), (20, 13)])
def test_an_image_is_what_the_published_code_makes_of_it(tmp_path, shape):
    pixels = film(*shape)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    image = published_image(tmp_path / "film.png", size=32, crop=28)
    assert image.shape == (3, 299, 299)
    assert image.dtype == torch.float32
    expected = prepare(pixels, 32, 28)
    for channel in image:
        torch.testing.assert_close(channel.double(), expected, rtol=0, atol=1e-5)
    loaded = load_image(tmp_path / "film.png")
    assert torch.equal(published_image(loaded, size=32, crop=28), image)


def test_the_released_sizes():
    """Of a film that is 256 pixels already, the middle 224 are enlarged."""
    pixels = torch.rand(1, 256, 256, generator=torch.Generator().manual_seed(0))
    image = published_image(pixels)
    corners = (255 * pixels[0, [16, 16, 239, 239], [16, 239, 16, 239]]).round() / 255
    torch.testing.assert_close(image[0, [0, 0, 298, 298], [0, 298, 0, 298]], corners)


def test_a_very_thin_film_keeps_a_pixel():
    assert published_image(torch.ones(1, 900, 1), size=32, crop=32).sum() > 0


def test_bad_images(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        published_image(tmp_path / "none.png")
    with pytest.raises(ShapeError, match=r"image must be \(1, height, width\); got \(3, 8, 8\)"):
        published_image(torch.rand(3, 8, 8))
    with pytest.raises(ShapeError, match="channel, height, width"):
        published_image(torch.rand(8, 8))
    with pytest.raises(ShapeError, match="at least"):
        published_image(torch.rand(1, 8, 8), size=32, crop=33)
    for sizes in ({"size": 0}, {"crop": 0}):
        with pytest.raises(OptionError, match="at least 1"):
            published_image(torch.rand(1, 8, 8), **sizes)


def published_words(text):
    """In two steps, as it is told: numbers with a stop first, then stops."""
    words = []
    for point in re.split(r"[0-9]+\.", text.replace("\n", " ")):
        for sentence in point.split("."):
            found = re.findall(r"\w+", sentence.lower())
            if len(found) > 1:
                words += ["".join(c for c in word if ord(c) < 128) for word in found]
    return [word for word in words if word]


@pytest.mark.parametrize(
    "text, prepared",
    [
        ("Small left-sided effusion", "small left sided effusion"),
        ("1. No edema.\n2. Stable. 3. Heart size\nnormal.", "no edema heart size normal"),
        ("Nodule of 1.5 cm.", "nodule of 5 cm"),  # the number is cut
        ("Edema. No pneumothorax.", "no pneumothorax"),  # one word is no sentence
        ("Röntgen: no œdema, µ here", "rntgen no dema here"),
        ("a_b at T12..12.", "a_b at t"),
    ],
)
def test_a_text_is_what_the_published_code_makes_of_it(text, prepared):
    assert published_text(text) == prepared == " ".join(published_words(text))


@pytest.mark.parametrize("text", ["", "Edema.", "1. 2. Stable.", "µ µ."])
def test_a_text_of_which_nothing_is_left(text):
    assert published_words(text) == []
    with pytest.raises(EmptyTextError, match=re.escape(repr(text))):
        published_text(text)
