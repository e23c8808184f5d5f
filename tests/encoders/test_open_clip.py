"""The open_clip encoders against whole open_clip models, small and random."""

import json
import logging
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from gloria.encoders import OpenClipImageEncoder, OpenClipTextEncoder
from gloria.errors import (
    CheckpointError,
    DeviceError,
    DtypeError,
    EmptyTextError,
    OptionError,
    ShapeError,
    TokenizerError,
    TruncatedTextWarning,
    UnknownNameError,
)
from gloria.types import ImageEncoder, SavesRecipe, TextEncoder

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

VIT = {"image_size": 32, "patch_size": 8, "layers": 3, "width": 32, "head_width": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 2}
HF_TEXT = {"hf_model_name": "HERE", "hf_tokenizer_name": "HERE", "context_length": 24}

# Every kind of tower that open_clip has: name -> config of a small one.
CONFIGS = {
    "clip-vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    "clip-resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        "text_cfg": TEXT,
    },
    "custom-text": {
        "embed_dim": 24,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            **VIT,
            "pool_type": "avg",
            "final_ln_after_pool": True,
            "patch_dropout": 0.5,
        },
        "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407, "proj_bias": True},
    },
    "coca": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {
            **VIT,
            "attentional_pool": True,
            "attn_pooler_queries": 5,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "width": 24, "attn_pooler_heads": 4},
    },
    "siglip": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_vit",
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            **TEXT,
            "hf_tokenizer_name": "HERE",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True,
            "pool_type": "last",
        },
    },
    "convnext": {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "convnext_atto",
            "timm_pool": "",
            "timm_proj": "linear",
        },
        "text_cfg": TEXT,
    },
    "mambaout": {
        "embed_dim": 1152,
        "vision_cfg": {
            "image_size": 64,
            "timm_model_name": "mambaout_femto",
            "timm_proj": "none",
        },
        "text_cfg": TEXT,
    },
    "bert-mean": {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": {**HF_TEXT, "hf_pooler_type": "mean_pooler"},
    },
    "bert-cls": {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": {**HF_TEXT, "hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"},
    },
}
TIMM_TOWERS = ("siglip", "convnext", "mambaout")
IMAGE_TOWERS = ("clip-vit", "clip-resnet", "custom-text", "coca", *TIMM_TOWERS)
TEXT_TOWERS = ("clip-vit", "custom-text", "coca", "siglip", "bert-mean", "bert-cls")
TEXTS = [
    "Mild cardiomegaly; no pneumothorax.",
    "The heart isn't enlarged!",
    "left",
    "A 1.5 cm nodule -- left &amp; stable ... no 20",
]
WORDS = ["the", "heart", "is", "enlarged", "mild", "no", "left", "nodule", "a", "cm", "stable"]


def bert_tokenizer():
    """WordPiece that knows some words and spells all others."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters]
    pieces += [f"##{letter}" for letter in letters] + ["cardio", "##megaly", "pneumo", *".,-"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=40)
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def sentence_tokenizer():
    """SentencePiece's way, as in SigLIP: white space belongs to the piece that follows it."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in WORDS), "cardio", "megaly"]
    pieces += list("abcdefghijklmnopqrstuvwxyz0123456789")
    scored = [(piece, -float(index)) for index, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scored, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )


def write_folder(name: str, folder: Path) -> nn.Module:
    """Write config, tokenizer and random weights; return open_clip's whole model in eval mode."""
    if "HERE" in json.dumps(CONFIGS[name]):
        tokenizer = sentence_tokenizer() if name == "siglip" else bert_tokenizer()
        tokenizer.save_pretrained(folder)
    if name.startswith("bert"):
        transformers.BertConfig(
            vocab_size=128,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
        ).save_pretrained(folder)
    config = json.loads(json.dumps(CONFIGS[name]).replace("HERE", str(folder)))
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3}})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = open_clip.create_model(
            f"local-dir:{folder}", load_weights=False, pretrained_text=False
        )
        with torch.no_grad():
            for parameter in whole.parameters():
                if (parameter == parameter.flatten()[0]).all():  # constants would hide mistakes
                    parameter.add_(0.1 * torch.randn_like(parameter))
    safetensors.torch.save_model(whole, str(folder / "open_clip_model.safetensors"))
    return whole.eval()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """``saved(name)`` is a folder with a random model, and the model."""
    done: dict[str, tuple[Path, nn.Module]] = {}

    def get(name: str) -> tuple[Path, nn.Module]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name] = folder, write_folder(name, folder)
        return done[name]

    return get


