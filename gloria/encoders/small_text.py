"""A small text encoder from scratch: a vocabulary built from your own reports, and a small BERT.

Nothing is downloaded. :func:`small_text_encoder` is the text encoder of the phantom demo.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from gloria.checks import check_integer, check_texts, require
from gloria.encoders.hf_text import HFTextEncoder
from gloria.errors import DataError, OptionError

if TYPE_CHECKING:
    from transformers import BertModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def small_text_encoder(
    reports: Sequence[str], *, max_length: int | None = None, **options: Any
) -> HFTextEncoder:
    """A BERT of 2 layers, 128 wide, untrained, with a vocabulary built from the reports.

    Args:
        reports: the training reports.
        max_length: highest number of tokens of a text, however many; None = 97 as published.
        options: for :class:`~gloria.encoders.HFTextEncoder`, such as ``pooling="max"``.

    Raises:
        OptionError: ``max_length`` is below 3: two special tokens and one of a word.
        DtypeError, ShapeError, DataError: as :func:`build_word_tokenizer`.
    """
    tokenizer = build_word_tokenizer(reports)
    if max_length is None:
        bert = small_bert(tokenizer)
    else:
        check_integer("max_length", max_length, 3)
        bert = small_bert(tokenizer, max_length=max_length)
    options = {"last_n_layers": 2, "max_length": max_length, **options}
    return HFTextEncoder(bert, tokenizer=tokenizer, **options)


def build_word_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 4096
) -> PreTrainedTokenizerFast:
    """Build a lower-casing WordPiece tokenizer whose vocabulary is the words of ``texts``.

    The vocabulary is the special tokens, then every character seen (to begin a word, and as
    ``##`` piece to go on with it), then the words by descending count, equal counts
    alphabetically. So a frequent word is one token, and a rare or new one is spelled out; only a
    character that was never seen is unknown. The same texts give the same vocabulary in any order
    (the trainers of the ``tokenizers`` library break ties at random).

    Args:
        texts: the training reports.
        vocab_size: highest number of tokens; the rarest words are left out.

    Returns:
        A BERT-like tokenizer: punctuation apart, accents stripped, ``[CLS] text [SEP]``.

    Raises:
        DtypeError: ``texts`` is one string, or a text is none.
        ShapeError, DataError: there is no text, or no word in them, or one is no Unicode.
        OptionError: ``vocab_size`` has no room for the characters.
    """
    texts = texts if isinstance(texts, str) else list(texts)
    check_texts(texts)  # of one string a vocabulary of letters would be made
    tokenizers = require("tokenizers", "encoders")
    transformers = require("transformers", "encoders")
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    splitter = tokenizers.pre_tokenizers.BertPreTokenizer()

    # the same few words make up all reports: each spelling is split once
    spellings: Counter[str] = Counter()
    for text in texts:
        spellings.update(text.replace("\n", " ").split(" "))
    counts: Counter[str] = Counter()
    for spelling, count in spellings.items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(spelling)):
            counts[word] += count
    if not counts:
        raise DataError("texts must hold at least one word to build a vocabulary from; got none.")

    characters = sorted(set("".join(counts)))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    needed = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    if vocab_size < len(needed):
        raise OptionError(
            f"vocab_size must be at least {len(needed)}, for the special tokens and the characters "
            f"of these texts; got {vocab_size}."
        )
    vocabulary = list(dict.fromkeys([*needed, *words]))[:vocab_size]
    ids = {token: index for index, token in enumerate(vocabulary)}

    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = splitter
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def small_bert(
    tokenizer: PreTrainedTokenizerFast,
    *,
    layers: int = 2,
    width: int = 128,
    heads: int = 4,
    dropout: float = 0.1,
    max_length: int = 128,
) -> BertModel:
    """Make a small, randomly initialised BERT for a tokenizer.

    Args:
        tokenizer: gives the vocabulary size and the padding id.
        layers: number of transformer layers.
        width: width of the hidden states; the feed-forward layers are four times as wide.
        heads: attention heads; must divide ``width``.
        dropout: probability, for the hidden states and the attention alike.
        max_length: number of position embeddings = tokens of the longest text.

    Raises:
        OptionError: ``heads`` does not divide ``width``, or ``max_length`` is below 1.
    """
    check_integer("heads", heads, 1)
    check_integer("max_length", max_length, 1)
    if width % heads:
        raise OptionError(f"heads must divide width; got width {width} and heads {heads}.")
    transformers = require("transformers", "encoders")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
    )
    return transformers.BertModel(config, add_pooling_layer=False)
