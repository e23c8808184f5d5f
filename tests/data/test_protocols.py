"""CheXpert 5x200 and 8x200: exclusive, balanced, by seed, and named when there are too few."""

import numpy as np
import pytest

from gloria.data import CheXpert, PhantomPairs, Radiographs, Record
from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES, EIGHT_CLASSES
from gloria.data.phantom import RETRIEVAL_CLASSES, PhantomDataset
from gloria.data.protocols import (
    TEXT_QUERIES,
    chexpert_5x200,
    chexpert_8x200,
    class_labels,
    draw_exclusive,
    read_queries,
)
from gloria.data.splits import hash_ids, read_ids, write_ids
from gloria.errors import DataError, UnknownNameError


@pytest.fixture(scope="module")
def rows():
    """Labels 1, 0, -1 and blank at random, by path."""
    rng = np.random.default_rng(0)
    found = {}
    for number in range(800):
        cells = rng.choice(["", "0.0", "1.0", "-1.0"], len(CLASSES), p=[0.85, 0.05, 0.08, 0.02])
        view = "frontal" if number % 4 else "lateral"
        found[f"train/patient{number // 2:05}/study{number % 2}/view1_{view}.jpg"] = cells.tolist()
    return found


@pytest.fixture
def table(rows, write_rows, write_image, tmp_path):
    write_image(tmp_path / next(name for name in rows if "frontal" in name))

    lines = [[f"CheXpert-v1.0/{name}", *cells] for name, cells in rows.items()]
    return write_rows(tmp_path / "train.csv", ["Path", *CLASSES], *lines)


def test_five_classes_exclusively_positive(rows, table):
    ids = chexpert_5x200(table, seed=0, per_class=6)
    assert len(ids) == len(set(ids)) == 30
    assert all("frontal" in name for name in ids)
    for number, name in enumerate(ids):
        wanted = CLASSES.index(COMPETITION_CLASSES[number // 6])
        for column, cell in enumerate(rows[name]):
            if column == wanted:
                assert cell == "1.0"
            elif CLASSES[column] != "No Finding":
                assert cell in ("", "0.0")


def test_the_seed_decides_and_the_order_of_rows_does_not(table):
    first = chexpert_5x200(table, seed=0, per_class=3)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *lines[2:], lines[1]]) + "\n")
    assert chexpert_5x200(table, seed=0, per_class=3) == first
    assert chexpert_5x200(table, seed=1, per_class=3) != first


def test_its_patients_can_be_left_out_of_training(table):
    data = CheXpert(table, size=(4, 4))
    ids = chexpert_5x200(table, seed=0, per_class=3)
    rest = data.without_patients(data.select(ids).patients)
    assert not set(rest.patients) & {name.split("/")[1] for name in ids}
    assert len(rest) < len(data) - len(ids) < len(data)


def test_too_few_are_named(table, write_image, tmp_path):
    with pytest.raises(DataError, match=r"Atelectasis has \d+ images that are .* 200 were asked"):
        chexpert_5x200(table, seed=0)
    record = Record("a", write_image(tmp_path / "a.png"), "row 2", labels=(1,))
    data = Radiographs([record], classes=("edema",), size=(4, 4))
    assert draw_exclusive(data, ["edema"], 1, seed=0) == ["a"]
    with pytest.raises(UnknownNameError, match="no class 'mass'"):
        draw_exclusive(data, ["mass"], 1, seed=0)


def exclusive_class(cells):
    """The class of CheXpert's row that is positive while all others are blank or 0."""
    (wanted,) = [name for name, cell in zip(CLASSES, cells, strict=True) if cell == "1.0"]
    assert all(cell in ("", "0.0", "1.0") for cell in cells)
    return wanted


def test_eight_classes_of_queries_and_candidates(rows, table):
    drawn = chexpert_8x200(table, seed=0, per_class=4, queries_per_class=2)
    for ids, count in ((drawn.candidates, 4), (drawn.queries, 2)):
        assert [exclusive_class(rows[name]) for name in ids] == [
            name for name in EIGHT_CLASSES for _ in range(count)
        ]
        assert len(set(ids)) == len(ids)
    patients = [{name.split("/")[1] for name in ids} for ids in drawn]
    assert not patients[0] & patients[1]


def test_the_seed_decides_8x200(table):
    first = chexpert_8x200(table, seed=0, per_class=3, queries_per_class=2)
    assert chexpert_8x200(table, seed=0, per_class=3, queries_per_class=2) == first
    other = chexpert_8x200(table, seed=1, per_class=3, queries_per_class=2)
    assert set(other.candidates) != set(first.candidates)
    with pytest.raises(DataError, match=r"Atelectasis has \d+ images that are .* 200 were asked"):
        chexpert_8x200(table, seed=0)


