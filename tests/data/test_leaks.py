"""The leak checker finds what published code let through, and says what it could not see."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from gloria.data import SIIM, Record
from gloria.data.leaks import (
    check_splits,
    describe_leaks,
    find_leaks,
    find_patient_columns,
    read_split_files,
)
from gloria.errors import DataError, DtypeError, OptionError


def record(name, patient=None, path=None):
    return Record(name, path or Path(name), f"row of {name}", patient)


def test_patients_and_images_across_splits():
    splits = {
        "train": [record("a", "p1"), record("b", "p1"), record("c", "p2"), record("c", "p2")],
        "val": [record("d", "p1"), record("e", "p3")],
        "test": [record("c", "p2"), record("f", "p4")],
    }
    leaks = find_leaks(splits, files=False)
    assert leaks
    assert leaks.sizes == {"train": 4, "val": 2, "test": 2}
    assert leaks.patients == {
        "p1": {"train": ["a", "b"], "val": ["d"]},
        "p2": {"train": ["c", "c"], "test": ["c"]},
    }
    assert leaks.images == {"c": {"train": ["c", "c"], "test": ["c"]}}
    assert leaks.unchecked == []


def test_one_image_under_several_spellings(write_rows, tmp_path):
    path = write_rows(
        tmp_path / "my.csv",
        ["image", "split"],
        ["./a.png", "train"],
        [str(tmp_path / "b.png"), "train"],
        ["c.png", "train"],
        ["a.png", "test"],
        ["films/../b.png", "test"],
        ["films/c.png", "test"],
    )
    leaks = find_leaks(read_split_files([path]), files=False)
    assert leaks.images == {
        "a.png": {"train": ["./a.png"], "test": ["a.png"]},
        str(tmp_path / "b.png"): {"train": [str(tmp_path / "b.png")], "test": ["films/../b.png"]},
    }
    third = write_rows(tmp_path / "third.csv", ["image", "split"], [str(tmp_path / "a.png"), "val"])
    leaks = find_leaks(read_split_files([path, third]), files=False)  # told once, as a file
    assert "a.png" not in leaks.images
    everywhere = {"train": ["./a.png"], "test": ["a.png"], "val": [str(tmp_path / "a.png")]}
    assert leaks.images[str(tmp_path / "a.png")] == everywhere
    (tmp_path / "a.png").write_bytes(b"film")
    assert find_leaks(read_split_files([path, third])).duplicates == {}  # it is no copy of itself
    elsewhere = tmp_path / "lists" / "held.txt"  # as `gloria evaluate` writes them
    elsewhere.parent.mkdir()
    elsewhere.write_text("./c.png\n")
    leaks = find_leaks(read_split_files([path, elsewhere]), files=False)
    assert leaks.images["c.png"] == {"train": ["c.png"], "held": ["./c.png"]}


def test_clean_splits_and_what_is_not_known():
    splits = {"train": [record("a", "p1"), record("b", "p1")], "val": [record("c")]}
    leaks = find_leaks(splits, files=False)
    assert not leaks
    assert leaks.patients is None
    assert "patients: not looked for" in describe_leaks(leaks)
    assert leaks.unchecked == [
        "patients of 1 of 3 images, which do not say whose they are (patient-column and "
        "patient-pattern are where to look); first: row of c."
    ]
    splits["val"].append(record("d", "p2"))
    assert find_leaks(splits, files=False).patients == {}
    with pytest.raises(DataError, match="a leak is between splits; got train"):
        find_leaks({"train": [record("a")]})


@pytest.mark.parametrize("wrong", [["a"], [("a", "p1")]])
def test_splits_of_something_else_than_records_are_refused(wrong):
    with pytest.raises(DtypeError, match="split 'val' must be records, such as those of data"):
        find_leaks({"train": [record("a", "p1")], "val": wrong}, files=False)


def test_exact_copies(write_image, tmp_path):
    same = np.full((4, 4), 7, np.uint8)
    other = same.copy()
    other[0, 0] = 8
    a, b, c = (
        write_image(tmp_path / name, p)
        for name, p in (("a.png", same), ("b.bmp", same), ("c.png", other))
    )
    copy = shutil.copy(a, tmp_path / "copy.png")
    train = [record("a", path=a)]
    test = [record("b", path=b), record("c", path=c), record("copy", path=copy)]
    (found,) = find_leaks({"train": train, "test": test}).duplicates.values()
    assert found == {"train": ["a"], "test": ["copy"]}
    seen = []
    leaks = find_leaks({"train": train, "test": test}, pixels=True, progress=seen.append)
    (found,) = leaks.duplicates.values()
    assert found == {"train": ["a"], "test": ["b", "copy"]}
    assert sum(seen) == 4
    # in one split a copy does no harm, and an image is no copy of itself
    assert not find_leaks({"train": [*train, test[2]], "test": test[:2]}).duplicates


def test_files_that_are_not_there_or_broken_are_told(write_image, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    splits = {
        "train": [record("a", "p", write_image(tmp_path / "a.png")), record("b", "p", broken)],
        "val": [record("c", "q", tmp_path / "gone.png")],
    }
    (why,) = find_leaks(splits).unchecked
    assert why.startswith("exact copies of 1 of 3 files, first: row of c: ")
    (why,) = find_leaks(splits, pixels=True).unchecked
    assert why.startswith("exact copies of 2 of 3 files, first: row of c: ")


def test_a_leak_is_an_error_if_none_is_wanted():
    splits = {"train": [record("a", "p1"), record("b", "p2")], "val": [record("c", "p3")]}
    check_splits(splits)
    splits["val"].append(record("d", "p2"))
    message = r"the splits leak\.\ntrain: 2 images, val: 2 images\npatients .*: 1 \(1 of 2 in train"
    with pytest.raises(DataError, match=message):
        check_splits(splits)


# --- what published code did ----------------------------------------------------------------------


def test_published_chexpert_validation_inside_training(write_rows, tmp_path):
    """Drawn by position, dropped by index label, after rows had been taken out: most rows stay."""
    rng = np.random.default_rng(0)
    table = [
        (label, f"CheXpert-v1.0/train/patient{label:05}/study1/view1_frontal.jpg")
        for label in range(400)
        if label % 2
    ]
    positions = rng.choice(len(table), 20, replace=False)
    valid = [table[position] for position in positions]
    train = [row for row in table if row[0] not in positions]  # labels against positions
    for name, rows in (("train", train), ("valid", valid)):
        write_rows(tmp_path / f"{name}.csv", ["", "Path"], *rows)
    leaks = find_leaks(
        read_split_files([tmp_path / "train.csv", tmp_path / "valid.csv"]), files=False
    )
    inside = {row[1] for row in train} & {row[1] for row in valid}
    assert len(inside) > 10
    assert len(leaks.images) == len(leaks.patients) == len(inside)


def test_published_siim_split_by_mask_row(write_rows, write_dicom, tmp_path):
    rows = [["1.2.0", " 9 3"], ["1.2.1", " -1"], ["1.2.0", " 30 2"], ["1.2.2", " -1"]]
    header = ["ImageId", " EncodedPixels"]
    for name in ("1.2.0", "1.2.1", "1.2.2"):
        write_dicom(tmp_path / "dicom" / "s" / f"{name}.dcm", np.full((8, 8), int(name[-1])))
    # found after the file, of the same stem, and no image
    (tmp_path / "dicom" / "s" / "deeper" / "1.2.0.thumbnails").mkdir(parents=True)
    paths = [
        write_rows(tmp_path / "train.csv", header, *rows[:2]),
        write_rows(tmp_path / "val.csv", header, *rows[2:]),
    ]
    leaks = find_leaks(read_split_files(paths, images=tmp_path / "dicom"))
    assert leaks.images == {"1.2.0": {"train": ["1.2.0"], "val": ["1.2.0"]}}
    assert not leaks.duplicates
    assert len(leaks.unchecked) == 1  # patients
    # an image is one item here, so the same can't happen
    whole = write_rows(tmp_path / "all.csv", header, *rows)
    data = SIIM(whole, tmp_path / "dicom", size=(8, 8))
    assert sorted(data.ids) == ["1.2.0", "1.2.1", "1.2.2"]


def test_published_patients_of_5x200_in_training(write_rows, tmp_path):
    """The images were taken out of training, their patients' other images were not."""
    images = [f"train/patient{p:05}/study{s}/view1_frontal.jpg" for p in range(4) for s in (1, 2)]
    (tmp_path / "chexpert_5x200.txt").write_text(f"{images[0]}\n{images[7]}\n")
    header, rest = ["Path"], [[f"CheXpert-v1.0-small/{name}"] for name in images[1:7]]
    write_rows(tmp_path / "train.csv", header, *rest)
    splits = read_split_files([tmp_path / "train.csv", tmp_path / "chexpert_5x200.txt"])
    leaks = find_leaks(splits, files=False)
    assert not leaks.images
    assert leaks.patients == {
        "patient00000": {"train": [images[1]], "chexpert_5x200": [images[0]]},
        "patient00003": {"train": [images[6]], "chexpert_5x200": [images[7]]},
    }


