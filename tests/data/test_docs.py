"""docs/data.md: its code runs on small files in the formats it names, its commands find leaks."""

import json

import numpy as np
import pytest
from pages import blocks, read, run

from gloria.cli import main
from gloria.data import ImageReportTable
from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES

PAGE = read("docs/data.md")


@pytest.fixture
def disk(write_rows, write_image, write_dicom, tmp_path, monkeypatch):
    """What the page has on disk."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "CheXpert-v1.0-small"
    for split, count in (("train", 12), ("valid", 2)):
        rows = []
        for number in range(count):
            name = f"{split}/patient{number // 2:05}/study{number}/view1_frontal.jpg"
            write_image(folder / name)
            wanted = (*COMPETITION_CLASSES, "No Finding")[number // 2]
            rows.append([f"{folder.name}/{name}", *("1.0" if c == wanted else "" for c in CLASSES)])
        write_rows(folder / f"{split}.csv", ["Path", *CLASSES], *rows)

    name = "train/patient00001/study1/view1_frontal.jpg"
    other = "valid/patient00002/study1/view1_frontal.jpg"
    for each in (name, other):
        write_image((tmp_path / "chexpert_plus/PNG" / each).with_suffix(".png"))
    write_rows(
        tmp_path / "chexpert_plus/df_chexpert_plus_240401.csv",
        ["path_to_image", "report", "split"],
        [name, "IMPRESSION: Clear.", "train"],
        [other, "IMPRESSION: Clear.", "valid"],
    )
    labels = {"path_to_image": name} | dict.fromkeys(CLASSES)
    (tmp_path / "chexpert_plus/impression_fixed.json").write_text(json.dumps(labels))

    mimic = tmp_path / "mimic-cxr-jpg/2.1.0"
    images = [[f"d{number}", f"5000000{number}", "10000001", "train"] for number in range(2)]
    for image, study, subject, _ in images:
        write_image(mimic / f"files/p10/p{subject}/s{study}/{image}.jpg")
    header = ["dicom_id", "study_id", "subject_id", "split"]
    write_rows(mimic / "mimic-cxr-2.0.0-split.csv", header, *images)
    views = [[image[0], "PA"] for image in images]
    write_rows(mimic / "mimic-cxr-2.0.0-metadata.csv", ["dicom_id", "ViewPosition"], *views)
    sections = [["s50000000", "Clear.", ""], ["s50000001", "", "Nodule."]]
    write_rows(mimic / "mimic_cxr_sectioned.csv", ["study", "impression", "findings"], *sections)

    film = np.full((16, 16), 100)
    rsna = [[f"r{number}", "", "", "", "", "0"] for number in range(20)]
    rsna[1] = ["r1", "2", "4", "4", "6", "1"]
    for row in rsna:
        write_dicom(tmp_path / f"rsna/stage_2_train_images/{row[0]}.dcm", film)
    header = ["patientId", "x", "y", "width", "height", "Target"]
    write_rows(tmp_path / "rsna/stage_2_train_labels.csv", header, *rsna)

    write_dicom(tmp_path / "siim/dicom-images-train/study/series/1.2.3.dcm", film)
    write_rows(tmp_path / "siim/train-rle.csv", ["ImageId", " EncodedPixels"], ["1.2.3", " 9 3"])

    write_image(tmp_path / "images/a.png")
    row = ["images/a.png", "Edema.", "1"]
    write_rows(
        tmp_path / "my.csv", ["image", "report", "edema", "split"], [*row, "train"], [*row, "val"]
    )
    films = [f"images/{number}.png" for number in range(20)]
    for film in films:
        write_image(tmp_path / film)
    people = [[film, "Edema.", f"patient {number // 2}"] for number, film in enumerate(films)]
    rows = write_rows(tmp_path / "all.csv", ["image", "report", "patient"], *people)
    rows.write_text(rows.read_text(), encoding="utf-8-sig")  # as a spreadsheet saves it


def test_the_code_and_the_commands_run(disk, capsys):
    names = run(PAGE)
    assert len(names["test"]) == 5
    assert len(names["few"]) == 2
    drawn = [ImageReportTable("split.csv", part, size=(8, 8)) for part in ("train", "val", "test")]
    assert sorted(image for part in drawn for image in part.ids) == sorted(names["mine"].ids)
    assert len(drawn[0]) > len(drawn[2]) >= len(drawn[1]) > 0
    capsys.readouterr()
    (commands,) = blocks(PAGE, "bash")
    leaks = {}
    for command in commands.splitlines():
        leaks[command] = main([*command.split()[1:], "--quiet"])
    assert list(leaks.values()) == [1, 1, 1, 1]
    shown = capsys.readouterr().out
    # CheXpert Plus's two PNG files have the same pixels
    assert (
        "exact copies with other ids in more than one split: 1 (1 of 1 in train, 1 of 1 in valid)"
        in shown
    )
    assert "patients in more than one split: 1 (2 of 12 in train, 2 of 2 in valid)" in shown
