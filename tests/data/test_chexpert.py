"""CheXpert and CheXpert Plus, in files written as theirs are."""

import json

import numpy as np
import pytest

from gloria.data import FINDINGS_AND_IMPRESSION, IMPRESSION, CheXpert, CheXpertPlus
from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES
from gloria.errors import DataError, IncompleteItemError, OptionError, UnknownNameError

RELEASE = "CheXpert-v1.0-small"
HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CLASSES]


def row(image, **labels):
    frontal = "frontal" in image
    cells = [labels.get(name.replace(" ", "_"), "") for name in CLASSES]
    return [image, "Female", "68", *(["Frontal", "AP"] if frontal else ["Lateral", ""]), *cells]


IMAGES = [
    "train/patient00001/study1/view1_frontal.jpg",
    "train/patient00002/study2/view1_frontal.jpg",
    "train/patient00002/study2/view2_lateral.jpg",
    "train/patient00003/study1/view1_frontal.jpg",
]


@pytest.fixture
def chexpert(write_rows, write_image, tmp_path):
    folder = tmp_path / RELEASE
    for image in IMAGES:
        write_image(folder / image)
    return write_rows(
        folder / "train.csv",
        HEADER,
        row(f"{RELEASE}/{IMAGES[0]}", Cardiomegaly="1.0", Edema="0.0", Fracture="-1.0"),
        row(f"{RELEASE}/{IMAGES[1]}", **dict.fromkeys(map(_key, COMPETITION_CLASSES), "-1.0")),
        row(f"{RELEASE}/{IMAGES[2]}", Edema="1.0"),
        row(f"{RELEASE}/{IMAGES[3]}", No_Finding="1.0"),
    )


def _key(name):
    return name.replace(" ", "_")


def test_frontal_views_with_the_published_mapping(chexpert):
    data = CheXpert(chexpert, size=(16, 16))
    assert data.classes == COMPETITION_CLASSES
    assert data.ids == [IMAGES[0], IMAGES[1], IMAGES[3]]
    assert data.patients == ["patient00001", "patient00002", "patient00003"]
    # U-ones for atelectasis, edema and effusion, U-zeros for cardiomegaly and consolidation
    assert data.labels.tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert data[0].image.shape == (1, 16, 16)
    assert data[1].labels.tolist() == [1, 0, 0, 1, 1]
    assert CheXpert(chexpert, size=(16, 16), frontal_only=False).ids == IMAGES


@pytest.mark.parametrize("value", [0, 1, -1])
def test_another_mapping(chexpert, value):
    data = CheXpert(chexpert, size=(8, 8), uncertain=value, classes=["Edema", "Fracture"])
    assert data.labels.tolist() == [[0, value], [value, 0], [0, 0]]
    mixed = CheXpert(
        chexpert, size=(8, 8), uncertain={"Edema": 0, "Fracture": 1}, classes=["Edema", "Fracture"]
    )
    assert mixed.labels.tolist() == [[0, 1], [0, 0], [0, 0]]


def test_a_renamed_folder_and_lists_of_other_releases(chexpert, tmp_path):
    folder = (tmp_path / RELEASE).rename(tmp_path / "mine")
    data = CheXpert(folder / "train.csv", size=(8, 8))
    np.testing.assert_array_equal(data[0].image.shape, (1, 8, 8))
    assert data.select([f"CheXpert-v1.0/{IMAGES[3]}"]).ids == [IMAGES[3]]
    moved = (folder / "train.csv").rename(tmp_path / "list.csv")
    assert len(CheXpert(moved, size=(8, 8), root=folder)) == 3
    with pytest.raises(DataError, match=r"row 2: .* does not exist\. Is it the right folder"):
        CheXpert(moved, size=(8, 8))


def test_what_is_wrong_is_named(chexpert, write_rows):
    with pytest.raises(UnknownNameError, match="CheXpert has no class 'Oedema'; it has No Finding"):
        CheXpert(chexpert, size=(8, 8), classes=["Oedema"])
    with pytest.raises(OptionError, match="uncertain must map 'Edema' to 1, 0 or -1; got 2"):
        CheXpert(chexpert, size=(8, 8), classes=["Edema"], uncertain=2)
    with pytest.raises(DataError, match="row 2, column 'Fracture': the label is uncertain"):
        CheXpert(chexpert, size=(8, 8), classes=["Fracture"])
    write_rows(chexpert, HEADER, row(f"{RELEASE}/{IMAGES[0]}", Edema="nan"))
    with pytest.raises(DataError, match=r"train\.csv, row 2, column 'Edema': .* got 'nan'"):
        CheXpert(chexpert, size=(8, 8))
    write_rows(chexpert, HEADER, row(f"{RELEASE}/train/somebody/view1_frontal.jpg"))
    with pytest.raises(DataError, match="names no patient"):
        CheXpert(chexpert, size=(8, 8))
    write_rows(chexpert, HEADER, row("a.jpg"))
    with pytest.raises(DataError, match=r"row 2: 'a\.jpg' must end as view1_frontal\.jpg"):
        CheXpert(chexpert, size=(8, 8))
    write_rows(chexpert, ["Path", "Sex"], ["a.jpg", "Male"])
    with pytest.raises(DataError, match="no column 'Atelectasis'; it has Path, Sex"):
        CheXpert(chexpert, size=(8, 8))


