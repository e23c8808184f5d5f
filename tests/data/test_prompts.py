"""Prompts: all combinations in order, files that say where they are wrong."""

import json
import sys

import pytest
import yaml

from gloria.data.prompts import (
    Combinations,
    PromptSet,
    combine,
    read_prompts,
    select_prompts,
    write_prompts,
)
from gloria.errors import (
    DataError,
    DtypeError,
    MissingDependencyError,
    OptionError,
    UnknownNameError,
)

EFFUSION = Combinations(
    severity=["", "small"], subtype=["effusion", "fluid"], location=["", "on the left"]
)
SETS = {
    "Pleural Effusion": PromptSet([EFFUSION, "blunted angle"], ["no effusion"]),
    "No Finding": PromptSet(["normal — no change", "no"], []),
}


def test_every_severity_stands_with_every_subtype_and_location_in_order():
    assert EFFUSION.prompts == [
        "effusion",
        "effusion on the left",
        "fluid",
        "fluid on the left",
        "small effusion",
        "small effusion on the left",
        "small fluid",
        "small fluid on the left",
    ]
    prompts = SETS["Pleural Effusion"]
    assert prompts.prompts == [*EFFUSION.prompts, "blunted angle"]
    assert prompts.negative_prompts == ["no effusion"]


def test_nothing_is_combined_with_nothing():
    assert combine(["a", "b"], []) == []
    assert combine([""], ["c"], [""]) == ["c"]


def test_a_set_does_not_change_with_the_lists_it_was_made_from():
    words, entries = ["edema"], ["edema"]
    combinations, prompts = Combinations(subtype=words), PromptSet(entries)
    words.append("congestion")
    entries.append("congestion")
    assert combinations.prompts == prompts.prompts == ["edema"]


def test_some_prompts_are_drawn_by_seed_and_keep_their_order():
    whole = SETS["Pleural Effusion"]
    draws = [whole.draw(3, seed=seed) for seed in range(20)]
    assert draws == [whole.draw(3, seed=seed) for seed in range(20)]
    assert len({each.positive for each in draws}) > 10
    for each in draws:
        assert len(set(each.prompts)) == 3
        assert each.prompts == [text for text in whole.prompts if text in each.prompts]
        assert each.negative == whole.negative
    assert {text for each in draws for text in each.prompts} == set(whole.prompts)
    assert whole.draw(9, seed=0).prompts == whole.prompts
    with pytest.raises(OptionError, match="count must be from 1 to 9; got 10"):
        whole.draw(10, seed=0)


def test_classes_are_put_in_the_order_of_a_data_set():
    classes = ["No Finding", "Pleural Effusion"]
    selected = select_prompts(SETS, classes)
    assert list(selected) == classes
    assert selected == SETS
    with pytest.raises(UnknownNameError, match=r"class 'Edema'; there are for Pleural Eff.*, No"):
        select_prompts(SETS, ["Edema"])
    with pytest.raises(DtypeError, match=r"classes must be .* one string\. Wrap it: \['Edema'\]"):
        select_prompts(SETS, "Edema")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Combinations(subtype="edema"), DtypeError, "subtype must be a list .* 'edema'"),
        (lambda: Combinations(subtype=[]), OptionError, "subtype must hold at least one text"),
        (lambda: Combinations(subtype=["a", ""]), OptionError, "subtype must hold no empty text"),
        (lambda: Combinations(subtype=["a"], severity=[1]), DtypeError, "severity must hold texts"),
        (lambda: Combinations(subtype=["a", "a"]), OptionError, "subtype .* 'a' comes twice"),
        (lambda: PromptSet([]), OptionError, "positive must hold at least one prompt"),
        (lambda: PromptSet("edema"), DtypeError, "positive must be a list of prompts"),
        (lambda: PromptSet(["a"], "b"), DtypeError, "negative must be a list of prompts"),
        (lambda: PromptSet(["a", None]), DtypeError, "positive, entry 2: .* got None"),
        (lambda: PromptSet(["a", " "]), OptionError, "prompts must hold no empty text"),
        (lambda: PromptSet(["a"], ["a"]), OptionError, "'a' comes twice"),
    ],
)
def test_bad_prompts_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("name", ["prompts.json", "prompts.yaml", "prompts.YML"])
def test_files_bring_back_what_was_written(name, tmp_path):
    write_prompts(tmp_path / name, SETS)
    assert read_prompts(tmp_path / name) == SETS
    assert list(read_prompts(tmp_path / name)) == list(SETS)


