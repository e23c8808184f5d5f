"""Items depend on (seed, split, index) alone; splits are what their names say."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from gloria.data.phantom import (
    FINDINGS,
    RETRIEVAL_CLASSES,
    SPLITS,
    PhantomDataset,
    PhantomItem,
    phantom_item,
    split_words,
)
from gloria.errors import DtypeError, OptionError


def assert_same(first: PhantomItem, second: PhantomItem) -> None:
    for name, a, b in zip(PhantomItem._fields, first, second, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, name


def test_an_item_has_the_documented_shapes() -> None:
    item = phantom_item("train", 1, size=48)
    assert (item.image.shape, item.image.dtype) == ((48, 48), np.uint8)
    assert (item.masks.shape, item.masks.dtype) == ((6, 48, 48), np.bool_)
    assert (item.labels.shape, item.labels.dtype) == ((6,), np.uint8)
    assert item.report == " ".join(sentence.text for sentence in item.sentences)
    assert item.sides == {finding.name: finding.side for finding in item.case}


def test_labels_masks_and_case_agree() -> None:
    for item in PhantomDataset("val", count=60, size=32):
        shown = {finding.name for finding in item.case}
        assert [name in shown for name in FINDINGS] == item.labels.astype(bool).tolist()
        np.testing.assert_array_equal(item.masks.any((1, 2)), item.labels.astype(bool))
        for mention in item.mentions:
            expected = mention.polarity == "positive"
            assert item.labels[FINDINGS.index(mention.finding)] == expected


def test_the_side_in_the_report_is_the_side_of_the_mask() -> None:
    """Words against pixels: the patient's left is the right half of the picture."""
    compared = 0
    for item in PhantomDataset("train", count=150):
        for mention in item.mentions:
            if mention.polarity == "negative" or mention.side not in ("left", "right"):
                continue
            sentence = next(s for s in item.sentences if mention in s.mentions)
            assert mention.side in split_words(sentence.text)
            columns = item.masks[FINDINGS.index(mention.finding)].sum(0)
            on_the_left = columns[32:].sum() > columns[:32].sum()
            assert on_the_left == (mention.side == "left")
            compared += 1
    assert compared > 40


def test_items_are_deterministic_in_any_order() -> None:
    first = [phantom_item("train", index) for index in (0, 5, 2)]
    again = [phantom_item("train", index) for index in (2, 0, 5)]
    for a, b in zip(first, (again[1], again[2], again[0]), strict=True):
        assert_same(a, b)


def test_items_stay_what_they_were() -> None:
    """A changed drawing would silently change every recorded figure."""
    item = phantom_item("train", 3)
    assert [tuple(finding) for finding in item.case] == [
        ("atelectasis", 2, "right", None),
        ("cardiomegaly", 3, None, None),
        ("pneumothorax", 1, "left", None),
    ]
    assert item.report.startswith("Severe enlargement of the cardiac silhouette.")


def test_seed_and_split_make_other_items() -> None:
    items = [phantom_item("train", 0), phantom_item("train", 0, seed=1), phantom_item("val", 0)]
    pictures = {item.image.tobytes() for item in items}
    assert len(pictures) == 3


def test_size_and_contrast_change_neither_case_nor_report() -> None:
    base = phantom_item("test", 4)
    for other in (phantom_item("test", 4, size=96), phantom_item("test", 4, contrast=1.25)):
        assert (other.case, other.report, other.sentences) == (
            base.case,
            base.report,
            base.sentences,
        )


def test_no_film_is_in_two_places() -> None:
    splits = ("train", "val", "test", "val_5x8", "test_5x8")
    pictures = [
        item.image.tobytes()
        for split in splits
        for item in PhantomDataset(split, size=32, count=None if "5x" in split else 40)
    ]
    assert len(set(pictures)) == len(pictures) == 200


@pytest.mark.parametrize("split", ["val_5x12", "test_5x12"])
def test_5xn_has_n_of_each_class_exclusively(split: str) -> None:
    dataset = PhantomDataset(split, size=32)
    assert len(dataset) == 60
    classes = Counter()
    for index, item in enumerate(dataset):
        assert item.labels.sum() == 1
        name = FINDINGS[int(item.labels.argmax())]
        assert name == RETRIEVAL_CLASSES[index % 5]
        classes[name] += 1
    assert classes == dict.fromkeys(RETRIEVAL_CLASSES, 12)


def test_a_smaller_5xn_is_the_start_of_a_larger_one() -> None:
    assert_same(phantom_item("val_5x3", 14), phantom_item("val_5x100", 14))


def test_usual_sizes() -> None:
    assert SPLITS == {
        "train": 4000, "val": 800, "test": 800, "val_5x100": 500, "test_5x100": 500,
    }  # fmt: skip
    for split, size in SPLITS.items():
        assert len(PhantomDataset(split)) == size


def test_drawing_ahead_changes_nothing_and_reports_progress() -> None:
    lazy = PhantomDataset("val", count=5, size=32, seed=2)
    steps: list[int] = []
    ahead = PhantomDataset("val", count=5, size=32, seed=2).draw(progress=steps.append)
    assert sum(steps) == 5
    for a, b in zip(lazy, ahead, strict=True):
        assert_same(a, b)
    assert ahead[1] is ahead[1]


def test_a_dataset_is_a_sequence_and_can_be_sent_to_workers() -> None:
    dataset = PhantomDataset("train", count=3, size=32)
    assert len(list(dataset)) == 3
    assert_same(dataset[-1], dataset[2])
    for index in (3, -4):
        with pytest.raises(IndexError, match="below 3"):
            dataset[index]
    assert_same(pickle.loads(pickle.dumps(dataset))[1], dataset[1])


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    phantom_item("train", 0, size=32)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "training"}, "split must be .* got 'training'"),
        ({"split": "val_5x0"}, "split must be"),
        ({"split": "train_5x10"}, "split must be"),
        ({"split": None}, "split must be"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"size": 31}, "size must be at least 32; got 31"),
        ({"contrast": 0.0}, "contrast must be a finite number above 0; got 0.0"),
        ({"contrast": float("nan")}, "contrast must be"),
    ],
)
def test_bad_options(arguments: dict[str, object], message: str) -> None:
    arguments = {"split": "train", **arguments}
    with pytest.raises(OptionError, match=message):
        phantom_item(index=0, **arguments)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=message):
        PhantomDataset(**arguments)  # type: ignore[arg-type]


def test_bad_indices_counts_and_types() -> None:
    with pytest.raises(OptionError, match="index must be at least 0; got -1"):
        phantom_item("train", -1)
    with pytest.raises(OptionError, match="index must be below 10 in split 'val_5x2'; got 10"):
        phantom_item("val_5x2", 10)
    with pytest.raises(OptionError, match="count must be at least 1; got 0"):
        PhantomDataset("train", count=0)
    with pytest.raises(OptionError, match="count must be left out for split 'val_5x2'"):
        PhantomDataset("val_5x2", count=20)
    for wrong in (1.5, True, "3"):
        with pytest.raises(DtypeError, match="index must be an integer"):
            phantom_item("train", wrong)  # type: ignore[arg-type]
