"""Checkpoints of the published code: the same features, scores, losses; nothing in them is run.

The reference is the published forward pass in plain torch, written here: torchvision's ResNet,
loops over word pieces and captions.
"""

import builtins
import copy
import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pickle import UnpicklingError

import pytest
import torch
from torch.nn.functional import conv2d, cosine_similarity, cross_entropy, normalize

import gloria
from gloria.errors import CheckpointError, DtypeError, OptionError

TEXTS = ["small left pleural effusion", "mild cardiomegaly no edema", "pneumothorax"]


def part_of(weights, part):
    prefix = f"gloria.{part}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def published_image_features(weights, images):
    """Global ``(image, dim)`` and local ``(image, dim, height, width)``."""
    from torchvision.models import resnet50

    net = resnet50()
    net.fc = torch.nn.Identity()
    net.load_state_dict(part_of(weights, "img_encoder.model"))
    net.eval()
    x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    local = net.layer3(net.layer2(net.layer1(x)))
    whole = net.layer4(local).mean((2, 3))
    embedder = part_of(weights, "img_encoder.global_embedder")
    convolution = part_of(weights, "img_encoder.local_embedder")["weight"]
    return whole @ embedder["weight"].T + embedder["bias"], conv2d(local, convolution)


def published_text_features(weights, folder, texts):
    """Global ``(text, dim)``, and per text the vectors of [CLS], the words and [SEP]."""
    from transformers import AutoConfig, AutoTokenizer, BertModel

    bert = BertModel(AutoConfig.from_pretrained(folder)).eval()
    own = part_of(weights, "text_encoder.model")
    del own["embeddings.position_ids"]
    bert.load_state_dict(own)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wholes, words = [], []
    for text in texts:
        tokens = tokenizer(text, padding="max_length", max_length=97, return_tensors="pt")
        output = bert(tokens["input_ids"], tokens["attention_mask"], output_hidden_states=True)
        positions = sum(output.hidden_states[-4:])[0]
        vectors = []
        for vector, piece in zip(
            positions, tokenizer.convert_ids_to_tokens(tokens["input_ids"][0]), strict=True
        ):
            if piece.startswith("##"):
                vectors[-1] = vectors[-1] + vector
            else:
                vectors.append(vector)
            if piece == "[SEP]":
                break
        words.append(torch.stack(vectors))
        wholes.append(words[-1].sum(0) / 97)  # a mean with zeros for padding
    return torch.stack(wholes), words


def published_cosines(words, image, temp1):
    """Of each word with what it attends to in one image ``(dim, region)``."""
    attention = (image.T @ words.T).softmax(1).T  # over words
    attended = (attention * temp1).softmax(1) @ image.T  # over regions
    return torch.stack([cosine_similarity(a, b, 0) for a, b in zip(words, attended, strict=True)])


def published_losses(images, local, texts, words, temp1=4.0, temp2=5.0, temp3=10.0):
    """``words`` of each text: [CLS] and the words."""
    rows = [
        [
            (temp2 * published_cosines(w, image.flatten(1), temp1)).exp().sum().log() * temp3
            for w in words
        ]
        for image in local
    ]
    labels = torch.arange(len(images))
    scores = torch.tensor(rows)
    whole = torch.stack([cosine_similarity(image, texts) for image in images]) * temp3
    return {
        "global_image_to_text": cross_entropy(whole, labels),
        "global_text_to_image": cross_entropy(whole.T, labels),
        "local_image_to_text": cross_entropy(scores, labels),
        "local_text_to_image": cross_entropy(scores.T, labels),
    }


def changed(settings, path, value):
    """A copy of the settings with one of them changed."""
    settings = copy.deepcopy(settings)
    *branch, leaf = path.split(".")
    at = settings
    for name in branch:
        at = at[name]
    at[leaf] = value
    return settings


@pytest.fixture(scope="module")
def model(published):
    return gloria.load_published(published.file)


