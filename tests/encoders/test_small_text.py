"""The from-scratch text encoder: vocabulary and small BERT."""

import math
import random
from collections import Counter

import pytest
import torch
from tokenizers.normalizers import BertNormalizer

from gloria.encoders.hf_text import HFTextEncoder
from gloria.encoders.small_text import build_word_tokenizer, small_bert, small_text_encoder
from gloria.errors import DataError, DtypeError, OptionError, ShapeError

REPORTS = [
    "Mild cardiomegaly. No pleural effusion.",
    "Moderate left-sided pleural effusion, 1.5 cm; mild edema.",
    "No pneumothorax. No effusion or edema.",
]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_word_tokenizer(REPORTS)


def in_order(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    return sorted(vocabulary, key=vocabulary.get)


def test_every_word_of_the_reports_is_one_token(tokenizer):
    for report in REPORTS:
        for word in report.lower().replace("-", " ").replace(";", " ").split():
            word = word.strip(".,")
            if "." not in word:
                assert tokenizer.tokenize(word) == [word]


def test_words_stand_by_count_then_by_alphabet(tokenizer):
    order = in_order(tokenizer)
    assert order[:5] == SPECIALS
    words = [token for token in order[5:] if len(token.removeprefix("##")) > 1]
    # 3 effusion, no; 2 edema, mild, pleural; then once each
    expected = ["effusion", "no", "edema", "mild", "pleural"]
    assert words == [
        *expected,
        *["cardiomegaly", "cm", "left", "moderate", "or", "pneumothorax", "sided"],
    ]


def test_a_new_word_is_spelled_out_and_a_new_character_unknown(tokenizer):
    assert tokenizer.tokenize("effusions") == ["effusion", "##s"]
    assert tokenizer.tokenize("MILDÉR") == ["mild", "##e", "##r"]
    assert tokenizer.tokenize("mild жмild") == ["mild", "[UNK]"]


def test_same_texts_in_any_order_give_the_same_vocabulary(tokenizer):
    texts = REPORTS * 3
    random.Random(0).shuffle(texts)
    assert in_order(build_word_tokenizer(iter(texts))) == in_order(tokenizer)


def test_words_are_those_of_the_whole_texts(tokenizer):
    """Whatever stands between them, and however often a spelling comes."""
    alphabet = [
        *"aB'.-éΣσ肺\u0301\u0307İß1",
        *" \n\t\r\x1c\x85\u00a0\u3000\u200b\u2028",
        "  ",
        "ab",
    ]
    draw = random.Random(0)
    texts = ["".join(draw.choices(alphabet, k=30)) for _ in range(500)]
    whole = tokenizer.backend_tokenizer
    counts = Counter(
        word
        for text in texts
        for word, _ in whole.pre_tokenizer.pre_tokenize_str(whole.normalizer.normalize_str(text))
    )
    vocabulary = in_order(build_word_tokenizer(texts, vocab_size=10**6))
    words = [token for token in vocabulary[5:] if len(token.removeprefix("##")) > 1]
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    assert words == [word for word in ordered if len(word) > 1]


def test_a_spelling_is_split_once_however_many_reports_have_it(monkeypatch):
    split = []

    class Counting:
        def __init__(self, lowercase):
            self.real = BertNormalizer(lowercase=lowercase)

        def normalize_str(self, text):
            split.append(text)
            return self.real.normalize_str(text)

    monkeypatch.setattr("tokenizers.normalizers.BertNormalizer", Counting)
    with pytest.raises(TypeError):  # a Tokenizer takes no such normalizer: by then all is counted
        build_word_tokenizer(REPORTS * 100)
    assert sorted(split) == sorted(set(" ".join(REPORTS).split()))


def test_the_rarest_words_make_room(tokenizer):
    size = len(tokenizer) - 4
    smaller = build_word_tokenizer(REPORTS, vocab_size=size)
    assert in_order(smaller) == in_order(tokenizer)[:size]
    assert smaller.tokenize("effusion sided")[0] == "effusion"
    assert smaller.tokenize("sided") == ["s", "##i", "##d", "##e", "##d"]


def test_sentences_carry_the_special_tokens(tokenizer):
    ids = tokenizer("mild edema")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "mild", "edema", "[SEP]"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "mild edema"


def test_small_bert_follows_its_arguments(tokenizer):
    model = small_bert(tokenizer, layers=3, width=24, heads=2, dropout=0.0, max_length=50)
    assert model.config.num_hidden_layers == 3
    assert model.embeddings.word_embeddings.weight.shape == (len(tokenizer), 24)
    assert model.embeddings.position_embeddings.weight.shape == (50, 24)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert model.pooler is None


def test_together_they_are_a_text_encoder_that_comes_back(tokenizer, tmp_path):
    encoder = HFTextEncoder(small_bert(tokenizer), tokenizer=tokenizer, last_n_layers=2).eval()
    assert encoder.pooled_dim == encoder.word_dim == 128
    features = encoder(REPORTS)
    assert features.tokens[1][:5] == ["Moderate", "left", "-", "sided", "pleural"]
    recipe = encoder.recipe(tmp_path)
    again = HFTextEncoder(tmp_path, **recipe.options).eval()
    again.load_state_dict(encoder.state_dict())
    repeated = again(REPORTS)
    assert torch.equal(repeated.words, features.words)
    assert repeated.tokens == features.tokens


def test_long_reports_are_read_whole_if_asked(tmp_path):
    text = "No effusion. " * 99
    encoder = small_text_encoder(REPORTS, max_length=300).eval()
    assert encoder.max_length == encoder.model.config.max_position_embeddings == 300
    features = encoder([text])
    assert features.words.shape[1] == 297
    again = HFTextEncoder(tmp_path, **encoder.recipe(tmp_path).options).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again([text]).words, features.words)
    assert small_text_encoder(REPORTS).max_length == 97
    with pytest.raises(OptionError, match="max_length must be at least 3; got 2"):
        small_text_encoder(REPORTS, max_length=2)