@pytest.fixture
def known(saved, monkeypatch):
    """``known(name)`` makes open_clip know a model by name, and returns its weights file."""
    factory = open_clip.factory
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))

    def get(name: str) -> Path:
        folder, _ = saved(name)
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        factory._MODEL_CONFIGS[f"small-{name}"] = config
        return folder / "open_clip_model.safetensors"

    return get


def pictures(encoder: OpenClipImageEncoder, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *encoder.image_input.size, generator=generator)


def same(one, other) -> None:
    for first, second in zip(one, other, strict=True):
        if isinstance(first, torch.Tensor):
            assert torch.equal(first, second)
        else:
            assert first == second


def idle_parameters(encoder: nn.Module, outputs: tuple[torch.Tensor, ...]) -> list[str]:
    generator = torch.Generator().manual_seed(2)
    torch.autograd.backward(outputs, [torch.randn(o.shape, generator=generator) for o in outputs])
    return [
        name
        for name, value in encoder.named_parameters()
        if value.grad is None or not value.grad.any() or not value.grad.isfinite().all()
    ]


# The image tower


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_the_embedding_is_the_whole_models(name, saved):
    folder, whole = saved(name)
    encoder = OpenClipImageEncoder(str(folder), pretrained=True).eval()
    images = pictures(encoder)
    with torch.no_grad():
        features = encoder(images)
        arguments = {"normalize": False} if name == "coca" else {}
        expected = whole.encode_image(images, **arguments)
    torch.testing.assert_close(features.pooled, expected, rtol=1e-5, atol=1e-6)
    assert features.pooled.shape == (2, encoder.pooled_dim)
    assert features.regions.shape == (2, features.grid[0] * features.grid[1], encoder.region_dim)
    assert encoder.image_input.mean == (0.4, 0.4, 0.4)
    assert encoder.image_input.std == (0.2, 0.2, 0.2)


def test_regions_of_a_vit_are_its_normalised_patch_tokens(saved):
    folder, whole = saved("clip-vit")
    encoder = OpenClipImageEncoder(folder, pretrained=True).eval()
    images = pictures(encoder)
    whole.visual.output_tokens = True
    with torch.no_grad():
        _, tokens = whole.visual(images)
        features = encoder(images)
    whole.visual.output_tokens = False
    assert features.grid == (4, 4)
    torch.testing.assert_close(features.regions, tokens)


@pytest.mark.parametrize("name", ["custom-text", "coca"])
def test_regions_stay_as_they_are_where_the_norm_is_for_the_pooled_vector(name, saved):
    folder, whole = saved(name)
    encoder = OpenClipImageEncoder(folder, pretrained=True).eval()
    images = pictures(encoder)
    seen = []
    handle = whole.visual.transformer.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        whole.visual(images)
        features = encoder(images)
    handle.remove()
    torch.testing.assert_close(features.regions, seen[0][:, 1:])


@pytest.mark.parametrize("stage, layer", [(-1, "layer4"), (-2, "layer3"), (1, "layer1")])
def test_regions_of_a_resnet_are_the_output_of_a_stage(stage, layer, saved):
    folder, whole = saved("clip-resnet")
    encoder = OpenClipImageEncoder(folder, pretrained=True, region_stage=stage).eval()
    images = pictures(encoder)
    seen = []
    handle = getattr(whole.visual, layer).register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        pooled = whole.encode_image(images)
        features = encoder(images)
    handle.remove()
    height, width = features.grid
    by_hand = [seen[0][:, :, row, column] for row in range(height) for column in range(width)]
    torch.testing.assert_close(features.regions, torch.stack(by_hand, 1))
    torch.testing.assert_close(features.pooled, pooled)


