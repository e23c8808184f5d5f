"""Shares and splits: by patient, as frequent as in the whole, the same for one seed; id lists."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gloria.data.splits import draw_share, draw_splits, hash_ids, read_ids, write_ids
from gloria.errors import DataError, OptionError, ShapeError


@pytest.fixture(scope="module")
def population():
    """6,000 images of 2,000 patients with classes of 40, 20, 5 and 1 % of the patients."""
    rng = np.random.default_rng(0)
    frequent = rng.random((2000, 4)) < [0.4, 0.2, 0.05, 0.01]
    owner = np.repeat(np.arange(2000), 3)
    labels = (frequent[owner] & (rng.random((6000, 4)) < 0.7)).astype(int)
    ids = [f"image{number}" for number in range(6000)]
    return ids, labels, [f"patient{number}" for number in owner]


def patients_with(ids, labels, patients, chosen):
    """Patients with each class among the chosen images, counted one by one."""
    found = [set() for _ in range(labels.shape[1])]
    wanted = set(chosen)
    for name, row, patient in zip(ids, labels.tolist(), patients, strict=True):
        for number, label in enumerate(row):
            if label == 1 and name in wanted:
                found[number].add(patient)
    return [len(people) for people in found]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_share_is_of_whole_patients_with_each_class_its_share(population, share, seed):
    ids, labels, patients = population
    chosen = draw_share(ids, labels, share, seed=seed, patients=patients)
    owner = dict(zip(ids, patients, strict=True))
    assert len({owner[name] for name in chosen}) == round(2000 * share)
    assert len(chosen) == round(2000 * share) * 3
    assert chosen == [name for name in ids if name in set(chosen)]
    everyone = patients_with(ids, labels, patients, ids)
    here = patients_with(ids, labels, patients, chosen)
    # the rarest class exactly, the others within one for each combination of rarer ones
    for count, whole, slack in zip(here, everyone, (8, 4, 2, 1), strict=True):
        assert abs(count - whole * share) <= slack


def test_the_seed_decides_and_the_order_of_images_does_not(population):
    ids, labels, patients = population
    first = draw_share(ids, labels, 0.1, seed=3, patients=patients)
    turned = draw_share(ids[::-1], labels[::-1], 0.1, seed=3, patients=patients[::-1])
    assert first == turned[::-1]
    other = draw_share(ids, labels, 0.1, seed=4, patients=patients)
    assert len(set(first) & set(other)) < 0.4 * len(first)


def test_every_patient_is_as_likely():
    ids = [f"i{number}" for number in range(20)]
    labels = [[number < 7, number % 3 == 0] for number in range(20)]
    counts = dict.fromkeys(ids, 0)
    for seed in range(400):
        for name in draw_share(ids, labels, 0.25, seed=seed):
            counts[name] += 1
    # 100 expected, standard deviation 9
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


@given(st.integers(1, 30), st.integers(1, 5), st.floats(0.001, 1), st.integers(0, 99))
def test_a_share_of_any_size(images, classes, share, seed):
    rng = np.random.default_rng(seed)
    ids = [str(number) for number in range(images)]
    owners = [str(number) for number in rng.integers(0, 5, images)]
    labels = rng.integers(-1, 2, (images, classes))
    chosen = draw_share(ids, labels, share, seed=seed, patients=owners)
    whole = {owners[int(name)] for name in chosen}
    assert len(whole) == max(round(share * len(set(owners))), 1)
    assert chosen == [name for name in ids if owners[int(name)] in whole]


def test_splits_are_disjoint_by_patient_and_alike(population):
    ids, labels, patients = population
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    splits = draw_splits(ids, labels, shares, seed=0, patients=patients)
    owner = dict(zip(ids, patients, strict=True))
    people = {name: {owner[image] for image in images} for name, images in splits.items()}
    assert sorted(image for images in splits.values() for image in images) == sorted(ids)
    assert sum(map(len, people.values())) == 2000
    everyone = patients_with(ids, labels, patients, ids)
    for name, share in shares.items():
        assert len(people[name]) == round(2000 * share)
        here = patients_with(ids, labels, patients, splits[name])
        for count, whole in zip(here, everyone, strict=True):
            assert abs(count - whole * share) <= 12
    assert splits == draw_splits(ids, labels, shares, seed=0, patients=patients)


class Column:
    """A column of pandas in small: indexed by labels of its own, iterated by place."""

    def __init__(self, values, labels):
        self.values, self.labels = values, labels

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)

    def __getitem__(self, label):
        return self.values[self.labels.index(label)]


def test_columns_are_read_by_place_whatever_their_own_labels(population):
    ids, labels, patients = population
    numbers = np.random.default_rng(1).permutation(len(ids)).tolist()
    columns = [Column(values, numbers) for values in (ids, patients)]
    shares = {"train": 0.7, "test": 0.3}
    assert draw_splits(columns[0], labels, shares, seed=0, patients=columns[1]) == draw_splits(
        ids, labels, shares, seed=0, patients=patients
    )
    assert draw_share(columns[0], labels, 0.1, seed=0, patients=columns[1]) == draw_share(
        ids, labels, 0.1, seed=0, patients=patients
    )


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([["1"], ["0"]], "'1' for id 'a'"),
        ([[0], [float("nan")]], "nan for id 'b'"),
        ([[True], [2]], "2 for id 'b'"),
        (np.array([[1], [None]], object), "None for id 'b'"),
    ],
)
def test_what_is_no_label_does_not_count_as_negative(labels, got):
    message = rf"labels must be 1 \(positive\), .* got {got}, class 0"
    with pytest.raises(DataError, match=message):
        draw_share(["a", "b"], labels, 0.5, seed=0)
    with pytest.raises(DataError, match=message):
        draw_splits(["a", "b"], labels, {"train": 1}, seed=0)


def test_booleans_are_labels():
    ids, labels = list("abcd"), np.array([[True], [False], [True], [False]])
    assert draw_share(ids, labels, 0.5, seed=0) == draw_share(ids, labels.astype(int), 0.5, seed=0)


def test_what_can_not_be_drawn():
    ids, labels = ["a", "b"], [[1], [0]]
    for share in (0, -1, 1.5):
        with pytest.raises(OptionError, match="share must be"):
            draw_share(ids, labels, share, seed=0)
    for unknown in (None, float("nan")):  # as pandas has what is missing
        with pytest.raises(DataError, match="patients of 2 of 3 ids are not known; first: 'b'"):
            draw_share(list("abc"), [[1]] * 3, 0.5, seed=0, patients=["p", unknown, unknown])
    with pytest.raises(DataError, match="id 'a' comes 2 times"):
        draw_share(["a", "a"], labels, 0.5, seed=0)
    with pytest.raises(ShapeError, match=r"labels must be \(image, class\) .* for 2 ids; got \(1,"):
        draw_share(ids, [[1]], 0.5, seed=0)
    with pytest.raises(ShapeError, match="and 1"):
        draw_share(ids, labels, 0.5, seed=0, patients=["p"])
    with pytest.raises(ShapeError, match="and 1"):
        draw_splits(ids, labels, {"train": 0.5, "val": 0.5}, seed=0, patients=["p"])
    with pytest.raises(OptionError, match="shares must add up to 1"):
        draw_splits(ids, labels, {"train": 0.5, "val": 0.4}, seed=0)
    with pytest.raises(OptionError, match="shares must each be above 0"):
        draw_splits(ids, labels, {"train": 1, "val": 0}, seed=0)
    with pytest.raises(DataError, match="no patient is left for 'val': there are 2 in all"):
        draw_splits(ids, labels, {"train": 0.9, "val": 0.1}, seed=0)


def test_a_list_comes_back_and_its_hash_is_verified(tmp_path):
    path, ids = tmp_path / "ids.txt", ["train/é b.jpg", "a", "c"]
    digest = write_ids(path, ids, about="CheXpert 5x200, seed 0")
    assert read_ids(path) == ids
    assert digest == hash_ids(["c", "a", "train/é b.jpg"])
    assert path.read_text(encoding="utf-8").splitlines()[:2] == [
        f"# sha256 {digest}",
        "# CheXpert 5x200, seed 0",
    ]
    for change in (lambda text: text + "d\n", lambda text: text.replace("\na\n", "\n")):
        changed = tmp_path / "changed.txt"
        changed.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        with pytest.raises(DataError, match=r"changed\.txt was changed: its \d ids have the hash"):
            read_ids(changed)


def test_the_hash_is_that_of_the_sorted_lines():
    assert hash_ids(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()


def test_lists_of_others(tmp_path):
    path = tmp_path / "theirs.txt"
    path.write_text("a\n\n b \n")
    assert read_ids(path) == ["a", "b"]
    path.write_text("a\nb\n", encoding="utf-8-sig")  # as editors of Windows save it
    assert read_ids(path) == ["a", "b"]
    table = tmp_path / "theirs.csv"
    table.write_text("Path,Edema\nx/a.jpg,1\nx/b.jpg,0\n")
    assert read_ids(table, "Path") == ["x/a.jpg", "x/b.jpg"]
    with pytest.raises(DataError, match="no column 'image'"):
        read_ids(table, "image")
    path.write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"theirs\.txt: id 'a' comes 2 times"):
        read_ids(path)
    path.write_text("\n")
    with pytest.raises(DataError, match=r"theirs\.txt: there is no id"):
        read_ids(path)
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"is not UTF-8 .* Save the file as UTF-8"):
        read_ids(path)
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        read_ids(tmp_path / "none.txt")


@pytest.mark.parametrize("ids", [[], ["a", "a"], ["a\nb"], ["#a"], [" a"], [""]])
def test_what_is_no_list_is_not_written(tmp_path, ids):
    with pytest.raises(DataError, match=r"ids\.txt: "):
        write_ids(tmp_path / "ids.txt", ids)
    assert list(tmp_path.iterdir()) == []
