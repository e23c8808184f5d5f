"""The small model: its parts, and what can be put in their place."""

import pytest
import torch

import gloria
from gloria.encoders import HFTextEncoder
from gloria.encoders.small_text import small_text_encoder
from gloria.errors import OptionError, UnknownNameError
from gloria.losses import GlobalContrastiveLoss, GlobalLocalContrastiveLoss
from gloria.training.randomness import isolated
from gloria.training.small import small_model

REPORTS = ["Small left pleural effusion.", "No pneumothorax.", "Mild cardiomegaly, no edema."]
TINY = {"channels": (8, 8, 16, 16)}


def build(**options):
    with isolated(0):
        return small_model(REPORTS, **{"image_options": TINY, **options})


def test_the_usual_parts():
    model = small_model(REPORTS)
    images = model.encode_image(torch.zeros(2, 1, 64, 64))
    assert images.grid == (8, 8)
    assert images.pooled.shape == (2, 128)
    assert images.regions.shape == (2, 64, 128)
    texts = model.encode_text(REPORTS)
    assert texts.pooled.shape == (3, 128)
    assert texts.tokens[0] == ["Small", "left", "pleural", "effusion", "."]
    assert isinstance(model.loss, GlobalLocalContrastiveLoss)
    assert sum(p.numel() for p in model.parameters()) < 3e6


def test_the_vocabulary_is_that_of_the_reports():
    encoder = small_text_encoder(REPORTS)
    vocabulary = encoder.tokenizer.get_vocab()
    assert {"effusion", "pneumothorax", "cardiomegaly"} <= set(vocabulary)
    assert "consolidation" not in vocabulary
    assert encoder.pooled_dim == encoder.word_dim == 128


def test_our_own_objective_is_the_stable_one_unless_told():
    stable, paper = build(), build(preset="paper")
    expected = gloria.create_loss("global_local_contrastive", preset="stable")
    assert repr(stable.loss) == repr(expected)
    assert repr(paper.loss) != repr(expected)


def test_another_loss_comes_without_our_preset():
    model = build(loss="global_contrastive")
    assert isinstance(model.loss, GlobalContrastiveLoss)
    assert repr(model.loss) == repr(gloria.create_loss("global_contrastive"))


def test_loss_options_are_passed_on():
    assert build(loss_options={"local_weight": 0.25}).loss.local_weight == 0.25


def test_image_options_add_to_those_of_the_small_encoder():
    model = build(image_options={**TINY, "in_chans": 3})
    assert model.image_encoder.image_input.channels == 3
    assert model.encode_image(torch.zeros(1, 3, 64, 64)).grid == (8, 8)  # still stride 8


def test_another_image_encoder_comes_without_the_small_ones_options():
    model = build(image_encoder="timm:test_vit", image_options={"in_chans": 1, "img_size": 32})
    assert model.image_encoder.image_input.channels == 1
    assert model.image_encoder.image_input.size == (32, 32)
    assert model.encode_image(torch.zeros(1, 1, 32, 32)).pooled.shape == (1, 128)
    assert (
        build(image_encoder="timm:test_vit", image_options=None).image_encoder.image_input[0] == 3
    )


def test_another_text_encoder(tmp_path):
    small_text_encoder(REPORTS[:1]).model.save_pretrained(tmp_path)
    small_text_encoder(REPORTS[:1]).tokenizer.save_pretrained(tmp_path)
    model = build(text_encoder=f"hf:{tmp_path}", text_options={"last_n_layers": 1})
    assert isinstance(model.text_encoder, HFTextEncoder)
    assert "pneumothorax" not in model.text_encoder.tokenizer.get_vocab()
    assert model.encode_text(REPORTS).pooled.shape == (3, 128)


def test_the_shared_space_is_as_wide_as_asked():
    model = build(embedding_dim=20)
    output = model(torch.rand(2, 1, 64, 64), REPORTS[:2])
    assert output.images.regions.shape[-1] == output.texts.words.shape[-1] == 20
    assert output.loss.isfinite()


def test_the_seed_alone_decides_the_weights():
    first, second = build(), build()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_wrong_parts_are_named():
    with pytest.raises(UnknownNameError, match="resnet"):
        build(image_encoder="resnet")
    with pytest.raises(OptionError, match="last_n_layers must be from 1 to 2; got 3"):
        build(text_options={"last_n_layers": 3})


def test_the_small_text_encoder_takes_options():
    model = build(text_options={"last_n_layers": 1, "pooling": "max"})
    assert (model.text_encoder.last_n_layers, model.text_encoder.pooling) == (1, "max")
    assert "effusion" in model.text_encoder.tokenizer.get_vocab()


def test_the_projection_and_the_text_encoders_own_width():
    mlp, text = build(projection="mlp"), build(embedding_dim=None)
    assert isinstance(mlp.text_head.layers, torch.nn.Sequential)
    assert isinstance(text.text_head, torch.nn.Identity)
    assert text.encode_image(torch.zeros(1, 1, 64, 64)).pooled.shape == (1, 128)
