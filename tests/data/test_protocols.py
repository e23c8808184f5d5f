"""CheXpert 5x200: exclusive, balanced, the same for one seed, and named when there are too few."""

import numpy as np
import pytest

from gloria.data import CheXpert, Radiographs, Record
from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES
from gloria.data.protocols import chexpert_5x200, draw_exclusive
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
