"""Text encoders on transformers: tiny random models, tokenizers made here, nothing downloaded."""

import copy
import json
import pickle
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import nn

from gloria.aggregators import AttentionPooling, GeM, LogSumExp, masked_sum
from gloria.encoders.hf_text import HFTextEncoder
from gloria.errors import (
    CheckpointError,
    DataError,
    DtypeError,
    EmptyTextError,
    OptionError,
    ShapeError,
    TokenizerError,
    TruncatedTextWarning,
)
from gloria.types import SavesRecipe, TextEncoder

TEXTS = [
    "Cardiomegaly.",
    "Mild left-sided effusion, 1.5 cm (new).",
    "Größe µ normal",
    "effusion",
]
# WordPiece and byte-level BPE cut at every punctuation mark, SentencePiece at white space alone
WORDPIECE_WORDS = [
    ["Cardiomegaly", "."],
    ["Mild", "left", "-", "sided", "effusion", ",", "1", ".", "5", "cm", "(", "new", ")", "."],
    ["Größe", "µ", "normal"],
    ["effusion"],
]
BPE_WORDS = [
    ["Cardiomegaly", "."],
    ["Mild", "left", "-", "sided", "effusion", ",", "1", ".", "5", "cm", "(", "new", ")."],
    ["Größe", "µ", "normal"],
    ["effusion"],
]
SENTENCEPIECE_WORDS = [
    ["Cardiomegaly", "."],
    ["Mild", "left-sided", "effusion", ",", "1.5", "cm", "(", "new", ")."],
    ["Größe", "µ", "normal"],
    ["effusion"],
]


# Tokenizers.


def wordpiece_tokenizer(cls="[CLS]", sep="[SEP]", pad="[PAD]", unk="[UNK]", mask="[MASK]"):
    pieces = "Car ##dio ##mega ##ly mild left si ##ded eff ##usion 1 5 cm new gro ##ß ##e norm ##al"
    vocabulary = [pad, unk, cls, sep, mask, *pieces.lower().split(), *[".", ",", "-", "(", ")"]]
    vocabulary[5] = "car"
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(ids, unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing((sep, ids[sep]), (cls, ids[cls]))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token=cls,
        sep_token=sep,
        pad_token=pad,
        unk_token=unk,
        mask_token=mask,
    )


ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
)


def roberta_style(backend, processor=TEMPLATE):
    backend.post_processor = processor
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="<s>",
        bos_token="<s>",
        pad_token="<pad>",
        sep_token="</s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def byte_bpe_tokenizer(trim_offsets=True):
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(ROBERTA_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.decoder = decoders.ByteLevel()
    processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=False
    )
    return roberta_style(backend, processor)