@pytest.mark.parametrize(
    "texts, error, message",
    [
        ([], ShapeError, "texts must hold at least one text"),
        (["", "  "], DataError, "texts must hold at least one word"),
        ("No effusion.", DtypeError, "must be a sequence of strings; got one string"),
        (["No effusion.", math.nan], DtypeError, r"texts\[1\] must be a string; got float"),
    ],
)
def test_texts_of_no_words(texts, error, message):
    with pytest.raises(error, match=message):
        build_word_tokenizer(texts)


def test_no_room():
    with pytest.raises(OptionError, match=r"vocab_size must be at least \d+, for the special"):
        build_word_tokenizer(REPORTS, vocab_size=20)


def test_heads_that_do_not_divide_the_width(tokenizer):
    with pytest.raises(OptionError, match="heads must divide width; got width 10 and heads 4"):
        small_bert(tokenizer, width=10)
    with pytest.raises(OptionError, match="heads must be at least 1; got 0"):
        small_bert(tokenizer, heads=0)


def test_a_word_that_is_spelled_by_letters_is_told_as_unknown():
    """Its letters never stood for anything in training, so they say nothing."""
    encoder = small_text_encoder(REPORTS)
    assert encoder.unknown_words(encoder.tokenize(REPORTS)) == []
    known = REPORTS[0].split()[0]
    tokenized = encoder.tokenize([f"{known} {known}{known}, ☃"])
    assert encoder.unknown_words(tokenized) == [f"{known}{known}", "☃"]


def test_a_vocabulary_of_word_pieces_lacks_no_word_that_they_make():
    tokenizer = build_word_tokenizer(REPORTS)
    tokenizer.add_tokens(["##usions"])
    encoder = HFTextEncoder(small_bert(tokenizer), tokenizer=tokenizer)
    assert encoder.unknown_words(encoder.tokenize(["leftright"])) == []
