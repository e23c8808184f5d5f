"""SIIM pneumothorax, in files written as theirs are, spaces and all."""

import pickle

import numpy as np
import pytest

from gloria.data import SIIM
from gloria.errors import DataError


@pytest.fixture
def write(write_dicom, tmp_path):
    for number, name in enumerate(("1.2.3.0", "1.2.3.1", "1.2.3.2")):
        folder = tmp_path / "dicom-images-train" / f"study{number}" / f"series{number}"
        write_dicom(folder / f"{name}.dcm", np.full((8, 8), 100))

    def write(*rows):
        path = tmp_path / "train-rle.csv"
        lines = [f"1.2.3.{image}, {runs}" for image, runs in rows]
        path.write_text("\n".join(["ImageId, EncodedPixels", *lines]) + "\n")
        return path, tmp_path / "dicom-images-train"

    return write


def test_rows_of_one_image_are_one_item(write):
    """A run of 3 after 9 pixels: the second column, from the second row on."""
    data = SIIM(*write((0, "9 3"), (1, "-1"), (0, "63 1")), size=(8, 8))
    assert data.ids == ["1.2.3.0", "1.2.3.1"]
    assert data.labels.tolist() == [[1], [0]]
    assert data.classes == ("Pneumothorax",)
    expected = np.zeros((1, 8, 8), bool)
    expected[0, 1:4, 1] = expected[0, 7, 7] = True
    np.testing.assert_array_equal(data[0].mask, expected)
    assert not data[1].mask.any()
    assert len(data.skipped) == 1
    assert "1.2.3.2.dcm" in data.skipped[0]


def test_loading_processes_can_have_it(write):
    data = pickle.loads(pickle.dumps(SIIM(*write((0, "9 3")), size=(4, 4))))
    assert data[0].mask.shape == (1, 4, 4)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([(0, "60 5")], r"row 2: run-length mask '60 5' needs 65 pixels; the image has 8 x 8 = 64"),
        ([(0, "-1"), (0, "9 3")], r"row 3: 1\.2\.3\.0 has an empty mask and another one"),
        ([(0, "9 3"), (0, "-1")], r"row 3: 1\.2\.3\.0 has an empty mask and another one"),
        ([(0, "9 3 1")], "row 2: a run-length mask must be pairs"),
        ([(0, "")], "row 2: a run-length mask must be pairs"),  # a missing value is not negative
        ([(0, "-1"), (9, "-1")], r"1 of 2 images of .* are not under .*row 3: 1\.2\.3\.9\.dcm"),
    ],
)
def test_what_is_wrong_is_named(write, rows, message):
    with pytest.raises(DataError, match=message):
        SIIM(*write(*rows), size=(8, 8))[0]
