"""`gloria attention`: the picture it writes, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

import gloria
from gloria.cli import main
from gloria.data import fit, load_image, normalize
from gloria.data.phantom import PhantomDataset
from gloria.evaluation.features import evaluating
from gloria.training.randomness import isolated
from gloria.training.small import small_model
from gloria.visualize import plot_attention, save_figure

TEXT = "Small left pleural effusion."


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A film, larger than the model takes, and a saved model."""
    folder = tmp_path_factory.mktemp("disk")
    item = PhantomDataset("test", count=1)[0]
    Image.fromarray(item.image).resize((90, 70)).save(folder / "film.png")
    with isolated(0):
        model = small_model([TEXT])
    model.trained_image_size = (64, 64)  # as train says
    gloria.save_model(model, folder / "model")
    return folder


@pytest.fixture
def attention(disk, tmp_path, capsys):
    def attention(*more, image=disk / "film.png", text=TEXT, model=disk / "model", out="a.png"):
        where = ["--model", model, "--out", tmp_path / out, "--device", "cpu"]
        code = main(["attention", *map(str, [image, text, *where, *more])])
        return code, *capsys.readouterr()

    return attention


def pixels(path):
    return np.asarray(Image.open(path))


def test_draws_what_the_functions_draw(attention, disk, tmp_path):
    code, shown, told = attention(out="new/a.png")
    assert (code, shown, told) == (0, f"{tmp_path / 'new' / 'a.png'}\n", "")
    model = gloria.load_model(disk / "model")
    film = fit(load_image(disk / "film.png"), (64, 64))
    with evaluating(model):
        looks = model.attention(normalize(film, model.image_encoder.image_input), TEXT)
    drawn = plot_attention(film, looks.words, looks.maps, title=TEXT)
    expected = pixels(save_figure(drawn, tmp_path / "expected.png"))
    np.testing.assert_array_equal(pixels(tmp_path / "new" / "a.png"), expected)


def test_another_window_is_another_picture(attention, tmp_path):
    assert attention()[0] == 0
    assert attention("--window", "100", "50", out="b.png")[0] == 0
    assert (pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")).any()


def test_words_that_the_model_can_not_read_are_told(attention):
    with pytest.warns(gloria.errors.UnknownWordWarning, match="'Ω'"):
        assert attention(text="Ω effusion.")[0] == 0


def test_a_model_that_attends_to_nothing_is_refused(attention, tmp_path):
    model = small_model([TEXT], loss="global_contrastive")
    model.trained_image_size = (64, 64)
    gloria.save_model(model, tmp_path / "global")
    code, shown, told = attention(model=tmp_path / "global")
    assert (code, shown) == (2, "")
    assert told.startswith("gloria: error: the model's loss GlobalContrastiveLoss has no local")


def test_a_model_that_learned_nothing_finite_is_refused(attention, disk, tmp_path):
    model = gloria.load_model(disk / "model")
    for weight in model.parameters():
        torch.nn.init.constant_(weight, torch.nan)
    gloria.save_model(model, tmp_path / "nan")
    code, _, told = attention(model=tmp_path / "nan")
    assert code == 2
    assert "the attention is not finite" in told


def test_the_image_is_not_replaced(attention, disk, tmp_path):
    film, link = tmp_path / "film.png", tmp_path / "link.png"
    film.write_bytes((disk / "film.png").read_bytes())
    link.symlink_to(film)
    for out in ("film.png", "link.png"):
        code, _, told = attention(image=film, out=out, model="none")  # which is told only after
        assert code == 2
        assert f"out must be another file: {film}, the image, would be replaced" in told
    assert film.read_bytes() == (disk / "film.png").read_bytes()
    assert attention(image=film)[0] == attention(image=film)[0] == 0  # a picture of its own may be


@pytest.mark.parametrize(
    "given, told",
    [
        ({"image": "none.png"}, "none.png does not exist"),
        ({"text": " "}, "texts[0] has no word: ' '"),
        ({"out": "a.doc"}, "must end in .png"),
        ({"model": "none"}, "none is no saved model"),
    ],
)
def test_what_can_not_be_is_named(attention, tmp_path, given, told):
    code, shown, error = attention(**given)
    assert (code, shown) == (2, "")
    assert told in error
    assert not list(tmp_path.iterdir())