@pytest.mark.parametrize("name", TIMM_TOWERS)
def test_regions_of_a_timm_tower_are_its_trunks_last_map(name, saved):
    folder, whole = saved(name)
    encoder = OpenClipImageEncoder(folder, pretrained=True).eval()
    images = pictures(encoder)
    with torch.no_grad():
        last = whole.visual.trunk.forward_features(images)
        features = encoder(images)
    if name == "siglip":
        expected = last[:, 1:]
    elif name == "mambaout":
        expected = last.flatten(1, 2)
    else:
        expected = last.flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.regions, expected)


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_every_image_parameter_learns(name, saved):
    folder, _ = saved(name)
    encoder = OpenClipImageEncoder(folder, pretrained=True)
    assert encoder.training
    for part in encoder.modules():
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0  # a layer that happens to be dropped learns nothing
    features = encoder(pictures(encoder))
    assert idle_parameters(encoder, features[:2]) == []


@pytest.mark.parametrize("name", IMAGE_TOWERS)
def test_an_image_recipe_stands_alone(name, saved, tmp_path):
    folder, _ = saved(name)
    encoder = OpenClipImageEncoder(folder, pretrained=True).eval()
    recipe = encoder.recipe(tmp_path)
    assert recipe.name == "open_clip:."
    assert [file.name for file in tmp_path.iterdir()] == ["open_clip_config.json"]
    assert str(folder) not in (tmp_path / "open_clip_config.json").read_text()

    options = json.loads(json.dumps(recipe.options))
    again = OpenClipImageEncoder(str(tmp_path), **options)
    again.load_state_dict(encoder.state_dict(), strict=True)
    images = pictures(encoder)
    with torch.no_grad():
        same(again.eval()(images), encoder(images))
    assert again.image_input == encoder.image_input
    assert (again.pooled_dim, again.region_dim) == (encoder.pooled_dim, encoder.region_dim)


@pytest.mark.parametrize("name, size", [("clip-vit", 48), ("siglip", 64), ("convnext", (96, 64))])
def test_another_image_size(name, size, saved, tmp_path):
    folder, _ = saved(name)
    encoder = OpenClipImageEncoder(folder, pretrained=True, image_size=size).eval()
    assert encoder.image_input.size == (size if isinstance(size, tuple) else (size, size))
    features = encoder(pictures(encoder))
    assert features.regions.isfinite().all()

    options = json.loads(json.dumps(encoder.recipe(tmp_path).options))
    again = OpenClipImageEncoder(tmp_path, **options).eval()
    again.load_state_dict(encoder.state_dict())
    same(again(pictures(encoder)), features)


def test_a_batch_of_one(saved):
    encoder = OpenClipImageEncoder(saved("clip-vit")[0], pretrained=True).eval()
    images = pictures(encoder, 3)
    with torch.no_grad():
        one, all_three = encoder(images[1:2]), encoder(images)
    torch.testing.assert_close(one.pooled, all_three.pooled[1:2])
    torch.testing.assert_close(one.regions, all_three.regions[1:2])


def test_measuring_leaves_statistics_alone(saved):
    encoder = OpenClipImageEncoder(saved("clip-resnet")[0])
    counts = [value for name, value in encoder.named_buffers() if name.endswith("batches_tracked")]
    assert counts
    assert all(int(count) == 0 for count in counts)
    assert all(value.device.type == "cpu" for value in encoder.state_dict().values())


def test_protocols(saved):
    folder, _ = saved("clip-vit")
    image_encoder, text_encoder = OpenClipImageEncoder(folder), OpenClipTextEncoder(folder)
    assert isinstance(image_encoder, ImageEncoder)
    assert isinstance(text_encoder, TextEncoder)
    assert isinstance(image_encoder, SavesRecipe)
    assert isinstance(text_encoder, SavesRecipe)


def test_a_tower_has_no_parameters_of_the_other(saved):
    folder, whole = saved("clip-vit")
    count = {
        "image": sum(p.numel() for p in OpenClipImageEncoder(folder).parameters()),
        "text": sum(p.numel() for p in OpenClipTextEncoder(folder).parameters()),
        "whole": sum(p.numel() for p in whole.parameters()),
    }
    assert count["image"] == sum(p.numel() for p in whole.visual.parameters())
    assert count["image"] + count["text"] == count["whole"] - 1  # the logit scale


