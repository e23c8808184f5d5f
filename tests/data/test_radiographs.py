"""What every data set of radiographs does: items, selection, what is left out and said."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from gloria.data import ImageReportTable, Radiographs, Record
from gloria.data.images import fit, load_image, place
from gloria.data.masks import Box
from gloria.errors import BrokenItemError, DataError, DtypeError, OptionError


@pytest.fixture
def records(write_image, tmp_path):
    return [
        Record(
            id=f"i{number}",
            path=write_image(tmp_path / f"{number}.png"),
            where=f"my.csv, row {number + 2}",
            patient=f"p{number // 2}",
            labels=(number % 2, -1),
        )
        for number in range(4)
    ]


def test_items_and_what_is_known_without_reading(records):
    data = Radiographs(records, classes=("a", "b"), size=(8, 8))
    assert len(data) == 4
    assert data.ids == ["i0", "i1", "i2", "i3"]
    assert data.patients == ["p0", "p0", "p1", "p1"]
    assert data.labels.tolist() == [[0, -1], [1, -1], [0, -1], [1, -1]]
    assert data[1].labels.tolist() == [1, -1]
    torch.testing.assert_close(data[1].image, fit(load_image(records[1].path), (8, 8)))
    assert data[1].mask.shape == (0, 8, 8)


@pytest.mark.parametrize("label", [2, 0.7, float("nan"), None])
def test_labels_are_positive_negative_or_uncertain(records, label):
    wrong = [*records[:2], records[2]._replace(labels=(1, label))]
    with pytest.raises(DataError, match=rf"row 4: labels are 1, 0 or -1; got \(1, {label}\)"):
        Radiographs(wrong, classes=("a", "b"), size=(8, 8))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("id", 7, "id of a record must be a string; got 7"),
        ("path", "films/1.png", "path of a record must be a pathlib.Path; got 'films/1.png'"),
        # a table's number is another patient than its digits, and each NaN is a patient of its own
        (
            "patient",
            7,
            "patient of a record must be a string, or None where it is not known; got 7",
        ),
        ("patient", float("nan"), "patient of a record must be .*; got nan"),
        ("report", float("nan"), "report of a record must be a string; got nan"),
        ("mask", np.ones((20, 10), bool), "mask of a record must be a function of height and "),
    ],
)
def test_a_record_of_other_kinds_is_refused(records, name, value, told):
    wrong = [*records[:2], records[2]._replace(**{name: value})]
    with pytest.raises(DtypeError, match=told):
        Radiographs(wrong, classes=("a", "b"), size=(8, 8))
    with pytest.raises(DtypeError, match=r"records must be gloria\.data\.Record; got dict"):
        Radiographs([records[0]._asdict()], classes=("a", "b"), size=(8, 8))


def test_the_numbers_of_a_table_are_labels_too(records):
    same = [record._replace(labels=np.array(record.labels)) for record in records]
    prints = {
        Radiographs(rs, classes=("a", "b"), size=(8, 8)).fingerprint() for rs in (records, same)
    }
    # which the checkpoints of runs hold, too
    assert prints == {"28d1aaa04cda2cd2e67db6669c75276aa3d37d5052eb571c0a29ebf153d17a95"}


@pytest.mark.parametrize(
    "mask, given",
    [
        (lambda height, width: np.ones((height + 1, width), bool), r"bool and \(21, 10\)"),
        (lambda height, width: np.ones((height, width)), r"float64 and \(20, 10\)"),
    ],
)
def test_a_mask_that_is_none_of_its_image(records, mask, given):
    record = records[0]._replace(mask=mask, labels=())
    with pytest.raises(BrokenItemError, match=rf"row 2: .* boolean and \(20, 10\), .* got {given}"):
        Radiographs([record], size=(8, 8))[0]


def test_items_stack_into_batches(records):
    batch = next(iter(DataLoader(Radiographs(records, classes=("a", "b"), size=(8, 6)), 3)))
    assert batch.image.shape == (3, 1, 8, 6)
    assert batch.labels.shape == (3, 2)
    assert batch.mask.shape == (3, 0, 8, 6)


def test_an_id_list_selects_in_its_order(records):
    data = Radiographs(records, classes=("a", "b"), size=(8, 8))
    assert data.select(["i3", "i0"]).labels.tolist() == [[1, -1], [0, -1]]
    with pytest.raises(DataError, match=r"2 of 3 ids are not in this data set; first: x, y\. Its"):
        data.select(["i0", "x", "y"])
    with pytest.raises(DataError, match=r"1 of 1 ids are not in this data set; first: 3\. Its ids"):
        data.select([3])
    assert data.without_patients({"p0"}).ids == ["i2", "i3"]
    with pytest.raises(DtypeError, match=r"patients must be a sequence of names; got one string"):
        data.without_patients("p0")
    with pytest.raises(DataError, match="no radiograph is left of 4"):
        data.without_patients({"p0", "p1"})


def test_without_a_patient_each_image_is_its_own(records):
    data = Radiographs([r._replace(patient=None, labels=()) for r in records], size=(8, 8))
    assert data.patients == data.ids


def test_broken_images_are_named_or_left_out_and_counted(records):
    records[1].path.write_bytes(records[1].path.read_bytes()[:60])
    records[2].path.write_bytes(b"")
    data = Radiographs(records, classes=("a", "b"), size=(8, 8))
    with pytest.raises(BrokenItemError, match=r"my\.csv, row 3: image .*1\.png can't be read"):
        data[1]
    unplaced = Radiographs(
        [records[0], records[1]._replace(where="")], size=(8, 8), classes=("a", "b")
    )
    with pytest.raises(BrokenItemError, match=r"^image .*1\.png can't be read"):
        unplaced[1]
    seen = []
    whole = data.without_broken(progress=seen.append)
    assert whole.ids == ["i0", "i3"]
    assert sum(seen) == 4
    assert [line.partition(":")[0] for line in whole.skipped] == ["my.csv, row 3", "my.csv, row 4"]
    assert data.skipped == ()
    with pytest.raises(DataError, match=r"no radiograph is left of 2; first: my\.csv, row 3"):
        data.select(["i1", "i2"]).without_broken()


def test_films_that_need_bits_are_not_broken(records):
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(records[1].path)
    data = Radiographs(records, classes=("a", "b"), size=(8, 8))
    with pytest.raises(OptionError, match=r"my\.csv, row 3: .*1\.png has 16 bits .* bits=12"):
        data.without_broken()
    data.bits = 12
    assert data.without_broken().ids == data.ids


def test_what_is_wrong_with_all_of_them(records, tmp_path):
    with pytest.raises(DataError, match="there is no radiograph to read; 1 were skipped, first: x"):
        Radiographs([], size=(8, 8), skipped=["x"])
    gone = tmp_path / "gone.png"
    for where, called, missing in (
        ("my.csv, row 2", "my.csv, row 2", f"my.csv, row 2: {gone}"),
        ("", tmp_path / "0.png", gone),  # without a row, an image is called by its path
    ):
        record = records[0]._replace(where=where)
        with pytest.raises(DataError, match=f"^{called}: 2 labels for 1 classes"):
            Radiographs([record], classes=("a",), size=(8, 8))
        with pytest.raises(DataError, match=rf"^{missing} does not exist\. Is it the right"):
            Radiographs([record._replace(path=gone)], classes=("a", "b"), size=(8, 8))


def centre(height, width):
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 2 :] = True
    return mask


def test_masks_and_boxes_go_where_the_image_goes(records):
    """20 x 10 pixels in 8 x 8: scaled by .4, two columns of padding on both sides."""
    box = Box(5, 5, 5, 5)
    data = Radiographs([records[0]._replace(mask=centre, boxes=(box,), labels=())], size=(8, 8))
    expected = torch.zeros(1, 8, 8, dtype=torch.bool)
    expected[0, 2:4, 4:6] = True
    assert torch.equal(data[0].mask, expected)
    assert data.boxes(0).tolist() == [[4, 2, 6, 4]]
    assert place((20, 10), (8, 8)) == ((8, 4), 0, 2)


def test_a_faulty_mask_is_named_with_its_row(records):
    def outside(height, width):
        raise DataError("too long.")

    data = Radiographs([records[0]._replace(mask=outside, labels=())], size=(8, 8))
    with pytest.raises(DataError, match=r"my\.csv, row 2: too long"):
        data[0]


def test_labels_and_patients_of_any_table(write_rows, write_image, tmp_path):
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
    header = ["image", "who", "edema", "nodule"]
    path = write_rows(
        tmp_path / "my.csv", header, ["a.png", "p1", "1", "0.0"], ["b.png", "p2", "-1", "1.0"]
    )
    options = {"size": (8, 8), "report_column": None, "classes": ["edema", "nodule"]}
    data = ImageReportTable(path, patient_column="who", **options)
    assert data.labels.tolist() == [[1, 0], [-1, 1]]
    assert data.patients == ["p1", "p2"]
    assert data.reports == ["", ""]
    with pytest.raises(DataError, match="no column 'mass'"):
        ImageReportTable(path, **{**options, "classes": ["mass"]})
    for cell in ("nan", "", "2", "yes", "0.5"):
        write_rows(path, header, ["a.png", "p1", "1", cell])
        how = "" if cell else r" Write 0 or -1 there: a blank cell .*"
        fault = rf"row 2, column 'nodule': a label is .*got '{cell}'\.{how}$"
        with pytest.raises(DataError, match=fault):
            ImageReportTable(path, **options)
    for nobody in ("", "nan", "None"):  # else all of them would be one patient's
        write_rows(path, header, ["a.png", nobody, "1", "0"])
        with pytest.raises(DataError, match=f"row 2, column 'who': no patient; got '{nobody}'"):
            ImageReportTable(path, patient_column="who", **options)
