"""Our own prompts: what a radiologist would not say is not among them."""

import re

import pytest

from gloria.data.chest_prompts import CHEST_PROMPTS
from gloria.data.chexpert import CLASSES, COMPETITION_CLASSES
from gloria.data.prompts import read_prompts, select_prompts, write_prompts

PLACE = re.compile(r"\b(left|right|bilateral|both|lobe|lingula|base|bases)\b")
SIDED = re.compile(r"\b(left|right|lobe|lingula)\b")


def test_the_classes_are_those_of_chexpert():
    assert tuple(CHEST_PROMPTS)[:5] == COMPETITION_CLASSES
    assert set(CHEST_PROMPTS) == {*COMPETITION_CLASSES, "Pneumonia", "Pneumothorax"}
    assert set(CHEST_PROMPTS) <= set(CLASSES)
    assert list(select_prompts(CHEST_PROMPTS, COMPETITION_CLASSES)) == list(COMPETITION_CLASSES)


@pytest.mark.parametrize("name", CHEST_PROMPTS)
def test_a_class_has_many_prompts_and_some_that_deny_it(name):
    prompts = CHEST_PROMPTS[name]
    assert len(prompts.prompts) >= 20
    assert len(prompts.negative_prompts) >= 4
    everything = prompts.prompts + prompts.negative_prompts
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)*", prompt) for prompt in everything)
    denial = re.compile(r"\b(no|not|normal|clear|sharp|well)\b")
    assert all(denial.search(prompt) for prompt in prompts.negative_prompts)
    assert not any(denial.search(prompt) for prompt in prompts.prompts)


@pytest.mark.parametrize("name", CHEST_PROMPTS)
def test_findings_of_both_lungs_have_no_side(name):
    for prompt in CHEST_PROMPTS[name].prompts:
        if re.search("bilateral|multifocal|bronchopneumonia|both lungs", prompt):
            assert not SIDED.search(prompt)


def test_a_severity_and_a_place_stand_with_what_can_have_them():
    assert not any(PLACE.search(text) for text in CHEST_PROMPTS["Cardiomegaly"].prompts)
    assert not any(SIDED.search(text) for text in CHEST_PROMPTS["Edema"].prompts)
    for name, prompts in CHEST_PROMPTS.items():
        for text in prompts.prompts:
            assert not re.search("(tiny|small|moderate) tension|large apical", text)
            assert not re.search("mild alveolar|severe interstitial|large subpulmonic", text)
            assert not re.search("focal .*focal|lobar .*lingula|left middle lobe", text)
            assert not ("heart" in text or "cardiac" in text) or name == "Cardiomegaly"
            # sizes are of what has a volume, degrees of what has none
            fluid_or_air = name in ("Pleural Effusion", "Pneumothorax")
            assert fluid_or_air or not re.search(r"\b(trace|tiny|small|large)\b", text)
            assert not fluid_or_air or not re.search(r"\b(mild|minimal|severe)\b", text)


def test_examples_of_every_kind():
    for name, text in [
        ("Atelectasis", "mild linear atelectasis at the left lung base"),
        ("Atelectasis", "complete collapse of the right middle lobe"),
        ("Cardiomegaly", "moderate cardiomegaly"),
        ("Consolidation", "dense consolidation in the lingula"),
        ("Edema", "severe pulmonary edema in a perihilar distribution"),
        ("Pleural Effusion", "small pleural effusion on the right"),
        ("Pneumonia", "pneumonia in the right lower lobe"),
        ("Pneumothorax", "tiny apical pneumothorax on the left"),
    ]:
        assert text in CHEST_PROMPTS[name].prompts


def test_they_are_a_file_to_start_from(tmp_path):
    write_prompts(tmp_path / "chest.yaml", CHEST_PROMPTS)
    assert read_prompts(tmp_path / "chest.yaml") == CHEST_PROMPTS
