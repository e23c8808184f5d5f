"""What the tasks are evaluated on: disjoint, of one class each, honest about what is missing."""

from functools import partial

import numpy as np
import pytest

from gloria.data import Radiographs, Record
from gloria.data.chest_prompts import CHEST_PROMPTS
from gloria.data.masks import Box, decode_runs, draw_boxes
from gloria.data.phantom import RETRIEVAL_CLASSES, PhantomDataset
from gloria.data.prompts import PromptSet
from gloria.data.transfer import PHANTOM_NOTE, Splits, TransferData, draw_patients
from gloria.errors import DataError, UnknownNameError

CLASSES = ("Edema", "Cardiomegaly")


@pytest.fixture
def radiographs(write_image, tmp_path):
    """Forty images of twenty patients, with what is asked for."""

    def radiographs(classes=CLASSES, *, report="Edema.", masks=False):
        mask = (lambda height, width: np.ones((height, width), bool)) if masks else None
        records = [
            Record(
                id=f"image{number}",
                path=write_image(tmp_path / f"{number}.png"),
                where=f"row {number}",
                patient=f"patient{number // 2}",
                report=report,
                labels=tuple(int((number // 2) % 3 == k) for k in range(len(classes))),
                mask=mask,
            )
            for number in range(40)
        ]
        return Radiographs(records, classes=classes, size=(8, 8))

    return radiographs


def test_phantoms_have_all_four_tasks_and_say_what_they_are():
    drawn = []
    data = TransferData.phantoms(seed=3, train=6, val=4, test=5, per_class=2, progress=drawn.append)
    assert sum(drawn) == 25
    assert not data.missing
    assert data.note == PHANTOM_NOTE
    assert [len(each) for each in data.labelled] == [len(each) for each in data.masked] == [6, 4, 5]
    test = list(PhantomDataset("test", count=5, seed=3))
    assert (data.labelled.test.labels == [item.labels for item in test]).all()
    assert data.masked.test[4].mask[0].numpy().tolist() == test[4].masks[5].tolist()
    labels = data.gallery.labels[:, : len(RETRIEVAL_CLASSES)]
    assert labels.argmax(1).tolist() == [0, 1, 2, 3, 4] * 2
    assert set(data.classes) <= set(data.prompts)
    small = TransferData.phantoms(train=1, val=1, test=1, per_class=1, size=32)
    assert small.masked.val[0].image.shape == (1, 32, 32)


def test_patients_are_in_one_split_only_and_all_of_them_are(radiographs):
    splits = draw_patients(radiographs(), seed=0)
    patients = [set(each.patients) for each in splits]
    assert not patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2]
    assert [len(each) for each in patients] == [14, 2, 4]
    assert draw_patients(radiographs(), seed=0).test.ids == splits.test.ids
    assert draw_patients(radiographs(), seed=1).test.ids != splits.test.ids


def test_the_gallery_is_drawn_of_test_images_that_show_one_class_only(radiographs):
    splits = draw_patients(radiographs(), seed=0)
    data = TransferData.of_radiographs("films", splits, CHEST_PROMPTS, per_class=2)
    assert (data.gallery.labels.sum(1) == 1).all()
    assert data.gallery.labels.sum(0).tolist() == [2, 2]
    assert set(data.gallery.ids) <= set(splits.test.ids)
    assert data.missing == {"segmentation": "the images have no masks"}
    assert list(data.prompts) == list(CLASSES)
    with pytest.raises(UnknownNameError, match="no class 'Gout'; there are"):
        TransferData.of_radiographs("films", splits, CHEST_PROMPTS, classes=("Edema", "Gout"))


def test_prompts_are_found_whatever_the_capitals_and_underscores(radiographs):
    own = {**CHEST_PROMPTS, "edema": CHEST_PROMPTS["Pneumonia"]}
    for prompts, expected in ((CHEST_PROMPTS, "Edema"), (own, "Pneumonia")):
        splits = draw_patients(radiographs(("edema", "CARDIOMEGALY")), seed=0)
        data = TransferData.of_radiographs("films", splits, prompts)
        assert data.prompts["edema"] is CHEST_PROMPTS[expected]
        assert data.prompts["CARDIOMEGALY"] is CHEST_PROMPTS["Cardiomegaly"]
        assert "zero-shot" not in data.missing
    splits = draw_patients(radiographs(("pleural_effusion", "edema")), seed=0)
    data = TransferData.of_radiographs("films", splits, CHEST_PROMPTS)
    assert data.prompts["pleural_effusion"] is CHEST_PROMPTS["Pleural Effusion"]


def test_splits_and_galleries_that_leak_are_refused(radiographs):
    data = radiographs()
    train, val, test = (data.select(data.ids[k::3]) for k in range(3))  # patients have two images
    with pytest.raises(
        DataError, match=r"(?s)the splits leak.*patients in more than one split: 20"
    ):
        TransferData.of_radiographs("films", Splits(train, val, test), CHEST_PROMPTS)
    splits = draw_patients(data, seed=0)
    for part in ("train", "val"):
        gallery = getattr(splits, part)
        with pytest.raises(DataError, match=f"(?s)the splits leak.*{part}: .* gallery: "):
            TransferData.of_radiographs("films", splits, CHEST_PROMPTS, gallery=gallery)
    data = TransferData.of_radiographs("films", splits, CHEST_PROMPTS, gallery=splits.test)
    assert data.gallery is splits.test


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (
            {"classes": ("Pneumothorax",), "masks": True, "report": ""},
            {"retrieval": "it needs two classes or more"},
        ),
        (
            {"classes": ("Gout",), "masks": True},
            {
                "retrieval": "it needs two classes or more",
                "zero-shot": "a class alone needs negative prompts, too, and Gout has none; in a "
                "file of prompts they are under its key 'negative'",
            },
        ),
        ({"report": "", "masks": True}, {"retrieval": "the images have no reports"}),
        (
            {"classes": (*CLASSES, "Pneumonia", "Fracture"), "report": "", "masks": True},
            {
                "retrieval": "the images have no reports",  # which no other image mends
                "zero-shot": "no test image shows Fracture and nothing else",
            },
        ),
        (
            {"classes": ("Edema", "Lupus"), "masks": True},
            {
                "zero-shot": "there are no prompts for Lupus; for these: "
                + ", ".join([*CHEST_PROMPTS, "Fracture", "Gout"])
            },
        ),
        (
            {"classes": (*CLASSES, "Pneumonia", "Fracture"), "masks": True},
            dict.fromkeys(
                ("retrieval", "zero-shot"),
                "no test image shows Fracture and nothing else",
            ),
        ),
        (
            {"classes": (), "masks": True},
            dict.fromkeys(("retrieval", "zero-shot", "classification"), "the data have no labels"),
        ),
    ],
)
def test_what_the_data_do_not_permit_is_said(radiographs, given, missing):
    splits = draw_patients(radiographs(**given), seed=0)
    own = {"Fracture": CHEST_PROMPTS["Edema"], "Gout": PromptSet(["swollen toe"])}
    prompts = {**CHEST_PROMPTS, **own}
    assert TransferData.of_radiographs("films", splits, prompts).missing == missing