PLUS = ["path_to_image", "path_to_dcm", "frontal_lateral", "deid_patient_id", "report"]
PLUS += ["section_findings", "section_impression", "split"]


def plus_row(image, findings, impression, split="train"):
    report = f"NARRATIVE:\nCHEST 1 VIEW\n \nFINDINGS:\n{findings}\n \nIMPRESSION:\n \n{impression}"
    return [image, "", "Frontal", "patient1", report, findings, impression, split]


@pytest.fixture
def plus(write_rows, write_image, tmp_path):
    for image in IMAGES:
        write_image((tmp_path / "PNG" / image).with_suffix(".png"))
    return write_rows(
        tmp_path / "df_chexpert_plus_240401.csv",
        PLUS,
        plus_row(IMAGES[0], "Clear lungs.", "1. NO ACUTE DISEASE."),
        plus_row(IMAGES[1], "Large heart.", ""),
        plus_row(IMAGES[2], "Seen from the side.", "2. SMALL EFFUSION."),
        plus_row(IMAGES[3], "", "STABLE.", "valid"),
    )


def test_reports_of_chexpert_plus(plus):
    options = {"size": (8, 8), "root": plus.parent / "PNG"}
    data = CheXpertPlus(plus, **options)
    assert data.ids == [IMAGES[0], IMAGES[1], IMAGES[3]]
    assert data.reports[0].startswith("NARRATIVE:\nCHEST 1 VIEW")
    assert data.records[0].path.suffix == ".png"
    assert data[0].report == data.reports[0]
    assert data.select([f"CheXpert-v1.0/{IMAGES[3]}"]).ids == [IMAGES[3]]
    both = CheXpertPlus(plus, "train", policy=FINDINGS_AND_IMPRESSION, **options)
    assert both.reports == ["Clear lungs.\n\n1. NO ACUTE DISEASE.", "Large heart."]
    empty = "row 3: the report has no word in a section impression; got ''"
    with pytest.raises(IncompleteItemError, match=empty):
        CheXpertPlus(plus, policy=IMPRESSION, **options)
    some = CheXpertPlus(plus, policy=IMPRESSION, skip_incomplete=True, **options)
    assert some.reports == ["1. NO ACUTE DISEASE.", "STABLE."]
    assert len(some.skipped) == 1
    assert empty in some.skipped[0]


def test_labels_of_chexpert_plus(plus, chexpert, tmp_path):
    options = {"size": (8, 8), "root": plus.parent / "PNG", "classes": ["Edema", "Cardiomegaly"]}
    lines = [
        {"path_to_image": IMAGES[0], "Edema": 1.0, "Cardiomegaly": None},
        {"path_to_image": IMAGES[1], "Edema": -1.0, "Cardiomegaly": -1.0},
    ]
    path = tmp_path / "impression_fixed.json"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(DataError, match=f"row 5: .* has no labels of {IMAGES[3]}"):
        CheXpertPlus(plus, labels=path, **options)
    data = CheXpertPlus(plus, labels=path, skip_incomplete=True, **options)
    assert data.labels.tolist() == [[1, 0], [1, 0]]
    data = CheXpertPlus(plus, labels=chexpert, **options)
    assert data.labels.tolist() == [[0, 1], [1, 0], [0, 0]]
    entry = {**lines[0], "note": "\u2028"}  # a separator of lines, to some
    label = json.dumps(entry, ensure_ascii=False)
    path.write_text("\ufeff" + label + "\r\n", encoding="utf-8")
    data = CheXpertPlus(plus, labels=path, skip_incomplete=True, **options)
    assert data.labels.tolist() == [[1, 0]]
    other = json.dumps({**entry, "Edema": 0})
    path.write_text(f"{label}\n{label}\n{other}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 3: train/patient00001/.* has other labels"):
        CheXpertPlus(plus, labels=path, **options)
    path.write_bytes(b'{"path_to_image": "\xe9"}')
    with pytest.raises(DataError, match=r"impression_fixed\.json, line 1: must be a JSON object"):
        CheXpertPlus(plus, labels=path, **options)
    path.write_text(json.dumps({**lines[0], "path_to_image": IMAGES[:1]}))
    with pytest.raises(DataError, match=r"json, line 1: must be a JSON object .*TypeError: "):
        CheXpertPlus(plus, labels=path, **options)
    path.write_text('{"path_to_image": "a"}\n')
    with pytest.raises(DataError, match=r"json, line 1: must be a JSON object .*KeyError: 'Edema'"):
        CheXpertPlus(plus, labels=path, **options)
    with pytest.raises(OptionError, match="classes need labels"):
        CheXpertPlus(plus, **options)
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        CheXpertPlus(plus, labels=tmp_path / "none.json", **options)
    with pytest.raises(DataError, match=r"240401\.csv has no image with split 'test'"):
        CheXpertPlus(plus, "test", size=(8, 8))
