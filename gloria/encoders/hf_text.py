"""Text encoders on transformers: any encoder model with a fast tokenizer."""

from __future__ import annotations

import copy
import re
import unicodedata
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gloria.aggregators.reductions import masked_first, masked_max, masked_mean, masked_sum
from gloria.aggregators.words import WORD_REDUCTIONS, merge_word_pieces
from gloria.checks import check_boolean, check_choice, check_integer, check_texts, require
from gloria.encoders.freezing import Freezable
from gloria.errors import (
    CheckpointError,
    DtypeError,
    EmptyTextError,
    OptionError,
    TokenizerError,
    TruncatedTextWarning,
    reason,
)
from gloria.signatures import signature_of
from gloria.types import Aggregator, Recipe, TextFeatures, TokenizedText
from gloria.wrapping import unwrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

POOLINGS: dict[str, Aggregator] = {"mean": masked_mean, "max": masked_max, "cls": masked_first}


class HFTextEncoder(Freezable):
    """Words and a pooled vector from a transformers encoder (BERT, RoBERTa, XLM-R, T5's, ...).

    ``states = Σ`` (or mean) of the last n hidden layers; ``words`` = the states merged over the
    pieces of each word; ``pooled`` = the states pooled over all tokens of the text.

    Args:
        model: a name on the Hugging Face hub, a local folder, or a model object. The object is
            used as it is, except that a pooler is dropped: nothing here would train it.
        tokenizer: a name, a folder or a *fast* tokenizer object; None = the one that lies beside
            ``model``. Required when ``model`` is an object.
        pretrained: load the weights; False = random weights from the config alone. No effect on a
            model object.
        last_n_layers: how many of the last hidden layers are aggregated; None = 4 as published,
            or all of a model that has fewer.
        layer_reduction: ``"sum"`` or ``"mean"`` over those layers.
        word_reduction: ``"sum"``, ``"mean"``, ``"max"`` or ``"first"`` over the pieces of a word.
        pooling: the pooled vector, over all tokens of the text, special tokens included:
            ``"mean"``, ``"max"`` (ConVIRT), ``"cls"`` (the first token), or an aggregator
            ``(values, mask, dim)`` such as :class:`~gloria.aggregators.GeM`; a module's parameters
            train along. :func:`gloria.create_text_encoder` takes the name of one, too.
        max_length: highest number of tokens, special tokens included; None = 97 as published, or
            as many as a shorter model allows. A longer text is cut at the end; the first time, a
            :class:`~gloria.errors.TruncatedTextWarning` tells.
        cls_as_word: also give the leading [CLS] as word 0, as the published code does in training.
        frozen: no gradient and always eval mode, for the whole encoder, or for the submodules of
            the given names, such as ``["model.embeddings"]``.
        frozen_layers: the same for the embeddings and the first k layers; 0 = nothing.

    Attributes:
        pooled_dim, word_dim: width of ``pooled`` and of ``words``: the hidden size of the model.

    Raises:
        CheckpointError: the model is neither a folder nor in reach, or its weights are incomplete.
        TokenizerError: the tokenizer is not a fast one, or its vocabulary is not the model's.
        DtypeError: the object is no model of transformers.
        OptionError: an option is outside what the model allows, or the model is more than a text
            encoder (an encoder-decoder, CLIP, one with the head of a task) or takes no attention
            mask.

    **Words.** Two tokens belong to one word if the tokenizer's own ``word_ids`` say so and no white
    space or edge of punctuation lies between them. For WordPiece and byte-level BPE the word ids
    alone decide (``left-sided`` gives ``left``, ``-``, ``sided``); SentencePiece knows white space
    at best, so the second condition takes the stop off ``effusion.``, and leaves ``left-sided``
    and ``1.5`` whole. Tokens of white space alone are no words. The strings are cut from the text.

    **Padding** is on the right, whatever the tokenizer says, and the model is told of it. A few
    architectures read it all the same (ConvBERT, MobileBERT, Nyströmformer, YOSO): there a text's
    features depend on the longest one of its batch.

    **The published code** sums the last four layers and the word pieces, and gives the mean over
    all positions, [CLS] and [SEP] included, as the vector of the text; it divides by the padded
    length, which drops out of the cosine. These are the defaults here. It counts [CLS] as a word in
    training (``cls_as_word=True``), never [SEP].

    Source: Huang et al., GLoRIA (ICCV 2021), section 3.2.

    Example::

        encoder = HFTextEncoder("emilyalsentzer/Bio_ClinicalBERT")
        features = encoder(["Mild cardiomegaly.", "No pleural effusion."])
        features.tokens  # [['Mild', 'cardiomegaly', '.'], ['No', 'pleural', 'effusion', '.']]
    """

    model: Any
    tokenizer: Any

    pooling_recipe: tuple[Any, Any] | None = None
    """An aggregator that :func:`gloria.create_text_encoder` made, and its name, or with options."""

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        *,
        tokenizer: str | Path | PreTrainedTokenizerFast | None = None,
        pretrained: bool = True,
        last_n_layers: int | None = None,
        layer_reduction: str = "sum",
        word_reduction: str = "sum",
        pooling: str | Aggregator = "mean",
        max_length: int | None = None,
        cls_as_word: bool = False,
        frozen: bool | Sequence[str] = False,
        frozen_layers: int = 0,
    ) -> None:
        super().__init__()
        check_choice("layer_reduction", layer_reduction, ("sum", "mean"))
        check_choice("word_reduction", word_reduction, WORD_REDUCTIONS)
        check_boolean("cls_as_word", cls_as_word)
        if not callable(pooling):
            check_choice("pooling", pooling, tuple(POOLINGS))
        if tokenizer is None:
            if not isinstance(model, str | Path):
                raise OptionError("a model object needs its tokenizer: pass tokenizer=... too.")
            tokenizer = model
        self.model = _load_model(model, pretrained) if isinstance(model, str | Path) else model
        self.tokenizer = (
            _load_tokenizer(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        )
        _check_model(self.model)
        if "add_pooling_layer" in signature_of(type(self.model).__init__).parameters:
            self.model.pooler = None

        _check_tokenizer(self.tokenizer, self.model)
        layers = self.model.config.num_hidden_layers
        last_n_layers = min(4, layers) if last_n_layers is None else last_n_layers
        check_integer("last_n_layers", last_n_layers, 1, layers)
        check_integer("frozen_layers", frozen_layers, 0, layers)
        shortest = self.tokenizer.num_special_tokens_to_add() + 1
        max_length = min(97, self.longest) if max_length is None else max_length
        check_integer("max_length", max_length, shortest, self.longest)
        if cls_as_word and self.tokenizer.cls_token_id is None:
            raise OptionError("cls_as_word needs a tokenizer with a cls_token; this one has none.")

        self.last_n_layers = int(last_n_layers)
        self.layer_reduction = layer_reduction
        self.word_reduction = word_reduction
        self.pooling: str | Aggregator = pooling
        self.max_length = int(max_length)
        self.cls_as_word = cls_as_word
        self.pooled_dim = self.word_dim = int(self.model.config.hidden_size)
        self._told_of_truncation = False
        if frozen_layers:
            self.freeze(*(f"model.{part}" for part in lowest_parts(self.model, frozen_layers)))
        self.freeze_as(frozen)

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """Turn strings into tensors, and tokens into words; on the CPU, fit for a data loader.

        Raises:
            DtypeError: ``texts`` is not a sequence of strings.
            ShapeError: there is no text.
            EmptyTextError: a text has no word.
        """
        check_texts(texts)
        with torch.device("cpu"):  # whatever the default
            encoded = self.tokenizer(
                list(texts),
                padding=True,
                padding_side="right",  # or positions that are learned would depend on the batch
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=True,
                return_tensors="pt",
            )
        word_ids, tokens = [], []
        for index, (text, encoding) in enumerate(zip(texts, encoded.encodings, strict=True)):
            ids, words = words_of(text, encoding)
            if not words:
                raise EmptyTextError(f"texts[{index}] has no word: {text!r}. Leave it out.")
            if encoding.overflowing:
                kept = max(end for _, end in encoding.offsets)
                cut = f"{self.max_length} tokens, its first {kept} of {len(text)} characters"
                tell_of_truncation(self, index, cut, "max_length")
            if self.cls_as_word:
                ids = [number + (number >= 0) for number in ids]
                ids[encoding.ids.index(self.tokenizer.cls_token_id)] = 0
                words = [self.tokenizer.cls_token, *words]
            word_ids.append(ids)
            tokens.append(words)
        accepted = _arguments_of(self.model)
        inputs = {name: value for name, value in encoded.items() if name in accepted}
        return TokenizedText(inputs, torch.tensor(word_ids, device="cpu"), tokens)

    @property
    def longest(self) -> int:
        """The highest ``max_length`` that position embeddings and tokenizer allow."""
        longest: int = self.tokenizer.model_max_length
        # BERT's, CLIP's, OPT's and GPT-2's names
        positions = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
        for name, module in self.model.named_modules():
            if name.endswith(positions) and isinstance(module, nn.Embedding):
                # RoBERTa and its heirs count positions from behind the padding index, OPT from 2
                skipped = 0 if module.padding_idx is None else module.padding_idx + 1
                skipped = getattr(module, "offset", skipped)
                longest = min(longest, module.num_embeddings - skipped)
        return longest

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones included, before it is cut to ``max_length``.

        Raises:
            DtypeError: ``texts`` is not a sequence of strings.
            ShapeError: there is no text.
        """
        check_texts(texts)
        # a fast tokenizer keeps how it is to cut, and another thread may be tokenizing
        tokenizer = copy.deepcopy(self.tokenizer)
        counts: list[int] = []
        for start in range(0, len(texts), 1000):  # the tokens of all at once may fill the memory
            some = list(texts[start : start + 1000])
            tokens = tokenizer(
                some, verbose=False, return_attention_mask=False, return_token_type_ids=False
            )
            counts += map(len, tokens["input_ids"])
        return counts

    def unknown_words(self, texts: TokenizedText) -> list[str]:
        """Words with a piece that the vocabulary lacks, each once, in their order.

        Of a vocabulary of whole words, as :func:`~gloria.encoders.small_text.build_word_tokenizer`
        makes it, a word that is spelled letter by letter is lacking, too: what it says was never
        learned.
        """
        pieces = [self.tokenizer.unk_token_id, *_letters_that_go_on(self.tokenizer)]
        return words_with(pieces, texts, texts.inputs["input_ids"])

    def forward(self, texts: TokenizedText | Sequence[str]) -> TextFeatures:
        """Encode texts, given as strings or as :meth:`tokenize` returns them (on any device)."""
        if not isinstance(texts, TokenizedText):
            texts = self.tokenize(texts)
        texts = texts.to(self.model.device)
        output = self.model(**texts.inputs, output_hidden_states=True, return_dict=True)
        # the last state as the model gives it: some apply their final norm after collecting states
        hidden = [*output.hidden_states[:-1], output.last_hidden_state]
        reduce = masked_sum if self.layer_reduction == "sum" else masked_mean
        states = reduce(torch.stack(hidden[-self.last_n_layers :]), None, 0)

        word_count = max(len(words) for words in texts.tokens)
        words, word_mask = merge_word_pieces(
            states, texts.word_ids, self.word_reduction, word_count=word_count
        )
        token_mask = texts.inputs["attention_mask"].bool().unsqueeze(-1)
        pool = POOLINGS[self.pooling] if isinstance(self.pooling, str) else self.pooling
        return TextFeatures(pool(states, token_mask, 1), words, word_mask, texts.tokens)

    def recipe(self, folder: Path) -> Recipe:
        """Write the config and the tokenizer, not the weights, into ``folder``.

        Raises:
            OptionError: transformers cannot make this model again from its config alone (a class
                of your own, or the encoder half of BART), or ``pooling`` is an object.
        """
        pooling: Any = self.pooling
        if self.pooling_recipe is not None and pooling is self.pooling_recipe[0]:
            pooling = self.pooling_recipe[1]
        if not isinstance(pooling, str | dict):
            raise OptionError(
                f"pooling is a {type(self.pooling).__name__} object, which a recipe cannot hold; "
                f"it holds {', '.join(map(repr, POOLINGS))}, and a registered aggregator by the "
                f"name that create_text_encoder is given."
            )
        maker, made_again = _maker_of(self.model.config)
        own = type(unwrapped(self.model))
        if made_again is not own:
            raise OptionError(
                f"a {own.__name__} cannot be saved by its config: {maker.__name__} "
                f"would make {getattr(made_again, '__name__', 'nothing')} of it."
            )
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        options = {
            "pretrained": False,
            "frozen": self.frozen_as(),
            "last_n_layers": self.last_n_layers,
            "layer_reduction": self.layer_reduction,
            "word_reduction": self.word_reduction,
            "pooling": pooling,
            "max_length": self.max_length,
            "cls_as_word": self.cls_as_word,
        }
        return Recipe("hf:.", options)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle takes: without the hooks that a forward of transformers leaves in the layers.

        They can't be pickled, and the next forward puts them there again. They are taken off a copy
        with the same tensors, as this model may be encoding in another thread.
        """
        tensors = [*self.model.parameters(), *self.model.buffers()]
        model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
        for module in model.modules():
            for key, hook in list(module._forward_hooks.items()):
                if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                    del module._forward_hooks[key]
            vars(module).pop("_output_capturing_hooks_installed", None)
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_modules": {**self._modules, "model": model}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become what was pickled, maybe in another process."""
        super().__setstate__(state)
        # transformers gives hidden states of classes only that were initialised in this process
        base: Any = require("transformers", "encoders").PreTrainedModel
        for module in self.model.modules():
            if isinstance(module, base):
                base.__init__(base.__new__(type(module)), module.config)


# From tokens to words.


def words_of(text: str, encoding: Any) -> tuple[list[int], list[str]]:
    """The index of the word that each token belongs to (-1 = none), and the words as strings."""
    runs = _runs(text)
    keys: list[tuple[int, int] | None] = []
    following = None
    for word_id, (start, end) in zip(
        reversed(encoding.word_ids), reversed(encoding.offsets), strict=True
    ):
        run = next((run for run in runs[start:end] if run >= 0), None)
        key = None
        if word_id is not None and run is not None:
            key = (word_id, run)
        elif word_id is not None and following is not None and following[0] == word_id:
            key = following  # white space alone ("▁") belongs to the word that it begins
        keys.append(key)
        following = key

    numbers: dict[tuple[int, int], int] = {}
    spans: list[tuple[int, int]] = []
    ids = []
    for key, (start, end) in zip(reversed(keys), encoding.offsets, strict=True):
        if key is None:
            ids.append(-1)
            continue
        number = numbers.setdefault(key, len(numbers))
        if number == len(spans):
            spans.append((start, end))
        spans[number] = (min(spans[number][0], start), max(spans[number][1], end))
        ids.append(number)
    return ids, [text[start:end].strip() for start, end in spans]


def tell_of_truncation(encoder: Any, index: int, cut: str, option: str) -> None:
    """Warn of the first text that an encoder cuts, to what, and which option keeps more."""
    if encoder._told_of_truncation:
        return
    encoder._told_of_truncation = True
    warnings.warn(
        f"texts[{index}] is cut to {cut}. Longer texts will be cut without further warning; raise "
        f"{option} to keep more.",
        TruncatedTextWarning,
        stacklevel=3,
    )


def words_with(pieces: Sequence[int | None], texts: TokenizedText, ids: Tensor) -> list[str]:
    """The words that hold one of the pieces, each once, in their order; ``ids (text, token)``."""
    known = [piece for piece in pieces if piece is not None]
    held = torch.isin(ids, torch.tensor(known, dtype=ids.dtype, device=ids.device))
    found = (held & (texts.word_ids >= 0)).nonzero().tolist()
    words = [texts.tokens[text][int(texts.word_ids[text, token])] for text, token in found]
    return list(dict.fromkeys(words))


def _letters_that_go_on(tokenizer: Any) -> list[int]:
    """Tokens of single letters within a word, if nothing longer goes on with one; else none."""
    pieces = {piece: token for piece, token in tokenizer.get_vocab().items() if piece[:2] == "##"}
    return list(pieces.values()) if all(len(piece) == 3 for piece in pieces) else []


def _runs(text: str) -> list[int]:
    """Number the runs of a text, per character; white space gets -1.

    What stands between white space is up to three runs: leading punctuation, the rest, trailing
    punctuation. ``"(1.5 cm),"`` is ``( | 1.5`` and ``cm | ),``.
    """
    runs = [-1] * len(text)
    number = 0
    for match in re.finditer(r"\S+", text):
        chunk = match.group()
        marks = "".join(filter(_is_punctuation, set(chunk)))
        head = len(chunk) - len(chunk.lstrip(marks))
        tail = len(chunk.rstrip(marks))
        for offset in range(len(chunk)):
            runs[match.start() + offset] = number + (offset >= head) + (offset >= tail)
        number += 3
    return runs


def _is_punctuation(character: str) -> bool:
    """As BERT has it: Unicode's punctuation, and the symbols of ASCII; so it cuts no BERT word."""
    kind = unicodedata.category(character)[0]
    return kind == "P" or (kind == "S" and character.isascii())


def _arguments_of(model: nn.Module) -> Collection[str]:
    """What a model takes; of what wraps one, as LoRA's of peft do, what that one takes."""
    for module in model.modules():
        arguments = signature_of(module.forward).parameters
        if "input_ids" in arguments:
            return arguments
    return ("input_ids", "attention_mask")


# Loading, without a minute of retries when there is no network.


def _load_model(source: str | Path, pretrained: bool) -> Any:
    transformers = require("transformers", "encoders")
    where = _where(source)
    try:
        config = transformers.AutoConfig.from_pretrained(**where)
    except Exception as cause:
        raise CheckpointError(_not_found("model", source, "config.json", cause)) from cause
    maker, _ = _maker_of(config)
    if not pretrained:
        return maker.from_config(config, dtype=torch.get_default_dtype())
    try:
        model, report = maker.from_pretrained(
            **where, config=config, dtype=torch.get_default_dtype(), output_loading_info=True
        )
    except Exception as cause:
        raise CheckpointError(_not_found("weights", source, "model.safetensors", cause)) from cause
    parameters = {name for name, _ in model.named_parameters() if not name.startswith("pooler.")}
    missing = sorted(parameters & set(report["missing_keys"]))
    if missing:
        raise CheckpointError(
            f"the weights of {str(source)!r} lack {len(missing)} parameters of "
            f"{type(model).__name__}, such as {missing[0]!r}."
        )
    return model


def _maker_of(config: Any) -> tuple[Any, Any]:
    """The class of transformers that makes a model of a config, and the class of that model.

    Of an encoder-decoder it is the encoder, where that is a model of its own, as T5's is.
    """
    transformers = require("transformers", "encoders")
    maker, models = transformers.AutoModel, transformers.MODEL_MAPPING
    if type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING:
        maker = transformers.AutoModelForTextEncoding
        models = transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    return maker, models.get(type(config), None)


def _load_tokenizer(source: str | Path) -> Any:
    transformers = require("transformers", "encoders")
    where = _where(source)
    try:
        return transformers.AutoTokenizer.from_pretrained(**where)
    except Exception as cause:
        folder = Path(where["pretrained_model_name_or_path"])
        if (folder / "tokenizer.json").is_file():
            # another major version of transformers wrote a class name that this one lacks
            return transformers.PreTrainedTokenizerFast.from_pretrained(**where)
        raise TokenizerError(_not_found("tokenizer", source, "tokenizer.json", cause)) from cause


def _where(source: str | Path) -> dict[str, Any]:
    """Arguments that find a source: on the hub if one request gets through, else locally."""
    name = str(source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        name, local = str(folder), True
    else:
        try:
            require("huggingface_hub", "encoders").HfApi().model_info(name, timeout=5)
            local = False
        except Exception:  # no network, offline mode, no such name: the cache may still have it
            local = True
    return {
        "pretrained_model_name_or_path": name,
        "local_files_only": local,
        "trust_remote_code": False,
    }


def _not_found(what: str, source: str | Path, file: str, cause: Exception) -> str:
    return (
        f"no {what} could be loaded from {str(source)!r}, as a local folder, from the Hugging Face "
        f"cache or the hub ({type(cause).__name__}: {reason(cause)}). "
        f"Without network, pass the path of a folder that holds {file} and what belongs to it."
    )


# What fits together.


# what a model takes that is more than a text encoder
_MORE = {
    "decoder_input_ids": "is an encoder-decoder; pass its encoder",
    "pixel_values": "reads images, too; pass its text model",
    "labels": "has the head of a task; pass its base_model",
}


def _check_model(model: Any) -> None:
    if not hasattr(model, "get_input_embeddings"):
        raise DtypeError(
            f"model must be a name, a folder or a model of transformers; got a "
            f"{type(model).__name__} object."
        )
    arguments, name = _arguments_of(model), type(model).__name__
    for argument, advice in _MORE.items():
        if argument in arguments:
            raise OptionError(f"a {name} {advice} as an object, together with its tokenizer.")
    if "attention_mask" not in arguments:
        raise OptionError(f"a {name} takes no attention_mask: it would read padding as text.")


def _check_tokenizer(tokenizer: Any, model: Any) -> None:
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"a fast tokenizer is needed, for its word ids and character offsets; got {name}. "
            f"Load it with AutoTokenizer, or wrap a tokenizers.Tokenizer: "
            f"PreTrainedTokenizerFast(tokenizer_object=...)."
        )
    if tokenizer.pad_token_id is None:
        raise TokenizerError(f"the tokenizer ({name}) has no pad_token; set tokenizer.pad_token.")
    vocabulary = tokenizer.get_vocab()
    rows = model.get_input_embeddings().num_embeddings
    highest = max(vocabulary.values(), default=-1)
    # an empty vocabulary loads without a complaint and turns every word into [UNK]; a few spare
    # embeddings are usual, half of them are somebody else's vocabulary
    if set(vocabulary) <= set(tokenizer.all_special_tokens) or len(vocabulary) < rows / 2:
        raise TokenizerError(
            f"the tokenizer ({name}) knows {len(vocabulary)} tokens, the model {rows}: its "
            f"vocabulary was not found, or it belongs to another model."
        )
    if highest >= rows:
        raise TokenizerError(
            f"the tokenizer ({name}) gives ids up to {highest}, the model has embeddings for "
            f"{rows}. Use the model's own tokenizer, or model.resize_token_embeddings(...)."
        )


def lowest_parts(model: Any, count: int) -> list[str]:
    """Names of what comes before the layers, and of the first ``count`` layers."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            children = [child for child, _ in model.named_children()]
            before = children[: children.index(name.partition(".")[0])]
            return [*before, *(f"{name}.{index}" for index in range(count))]
    raise OptionError(
        f"frozen_layers cannot tell the layers of a {type(model).__name__} apart; use frozen=True."
    )