# --- files ----------------------------------------------------------------------------------------


def test_one_file_with_a_split_column(write_rows, write_image, tmp_path):
    write_image(tmp_path / "a.png")
    path = write_rows(
        tmp_path / "my.csv",
        ["image", "who", "split"],
        ["a.png", "x", "train"],
        ["b.png", "x", "val"],
        ["c.png", "", "val"],
    )
    splits = read_split_files([path], patient_column="who")
    assert {name: [r.id for r in records] for name, records in splits.items()} == {
        "train": ["a.png"],
        "val": ["b.png", "c.png"],
    }
    assert splits["train"][0].path == tmp_path / "a.png"
    assert [r.patient for r in splits["val"]] == ["x", None]
    assert set(read_split_files([path], split_column="who")) == {"x", ""}


@pytest.mark.parametrize("kind", [".png", ".dcm"])
def test_copies_among_chexpert_plus_files(write_rows, tmp_path, kind):
    """Its CSV file calls every image ``.jpg``, whatever was downloaded."""
    names = [f"{part}/patient0000{part[0]}/study1/view1_frontal" for part in ("train", "valid")]
    for name in names:
        file = tmp_path / "images" / f"{name}{kind}"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"the same")
    path = write_rows(
        tmp_path / "plus.csv",
        ["path_to_image", "split"],
        *([f"{name}.jpg", name[:5]] for name in names),
    )
    leaks = find_leaks(read_split_files([path], images=tmp_path / "images"), files=True)
    assert list(leaks.duplicates.values()) == [
        {"train": [f"{names[0]}.jpg"], "valid": [f"{names[1]}.jpg"]}
    ]
    assert not leaks.unchecked