# The text tower


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_the_text_embedding_is_the_whole_models(name, saved):
    folder, whole = saved(name)
    encoder = OpenClipTextEncoder(folder, pretrained=True).eval()
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        features = encoder(TEXTS)
        arguments = {"normalize": False} if name == "coca" else {}
        expected = whole.encode_text(ids, **arguments)
    torch.testing.assert_close(features.pooled, expected, rtol=1e-5, atol=1e-6)
    assert features.pooled.shape == (len(TEXTS), encoder.pooled_dim)
    assert features.words.shape == (*features.word_mask.shape, encoder.word_dim)


def token_outputs(name: str, whole: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states, one per token, the way each kind of tower offers them."""
    seen = []
    if name.startswith("bert"):
        text, keep = whole.text.transformer, whole.text
        handle = text.register_forward_hook(lambda *call: seen.append(call[2].last_hidden_state))
        keep(ids)
    elif name == "coca":
        handle = whole.text.register_forward_hook(lambda *call: seen.append(call[2][1]))
        whole.text(ids)
    else:
        norm = whole.ln_final if hasattr(whole, "ln_final") else whole.text.ln_final
        handle = norm.register_forward_hook(lambda *call: seen.append(call[2]))
        whole.encode_text(ids)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("reduction", ["sum", "mean", "first"])
@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_words_are_their_merged_pieces(name, reduction, saved):
    folder, whole = saved(name)
    encoder = OpenClipTextEncoder(folder, pretrained=True, word_reduction=reduction).eval()
    tokenized = encoder.tokenize(TEXTS)
    with torch.no_grad():
        features = encoder(tokenized)
        states = token_outputs(name, whole, tokenized.inputs["text"])
    assert features.tokens == tokenized.tokens
    for text, words in enumerate(features.tokens):
        assert features.word_mask[text].sum() == len(words)
        assert features.word_mask[text, : len(words)].all()
        for word in range(len(words)):
            places = [t for t, owner in enumerate(tokenized.word_ids[text]) if int(owner) == word]
            pieces = torch.stack([states[text, place] for place in places])
            expected = {"sum": pieces.sum(0), "mean": pieces.mean(0), "first": pieces[0]}
            torch.testing.assert_close(
                features.words[text, word], expected[reduction], rtol=1e-5, atol=1e-5
            )


def test_native_words_are_rebuilt_from_their_pieces(saved):
    """Against the tokenizer applied to each word alone, words cut by hand."""
    encoder = OpenClipTextEncoder(saved("clip-vit")[0], context_length=40)
    tokenized = encoder.tokenize(TEXTS)
    assert tokenized.tokens == [
        ["mild", "cardiomegaly", ";", "no", "pneumothorax", "."],
        ["the", "heart", "isn", "'t", "enlarged", "!"],
        ["left"],
        ["a", "1", ".", "5", "cm", "nodule", "--", "left", "&", "stable", "...", "no", "2", "0"],
    ]
    alone = open_clip.SimpleTokenizer()
    for row, ids, words in zip(
        tokenized.inputs["text"].tolist(),
        tokenized.word_ids.tolist(),
        tokenized.tokens,
        strict=True,
    ):
        spelled = [alone.encode(word) for word in words]
        content = [piece for pieces in spelled for piece in pieces]
        assert row[1 : 1 + len(content)] == content
        owners = [index for index, pieces in enumerate(spelled) for _ in pieces]
        assert ids == [-1, *owners] + [-1] * (len(row) - 1 - len(owners))
    assert max(map(len, (alone.encode(word) for word in tokenized.tokens[0]))) > 1


def test_native_words_with_letters_that_are_several_bytes(saved):
    encoder = OpenClipTextEncoder(saved("clip-vit")[0])
    text = "Ménière, 3 µm → β-Blocker ☃☃☃ !"
    words = encoder.tokenize([text]).tokens[0]
    assert words == re.findall(r"[^\W\d_]+|\d|[^\w\s]+", text.lower())


def test_bert_words(saved):
    encoder = OpenClipTextEncoder(saved("bert-cls")[0])
    tokenized = encoder.tokenize(["Mild cardiomegaly, left-sided."])
    assert tokenized.tokens == [["Mild", "cardiomegaly", ",", "left", "-", "sided", "."]]
    #         [CLS] mild cardio ##megaly , left - s ##i ##d ##e ##d . [SEP]
    owners = [-1, 0, 1, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, -1]
    assert tokenized.word_ids[0].tolist() == owners + [-1] * (24 - len(owners))


@pytest.mark.parametrize("name", ["clip-vit", "bert-cls"])
def test_tokens_are_on_the_cpu_whatever_the_default_device(name, saved):
    encoder = OpenClipTextEncoder(saved(name)[0])
    expected = encoder.tokenize(["mild effusion", "edema"])
    with torch.device("meta"):
        found = encoder.tokenize(["mild effusion", "edema"])
    torch.testing.assert_close(found[:2], expected[:2])


def test_unknown_words(saved):
    encoder = OpenClipTextEncoder(saved("bert-cls")[0])
    assert encoder.unknown_words(encoder.tokenize(["mild ☃ left", "left β, ☃"])) == ["☃", "β"]
    native = OpenClipTextEncoder(saved("clip-vit")[0])
    assert native.unknown_words(native.tokenize(["mild ☃ left"])) == []


def test_sentence_piece_words(saved):
    encoder = OpenClipTextEncoder(saved("siglip")[0])
    tokenized = encoder.tokenize(["Mild cardiomegaly,  no nodule."])
    assert tokenized.tokens == [["mild", "cardiomegaly", "no", "nodule"]]
    #         ▁mild ▁ cardio megaly ▁no ▁nodule </s>
    owners = [0, 1, 1, 1, 2, 3, -1]
    assert tokenized.word_ids[0].tolist() == owners + [-1] * (24 - len(owners))


@pytest.mark.parametrize("name", ["clip-vit", "bert-mean"])
def test_long_texts_are_cut_with_one_warning(name, saved):
    encoder = OpenClipTextEncoder(saved(name)[0])
    with pytest.warns(TruncatedTextWarning, match=r"texts\[1\] is cut to 24 tokens"):
        tokenized = encoder.tokenize(["left", "left " * 40])
    assert tokenized.tokens == [["left"], ["left"] * 22]
    assert encoder.tokenize(["left " * 40]).tokens == [["left"] * 22]  # told once


@pytest.mark.parametrize("name", ["clip-vit", "bert-mean"])
def test_a_text_that_just_fits_is_not_cut(name, saved):
    encoder = OpenClipTextEncoder(saved(name)[0])
    assert encoder.tokenize(["left " * 22]).tokens == [["left"] * 22]


def test_padding_and_neighbours_do_not_matter(saved):
    encoder = OpenClipTextEncoder(saved("clip-vit")[0], pretrained=True).eval()
    with torch.no_grad():
        together, alone = encoder(TEXTS), encoder(TEXTS[1:2])
    count = len(alone.tokens[0])
    torch.testing.assert_close(together.words[1, :count], alone.words[0])
    torch.testing.assert_close(together.pooled[1], alone.pooled[0])
    assert not together.words[1, count:].any()


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_every_text_parameter_learns(name, saved):
    encoder = OpenClipTextEncoder(saved(name)[0], pretrained=True)
    features = encoder(TEXTS)
    idle = idle_parameters(encoder, (features.pooled, features.words))
    # the key bias of an attention drops out of its softmax: rounding alone decides
    assert [name for name in idle if not name.endswith("key.bias")] == []


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_a_text_recipe_stands_alone(name, saved, tmp_path):
    folder, _ = saved(name)
    encoder = OpenClipTextEncoder(
        folder, pretrained=True, word_reduction="mean", context_length=20
    ).eval()
    here = tmp_path / "here"
    here.mkdir()
    recipe = encoder.recipe(here)
    assert recipe.name == "open_clip:."
    assert str(folder) not in (here / "open_clip_config.json").read_text()
    assert not list(here.glob("*.safetensors"))

    moved = here.rename(tmp_path / "there")
    again = OpenClipTextEncoder(str(moved), **json.loads(json.dumps(recipe.options)))
    again.load_state_dict(encoder.state_dict(), strict=True)
    texts = TEXTS[:3]
    with torch.no_grad():
        same(again.eval()(texts), encoder(texts))


@pytest.mark.parametrize(
    "name, embeddings",
    [
        ("clip-vit", {"token_embedding.weight", "positional_embedding"}),
        ("coca", {"token_embedding.weight", "positional_embedding", "cls_emb"}),
        ("bert-mean", None),
    ],
)
def test_first_text_layers_frozen(name, embeddings, saved, tmp_path):
    folder, _ = saved(name)
    encoder = OpenClipTextEncoder(folder, frozen_layers=1)
    frozen = {key for key, value in encoder.model.named_parameters() if not value.requires_grad}
    if embeddings is None:
        names = (key for key, _ in encoder.model.named_parameters())
        embeddings = {key for key in names if "embeddings" in key}
        first = "transformer.encoder.layer.0"
    else:
        first = "transformer.resblocks.0"
    assert embeddings
    assert {key for key in frozen if not key.startswith(f"{first}.")} == embeddings
    block = encoder.model.get_submodule(first)
    assert not any(value.requires_grad for value in block.parameters())
    assert not any(part.training for part in encoder.train().model.get_submodule(first).modules())

    options = json.loads(json.dumps(encoder.recipe(tmp_path).options))
    again = OpenClipTextEncoder(tmp_path, **options)
    assert frozen == {
        key for key, value in again.model.named_parameters() if not value.requires_grad
    }
    assert not again.model.get_submodule(first).training


def test_an_image_recipe_remembers_which_parts_are_frozen(saved, tmp_path):
    encoder = OpenClipImageEncoder(saved("clip-resnet")[0]).freeze("model.layer1")
    options = json.loads(json.dumps(encoder.recipe(tmp_path).options))
    again = OpenClipImageEncoder(tmp_path, **options).train()
    assert not any(value.requires_grad for value in again.model.layer1.parameters())
    assert not any(part.training for part in again.model.layer1.modules())
    assert again.model.layer2.training


def test_tokenizing_works_in_a_data_loader(saved):
    for name in ("clip-vit", "bert-mean"):
        encoder = OpenClipTextEncoder(saved(name)[0])
        copy = pickle.loads(pickle.dumps(encoder))
        assert copy.tokenize(TEXTS[:2]).tokens == encoder.tokenize(TEXTS[:2]).tokens


# Names and weights


@pytest.mark.parametrize("name", ["clip-vit", "clip-resnet", "coca", "siglip", "bert-mean"])
def test_weights_from_a_file_by_name(name, known, saved):
    file = known(name)
    _, whole = saved(name)
    encoder = OpenClipImageEncoder(f"small-{name}", pretrained=file).eval()
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, whole.visual.state_dict()[key]), key
    if "HERE" in json.dumps(CONFIGS[name]):
        return
    text_encoder = OpenClipTextEncoder(f"small-{name}", pretrained=str(file)).eval()
    source = whole.text if hasattr(whole, "text") else whole
    for key, value in text_encoder.model.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_positions_are_resized_with_the_weights(known, saved):
    encoder = OpenClipTextEncoder("small-clip-vit", pretrained=known("clip-vit"), context_length=30)
    assert encoder.model.positional_embedding.shape == (30, 48)
    assert encoder.tokenize(["left"]).word_ids.shape == (1, 30)
    _, whole = saved("clip-vit")
    assert torch.equal(encoder.model.token_embedding.weight, whole.token_embedding.weight)


@pytest.mark.parametrize("encoder", [OpenClipImageEncoder, OpenClipTextEncoder])
def test_random_weights_are_no_cause_of_warnings_when_they_are_meant(encoder, saved, caplog):
    folder, _ = saved("clip-vit")
    root = logging.getLogger()
    filters = list(root.filters)
    encoder(folder)
    assert caplog.messages == []
    assert root.filters == filters
    logging.warning("of others")
    assert caplog.messages == ["of others"]


def test_random_weights_need_nothing_of_the_other_tower(known):
    known("bert-mean")
    factory = open_clip.factory
    factory._MODEL_CONFIGS["small-bert-mean"]["text_cfg"]["hf_model_name"] = "nowhere/to-be-found"
    encoder = OpenClipImageEncoder("small-bert-mean")
    assert encoder.pooled_dim == 24


def test_a_file_of_another_model(known):
    known("clip-vit")
    with pytest.raises(CheckpointError, match="small-clip-vit cannot be made with the weights"):
        OpenClipImageEncoder("small-clip-vit", pretrained=known("clip-resnet"))


def test_a_folder_without_weights(tmp_path, saved):
    folder, _ = saved("clip-vit")
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(CheckpointError, match="cannot be made with the weights True"):
        OpenClipImageEncoder(tmp_path, pretrained=True)
    assert OpenClipImageEncoder(f"local-dir:{tmp_path}").pooled_dim == 24


def test_a_folder_without_config(tmp_path):
    with pytest.raises(OptionError, match=r"must hold open_clip_config\.json"):
        OpenClipImageEncoder(tmp_path)


@pytest.mark.parametrize("encoder", [OpenClipImageEncoder, OpenClipTextEncoder])
def test_unknown_name_suggests_the_nearest(encoder):
    with pytest.raises(UnknownNameError, match=r"no model 'ViT-B16'.*Did you mean .*ViT-B-16"):
        encoder("ViT-B16")
    with pytest.raises(DtypeError, match="model_name must be a string; got int"):
        encoder(16)


def test_unknown_tag():
    message = r"pretrained must be a file or one of the tags of RN50 \(openai, .*got 'no-such-tag'"
    with pytest.raises(OptionError, match=message):
        OpenClipTextEncoder("RN50", pretrained="no-such-tag")
    with pytest.raises(OptionError, match="got 'True'"):
        OpenClipTextEncoder("RN50", pretrained=True)


def test_a_folder_takes_its_own_weights_only(saved):
    folder, _ = saved("clip-vit")
    with pytest.raises(OptionError, match="comes with its own weights"):
        OpenClipImageEncoder(folder, pretrained=folder / "open_clip_model.safetensors")


# Bad input


@pytest.mark.parametrize(
    "stage, error, message",
    [
        (3, OptionError, "from -3 to 2; got 3"),
        (-4, OptionError, "from -3 to 2; got -4"),
        ("last", DtypeError, "an integer; got 'last'"),
    ],
)
def test_region_stage_out_of_range(stage, error, message, saved):
    with pytest.raises(error, match=f"region_stage must be {message}"):
        OpenClipImageEncoder(saved("clip-vit")[0], region_stage=stage)


@pytest.mark.parametrize("name", ["clip-vit", "convnext"])
@pytest.mark.parametrize("size", [0, -8, "32", (8, 8, 8)])
def test_what_is_no_image_size(name, size, saved):
    with pytest.raises(OptionError, match="image_size must be a number of pixels or"):
        OpenClipImageEncoder(saved(name)[0], image_size=size)


@pytest.mark.parametrize("size", [33, (32, 47)])
def test_no_patch_is_cut_off_in_silence(size, saved):
    with pytest.raises(OptionError, match=r"must be a multiple of the patches' \(8, 8\) pixels"):
        OpenClipImageEncoder(saved("clip-vit")[0], image_size=size)


@pytest.mark.parametrize(
    "images, error, message",
    [
        (torch.zeros(3, 32, 32), ShapeError, r"images must be \(image, channel, height, width\)"),
        (torch.zeros(2, 1, 32, 32), ShapeError, r"3 channels; .*expand\(-1, 3,"),
        (torch.zeros(2, 3, 40, 32), ShapeError, r"\(32, 32\) pixels; got \(40, 32\)"),
        (torch.zeros(0, 3, 32, 32), ShapeError, "at least one image"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.long), DtypeError, "floating-point"),
        (torch.zeros(2, 3, 32, 32).double(), DtypeError, "in the dtype of .*32; got torch.float64"),
        (torch.zeros(2, 3, 32, 32).to("meta"), DeviceError, "device of the encoder, cpu; got meta"),
    ],
)
def test_bad_images(images, error, message, saved):
    with pytest.raises(error, match=message):
        OpenClipImageEncoder(saved("clip-vit")[0])(images)


@pytest.mark.parametrize("name", ["clip-vit", "bert-mean", "siglip"])
@pytest.mark.parametrize("text", ["", "   \n", "☃" * 3])
def test_an_empty_text(name, text, saved):
    encoder = OpenClipTextEncoder(saved(name)[0])
    if name == "clip-vit" and text.strip():
        assert encoder.tokenize([text]).tokens == [[text]]  # it spells any character
        return
    with pytest.raises(EmptyTextError, match=r"texts\[1\] has no word"):
        encoder(["left", text])


@pytest.mark.parametrize(
    "texts, error, message",
    [
        ("left", DtypeError, "sequence of strings; got one string"),
        (["left", None], DtypeError, r"texts\[1\] must be a string; got NoneType"),
        ([], ShapeError, "at least one text"),
    ],
)
def test_bad_texts(texts, error, message, saved):
    with pytest.raises(error, match=message):
        OpenClipTextEncoder(saved("clip-vit")[0])(texts)


def test_bad_text_options(saved):
    folder, _ = saved("clip-vit")
    with pytest.raises(OptionError, match="word_reduction must be one of 'sum'"):
        OpenClipTextEncoder(folder, word_reduction="median")
    with pytest.raises(OptionError, match="context_length must be at least 3; got 2"):
        OpenClipTextEncoder(folder, context_length=2)
    with pytest.raises(OptionError, match=r"texts of 200 tokens .*Give a smaller context_length"):
        OpenClipTextEncoder(saved("bert-mean")[0], context_length=200)
    for layers in (-1, 3):
        with pytest.raises(OptionError, match=f"frozen_layers must be from 0 to 2; got {layers}"):
            OpenClipTextEncoder(folder, frozen_layers=layers)


def test_a_tokenizer_of_another_model(saved, tmp_path):
    folder, _ = saved("clip-vit")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = 100
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="ids up to 49407, the model has embeddings for 100"):
        OpenClipTextEncoder(tmp_path).tokenize(["left"])


def test_a_tokenizer_that_is_not_there(saved, tmp_path):
    """Transformers 5 makes an empty one from the model's config, without a word; 4 refuses."""
    folder, _ = saved("bert-mean")
    for file in ("open_clip_config.json", "config.json"):
        (tmp_path / file).write_text((folder / file).read_text())
    with pytest.raises(TokenizerError, match=r"no token but its special|cannot be loaded"):
        OpenClipTextEncoder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(TokenizerError, match=f"the tokenizer of {tmp_path} cannot be loaded"):
        OpenClipTextEncoder(tmp_path)


def test_the_clips_mode_of_a_tokenizer(saved, tmp_path):
    folder, _ = saved("bert-mean")
    for file in folder.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_mode"] = "clips"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    encoder = OpenClipTextEncoder(tmp_path)
    encoder.tokenizer.tokenizer.bos_token = "[CLS]"
    encoder.tokenizer.tokenizer.eos_token = "[SEP]"
    tokenized = encoder.tokenize(["no left nodule"])
    assert tokenized.inputs["text"][0, -1] == encoder.tokenizer.tokenizer.cls_token_id
    assert tokenized.word_ids[0].tolist() == [-1, 0, 1, 2] + [-1] * 20


def test_tokens_that_moved(saved, monkeypatch):
    encoder = OpenClipTextEncoder(saved("bert-mean")[0])
    call = type(encoder.tokenizer).__call__
    monkeypatch.setattr(type(encoder.tokenizer), "__call__", lambda *a: call(*a).roll(1, dims=1))
    with pytest.raises(TokenizerError, match="cannot be told apart into words"):
        encoder.tokenize(["no left nodule"])