def test_pairs_ask_for_their_own_reports_without_labels(radiographs):
    pairs = radiographs(())
    data = TransferData.of_pairs("mine", pairs, note="Seen.")
    assert (data.name, data.gallery, data.note) == ("mine", pairs, "Seen.")
    assert set(data.missing) == {"zero-shot", "classification", "segmentation"}
    other = TransferData.of_pairs("mine", radiographs((), report="No edema."))
    assert data.fingerprint() != other.fingerprint()
    silent = TransferData.of_pairs("mine", radiographs((), report=""))
    assert silent.missing["retrieval"] == "the images have no reports"
    pairs.records[3] = pairs.records[3]._replace(report="")
    told = TransferData.of_pairs("mine", pairs).missing["retrieval"]
    assert told == "1 of 40 images have no report, first: image3"


def test_the_fingerprint_is_of_labels_and_reports(radiographs):
    prints = {
        TransferData.of_radiographs("f", draw_patients(data, seed=seed), {}).fingerprint()
        for data in (radiographs(), radiographs(report="No edema."))
        for seed in (0, 1, 0)
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"patient": "patient0"},
        {"mask": partial(decode_runs, ["0 3"])},
        {"mask": partial(decode_runs, ["0 2", "1 1"])},
        {"mask": partial(draw_boxes, [Box(1, 2, 3, 4)])},
    ],
)
def test_the_fingerprint_is_of_patients_and_masks(radiographs, change):
    data = radiographs()
    records = [record._replace(mask=partial(decode_runs, ["0 2"])) for record in data.records]

    def fingerprint(**changed):
        data.records = [*records[:-1], records[-1]._replace(**changed)]
        splits = Splits(*(data.select(data.ids[part::3]) for part in range(3)))
        return TransferData("films", None, CLASSES, splits, splits, {}).fingerprint()

    assert fingerprint() == fingerprint()
    assert fingerprint(**change) != fingerprint()


def test_the_fingerprint_tells_whose_a_mask_is(radiographs):
    data, mask = radiographs(), partial(decode_runs, ["0 2"])
    plain, prints = data.records, set()
    for place in (0, 3):  # of one split
        data.records = list(plain)
        data.records[place] = plain[place]._replace(mask=mask)
        splits = Splits(*(data.select(data.ids[part::3]) for part in range(3)))
        prints.add(TransferData("films", None, CLASSES, splits, splits, {}).fingerprint())
    assert len(prints) == 2
