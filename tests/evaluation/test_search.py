"""Search: against the similarity of every image with the text, computed at once."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import gloria
from gloria.data.folder import ImageFolder
from gloria.data.phantom import PhantomDataset
from gloria.errors import DataError, EmptyTextError, OptionError, UnknownWordWarning
from gloria.evaluation import search
from gloria.evaluation.embeddings import store_images
from gloria.evaluation.features import encode_images, encode_texts, pair_similarity
from gloria.evaluation.search import search_images
from gloria.training.randomness import isolated
from gloria.training.small import small_model

TEXT = "small left pleural effusion"
COUNT = 23


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for number in range(COUNT):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(folder / f"{number:02}.png")
    return ImageFolder(folder, size=(32, 32))


@pytest.fixture(scope="module", params=["global_local_contrastive", "local", "global"])
def searched(request, films, tmp_path_factory):
    """A model of each kind, and its stored images."""
    loss = request.param if "_" in request.param else f"{request.param}_contrastive"
    with isolated(0):
        model = small_model([i.report for i in PhantomDataset("test", count=30)], loss=loss)
    model.train()
    folder = tmp_path_factory.mktemp("store")
    return model, store_images(folder, model, films, fingerprint="a", shard_size=7)


def whole(model, films, kind=None):
    """The similarity of each image with the text."""
    images = encode_images(model, [item.image for item in films])
    return pair_similarity(model, images, encode_texts(model, [TEXT]), kind)[:, 0]


def ranking(scores):
    return scores.argsort(descending=True, stable=True).tolist()


def test_a_shortlist_of_all_gives_the_ranking_of_all(searched, films, monkeypatch):
    monkeypatch.setattr(search, "BLOCK", 5)
    model, images = searched
    found = search_images(model, images, TEXT, top=COUNT, shortlist=1000)
    expected = whole(model, films)
    scores = torch.tensor([each.score for each in found])
    order = [images.ids.index(each.id) for each in found]
    assert sorted(order) == list(range(COUNT))
    torch.testing.assert_close(scores, expected[order], rtol=0, atol=1e-5)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert all(
        each.path == films.records[place].path for each, place in zip(found, order, strict=True)
    )


def test_the_best_of_the_global_shortlist_are_ranked_by_the_whole_model(searched, films):
    model, images = searched
    if model.trained_kind == "both":
        listed = ranking(whole(model, films, "global"))[:6]
    else:
        listed = range(COUNT)  # nothing to shorten it by, or no need to
    compared = []
    found = search_images(model, images, TEXT, top=4, shortlist=6, progress=compared.append)
    scores = whole(model, films)
    expected = sorted(listed, key=lambda place: -float(scores[place]))[:4]
    torch.testing.assert_close(
        torch.tensor([each.score for each in found]), scores[expected], rtol=0, atol=1e-5
    )
    assert sum(compared) == {"both": 6, "local": COUNT, "global": 0}[model.trained_kind]


def test_equals_come_in_order(searched, monkeypatch):
    """A text that says nothing fits every image alike."""
    model, images = searched
    encode = model.encode_text

    def silent(texts):
        features = encode(texts)
        return features._replace(pooled=features.pooled * 0, words=features.words * 0)

    monkeypatch.setattr(model, "encode_text", silent)
    found = search_images(model, images, TEXT, top=5, shortlist=8)
    assert len({each.score for each in found}) == 1
    assert [each.id for each in found] == images.ids[:5]


def test_the_same_search_finds_the_same(searched):
    assert search_images(*searched, TEXT) == search_images(*searched, TEXT)


def test_more_than_there_are_gives_all(searched):
    assert len(search_images(*searched, TEXT, top=100)) == COUNT


def test_bad_numbers_and_texts_are_errors(searched):
    with pytest.raises(OptionError, match="top must be at least 1; got 0"):
        search_images(*searched, TEXT, top=0)
    with pytest.raises(OptionError, match="shortlist must be at least top, 10; got 5"):
        search_images(*searched, TEXT, shortlist=5)
    with pytest.raises(EmptyTextError):
        search_images(*searched, " ")


def test_words_that_the_model_cannot_read_are_told(searched):
    model, images = searched
    known = search_images(model, images, TEXT, top=3)  # no warning, which would be an error
    lacks = "vocabulary lacks '☃', 'β': any such word is"
    with pytest.warns(UnknownWordWarning, match=lacks) as warned:
        found = search_images(model, images, f"{TEXT} ☃ β", top=3)
    assert warned[0].filename == __file__  # who gave the words
    assert len(found) == len(known) == 3


def test_a_similarity_that_is_nan_is_an_error(searched, monkeypatch):
    model, images = searched
    encode = model.encode_text

    def broken(texts):
        features = encode(texts)
        nan = float("nan")
        return features._replace(pooled=features.pooled * nan, words=features.words * nan)

    monkeypatch.setattr(model, "encode_text", broken)
    with pytest.raises(DataError, match=r"similarity of 'small left .* is NaN"):
        search_images(model, images, TEXT)


def test_another_models_store_is_refused(searched, tmp_path, films):
    """Of the same sizes, so that nothing else would tell."""
    model, images = searched
    found = search_images(model, images, TEXT)
    trained = copy.deepcopy(model)
    last = list(trained.parameters())[-1]
    last.data += 1e-4
    with pytest.raises(OptionError, match="images were stored with; it has other weights"):
        search_images(trained, images, TEXT)
    again = store_images(tmp_path / "store", trained, films, fingerprint="a")
    assert len(search_images(trained, again, TEXT)) == 10
    # as another process has them
    loaded = gloria.load_model(gloria.save_model(model, tmp_path / "model"))
    same = pickle.loads(pickle.dumps(images))
    for alike in (torch.compile(model), loaded):
        assert search_images(alike, same, TEXT) == found
