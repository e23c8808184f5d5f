"""Run lengths and boxes become the masks that their formats mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from gloria.data.masks import Box, decode_runs, draw_boxes, encode_runs
from gloria.errors import DataError, DtypeError


def walk(text, height, width):
    """SIIM's format, one pixel at a time: skip, mark, skip, mark, down the columns."""
    mask = [[False] * width for _ in range(height)]
    position = 0
    numbers = [int(word) for word in text.split()]
    for skip, length in zip(numbers[::2], numbers[1::2], strict=True):
        position += skip
        for _ in range(length):
            mask[position % height][position // height] = True
            position += 1
    return np.array(mask)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)))
def test_what_is_encoded_is_decoded(mask):
    text = encode_runs(mask)
    np.testing.assert_array_equal(decode_runs([text], *mask.shape), mask)
    if text != "-1":
        np.testing.assert_array_equal(walk(text, *mask.shape), mask)
    assert (text == "-1") == (not mask.any())


def test_what_does_not_say_what_is_marked_is_not_encoded():
    with pytest.raises(DtypeError, match="mask must be boolean, True = marked; got uint8"):
        encode_runs(np.array([[1], [2]], np.uint8))


def test_several_masks_are_one_and_none_is_empty():
    np.testing.assert_array_equal(
        decode_runs(["0 2", "3 1"], 2, 3), walk("0 2", 2, 3) | walk("3 1", 2, 3)
    )
    for runs in ([], ["-1"], [" -1"]):
        assert not decode_runs(runs, 4, 5).any()


@pytest.mark.parametrize(
    "text, message",
    [
        ("10 7", r"mask '10 7' needs 17 pixels; the image has 4 x 4 = 16"),
        ("1 2 3", "pairs of whole numbers"),
        ("1 -2", "pairs of whole numbers"),
        ("1 2.5", "pairs of whole numbers"),
        ("a b", "got 'a b'"),
        ("nan", "pairs of whole numbers"),
        ("", "pairs of whole numbers of at least 0, or -1; got ''"),
        ("1 99999999999999999999", "pairs of whole numbers"),
    ],
)
def test_what_is_no_mask_of_the_image(text, message):
    with pytest.raises(DataError, match=message):
        decode_runs([text], 4, 4)


def test_boxes_cover_the_pixels_whose_centres_they_hold():
    mask = draw_boxes([Box(1, 0, 2, 3), Box(3.6, 3.4, 0.3, 0.2), Box(4, 3, 1, 1)], 4, 5)
    expected = np.zeros((4, 5), bool)
    expected[0:3, 1:3] = True
    expected[3, 4] = True
    np.testing.assert_array_equal(mask, expected)
    with pytest.raises(DataError, match=r"leaves the image of 4 x 5 pixels"):
        draw_boxes([Box(4, 0, 2, 1)], 4, 5)
