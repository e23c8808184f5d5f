"""`gloria search`: what it prints, what it keeps, what it refuses."""

import json
import shutil
from types import SimpleNamespace

import pytest
from PIL import Image

import gloria
from gloria.cli import main
from gloria.cli.arguments import pick_image_size
from gloria.data.phantom import PhantomDataset
from gloria.training.randomness import isolated
from gloria.training.small import small_model


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Eight films, and two saved models."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "films").mkdir()
    items = list(PhantomDataset("test", count=8))
    for number, item in enumerate(items):
        Image.fromarray(item.image).save(folder / "films" / f"{number}.png")
    for seed, name in enumerate(("model", "other")):
        with isolated(seed):
            model = small_model([item.report for item in items])
        model.trained_image_size = (64, 64)  # as train says
        gloria.save_model(model, folder / name)
    return folder


@pytest.fixture
def search(disk, capsys):
    def search(*more, model="model", images=None):
        images = images or disk / "films"
        where = ["--model", disk / model, "--images", images, "--device", "cpu"]
        code = main(["search", "edema", *map(str, [*where, *more])])
        return code, *capsys.readouterr()

    return search


def test_a_model_of_the_hub(hub, search, disk, capsys):
    hub("someone/films", disk / "model", "1" * 40)
    _, expected, _ = search("--json")
    command = ["search", "edema", "--model", "someone/films", "--images", str(disk / "films")]
    assert main([*command, "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(expected)


def test_more_can_be_shown_than_are_compared_by_region_usually(search):
    code, shown, _ = search("--top", "300", "--json")
    assert code == 0
    assert len(json.loads(shown)["found"]) == 8


@pytest.fixture
def films(disk, tmp_path):
    """A copy of the films, for a test to change."""
    return shutil.copytree(disk / "films", tmp_path / "films")


def test_features_are_not_taken_for_those_of_a_model_that_is_written_anew_meanwhile(
    search, disk, tmp_path, monkeypatch
):
    """As by a training: what is kept belongs to the model that was loaded."""
    model = shutil.copytree(disk / "model", tmp_path / "model")
    load = gloria.weights.load_model

    def load_before_it_is_written_anew(folder, **options):
        loaded = load(folder, **options)
        shutil.copytree(disk / "other", folder, dirs_exist_ok=True)
        return loaded

    keep = ("--cache", tmp_path / "cache", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(gloria.weights, "load_model", load_before_it_is_written_anew)
        code, first, _ = search(*keep, model=model)
    assert code == 0
    assert json.loads(first)["found"] == json.loads(search("--json")[1])["found"]
    code, _, told = search(*keep, model=model)
    assert code == 2
    assert "has features of another model" in told


def test_prints_the_best_with_rank_score_and_path(search, disk):
    code, shown, told = search("--top", "3", "--quiet")
    assert (code, told) == (0, "")
    head, *lines = shown.splitlines()
    assert head.split() == ["rank", "score", "path"]
    assert all(line.index("/") == head.index("path") for line in lines)
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert all((disk / "films").samefile(row[2].rpartition("/")[0]) for row in rows)


def test_json_is_the_same_ranking(search):
    _, shown, _ = search("--top", "4", "--quiet")
    code, report, _ = search("--top", "4", "--quiet", "--json")
    report = json.loads(report)
    assert code == 0
    assert report["text"] == "edema"
    assert report["similarity"] == "both"
    assert (report["searched"], report["encoded"], report["broken"]) == (8, 8, [])
    rows = [line.split() for line in shown.splitlines()[1:]]
    assert [str(each["rank"]) for each in report["found"]] == [row[0] for row in rows]
    assert [each["path"] for each in report["found"]] == [row[2] for row in rows]
    assert [f"{each['score']:.4f}" for each in report["found"]] == [row[1] for row in rows]


def test_a_cache_saves_the_encoding_and_changes_nothing(search, tmp_path):
    cached = ["--cache", tmp_path / "cache"]
    _, first, told = search(*cached, "--workers", "1")
    assert "8 images searched, 8 of them encoded now" in told
    code, second, told = search(*cached)
    assert code == 0
    assert "8 images searched, 0 of them encoded now" in told
    assert first == second == search("--quiet")[1]


def test_a_cache_of_another_model_is_refused(search, tmp_path):
    cached = ["--cache", tmp_path / "cache", "--quiet"]
    assert search(*cached)[0] == 0
    code, shown, told = search(*cached, model="other")
    assert (code, shown) == (2, "")
    assert "has features of another model" in told
    code, shown, told = search(*cached, "--image-size", "32")
    assert (code, shown) == (2, "")
    assert "image_size was [64, 64], is [32, 32]" in told
    assert search(*cached)[0] == 0


def test_broken_images_are_named_and_counted(search, films):
    (films / "3.png").write_bytes(b"no image")
    (films / "empty.png").write_bytes(b"")
    code, shown, told = search("--quiet", images=films)
    assert code == 0
    assert len(shown.splitlines()) == 1 + 7
    for name in ("3.png", "empty.png"):
        assert f"left out: image {films / name} can't be read: Pillow knows no such image." in told
        assert told.count(name) == 1
    assert "2 of 9 images are left out\n" in told
    report = json.loads(search("--quiet", "--json", images=films)[1])
    assert len(report["broken"]) == 2


def test_a_folder_of_many_films_with_other_bits_is_told_in_few_lines(search, films):
    for number in range(12):
        Image.new("I;16", (64, 64), number).save(films / f"deep{number}.png")
    _, _, told = search("--quiet", images=films)
    assert told.count("left out: ") == 10
    assert "12 of 20 images are left out; --json names those after the first 10, too" in told
    assert len(json.loads(search("--quiet", "--json", images=films)[1])["broken"]) == 12


def test_wrong_use_is_one_line(search, disk, tmp_path):
    for arguments, message in (
        (["--top", "20", "--shortlist", "5"], "shortlist must be at least top, 20; got 5"),
        (["--top", "0"], "top must be at least 1"),
        (["--images", tmp_path / "none"], "none is no folder"),
        (["--images", tmp_path], "holds no image"),
        (["--model", tmp_path], "is no saved model"),
        (["--cache", disk / "films"], "must be empty, or hold features"),
    ):
        code, shown, told = search("--quiet", *arguments)
        assert (code, shown) == (2, "")
        assert message in told
        assert len(told.splitlines()) == 1


def test_images_are_of_the_size_of_training(search, disk, tmp_path):
    trained = search("--quiet")
    assert trained == search("--quiet", "--image-size", "64")
    assert trained != search("--quiet", "--image-size", "32")
    model = gloria.load_model(disk / "model")
    model.trained_image_size = None
    folder = gloria.save_model(model, tmp_path / "unknown")
    code, _, told = search("--quiet", model=folder)
    assert code == 2
    assert f"image-size must be given: {folder} takes any, and does not say on which" in told
    assert search("--quiet", "--image-size", "64", model=folder) == trained


def test_an_encoder_of_one_size_says_it(search, disk, tmp_path):
    with isolated(0):
        model = small_model(
            ["Edema."],
            image_encoder="timm:vit_tiny_patch16_224",
            image_options={"image_size": 32, "depth": 2, "in_chans": 1},
        )
    code, shown, _ = search("--quiet", model=gloria.save_model(model, tmp_path / "vit"))
    assert code == 0
    assert shown


@pytest.mark.parametrize(("given", "told"), [(32, True), (64, False)])
def test_another_size_than_that_of_the_training_is_said(given, told, capsys):
    model = SimpleNamespace(trained_image_size=(64, 64))
    assert pick_image_size(given, {"mine": model}) == (given, given)
    assert ("mine was trained on images of 64 x 64" in capsys.readouterr().err) is told


def test_a_text_without_a_word_is_refused_before_the_model_is_loaded(capsys):
    assert main(["search", " ", "--model", "none", "--images", "none"]) == 2
    assert "text must hold a word to look for; got ' '" in capsys.readouterr().err