@pytest.fixture(scope="module")
def features(published):
    """Images, and what the published code makes of them and of the texts."""
    images = torch.rand(3, 3, 299, 299, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        return (
            images,
            published_image_features(published.weights, images),
            published_text_features(published.weights, published.bert, TEXTS),
        )


@pytest.fixture(scope="module")
def encoded(model, features):
    with torch.no_grad():
        return model.encode_image(features[0])


def close(actual, expected):
    """To rounding: float32, some fifty layers deep."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
def test_features_are_those_of_the_published_code(encoded, model, features):
    _, (wholes, regions), (sentences, words) = features
    assert encoded.grid == (19, 19)
    close(encoded.pooled, wholes)
    close(encoded.regions, regions.flatten(2).mT)
    theirs = model.encode_text(TEXTS)
    close(normalize(theirs.pooled), normalize(sentences))
    assert theirs.tokens[0] == ["small", "left", "pleural", "effusion"]
    for index, rows in enumerate(words):
        count = len(rows) - 2  # without [CLS] and [SEP]
        assert theirs.word_mask[index].sum() == count
        close(theirs.words[index, :count], rows[1:-1])


@torch.no_grad()
def test_scores_are_those_of_the_published_code_for_words(encoded, model, features):
    _, (wholes, regions), (sentences, words) = features
    whole = torch.stack([cosine_similarity(image, sentences) for image in wholes])
    local = torch.tensor(
        [
            [published_cosines(w[1:-1], image.flatten(1), 4.0).max() * 5 for w in words]
            for image in regions
        ]
    )
    close(model.similarity(encoded, TEXTS, "global"), whole)
    close(5 * model.similarity(encoded, TEXTS, "local", aggregation="max"), local)
    both = model.similarity(encoded, TEXTS, "both", aggregation="max", weights=(0.5, 2.5))
    close(both, (local + whole) / 2)


@torch.no_grad()
def test_losses_are_those_of_the_published_code(encoded, model, features, monkeypatch):
    """In training [CLS] is a word."""
    _, (wholes, regions), (sentences, words) = features
    expected = published_losses(wholes, regions, sentences, [rows[:-1] for rows in words])
    monkeypatch.setattr(model.text_encoder, "cls_as_word", True)
    loss, terms = model.compute_loss(encoded, model.encode_text(TEXTS))
    assert terms.keys() == expected.keys()
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, sum(expected.values()), rtol=1e-4, atol=1e-5)


def test_it_is_a_model_like_any_other(model, features, tmp_path):
    images, *_ = features
    assert not model.training
    assert model.trained_image_size == (299, 299)
    again = gloria.load_model(gloria.save_model(model, tmp_path / "model"))
    assert again.trained_image_size == (299, 299)
    assert again.image_encoder.image_input == model.image_encoder.image_input
    assert again.image_encoder.image_input.mean == again.image_encoder.image_input.std == (0.5,) * 3
    assert str(again.loss) == str(model.loss)
    with torch.no_grad():
        for ours, theirs in (
            (model.encode_image(images[:1]), again.encode_image(images[:1])),
            (model.encode_text(TEXTS), again.encode_text(TEXTS)),
        ):
            assert torch.equal(ours.pooled, theirs.pooled)


def test_settings_are_the_files(published, tmp_path):
    settings = published.settings
    for path, value in {
        "model.gloria.temp1": 3,
        "model.gloria.temp2": 2.0,
        "model.gloria.temp3": 8.0,
        "model.gloria.local_loss_weight": 0.25,
        "model.gloria.global_loss_weight": 2.0,
        "model.text.last_n_layers": 2,
        "model.text.aggregate_method": "mean",
        "model.text.bert_type": "no/such",
        "data.text.word_num": 20,
    }.items():
        settings = changed(settings, path, value)
    file = published.write(tmp_path / "other.ckpt", settings=settings)
    model = gloria.load_published(file, published.bert)
    encoder = model.text_encoder
    assert (encoder.last_n_layers, encoder.layer_reduction, encoder.max_length) == (2, "mean", 20)

    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 3, 8, generator=generator)
    regions = torch.randn(3, 8, 2, 2, generator=generator)
    words = torch.randn(3, 5, 8, generator=generator)
    expected = published_losses(images, regions, texts, list(words), 3.0, 2.0, 8.0)
    terms = model.loss.terms(
        images, texts, regions.flatten(2).mT, words, torch.ones(3, 5, dtype=torch.bool)
    )
    for name, term in expected.items():
        torch.testing.assert_close(terms[name], term, rtol=1e-4, atol=1e-4)
        assert model.loss.weights()[name] == (2.0 if name.startswith("global") else 0.25)


def test_an_old_file_without_settings_has_the_released_ones(published, tmp_path):
    file = published.write(tmp_path / "old.ckpt", settings=None, legacy=True)
    model = gloria.load_published(str(file), str(published.bert))
    encoder, local = model.text_encoder, model.loss.local_loss
    assert (encoder.last_n_layers, encoder.layer_reduction, encoder.max_length) == (4, "sum", 97)
    assert (local.attention_temperature, local.match_temperature) == (0.25, 0.2)
    assert local.temperature() == pytest.approx(0.02)
    assert model.loss.global_loss.temperature() == pytest.approx(0.1)
    assert set(model.loss.weights().values()) == {1.0}
    stored = published.weights["gloria.img_encoder.model.layer4.2.conv3.weight"]
    assert torch.equal(model.image_encoder.model.layer4[2].conv3.weight, stored)


def test_a_device_that_is_not_here_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(OptionError, match=r"^device 'cuda:99' can't be used here: .+$"):
        gloria.load_published(tmp_path / "none.ckpt", device="cuda:99")


def test_without_the_files_text_encoder_the_error_names_it(published, tmp_path):
    settings = changed(published.settings, "model.text.bert_type", str(tmp_path / "nowhere"))
    file = published.write(tmp_path / "away.ckpt", {}, settings)
    with pytest.raises(CheckpointError, match=r"nowhere.*pass the path of a folder"):
        gloria.load_published(file)


# --- what does not fit ----------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_named(published, tmp_path):
    weights = dict(published.weights)
    del weights["gloria.img_encoder.model.layer1.0.conv1.weight"]
    weights["gloria.text_encoder.emb_global.weight"] = torch.zeros(2)
    weights["gloria.img_encoder.global_embedder.weight"] = torch.zeros(32, 512)
    weights["gloria.img_encoder.local_embedder.weight"] = torch.zeros(32, 1024, 3, 3)
    file = published.write(tmp_path / "odd.ckpt", weights)
    with pytest.raises(CheckpointError) as caught:
        gloria.load_published(file)
    message = str(caught.value)
    assert message.startswith(f"{file} does not fit the model: 4 differences: ")
    assert "missing image_encoder.model.layer1.0.conv1.weight;" in message
    assert "unexpected gloria.text_encoder.emb_global.weight;" in message
    assert "image_head.layers.weight is (32, 512), the model's is (32, 2048)" in message
    assert "region_head.layers.weight is (32, 1024, 3, 3), the model's is (32, 1024)" in message


@pytest.mark.parametrize(
    "path, value",
    [
        ("model.vision.model_name", "densenet_121"),
        ("model.text.agg_tokens", False),
        ("model.text.norm", True),
        ("model.text.last_n_layers", 1),
        ("model.text.last_n_layers", "${model.layers}"),
        ("model.text.aggregate_method", "max"),
        ("model.gloria.temp1", 0.0),
        ("model.gloria.temp2", float("nan")),
        ("model.gloria.temp3", "???"),
        ("transforms.norm", None),
        ("transforms.norm", "imagenet"),
    ],
)
def test_settings_that_cannot_be_composed_are_named(published, tmp_path, path, value):
    file = published.write(tmp_path / "odd.ckpt", {}, changed(published.settings, path, value))
    with pytest.raises((OptionError, DtypeError)) as caught:
        gloria.load_published(file)
    assert path in str(caught.value)
    assert repr(value) in str(caught.value) or str(value) in str(caught.value)


@pytest.mark.parametrize("weights", [[1, 2], {"gloria.x": 3}, {3: torch.zeros(1)}])
def test_a_state_dict_that_is_none(published, tmp_path, weights):
    file = published.write(tmp_path / "odd.ckpt", weights)
    with pytest.raises(CheckpointError, match="state_dict"):
        gloria.load_published(file)


@pytest.mark.parametrize("content", [torch.zeros(2), {"weights": torch.zeros(2)}])
def test_a_file_of_torch_that_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="has no state_dict"):
        gloria.load_published(tmp_path / "other.ckpt")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file(published, tmp_path, legacy):
    file = published.write(tmp_path / "whole.ckpt", {"gloria.x": torch.rand(999)}, legacy=legacy)
    whole = file.read_bytes()
    for damaged in (b"", b"Not Found", whole[:40], whole[: len(whole) // 2], whole[:-1200]):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged or no checkpoint") as caught:
            gloria.load_published(file)
        assert "weights_only" not in str(caught.value)


def test_no_file(tmp_path):
    for nothing in (tmp_path, tmp_path / "none.ckpt"):
        with pytest.raises(CheckpointError, match="does not exist, or is no file"):
            gloria.load_published(nothing)


# --- what must not run ----------------------------------------------------------------------------


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks"])
def test_nothing_in_a_file_is_run(tmp_path, monkeypatch, legacy, forced, place):
    marker = tmp_path / "ran"
    (tmp_path / "writes_a_marker.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    if forced:  # by which torch can be told, process-wide, to read everything unsafely
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for name, malice in {
        f"{os.system.__module__}.system": Runs(os.system, f"touch {marker}"),
        "eval": Runs(builtins.eval, f"open({str(marker)!r}, 'w').close()"),
        "importlib.import_module": Runs(importlib.import_module, "writes_a_marker"),
    }.items():
        file = tmp_path / "malice.ckpt"
        content = {"state_dict": {}, place: {"x": malice}}
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match=f"names {name}, which no checkpoint") as caught:
            gloria.load_published(file)
        assert not marker.exists()
        # torch's own advice is to read it unsafely
        assert "weights_only" not in str(caught.value)
        assert caught.value.__suppress_context__
        torch.load(file, weights_only=False)  # the file would do it
        marker.unlink()
    del sys.modules["writes_a_marker"]


def test_the_stand_ins_are_not_left_behind(published, tmp_path):
    file = published.write(tmp_path / "odd.ckpt", {}, changed(published.settings, "phase", "x"))
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(CheckpointError, match="does not fit"):
        gloria.load_published(file)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(UnpicklingError):
        torch.load(file, weights_only=True)


def test_threads_may_read_at_once(published, tmp_path):
    settings = changed(published.settings, "model.text.norm", True)
    file = published.write(tmp_path / "odd.ckpt", {}, settings)

    def read(_):
        with pytest.raises(OptionError, match=r"model\.text\.norm"):
            gloria.load_published(file)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(100)))