def test_lists_of_8x200_have_a_hash_and_come_back(table, tmp_path):
    drawn = chexpert_8x200(table, seed=0, per_class=3, queries_per_class=2)
    data = CheXpert(table, size=(4, 4), classes=EIGHT_CLASSES, uncertain=-1)
    for name, ids in drawn._asdict().items():
        assert write_ids(tmp_path / name, ids) == hash_ids(ids)
        labels = class_labels(data.select(read_ids(tmp_path / name)), EIGHT_CLASSES)
        per_class = len(ids) // 8
        assert labels.tolist() == [number for number in range(8) for _ in range(per_class)]


def test_convirts_own_lists_can_be_read(write_rows, write_image, tmp_path):
    """Its candidates are rows of CheXpert's file, its queries a class and a path or text."""
    names = [f"train/patient{number:05}/study1/view1_frontal.jpg" for number in range(8)]
    for name in names:
        write_image(tmp_path / "CheXpert-v1.0-small" / name)
    lines = [
        [f"CheXpert-v1.0-small/{name}", *("1.0" if each == wanted else "0.0" for each in CLASSES)]
        for name, wanted in zip(names, EIGHT_CLASSES, strict=True)
    ]
    table = write_rows(tmp_path / "candidate.csv", ["Path", *CLASSES], *lines)
    data = CheXpert(
        table, size=(4, 4), root=tmp_path / "CheXpert-v1.0-small", classes=EIGHT_CLASSES
    )
    assert class_labels(data, EIGHT_CLASSES).tolist() == list(range(8))
    pairs = list(zip(EIGHT_CLASSES, (line[0] for line in lines), strict=True))
    queries = read_queries(
        write_rows(tmp_path / "query.csv", ["Variable", "Path"], *reversed(pairs)),
        query_column="Path",
    )
    assert list(queries) == list(EIGHT_CLASSES)
    selected = data.select(queries["Edema"])
    assert selected.ids == [names[EIGHT_CLASSES.index("Edema")]]


def test_our_own_queries_are_five_for_each_class():
    assert tuple(TEXT_QUERIES) == EIGHT_CLASSES
    flat = [text for texts in TEXT_QUERIES.values() for text in texts]
    assert len(flat) == len(set(flat)) == 40
    assert {len(texts) for texts in TEXT_QUERIES.values()} == {5}


def test_faults_of_a_query_file_are_named(write_rows, tmp_path):
    def read(*rows):
        path = write_rows(tmp_path / "query.csv", ["Variable", "Text"], *rows)
        return read_queries(path, ("Edema", "Fracture"))

    assert read(["Edema", "Wet."], ["Fracture", "Broken."]) == {
        "Edema": ["Wet."],
        "Fracture": ["Broken."],
    }
    with pytest.raises(UnknownNameError, match=r"row 3, column 'Variable': .* no class 'Mass'"):
        read(["Edema", "Wet."], ["Mass", "Round."])
    with pytest.raises(DataError, match=r"row 2, column 'Text': no query"):
        read(["Edema", " "])
    with pytest.raises(DataError, match=r"query.csv has no query for Fracture"):
        read(["Edema", "Wet."])
    with pytest.raises(DataError, match="has no column 'Query'"):
        read_queries(tmp_path / "query.csv", ("Edema",), query_column="Query")


def test_images_of_no_or_several_classes_are_named(write_image, tmp_path):
    file = write_image(tmp_path / "a.png")

    def data(*labels):
        records = [Record(str(n), file, f"row {n}", labels=each) for n, each in enumerate(labels)]
        return Radiographs(records, classes=("edema", "mass", "other"), size=(4, 4))

    assert class_labels(data((0, 1, 1), (1, 0, -1)), ["mass", "edema"]).tolist() == [0, 1]
    with pytest.raises(DataError, match="1 are not, first: row 1, positive for none"):
        class_labels(data((0, 1, 1), (-1, 0, 1)), ["mass", "edema"])
    with pytest.raises(DataError, match="2 are not, first: row 0, positive for edema and mass"):
        class_labels(data((1, 1, 0), (0, 0, 1)), ["edema", "mass"])
    with pytest.raises(UnknownNameError, match="no class 'effusion'"):
        class_labels(data((1, 1, 0)), ["effusion"])


def test_of_what_has_no_records_an_image_is_named_by_its_id():
    exclusive = PhantomPairs(PhantomDataset("val_5x2"))
    assert class_labels(exclusive, RETRIEVAL_CLASSES).tolist() == [0, 1, 2, 3, 4] * 2
    with pytest.raises(DataError, match=r"10 are not, first: 00000, positive for none\.$"):
        class_labels(exclusive, ["pneumothorax"])