def test_a_written_file_is_plain_and_keeps_the_combinations(tmp_path):
    write_prompts(tmp_path / "prompts.yaml", SETS)
    write_prompts(tmp_path / "prompts.json", SETS)
    content = json.loads((tmp_path / "prompts.json").read_text())
    assert content == yaml.safe_load((tmp_path / "prompts.yaml").read_text())
    assert content["Pleural Effusion"] == {
        "positive": [
            {
                "severity": ["", "small"],
                "subtype": ["effusion", "fluid"],
                "location": ["", "on the left"],
            },
            "blunted angle",
        ],
        "negative": ["no effusion"],
    }


def test_a_file_as_people_write_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
        Normal: [no, clear lungs, 1]   # words of YAML and numbers are texts
        Code: !!python/object/apply:os.system [echo]  # is not run
        Edema:
          positive:
            - {severity: ["", mild], subtype: [edema]}
          negative:
            - subtype: [no edema]
        """
    )
    prompts = read_prompts(path)
    assert prompts["Normal"] == PromptSet(["no", "clear lungs", "1"])
    assert prompts["Code"] == PromptSet(["echo"])
    assert prompts["Edema"].prompts == ["edema", "mild edema"]
    assert prompts["Edema"].negative_prompts == ["no edema"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must map classes to their prompts; got None"),
        ("- a", "must map classes to their prompts; got \\['a'\\]"),
        ("Edema: edema", "class 'Edema': positive must be a list of prompts; got 'edema'"),
        ("Edema: {negative: [a]}", "class 'Edema': a class must be given 'positive'"),
        ("Edema: {positive: [a], neg: [b]}", "class 'Edema': a class has no option 'neg'"),
        ("Edema: {positve: [a]}", "'positve'. Did you mean 'positive'. It has positive, negative"),
        ("Edema: {positive: a}", "class 'Edema': positive must be a list of prompts; got 'a'"),
        ("Edema: []", "class 'Edema': positive must hold at least one prompt"),
        ("Edema: [a, [b]]", "class 'Edema': positive, entry 2: .* Combinations; got \\['b'\\]"),
        ("Edema: [{severity: [mild]}]", "entry 1: a prompt .* must be given 'subtype'"),
        ("Edema: [{subtype: a}]", "positive, entry 1: subtype must be a list of texts; got 'a'"),
        (
            "Edema: [{subtype: [a], side: [b]}]",
            "positive, entry 1: a prompt .* no option 'side'.* severity, subtype, location",
        ),
        ("Edema: [{subtype: [a, {b: c}]}]", "entry 1: subtype must hold texts; got {'b': 'c'}"),
        ("Edema: [a, a]", "class 'Edema': prompts must differ .* 'a' comes twice"),
        ("Edema: [a]\nEdema: [b]", "begins in line 1, the key 'Edema' comes twice"),
        ("Edema: [a", "no YAML: while parsing .*"),
        ("Edema: &a [*a]", "no YAML: .*"),
    ],
)
def test_a_faulty_yaml_file_says_where(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"(?s)mine\.yaml.*{message}"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"Edema": ["a"', "no JSON: .* line 1"),
        ('{"Edema": ["a"], "Edema": ["b"]}', "the key 'Edema' comes twice"),
        ('{"Edema": ["a", null]}', "class 'Edema': positive, entry 2: .* got None"),
        ('{"Edema": ["a", 3]}', "positive, entry 2: .* got 3"),
        ('{"Edema": [{"subtype": ["a", 3]}]}', "entry 1: subtype must hold texts; got 3"),
        ("null", "must map classes to their prompts; got None"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_faulty_json_file_says_where(text, message, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"mine\.json.*{message}"):
        read_prompts(path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.yaml does not exist"):
        read_prompts(tmp_path / "none.yaml")
    with pytest.raises(DataError, match=r"prompts\.txt must be named \.yaml, \.yml or \.json"):
        read_prompts(tmp_path / "prompts.txt")
    with pytest.raises(DataError, match=r"must be named \.yaml"):
        write_prompts(tmp_path / "prompts.txt", SETS)
    (tmp_path / "latin.yaml").write_bytes("Ödem: [ödem]".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.yaml is not UTF-8"):
        read_prompts(tmp_path / "latin.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["latin.yaml"]


def test_json_does_without_yaml(tmp_path, monkeypatch):
    write_prompts(tmp_path / "prompts.yaml", SETS)
    monkeypatch.setitem(sys.modules, "yaml", None)
    write_prompts(tmp_path / "prompts.json", SETS)
    assert read_prompts(tmp_path / "prompts.json") == SETS
    with pytest.raises(MissingDependencyError, match=r"yaml .*gloria-torch\[tasks\]"):
        read_prompts(tmp_path / "prompts.yaml")
