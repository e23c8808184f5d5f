"""MIMIC-CXR-JPG, in files written as theirs are."""

import gzip

import pytest

from gloria.data import FINDINGS_AND_IMPRESSION, IMPRESSION, MIMICCXR
from gloria.errors import DataError, DtypeError, UnknownNameError

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // pneumonia?

 FINDINGS:

 The lungs are clear.  A 1.5 cm nodule
 is unchanged.

 IMPRESSION:

 No acute process.
"""
# image, study, subject, split, view
IMAGES = [
    ("d1", "50000001", "10000001", "train", "PA"),
    ("d2", "50000001", "10000001", "train", "LATERAL"),
    ("d3", "50000002", "11000002", "train", "AP"),
    ("d4", "50000003", "11000003", "test", "AP"),
]


def folder_of(root, study, subject):
    return root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}"


@pytest.fixture
def root(write_rows, write_image, tmp_path):
    def write_gz(name, *rows):
        path = write_rows(tmp_path / name, *rows)
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()

    for image, study, subject, _, _ in IMAGES:
        folder = folder_of(tmp_path, study, subject)
        write_image(folder / f"{image}.jpg")
        folder.with_suffix(".txt").write_text(REPORT)
    folder_of(tmp_path, "50000002", "11000002").with_suffix(".txt").write_text("IMPRESSION: ___.")
    ids = ["dicom_id", "study_id", "subject_id"]
    write_gz("mimic-cxr-2.0.0-split.csv", [*ids, "split"], *([*image[:4]] for image in IMAGES))
    write_gz(
        "mimic-cxr-2.0.0-metadata.csv",
        ["dicom_id", "ViewPosition"],
        *([image[0], image[4]] for image in IMAGES),
    )
    write_gz(
        "mimic-cxr-2.0.0-chexpert.csv",
        ["subject_id", "study_id", "Edema", "Cardiomegaly"],
        ["10000001", "50000001", "-1.0", ""],
        ["11000002", "50000002", "0.0", "1.0"],
    )
    return tmp_path


def test_frontal_views_of_a_split_with_text_files(root):
    data = MIMICCXR(root, "test", size=(8, 8), policy=FINDINGS_AND_IMPRESSION)
    assert data.ids == ["d4"]
    assert data.patients == ["11000003"]
    expected = "The lungs are clear.  A 1.5 cm nodule\n is unchanged.\n\nNo acute process."
    assert data[0].report == expected
    assert data[0].image.shape == (1, 8, 8)
    assert MIMICCXR(root, "test", size=(8, 8)).reports == [REPORT.strip()]
    report = folder_of(root, "50000003", "11000003").with_suffix(".txt")
    report.write_text("\ufeffImpression: Clear.", encoding="utf-8")  # of an editor that marks it
    assert MIMICCXR(root, "test", size=(8, 8), policy=IMPRESSION).reports == ["Clear."]


def test_views_of_one_string_are_refused(root):
    """A view without a name, of which MIMIC-CXR has many, is in any string."""
    with pytest.raises(DtypeError, match=r"views must be a sequence of names; .* it: \['AP'\]"):
        MIMICCXR(root, "test", size=(8, 8), views="AP")


def test_reports_without_a_word_are_named_or_counted(root):
    with pytest.raises(
        DataError,
        match=r"s50000002\.txt: the report has no word in a section impression; got '___\.'",
    ):
        MIMICCXR(root, "train", size=(8, 8), policy=IMPRESSION)
    data = MIMICCXR(root, "train", size=(8, 8), policy=IMPRESSION, skip_incomplete=True)
    assert data.reports == ["No acute process."]
    assert len(data.skipped) == 1
    views = MIMICCXR(root, "train", size=(8, 8), views=["LATERAL"])
    assert views.ids == ["d2"]


def test_sectioned_reports_and_labels(root, write_rows):
    write_rows(
        root / "mimic_cxr_sectioned.csv",
        ["study", "impression", "findings", "last_paragraph", "comparison"],
        ["s50000001", "Normal.", "Clear lungs.", "", ""],
        ["s50000002", "", "Large heart.", "", ""],
    )
    classes = ["Edema", "Cardiomegaly"]
    data = MIMICCXR(root, "train", size=(8, 8), classes=classes)
    assert data.reports == ["Clear lungs.\n\nNormal.", "Large heart."]
    assert data.labels.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(
        DataError, match=r"row 5: .*sectioned\.csv has no report of study s50000003"
    ):
        MIMICCXR(root, size=(8, 8))
    some = MIMICCXR(root, size=(8, 8), classes=classes, policy=IMPRESSION, skip_incomplete=True)
    assert some.ids == ["d1"]
    assert len(some.skipped) == 2


def test_rows_that_contradict_each_other_are_named(root, write_rows):
    table = root / "mimic_cxr_sectioned.csv"
    rows = [["s50000003", "Normal.", ""], ["s50000003", "Edema.", ""]]
    write_rows(table, ["study", "impression", "findings"], *rows)
    with pytest.raises(
        DataError, match=r"row 3: study 's50000003' has other values in .*sectioned\.csv, row 2"
    ):
        MIMICCXR(root, "test", size=(8, 8))
    write_rows(table, ["study", "impression", "findings"], rows[0], rows[0])
    assert MIMICCXR(root, "test", size=(8, 8)).reports == ["Normal."]


def test_what_is_wrong_is_named(root):
    with pytest.raises(DataError, match="row 5: study 50000003 has no labels"):
        MIMICCXR(root, "test", size=(8, 8), classes=["Edema"])
    with pytest.raises(UnknownNameError, match="no class 'Oedema'"):
        MIMICCXR(root, "test", size=(8, 8), classes=["Oedema"])
    with pytest.raises(DataError, match="no image with split 'val'"):
        MIMICCXR(root, "val", size=(8, 8))
    table = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    whole = table.read_bytes()
    table.write_bytes(gzip.compress(b"dicom_id,ViewPosition\n"))
    with pytest.raises(DataError, match="row 5: the metadata have no image d4"):
        MIMICCXR(root, "test", size=(8, 8))
    table.write_bytes(whole)
    folder_of(root, "50000003", "11000003").with_suffix(".txt").unlink()
    with pytest.raises(DataError, match=r"row 5: report .*s50000003\.txt can't be read"):
        MIMICCXR(root, "test", size=(8, 8))
    packed = root / "mimic-cxr-2.0.0-split.csv.gz"
    packed.write_bytes(packed.read_bytes()[:20])
    with pytest.raises(DataError, match=r"split\.csv\.gz is no whole \.gz file"):
        MIMICCXR(root, size=(8, 8))
    packed.unlink()
    with pytest.raises(DataError, match=r"has no mimic-cxr-\.\.\.-split\.csv\.gz"):
        MIMICCXR(root, size=(8, 8))