def test_patients_by_column_or_in_the_path(write_rows, tmp_path):
    rsna = write_rows(tmp_path / "rsna.csv", ["patientId", "Target"], ["a1", "0"])
    mimic = write_rows(
        tmp_path / "mimic.csv", ["dicom_id", "subject_id", "split"], ["d1", "10000032", "test"]
    )
    paths = tmp_path / "paths.txt"
    paths.write_text("files/p10/p10000032/s50414267/d1.jpg\nelsewhere/case7/x.png\n")
    splits = read_split_files([rsna, mimic, paths])
    assert {name: [r.patient for r in records] for name, records in splits.items()} == {
        "rsna": ["a1"],
        "test": ["10000032"],
        "paths": ["10000032", None],
    }
    splits = read_split_files([paths], patient_pattern=r"case\d+")
    assert [r.patient for r in splits["paths"]] == [None, "case7"]


@pytest.mark.parametrize(
    "name", ["Patient", "PatientID", "patient id", "Patient-ID", "patientId", "Subject_ID"]
)
def test_a_column_of_patients_in_any_spelling(write_rows, tmp_path, name):
    path = write_rows(tmp_path / "my.csv", ["image", name], ["a.png", "p1"])
    assert [r.patient for r in read_split_files([path])["my"]] == ["p1"]


def test_which_columns_are_of_patients():
    header = ["subject_id", "patients", "PATIENT_ID", "Patient", "inpatient", "subject"]
    assert find_patient_columns(header) == ["Patient", "PATIENT_ID", "subject_id"]


def test_files_that_can_not_be_read_as_splits(write_rows, tmp_path):
    path = write_rows(tmp_path / "my.csv", ["file"], ["a"])
    with pytest.raises(
        DataError, match=r"no column image or Path or .*; it has file\. image-column says"
    ):
        read_split_files([path])
    assert list(read_split_files([path], image_column="file")) == ["my"]
    twin = write_rows(tmp_path / "twin" / "my.csv", ["file"], ["a"])
    with pytest.raises(DataError, match="there is a split 'my' already; rename the file"):
        read_split_files([path, twin], image_column="file")
    with pytest.raises(DataError, match="no column 'image'"):
        read_split_files([path], image_column="image")
    with pytest.raises(DataError, match="nowhere is no folder"):
        read_split_files([path], images=tmp_path / "nowhere")
    with pytest.raises(
        OptionError, match=r"patient-pattern must be a regular expression; got '\('"
    ):
        read_split_files([path], image_column="file", patient_pattern="(")


def test_no_patient_is_no_patient_in_common(tmp_path, write_rows):
    rows = [["a.png", "nan", "train"], ["b.png", "", "train"], ["c.png", "nan", "val"]]
    path = write_rows(tmp_path / "my.csv", ["image", "patient", "split"], *rows)
    splits = read_split_files([path])
    assert [record.patient for records in splits.values() for record in records] == [None] * 3


def test_images_without_a_row_are_called_by_their_paths(tmp_path):
    splits = {name: [Record(name, tmp_path / f"{name}.png", where="")] for name in ("train", "val")}
    assert find_leaks(splits).unchecked == [
        "patients of 2 of 2 images, which do not say whose they are "
        "(patient-column and patient-pattern are where to look); "
        f"first: {tmp_path / 'train.png'}.",
        f"exact copies of 2 of 2 files, first: {tmp_path / 'train.png'} does not exist.",
    ]