def unigram_tokenizer(split=True):
    pieces = "▁ ▁Cardio mega ly . ▁Mild ▁left - sided ▁effusion , ▁1 5 ▁cm ( new ) ▁Gr ö ß e ▁ μ"
    scores = [
        (piece, -1.0 - index / 100) for index, piece in enumerate(dict.fromkeys(pieces.split()))
    ]
    letters = [(letter, -9.0) for letter in "norma1"]
    specials = [(token, 0.0) for token in ROBERTA_TOKENS]
    backend = Tokenizer(models.Unigram([*specials, *scores, *letters], unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    backend.decoder = decoders.Metaspace()
    return roberta_style(backend)


# Models.


@dataclass
class Case:
    config: type
    tokenizer: Any
    words: list[list[str]]
    options: dict[str, Any]

    def make(self, **options):
        tokenizer = self.tokenizer()
        sizes = {
            "vocab_size": len(tokenizer) + 3,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 130,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        chosen = {**sizes, **self.options}
        config = self.config(**{name: size for name, size in chosen.items() if size is not None})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModel.from_config(config)
            for parameter in model.parameters():  # biases too, so that nothing hides behind a zero
                torch.nn.init.normal_(parameter, std=0.3)
        model.double().eval()
        return HFTextEncoder(model, tokenizer=tokenizer, **{"last_n_layers": 2, **options}).eval()


def mpnet_tokenizer():
    return wordpiece_tokenizer("<s>", "</s>", "<pad>", "[UNK]", "<mask>")


DISTIL = {
    "dim": 16,
    "n_layers": 3,
    "n_heads": 2,
    "hidden_dim": 24,
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads")),
}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}
CASES = {
    "bert": Case(transformers.BertConfig, wordpiece_tokenizer, WORDPIECE_WORDS, {}),
    "distilbert": Case(transformers.DistilBertConfig, wordpiece_tokenizer, WORDPIECE_WORDS, DISTIL),
    "electra": Case(
        transformers.ElectraConfig, wordpiece_tokenizer, WORDPIECE_WORDS, {"embedding_size": 8}
    ),
    "mpnet": Case(transformers.MPNetConfig, mpnet_tokenizer, WORDPIECE_WORDS, {}),
    "roberta": Case(transformers.RobertaConfig, byte_bpe_tokenizer, BPE_WORDS, {}),
    "modernbert": Case(
        transformers.ModernBertConfig,
        byte_bpe_tokenizer,
        BPE_WORDS,
        {"cls_token_id": 0, "sep_token_id": 2, "local_attention": 8},
    ),
    "xlm-roberta": Case(transformers.XLMRobertaConfig, unigram_tokenizer, SENTENCEPIECE_WORDS, {}),
    "deberta-v2": Case(
        transformers.DebertaV2Config, unigram_tokenizer, SENTENCEPIECE_WORDS, DEBERTA
    ),
    "albert": Case(
        transformers.AlbertConfig, unigram_tokenizer, SENTENCEPIECE_WORDS, {"embedding_size": 8}
    ),
}


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return CASES[name]


@pytest.fixture(scope="module")
def encoder(case):
    return case.make()


@pytest.fixture(scope="module")
def features(encoder):
    with torch.no_grad():
        return encoder(TEXTS)


@pytest.fixture(scope="module")
def bert():
    """A BERT that tests may only read."""
    return CASES["bert"].make()


# The definition, by hand: one text at a time, token by token.


def spans_of(text, words):
    """Where the words stand in the text, left to right."""
    spans, start = [], 0
    for word in words:
        start = text.index(word, start)
        spans.append((start, start + len(word)))
        start += len(word)
    return spans


def by_hand(encoder, text, words, last_n):
    """Words and mean token, from characters alone: no word ids."""
    encoded = encoder.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = encoded.pop("offset_mapping")[0].tolist()
    if "token_type_ids" in encoded:
        del encoded["token_type_ids"]
    output = encoder.model(**encoded, output_hidden_states=True)
    layers = [*output.hidden_states[:-1], output.last_hidden_state][-last_n:]
    states = [sum(layer[0, t] for layer in layers) for t in range(len(offsets))]
    specials = {encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id}
    vectors = [torch.zeros_like(states[0]) for _ in words]
    for state, (start, end), token_id in zip(
        states, offsets, encoded["input_ids"][0].tolist(), strict=True
    ):
        if token_id in specials:
            continue
        while start < end and text[start].isspace():
            start += 1
        spans = spans_of(text, words)
        owner = next(index for index, (_, stop) in enumerate(spans) if start < stop)
        vectors[owner] = vectors[owner] + state
    return torch.stack(vectors), sum(states) / len(states)


class TestMatrix:
    """What holds for every architecture."""

    def test_is_a_text_encoder(self, encoder):
        assert isinstance(encoder, TextEncoder)
        assert isinstance(encoder, SavesRecipe)
        assert encoder.word_dim == encoder.pooled_dim == 16

    def test_words_are_words(self, case, features):
        assert features.tokens == case.words
        assert features.word_mask.sum(1).tolist() == [len(words) for words in case.words]
        assert features.words.shape == (4, max(map(len, case.words)), 16)
        assert features.pooled.shape == (4, 16)

    def test_equals_the_definition_by_hand(self, case, encoder, features):
        for index, (text, expected) in enumerate(zip(TEXTS, case.words, strict=True)):
            words, pooled = by_hand(encoder, text, expected, last_n=2)
            got = features.words[index, : len(expected)]
            torch.testing.assert_close(got, words, rtol=0, atol=1e-10)
            torch.testing.assert_close(features.pooled[index], pooled, rtol=0, atol=1e-10)
            assert features.words[index, len(expected) :].eq(0).all()

    def test_last_layer_is_the_models_output(self, encoder):
        last = copy.copy(encoder)
        last.last_n_layers = 1
        tokenized = encoder.tokenize(TEXTS)
        output = encoder.model(**tokenized.inputs).last_hidden_state
        first = [t for t, number in enumerate(tokenized.word_ids[1].tolist()) if number == 0]
        torch.testing.assert_close(last(TEXTS).words[1, 0], output[1, first].sum(0))

    def test_padding_is_inert(self, encoder, features):
        for index, text in enumerate(TEXTS):
            alone = encoder([text])
            count = alone.words.shape[1]
            torch.testing.assert_close(
                alone.words[0], features.words[index, :count], rtol=0, atol=1e-10
            )
            torch.testing.assert_close(alone.pooled[0], features.pooled[index], rtol=0, atol=1e-10)
            assert alone.word_mask.all()

    def test_every_parameter_gets_a_gradient(self, case):
        encoder = case.make().train()
        features = encoder(TEXTS)
        generator = torch.Generator().manual_seed(1)
        upstream = torch.randn(features.words.shape, generator=generator, dtype=torch.float64)
        ((features.words * upstream).sum() + features.pooled.square().sum()).backward()
        without = [name for name, p in encoder.named_parameters() if p.grad is None]
        assert without == []
        assert all(p.grad.isfinite().all() for p in encoder.parameters())

    def test_recipe_makes_it_again_bit_for_bit(self, encoder, features, tmp_path):
        recipe = encoder.recipe(tmp_path)
        assert recipe.name == "hf:."
        again = HFTextEncoder(tmp_path, **recipe.options).double().eval()
        again.load_state_dict(encoder.state_dict())
        with torch.no_grad():
            repeated = again(TEXTS)
        assert torch.equal(repeated.words, features.words)
        assert torch.equal(repeated.pooled, features.pooled)
        assert torch.equal(repeated.word_mask, features.word_mask)
        assert repeated.tokens == features.tokens

    def test_pretrained_folder(self, encoder, features, tmp_path):
        encoder.model.save_pretrained(tmp_path)
        encoder.tokenizer.save_pretrained(tmp_path)
        loaded = HFTextEncoder(str(tmp_path), last_n_layers=2).eval()
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        torch.testing.assert_close(
            loaded(TEXTS).words.double(), features.words, rtol=1e-4, atol=1e-4
        )

    def test_first_layers_frozen(self, name, case):
        if name == "albert":
            with pytest.raises(OptionError, match="cannot tell the layers of a AlbertModel"):
                case.make(frozen_layers=1)
            return
        encoder = case.make(frozen_layers=2).train()
        encoder(TEXTS).words.square().sum().backward()
        frozen = {n for n, p in encoder.named_parameters() if not p.requires_grad}
        learning = {n for n, p in encoder.named_parameters() if p.grad is not None}
        assert frozen | learning == {n for n, _ in encoder.named_parameters()}
        assert not frozen & learning
        assert any("embeddings" in n for n in frozen)
        for index, expected in enumerate([frozen, frozen, learning]):
            members = [n for n, _ in encoder.named_parameters() if f".{index}." in n]
            assert members
            assert set(members) <= expected
        assert [encoder.training, encoder.model.training] == [True, True]
        assert not encoder.model.get_input_embeddings().training


# Words.


def test_the_papers_own_example_is_one_word(bert):
    assert bert.tokenizer.tokenize("Cardiomegaly") == ["car", "##dio", "##mega", "##ly"]
    tokenized = bert.tokenize(["Cardiomegaly"])
    assert tokenized.word_ids.tolist() == [[-1, 0, 0, 0, 0, -1]]
    assert tokenized.tokens == [["Cardiomegaly"]]


def words_with(tokenizer, text):
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=4, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.BertModel(config)
    encoder = HFTextEncoder(model, tokenizer=tokenizer, last_n_layers=1)
    return encoder.tokenize([text])


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_byte_level_bpe_makes_no_word_of_white_space(trim_offsets):
    tokenized = words_with(byte_bpe_tokenizer(trim_offsets), "  mild   effusion \n 1.5cm  ")
    assert tokenized.tokens == [["mild", "effusion", "1", ".", "5", "cm"]]


@pytest.mark.parametrize("split", [True, False])
def test_sentencepiece_words_end_at_white_space_and_outer_punctuation(split):
    text = "(Mild) left-sided  effusion,  1.5 cm. "
    tokenized = words_with(unigram_tokenizer(split), text)
    assert tokenized.tokens == [["(", "Mild", ")", "left-sided", "effusion", ",", "1.5", "cm", "."]]


def test_a_lone_word_start_mark_belongs_to_the_word_after_it():
    tokenizer = unigram_tokenizer()
    assert tokenizer.tokenize("new e") == ["▁", "new", "▁", "e"]
    tokenized = words_with(tokenizer, "new e")
    assert tokenized.word_ids.tolist() == [[-1, 0, 0, 1, 1, -1]]


def test_a_piece_across_white_space_makes_one_word_of_both():
    tokens = [*ROBERTA_TOKENS, "▁", "▁left▁lung", "▁lo", "be"]
    backend = Tokenizer(models.Unigram([(token, -1.0) for token in tokens], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenized = words_with(roberta_style(backend), "left lung lobe")
    assert tokenized.tokens == [["left lung", "lobe"]]
    assert tokenized.word_ids.tolist() == [[-1, 0, 1, 1, -1]]


def test_wordpiece_words_are_the_published_ones_whatever_the_text(bert):
    choice = random.Random(0).choice
    alphabet = "mildeffusion15é°≥µ.,-()'+%$_/ \t\n\u00a0中"
    for length in range(1, 60):
        text = "5" + "".join(choice(alphabet) for _ in range(length))
        tokenized = bert.tokenize([text])
        ids = tokenized.inputs["input_ids"][0].tolist()[1:-1]
        pieces = bert.tokenizer.convert_ids_to_tokens(ids)
        starts = [not piece.startswith("##") for piece in pieces]
        expected = [sum(starts[: index + 1]) - 1 for index in range(len(starts))]
        assert tokenized.word_ids[0].tolist()[1:-1] == expected
        assert len(tokenized.tokens[0]) == sum(starts)
        assert "".join(tokenized.tokens[0]) == "".join(text.split())


def test_unknown_words_are_words(bert):
    tokenized = bert.tokenize(["zzz effusion qqq", "mild zzz"])
    assert tokenized.tokens[0] == ["zzz", "effusion", "qqq"]
    assert bert.unknown_words(tokenized) == ["zzz", "qqq"]
    assert bert.unknown_words(bert.tokenize(["Mild cardiomegaly."])) == []


def test_a_tokenizer_that_spells_everything_has_no_unknown_words():
    encoder = CASES["roberta"].make()
    assert encoder.unknown_words(encoder.tokenize(["zzz effusion ☃"])) == []


def test_words_keep_the_case_and_the_accents_of_the_text(bert):
    assert bert.tokenize(["GRÖSSE mild"]).tokens == [["GRÖSSE", "mild"]]


def test_cls_as_word_equals_the_published_merging():
    encoder = CASES["bert"].make(cls_as_word=True)
    features = encoder(TEXTS)
    assert [words[0] for words in features.tokens] == ["[CLS]"] * 4
    assert [words[1:] for words in features.tokens] == WORDPIECE_WORDS
    for index, text in enumerate(TEXTS):
        pieces = ["[CLS]", *encoder.tokenizer.tokenize(text), "[SEP]"]
        ids = torch.tensor([encoder.tokenizer.convert_tokens_to_ids(pieces)])
        layers = encoder.model(ids, output_hidden_states=True).hidden_states[-2:]
        merged: list[torch.Tensor] = []
        for piece, vector in zip(pieces, sum(layers)[0], strict=True):
            if piece.startswith("##"):
                merged[-1] = merged[-1] + vector
            else:
                merged.append(vector)
        valid = int(features.word_mask[index].sum())
        assert valid == len(merged) - 1  # all but [SEP]
        torch.testing.assert_close(features.words[index, :valid], torch.stack(merged[:-1]))
        over_97_positions = sum(merged) / 97
        cosine = torch.cosine_similarity(over_97_positions, features.pooled[index], dim=0)
        assert cosine.item() == pytest.approx(1, abs=1e-12)


def test_a_tokenizer_that_pads_on_the_left_pads_on_the_right_here(bert):
    """Or the positions of a text's tokens would depend on the longest text of its batch."""
    left = CASES["bert"].make(cls_as_word=True)
    left.tokenizer.padding_side = "left"
    together, alone = left(TEXTS), left(TEXTS[:1])
    torch.testing.assert_close(together.words[0, :3], alone.words[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(together.pooled, bert(TEXTS).pooled)


# Options.


def states_of(encoder, text):
    tokenized = encoder.tokenize([text])
    hidden = encoder.model(**tokenized.inputs, output_hidden_states=True).hidden_states
    return torch.stack(hidden[-encoder.last_n_layers :]), tokenized.word_ids[0].tolist()


@pytest.mark.parametrize("last_n", [1, 2, 3])
@pytest.mark.parametrize("layer_reduction", ["sum", "mean"])
@pytest.mark.parametrize("word_reduction", ["sum", "mean", "max", "first"])
def test_reductions(last_n, layer_reduction, word_reduction):
    encoder = CASES["bert"].make(
        last_n_layers=last_n, layer_reduction=layer_reduction, word_reduction=word_reduction
    )
    layers, word_ids = states_of(encoder, "Cardiomegaly")
    assert word_ids == [-1, 0, 0, 0, 0, -1]
    states = layers.sum(0)[0] / (last_n if layer_reduction == "mean" else 1)
    pieces = states[1:5]
    expected = {
        "sum": pieces[0] + pieces[1] + pieces[2] + pieces[3],
        "mean": (pieces[0] + pieces[1] + pieces[2] + pieces[3]) / 4,
        "max": pieces.max(0).values,
        "first": pieces[0],
    }[word_reduction]
    torch.testing.assert_close(encoder(["Cardiomegaly"]).words[0, 0], expected)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_poolings_are_over_all_tokens_of_the_text(pooling):
    encoder = CASES["bert"].make(pooling=pooling)
    tokenized = encoder.tokenize(TEXTS)
    hidden = encoder.model(**tokenized.inputs, output_hidden_states=True).hidden_states
    states = hidden[-1] + hidden[-2]
    features = encoder(TEXTS)
    for index in range(len(TEXTS)):
        own = states[index][tokenized.inputs["attention_mask"][index].bool()]
        expected = {"mean": own.mean(0), "max": own.max(0).values, "cls": own[0]}[pooling]
        torch.testing.assert_close(features.pooled[index], expected)


def test_frozen_later_is_frozen_in_the_recipe(tmp_path):
    recipe = CASES["bert"].make().freeze().recipe(tmp_path)
    assert recipe.options["frozen"] is True
    assert not HFTextEncoder(tmp_path, **recipe.options).model.embeddings.training


def test_dropout_is_off_in_the_frozen_layers_and_on_above_them():
    encoder = CASES["bert"].make(frozen_layers=2, last_n_layers=1).train()
    inputs = encoder.tokenize(TEXTS).inputs
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = encoder.model(**inputs, output_hidden_states=True).hidden_states
        second = encoder.model(**inputs, output_hidden_states=True).hidden_states
    same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert same == [True, True, True, False]


def test_a_second_encoder_of_the_recipe_keeps_its_options(tmp_path):
    options = {
        "last_n_layers": 3,
        "layer_reduction": "mean",
        "word_reduction": "max",
        "pooling": "cls",
        "max_length": 7,
        "cls_as_word": True,
    }
    recipe = CASES["bert"].make(**options, frozen_layers=1).recipe(tmp_path)
    frozen = ["model.embeddings", "model.encoder.layer.0"]
    assert recipe.options == {"pretrained": False, "frozen": frozen, **options}
    again = HFTextEncoder(tmp_path, **recipe.options)
    assert again.recipe(tmp_path) == recipe
    again.train()
    assert not again.model.embeddings.training
    assert not any(value.requires_grad for value in again.model.encoder.layer[0].parameters())
    assert again.model.encoder.layer[1].training


def test_defaults_are_the_published_values_where_the_model_allows():
    bert = CASES["bert"].make(last_n_layers=None)
    assert (bert.last_n_layers, bert.max_length) == (3, 97)
    config = copy.deepcopy(bert.model.config)
    config.num_hidden_layers, config.max_position_embeddings = 5, 20
    other = HFTextEncoder(transformers.BertModel(config), tokenizer=bert.tokenizer)
    assert (other.last_n_layers, other.max_length) == (4, 20)


# Aggregators as poolings.


@pytest.mark.parametrize("aggregator", [GeM(), AttentionPooling(16), LogSumExp(), masked_sum])
def test_pooling_by_an_aggregator(aggregator):
    if isinstance(aggregator, torch.nn.Module):
        aggregator = aggregator.double()
    encoder = CASES["bert"].make(pooling=aggregator)
    features = encoder(TEXTS)
    assert features.pooled.shape == (4, 16)
    for index, text in enumerate(TEXTS):
        layers, _ = states_of(encoder, text)
        alone = aggregator(layers.sum(0), None, 1)[0]
        torch.testing.assert_close(features.pooled[index], alone, rtol=0, atol=1e-9)


def test_a_pooling_module_trains_with_the_encoder():
    encoder = CASES["bert"].make(pooling=AttentionPooling(16).double())
    assert "pooling.score.weight" in encoder.state_dict()
    encoder(TEXTS).pooled.square().sum().backward()
    assert encoder.get_parameter("pooling.score.weight").grad.any()


def test_a_pooling_object_is_in_no_recipe(tmp_path):
    with pytest.raises(OptionError, match="pooling is a GeM object, which a recipe cannot hold"):
        CASES["bert"].make(pooling=GeM()).recipe(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Batches.


def test_tokenized_text_goes_in_as_strings_do(bert):
    tokenized = bert.tokenize(TEXTS)
    moved = tokenized.to("cpu")
    assert moved.tokens == tokenized.tokens
    assert tokenized.word_ids.shape == tokenized.inputs["input_ids"].shape
    assert torch.equal(bert(moved).words, bert(TEXTS).words)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tokenized_text_travels_to_the_device_of_the_model(bert):
    tokenized = bert.tokenize(TEXTS)
    features = copy.deepcopy(bert).to("cuda")(tokenized)
    assert features.word_mask.device.type == "cuda"
    torch.testing.assert_close(features.words.cpu(), bert(TEXTS).words, rtol=0, atol=1e-10)


def test_pickles_before_and_after_its_first_forward():
    encoder = CASES["bert"].make()
    again = pickle.loads(pickle.dumps(encoder))
    expected = encoder(TEXTS).words
    once_more = pickle.loads(pickle.dumps(nn.Sequential(encoder)))[0]
    for each in (again, once_more, copy.deepcopy(encoder), encoder):
        assert torch.equal(each(TEXTS).words, expected)


def test_another_process_reads_the_pickle(tmp_path):
    encoder = CASES["bert"].make()
    expected = encoder(["effusion"]).words
    torch.save(encoder, tmp_path / "encoder.pt")
    code = (
        "import sys, torch; encoder = torch.load(sys.argv[1], weights_only=False); "
        "torch.save(encoder(['effusion']).words, sys.argv[2])"
    )
    paths = [str(tmp_path / name) for name in ("encoder.pt", "words.pt")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    torch.testing.assert_close(torch.load(paths[1]), expected)


def test_a_forward_that_is_under_way_does_not_notice_a_copy():
    encoder = CASES["bert"].make()
    expected = encoder(TEXTS).words
    copies = []

    def make_copy(*_):
        copies.append(copy.deepcopy(encoder))

    encoder.model.embeddings.register_forward_hook(make_copy)
    assert torch.equal(encoder(TEXTS).words, expected)
    assert len(copies) == 1


def test_pickling_leaves_the_users_own_hooks():
    encoder = CASES["bert"].make()
    encoder.model.embeddings.register_forward_hook(print)  # any function that pickle takes
    encoder(TEXTS)
    for each in (pickle.loads(pickle.dumps(encoder)), encoder):
        assert list(each.model.embeddings._forward_hooks.values()) == [print]


def test_tokenized_text_pickles():
    encoder = CASES["bert"].make()
    assert pickle.loads(pickle.dumps(encoder.tokenize(TEXTS))).tokens == WORDPIECE_WORDS


def test_a_tuple_of_texts_and_repeated_texts(bert):
    features = bert(("mild", "mild"))
    torch.testing.assert_close(features.words[0], features.words[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half(dtype):
    encoder = CASES["bert"].make().to(dtype)
    features = encoder(TEXTS)
    assert features.words.dtype == features.pooled.dtype == dtype
    assert features.words.isfinite().all()


def test_a_long_text_is_cut_with_one_warning_and_keeps_its_special_tokens():
    encoder = CASES["bert"].make(max_length=6)
    texts = ["mild", "mild effusion cardiomegaly"]
    with pytest.warns(TruncatedTextWarning, match=r"texts\[1\] is cut to 6 tokens, its first 17"):
        tokenized = encoder.tokenize(texts)
    assert tokenized.tokens == [["mild"], ["mild", "effusion", "car"]]
    assert tokenized.word_ids[1].tolist() == [-1, 0, 1, 1, 2, -1]
    ids = tokenized.inputs["input_ids"][1].tolist()
    assert ids[-1] == encoder.tokenizer.sep_token_id
    encoder.tokenize(texts)  # not again: warnings are errors here
    assert encoder(texts).words.shape == (2, 3, 16)


def test_tokens_are_counted_before_texts_are_cut():
    encoder = CASES["bert"].make(max_length=6)
    # [CLS] and [SEP] count; more than are counted at a time, and than the tokenizer allows
    texts = ["Cardiomegaly", "mild effusion cardiomegaly", "mild " * 600] + ["mild"] * 1000
    assert encoder.token_counts(texts) == [6, 9, 602] + [3] * 1000


def test_counting_tokens_leaves_another_thread_s_texts_cut():
    """By the tokenizer's settings, which are what all threads of an encoder share."""
    encoder = CASES["bert"].make(max_length=6)
    cut = encoder.tokenizer.backend_tokenizer
    encoder.tokenize(["mild"])
    before = cut.truncation, cut.padding
    encoder.token_counts(["mild " * 600])
    assert (cut.truncation, cut.padding) == before
    assert before[0]["max_length"] == 6


def test_tokens_are_on_the_cpu_whatever_the_default_device():
    encoder = CASES["bert"].make()
    expected = encoder.tokenize(["mild effusion", "cardiomegaly"])
    with torch.device("meta"):
        found = encoder.tokenize(["mild effusion", "cardiomegaly"])
    torch.testing.assert_close(found[:2], expected[:2])


def test_a_text_of_just_the_right_length_is_not_cut():
    encoder = CASES["bert"].make(max_length=6)
    assert encoder.tokenize(["Cardiomegaly"]).tokens == [["Cardiomegaly"]]


# Bad input.


@pytest.mark.parametrize("text", ["", "  \n\t ", "\u200b"])
def test_empty_text(bert, text):
    with pytest.raises(EmptyTextError, match=r"texts\[1\] has no word") as caught:
        bert(["mild", text])
    assert repr(text) in str(caught.value)


def test_empty_text_is_not_saved_by_cls():
    with pytest.raises(EmptyTextError, match=r"texts\[0\]"):
        CASES["bert"].make(cls_as_word=True)([""])


@pytest.mark.parametrize(
    "texts, error, message",
    [
        ("mild effusion", DtypeError, r"got one string. Wrap it: \['mild effusion'\]"),
        ([], ShapeError, "at least one text"),
        (["mild", None], DtypeError, r"texts\[1\] must be a string; got NoneType"),
        ({"mild", "edema"}, DtypeError, "texts must be a sequence of strings; got set"),
        ({0: "mild"}, DtypeError, "texts must be a sequence of strings; got dict"),
        (iter(["mild"]), DtypeError, "texts must be a sequence of strings; got list_iterator"),
        (["mild", "derrame \udcf3"], DataError, r"texts\[1\] must be valid Unicode; got .*udcf3"),
    ],
)
def test_bad_texts(bert, texts, error, message):
    with pytest.raises(error, match=message):
        bert(texts)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"last_n_layers": 4}, OptionError, "last_n_layers must be from 1 to 3; got 4"),
        ({"last_n_layers": 0}, OptionError, "last_n_layers must be from 1 to 3"),
        ({"last_n_layers": 1.5}, DtypeError, "last_n_layers must be an integer; got 1.5"),
        ({"frozen_layers": 4}, OptionError, "frozen_layers must be from 0 to 3"),
        ({"max_length": 2}, OptionError, "max_length must be from 3 to 130"),
        ({"max_length": 131}, OptionError, "max_length must be from 3 to 130"),
        ({"layer_reduction": "max"}, OptionError, "layer_reduction must be one of 'sum', 'mean'"),
        ({"word_reduction": "last"}, OptionError, "word_reduction must be one of"),
        ({"cls_as_word": "no"}, DtypeError, "cls_as_word must be True or False; got 'no'"),
        ({"pooling": "sum"}, OptionError, "pooling must be one of 'mean', 'max', 'cls'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        CASES["bert"].make(**options)


@pytest.mark.parametrize("name", ["roberta", "mpnet"])
def test_positions_counted_from_behind_the_padding_index_leave_fewer(name):
    with pytest.raises(OptionError, match="max_length must be from 3 to 128"):
        CASES[name].make(max_length=129)
    longest = CASES[name].make(max_length=128)
    with pytest.warns(TruncatedTextWarning):
        features = longest(["mild " * 200])
    assert features.words.isfinite().all()


@pytest.mark.parametrize("kind", ["CLIPText", "GPT2", "OPT"])
def test_positions_go_by_other_names(kind):
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 20}
    if kind != "GPT2":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"max_position_embeddings": 20}
    config = getattr(transformers, f"{kind}Config")(vocab_size=320, pad_token_id=1, **sizes)
    model = transformers.AutoModel.from_config(config)
    encoder = HFTextEncoder(model, tokenizer=byte_bpe_tokenizer()).eval()
    assert encoder.max_length == 20
    with pytest.warns(TruncatedTextWarning, match="cut to 20 tokens"):
        assert encoder(["left " * 60]).words.isfinite().all()


def test_a_model_object_needs_its_tokenizer(bert):
    with pytest.raises(OptionError, match="a model object needs its tokenizer"):
        HFTextEncoder(bert.model)
    with pytest.raises(DtypeError, match="a model of transformers; got a HFTextEncoder object"):
        HFTextEncoder(bert, tokenizer=bert.tokenizer)


def test_slow_tokenizer(bert):
    with pytest.raises(TokenizerError, match=r"a fast tokenizer is needed.*got CanineTokenizer"):
        HFTextEncoder(bert.model, tokenizer=transformers.CanineTokenizer())


def test_vocabulary_of_another_model(bert):
    with pytest.raises(TokenizerError, match=r"gives ids up to .*, the model has embeddings for"):
        HFTextEncoder(bert.model, tokenizer=byte_bpe_tokenizer())


def test_vocabulary_that_was_not_found(bert):
    ids = {token: index for index, token in enumerate(ROBERTA_TOKENS)}
    empty = roberta_style(Tokenizer(models.WordLevel(ids, unk_token="<unk>")))
    with pytest.raises(TokenizerError, match=r"knows 5 tokens, the model .*was not found"):
        HFTextEncoder(bert.model, tokenizer=empty)


def test_tokenizer_without_padding(bert):
    tokenizer = wordpiece_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(TokenizerError, match="no pad_token"):
        HFTextEncoder(bert.model, tokenizer=tokenizer)


def test_cls_as_word_without_cls(bert):
    tokenizer = wordpiece_tokenizer()
    tokenizer.cls_token = None
    with pytest.raises(OptionError, match="needs a tokenizer with a cls_token"):
        HFTextEncoder(bert.model, tokenizer=tokenizer, last_n_layers=1, cls_as_word=True)


# Loading.


def offline(*_, **__):
    raise ConnectionError("no network")


@pytest.mark.parametrize(
    "source", ["someone/no-such-model", "/no/such/folder", "./no_such", "a/b/c"]
)
def test_out_of_reach_is_told_at_once(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"no model could be loaded from .*pass the path of"):
        HFTextEncoder(source)
    assert time.perf_counter() - start < 2


def test_tokenizer_out_of_reach(bert, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    with pytest.raises(TokenizerError, match="no tokenizer could be loaded from 'some/name'"):
        HFTextEncoder(bert.model, tokenizer="some/name")


def test_a_tokenizer_class_of_another_version_of_transformers(bert, tmp_path):
    bert.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "tokenizer_class": "TokenizerOfTransformersSeven"}))
    encoder = HFTextEncoder(bert.model, tokenizer=tmp_path, last_n_layers=1)
    assert encoder.tokenize(TEXTS).tokens == WORDPIECE_WORDS


def test_a_folder_without_vocabulary(bert, tmp_path):
    bert.model.config.save_pretrained(tmp_path)
    with pytest.raises(TokenizerError, match=r"was not found|no tokenizer could be loaded"):
        HFTextEncoder(tmp_path, pretrained=False)


def test_the_hub_is_asked_when_it_answers(monkeypatch):
    asked = {}

    def from_pretrained(*_, **arguments):
        asked.update(arguments)
        raise OSError("gated")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(CheckpointError) as caught:
        HFTextEncoder("some/name")
    assert asked["pretrained_model_name_or_path"] == "some/name"
    assert asked["local_files_only"] is False
    assert asked["trust_remote_code"] is False
    assert str(caught.value.__cause__) == "gated"


def test_a_checkpoint_with_a_language_model_head_loads(bert, tmp_path):
    with torch.random.fork_rng():
        masked_lm = transformers.BertForMaskedLM(bert.model.config).eval()
    masked_lm.save_pretrained(tmp_path)
    bert.tokenizer.save_pretrained(tmp_path)
    encoder = HFTextEncoder(tmp_path, last_n_layers=1).eval()
    tokenized = encoder.tokenize(["mild effusion"])
    expected = masked_lm.bert(**tokenized.inputs).last_hidden_state[0, 1]
    torch.testing.assert_close(encoder(tokenized).words[0, 0], expected)


def test_incomplete_weights_are_refused(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    bert.model.save_pretrained(tmp_path)
    bert.tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lack 1 parameters of BertModel, such as 'encoder"):
        HFTextEncoder(tmp_path)


def test_a_folder_without_weights(bert, tmp_path):
    bert.recipe(tmp_path)
    with pytest.raises(CheckpointError, match=r"no weights could be .* holds model\.safetensors"):
        HFTextEncoder(tmp_path)


def small_t5(kind):
    config = transformers.T5Config(
        vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, is_encoder_decoder=True
    )
    return kind(config).eval()


@pytest.mark.parametrize(
    "kind", [transformers.T5EncoderModel, transformers.T5ForConditionalGeneration]
)
def test_of_t5_it_is_the_encoder_by_object_by_name_and_by_recipe(kind, tmp_path):
    tokenizer = wordpiece_tokenizer()
    whole = small_t5(kind)
    whole.save_pretrained(tmp_path)
    by_name = HFTextEncoder(tmp_path, tokenizer=tokenizer, frozen_layers=1).eval()
    assert type(by_name.model) is transformers.T5EncoderModel
    features = by_name(TEXTS)
    assert features.tokens == WORDPIECE_WORDS

    inputs = by_name.tokenize(TEXTS).inputs
    states = whole.encoder(**inputs, output_hidden_states=True)
    expected = states.last_hidden_state + sum(states.hidden_states[1:-1])
    kept = inputs["attention_mask"][..., None]
    torch.testing.assert_close(features.pooled, (expected * kept).sum(1) / kept.sum(1))

    if kind is transformers.T5EncoderModel:
        by_object = HFTextEncoder(whole, tokenizer=tokenizer).eval()
        torch.testing.assert_close(by_object(TEXTS).words, features.words)
    frozen = {name for name, p in by_name.named_parameters() if not p.requires_grad}
    assert "model.shared.weight" in frozen
    assert all(".block.1." not in name for name in frozen)

    name, options, _ = by_name.recipe(tmp_path / "recipe")
    again = HFTextEncoder(tmp_path / "recipe", **options)
    again.load_state_dict(by_name.state_dict())
    assert name == "hf:."
    torch.testing.assert_close(again.eval()(TEXTS).words, features.words)


def test_encoder_decoder_without_an_encoder_of_its_own(tmp_path):
    config = transformers.BartConfig(
        vocab_size=40, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    with pytest.raises(OptionError, match="is an encoder-decoder; pass its encoder as an object"):
        HFTextEncoder(tmp_path, tokenizer=wordpiece_tokenizer(), pretrained=False)


def small_clip():
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    return transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 40, "max_position_embeddings": 32},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
    )


SMALL = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: transformers.CLIPModel(small_clip()),
            "a CLIPModel reads images, too; pass its text model as an object",
        ),
        (
            lambda: transformers.BertForMaskedLM(
                transformers.BertConfig(**SMALL, num_attention_heads=2)
            ),
            "a BertForMaskedLM has the head of a task; pass its base_model as an object",
        ),
        (
            lambda: transformers.FNetModel(transformers.FNetConfig(**SMALL)),
            "a FNetModel takes no attention_mask",
        ),
    ],
)
def test_models_that_are_no_text_encoders(make, message):
    with pytest.raises(OptionError, match=message):
        HFTextEncoder(make(), tokenizer=wordpiece_tokenizer())


def test_the_text_model_of_clip():
    model = transformers.CLIPTextModel(small_clip().text_config)
    encoder = HFTextEncoder(model, tokenizer=wordpiece_tokenizer()).eval()
    assert encoder(TEXTS).tokens == WORDPIECE_WORDS


def test_a_model_that_its_config_would_not_make_again(tmp_path):
    class Mine(transformers.T5EncoderModel):
        pass

    encoder = HFTextEncoder(small_t5(Mine), tokenizer=wordpiece_tokenizer())
    with pytest.raises(OptionError, match="AutoModelForTextEncoding would make T5EncoderModel of"):
        encoder.recipe(tmp_path)


def test_a_model_inside_a_wrapper_is_given_what_it_takes():
    """As of peft: its forward says nothing of what it takes, everything else is the model's."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    config = transformers.DistilBertConfig(
        vocab_size=40, dim=8, hidden_dim=8, n_heads=2, n_layers=2, max_position_embeddings=32
    )
    tokenizer = wordpiece_tokenizer()
    # the last one a DistilBERT does not take
    tokenizer.model_input_names = ["input_ids", "attention_mask", "token_type_ids"]
    encoder = HFTextEncoder(transformers.DistilBertModel(config), tokenizer=tokenizer).eval()
    expected = encoder(TEXTS)
    encoder.model = Wrapper(encoder.model)
    assert "token_type_ids" in encoder.tokenizer(TEXTS)
    assert set(encoder.tokenize(TEXTS).inputs) == {"input_ids", "attention_mask"}
    assert torch.equal(encoder(TEXTS).words, expected.words)
