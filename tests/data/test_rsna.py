"""RSNA pneumonia, in files written as theirs are."""

import numpy as np
import pytest

from gloria.data import RSNA
from gloria.errors import DataError

HEADER = ["patientId", "x", "y", "width", "height", "Target"]
ROWS = [
    ["a1", "", "", "", "", "0"],
    ["b2", "2.0", "4.0", "4.0", "6.0", "1"],
    ["b2", "10.0", "4.0", "2.0", "2.0", "1"],
]


@pytest.fixture
def write(write_rows, write_dicom, tmp_path):
    for name in ("a1", "b2"):
        write_dicom(tmp_path / "images" / f"{name}.dcm", np.full((16, 16), 100))
    return lambda *rows: write_rows(tmp_path / "labels.csv", HEADER, *rows)


def test_one_item_for_each_patient(write, tmp_path):
    data = RSNA(write(*ROWS), tmp_path / "images", size=(8, 8), channels=3)
    assert data.classes == ("Pneumonia",)
    assert data.ids == data.patients == ["a1", "b2"]
    assert data.labels.tolist() == [[0], [1]]
    assert data[1].image.shape == (3, 8, 8)
    assert data.boxes(0).shape == (0, 4)
    assert data.boxes(1).tolist() == [[1, 2, 3, 5], [5, 2, 6, 3]]
    expected = np.zeros((1, 8, 8), bool)
    expected[0, 2:5, 1:3] = expected[0, 2:3, 5:6] = True
    np.testing.assert_array_equal(data[1].mask, expected)
    assert not data[0].mask.any()


@pytest.mark.parametrize(
    "rows, message",
    [
        ([["a1", "", "", "", "", "1"]], "row 2: Target is 1 and the box"),
        ([["a1", "1", "1", "1", "1", "0"]], "row 2: Target is 0 and the box"),
        ([["a1", "1", "1", "", "1", "1"]], "row 2: a box is four numbers"),
        ([["a1", "1", "x", "1", "1", "1"]], "row 2: a box is four numbers"),
        ([["a1", "1", "nan", "1", "1", "1"]], "row 2: a box must have a place and a size"),
        ([["a1", "1", "1", "0", "1", "1"]], "row 2: a box must have a place and a size"),
        ([["a1", "", "", "", "", "nan"]], "row 2, column 'Target': a label is .*got 'nan'"),
        ([ROWS[0], ["a1", *ROWS[1][1:]]], "row 3: a1 has a row without a box and another one"),
        ([ROWS[1], ["b2", *ROWS[0][1:]]], "row 3: b2 has a row without a box and another one"),
        ([ROWS[0], ROWS[0]], "row 3: a1 has a row without a box and another one"),
        ([["c3", *ROWS[0][1:]]], r"row 2: .*c3\.dcm does not exist"),
        ([["b2", "10", "4", "8", "2", "1"]], r"row 2: Box\(.*leaves the image of 16 x 16 pixels"),
    ],
)
def test_what_is_wrong_is_named(write, tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        RSNA(write(*rows), tmp_path / "images", size=(8, 8))[0]
