"""The two towers of an open_clip model, each as an encoder of its own."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gloria.aggregators.words import WORD_REDUCTIONS, merge_word_pieces
from gloria.checks import (
    check_choice,
    check_images,
    check_images_suit,
    check_integer,
    check_texts,
    height_width,
    nearest,
    require,
)
from gloria.encoders.freezing import Freezable
from gloria.encoders.hf_text import lowest_parts, tell_of_truncation, words_of, words_with
from gloria.encoders.timm_image import check_patches, features_of
from gloria.errors import (
    CheckpointError,
    DtypeError,
    EmptyTextError,
    OptionError,
    TokenizerError,
    UnknownNameError,
    describe,
)
from gloria.types import ImageFeatures, ImageInput, Recipe, TextFeatures, TokenizedText

CONFIG_FILE = "open_clip_config.json"

# word ids, words, and whether each text is cut
_Words = tuple[Tensor, list[list[str]], list[bool]]

# The tower that is not kept, when no weights are loaded that need it.
SMALLEST = {
    "vision_cfg": {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "image_size": 8},
    "text_cfg": {"layers": 1, "width": 8, "heads": 1, "vocab_size": 8, "context_length": 8},
    "multimodal_cfg": {"layers": 1, "width": 8, "heads": 1, "vocab_size": 8, "context_length": 8},
}


class OpenClipImageEncoder(Freezable):
    """The image tower of an open_clip model: its embedding and its patch tokens or feature map.

    ``pooled`` is the projected embedding, not normalised. ``regions`` are not projected; where the
    tower's own forward normalises its tokens (most transformers), so do they, at any stage. No
    patch is dropped in training, whatever the model's config says.

    Args:
        model_name: name in open_clip, such as ``"ViT-B-16"`` or ``"RN50"``; ``"hf-hub:..."``;
            or a folder with an ``open_clip_config.json``, with or without ``"local-dir:"``.
        pretrained: None = random weights; a tag such as ``"laion2b_s34b_b88k"``, or the file of a
            whole model (both towers), for a name; True = the weights that come with a folder or a
            hub repository.
        region_stage: which feature map gives the regions, counted as in a list: a block of a
            transformer, or a stage of a convolutional model (of RN50: stem, then four).
        image_size: pixels, one number or ``(height, width)``; None = the model's own. Positions
            are resized with the weights.
        frozen: no gradients, and eval mode that ``train()`` does not undo; for everything, or for
            the submodules of the given names, such as ``["model.conv1"]``.

    Attributes:
        pooled_dim: width of the embedding that the two towers share.
        region_dim: width of a region.
        image_input: what the model wants to be fed: always three channels, and one size.

    Raises:
        UnknownNameError: open_clip has no such model; the message suggests the nearest.
        OptionError: no such stage or tag, or ``pretrained`` does not go with the name.
        CheckpointError: the weights cannot be had, or are another model's.
        MissingDependencyError: open_clip is not installed.

    The text tower is built too when weights are loaded, and dropped.

    Example::

        encoder = OpenClipImageEncoder("ViT-B-16", pretrained="laion2b_s34b_b88k")
        features = encoder(radiographs)  # (image, 3, 224, 224)
        features.pooled  # (image, 512)
        features.regions  # (image, 196, 768), from a grid of (14, 14)
    """

    model: Any

    def __init__(
        self,
        model_name: str,
        *,
        pretrained: str | Path | bool | None = None,
        region_stage: int = -1,
        image_size: int | Sequence[int] | None = None,
        frozen: bool | Sequence[str] = False,
    ) -> None:
        super().__init__()
        self._image_size = height_width("image_size", image_size)
        square = self._image_size and len(set(self._image_size)) == 1
        whole, self._config = _create(
            model_name,
            pretrained,
            "vision_cfg",
            # a ResNet takes a number only
            force_image_size=self._image_size[0] if square else self._image_size,
        )
        self.model = whole.visual
        preparation = self.model.preprocess_cfg
        size = preparation["size"]
        size = (size, size) if isinstance(size, int) else tuple(size)
        self.image_input = ImageInput(
            channels=3,
            size=size,
            mean=tuple(preparation["mean"]),
            std=tuple(preparation["std"]),
        )
        # a norm that belongs to the pooled vector alone may not even have the width of a token
        self._normalise_regions = (
            getattr(self.model, "attn_pool", None) is None
            and not getattr(self.model, "final_ln_after_pool", False)
        )  # fmt: skip
        self.pooled_dim, stages = self._measure(size)
        check_integer("region_stage", region_stage, -len(stages), len(stages) - 1)
        self.region_stage = int(region_stage)
        self.region_dim = stages[region_stage]
        self.freeze_as(frozen)

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode ``images (image, 3, height, width)``, normalised as ``image_input`` says.

        Raises:
            ShapeError: wrong rank, number of channels or size, or no image.
            DtypeError, DeviceError: the images are not floating-point, or not of the dtype or on
                the device of the model.
        """
        check_images(images, 3, self.image_input.size)
        try:
            output = self.model.forward_intermediates(
                images,
                indices=[self.region_stage, -1],  # a ResNet runs no further than the last wanted
                normalize_intermediates=self._normalise_regions,
                output_fmt="NCHW",
            )
        except RuntimeError:
            check_images_suit(images, self.model)
            raise
        return features_of(output["image_features"], output["image_intermediates"][0])

    def recipe(self, folder: Path) -> Recipe:
        """Write the config of this tower into ``folder``, and return how to make it again."""
        _write_config(folder, self._config, "vision_cfg", self.model.preprocess_cfg)
        options = {
            "pretrained": None,
            "region_stage": self.region_stage,
            "image_size": self._image_size,
            "frozen": self.frozen_as(),
        }
        return Recipe("open_clip:.", options)

    def _measure(self, size: tuple[int, int]) -> tuple[int, list[int]]:
        """Widths of the embedding and of every stage, from a pass without values."""
        check_patches(size, getattr(self.model, "patch_size", (1, 1)))
        values = [*self.model.parameters(), *self.model.buffers()]
        # a copy that is given, for each tensor, one of its shape without memory
        sketch = copy.deepcopy(self.model, {id(each): each.detach().to("meta") for each in values})
        try:
            with torch.no_grad():
                output = sketch.eval().forward_intermediates(
                    torch.empty(1, 3, *size, device="meta"),
                    normalize_intermediates=self._normalise_regions,
                    output_fmt="NCHW",
                )
        except Exception as cause:  # towers and their trunks raise as they please
            raise OptionError(
                f"the model cannot encode images of {size} pixels "
                f"({describe(cause)}). Is its config consistent?"
            ) from cause
        maps = output["image_intermediates"]
        return output["image_features"].shape[1], [map_.shape[1] for map_ in maps]


class OpenClipTextEncoder(Freezable):
    """The text tower of an open_clip model: its embedding and its token outputs merged to words.

    ``pooled`` is the projected embedding, not normalised. ``words`` are the last hidden states, as
    the tower's own forward would hand them out, merged over the pieces of each word; they are not
    projected. Most of these towers are causal: a word has seen only what stands before it.

    Words are what the tokenizer splits a text into before it looks for pieces: the native one
    lower-cases, and takes runs of letters, single digits and runs of other marks; for a tokenizer
    of transformers see :class:`~gloria.encoders.HFTextEncoder`. The strings are cut from the text
    as the model cleans it.

    Args:
        model_name, pretrained: as in :class:`OpenClipImageEncoder`.
        word_reduction: ``"sum"``, ``"mean"``, ``"max"`` or ``"first"`` over the pieces of a word.
        context_length: number of tokens, special tokens included; None = the model's own.
            Positions are resized with the weights. A longer text is cut at the end; the first
            time, a :class:`~gloria.errors.TruncatedTextWarning` tells.
        frozen: no gradients, and eval mode that ``train()`` does not undo; for everything, or for
            the submodules of the given names, such as ``["model.transformer"]``.
        frozen_layers: the same for the embeddings and the first k layers; 0 = nothing.

    Attributes:
        pooled_dim: width of the embedding that the two towers share.
        word_dim: width of a word.

    Raises:
        TokenizerError: the tokenizer cannot tell words. All else is as in
            :class:`OpenClipImageEncoder`.

    The image tower is built too when weights are loaded, and dropped.

    Example::

        encoder = OpenClipTextEncoder("ViT-B-16", pretrained="laion2b_s34b_b88k")
        features = encoder(["Mild cardiomegaly."])
        features.tokens  # [['mild', 'cardiomegaly', '.']]
    """

    model: Any

    def __init__(
        self,
        model_name: str,
        *,
        pretrained: str | Path | bool | None = None,
        word_reduction: str = "sum",
        context_length: int | None = None,
        frozen: bool | Sequence[str] = False,
        frozen_layers: int = 0,
    ) -> None:
        super().__init__()
        check_choice("word_reduction", word_reduction, WORD_REDUCTIONS)
        if context_length is not None:
            check_integer("context_length", context_length, lowest=3)
        whole, self._config = _create(
            model_name, pretrained, "text_cfg", force_context_length=context_length
        )
        self.model = whole.text
        self.word_reduction = word_reduction
        self.tokenizer = _tokenizer(model_name, context_length)
        self._told_of_truncation = False
        ids = torch.ones(1, self.tokenizer.context_length, dtype=torch.long)
        try:
            with torch.no_grad():
                pooled, states = self.eval()._encode(ids)
        except Exception as cause:  # towers of transformers raise as they please
            raise OptionError(
                f"the model cannot encode texts of {ids.shape[1]} tokens "
                f"({describe(cause)}). Give a smaller context_length."
            ) from cause
        self.train()
        self.pooled_dim = pooled.shape[1]
        self.word_dim = states.shape[2]
        self.freeze_as(self._lowest_parts(frozen_layers))
        self.freeze_as(frozen)

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """Turn strings into tensors, and tokens into words; on the CPU, fit for a data loader.

        Raises:
            DtypeError: ``texts`` is not a sequence of strings.
            ShapeError: there is no text.
            EmptyTextError: a text has no word, or none that the tokenizer knows.
            TokenizerError: a token is outside the model's vocabulary.
        """
        check_texts(texts)
        with torch.device("cpu"):  # whatever the default
            ids = self.tokenizer(list(texts))
        if int(ids.max()) >= self.model.vocab_size:
            raise TokenizerError(
                f"the tokenizer gives ids up to {int(ids.max())}, the model has embeddings for "
                f"{self.model.vocab_size}: it is another model's tokenizer."
            )
        split = self._hf_words if hasattr(self.tokenizer, "tokenizer") else self._native_words
        word_ids, tokens, cut = split(texts, ids)
        for index, words in enumerate(tokens):
            if not words:
                raise EmptyTextError(
                    f"texts[{index}] has no word that the tokenizer knows: {texts[index]!r}. Leave "
                    f"it out."
                )
            if cut[index]:
                length = f"{self.tokenizer.context_length} tokens"
                tell_of_truncation(self, index, length, "context_length")
        return TokenizedText({"text": ids}, word_ids, tokens)

    def unknown_words(self, texts: TokenizedText) -> list[str]:
        """Words with a piece that the vocabulary lacks; the native tokenizer spells every word."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        return words_with([getattr(inner, "unk_token_id", None)], texts, texts.inputs["text"])

    def forward(self, texts: TokenizedText | Sequence[str]) -> TextFeatures:
        """Encode texts, given as strings or as :meth:`tokenize` returns them (on any device)."""
        if not isinstance(texts, TokenizedText):
            texts = self.tokenize(texts)
        texts = texts.to(next(self.model.parameters()).device)
        pooled, states = self._encode(texts.inputs["text"])
        word_count = max(len(words) for words in texts.tokens)
        words, word_mask = merge_word_pieces(
            states, texts.word_ids, self.word_reduction, word_count=word_count
        )
        return TextFeatures(pooled, words, word_mask, texts.tokens)

    def recipe(self, folder: Path) -> Recipe:
        """Write the config and tokenizer of this tower into ``folder``; return how to rebuild."""
        text_config = dict(self._config["text_cfg"])
        if hasattr(self.tokenizer, "tokenizer"):
            self.tokenizer.save_pretrained(folder)
            text_config["hf_tokenizer_name"] = "."
        if hasattr(self.model, "config"):
            self.model.config.save_pretrained(folder)
            text_config["hf_model_name"] = "."
        _write_config(folder, {**self._config, "text_cfg": text_config}, "text_cfg", {})
        options = {
            "pretrained": None,
            "word_reduction": self.word_reduction,
            "context_length": self.tokenizer.context_length,
            "frozen": self.frozen_as(),
        }
        return Recipe("open_clip:.", options)

    def _lowest_parts(self, count: int) -> list[str]:
        """Names of the embeddings and of the first ``count`` layers."""
        transformer = self.model.transformer
        hf = hasattr(transformer, "config")  # a tower of transformers
        layers = transformer.config.num_hidden_layers if hf else len(transformer.resblocks)
        check_integer("frozen_layers", count, 0, layers)
        if count == 0:
            return []
        if hf:
            return [f"model.transformer.{name}" for name in lowest_parts(transformer, count)]
        embeddings = ["token_embedding", "positional_embedding", "cls_emb"]
        there = [name for name in embeddings if getattr(self.model, name) is not None]
        blocks = [f"transformer.resblocks.{index}" for index in range(count)]
        return [f"model.{name}" for name in [*there, *blocks]]

    def _encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding of each text and the hidden state of each token."""
        if hasattr(self.model, "forward_intermediates"):
            output = self.model.forward_intermediates(
                ids,
                indices=1,
                # a class token at the end (CoCa) is normalised alone, after pooling
                normalize_intermediates=self.model.cls_emb is None,
                output_fmt="NLC",
            )
            return output["text_features"], output["text_intermediates"][0]
        # a tower of transformers; its own token output may lack the first token
        mask = (ids != self.model.config.pad_token_id).long()
        output = self.model.transformer(input_ids=ids, attention_mask=mask)
        return self.model.proj(self.model.pooler(output, mask)), output.last_hidden_state

    def _native_words(self, texts: Sequence[str], ids: Tensor) -> _Words:
        """Words from the end-of-word marks of the native tokenizer."""
        tokenizer = self.tokenizer
        word_ids = torch.full_like(ids, -1)
        tokens, cut = [], []
        for index, (text, row) in enumerate(zip(texts, ids.tolist(), strict=True)):
            pieces: list[list[int]] = [[]]
            for position in range(1, row.index(tokenizer.eot_token_id)):
                if row[position] in tokenizer.all_special_ids:
                    continue
                word_ids[index, position] = len(pieces) - 1
                pieces[-1].append(row[position])
                if tokenizer.decoder[row[position]].endswith("</w>"):
                    pieces.append([])
            tokens.append([tokenizer.decode(word).strip() for word in pieces if word])
            full = row[-1] == tokenizer.eot_token_id
            cut.append(full and len(tokenizer.encode(text)) > len(row) - 2)
        return word_ids, tokens, cut

    def _hf_words(self, texts: Sequence[str], ids: Tensor) -> _Words:
        """Words from the word ids of a tokenizer of transformers."""
        cleaned = [self.tokenizer.clean_fn(text) for text in texts]
        fast = self.tokenizer.tokenizer
        encodings = fast(
            cleaned,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.context_length,
        ).encodings
        word_ids, tokens = [], []
        for text, encoding in zip(cleaned, encodings, strict=True):
            numbers, words = words_of(text, encoding)
            known = any(
                number >= 0 and piece != fast.unk_token_id and token.strip("▁")
                for number, piece, token in zip(numbers, encoding.ids, encoding.tokens, strict=True)
            )
            word_ids.append(numbers)
            tokens.append(words if known else [])
        aligned = torch.tensor(word_ids, device="cpu")
        expected = torch.tensor([encoding.ids for encoding in encodings], device="cpu")
        if expected.shape != ids.shape or (aligned.ge(0) & expected.ne(ids)).any():
            raise TokenizerError(
                f"the tokens of {type(self.tokenizer).__name__} cannot be told apart into words "
                f"(tokenizer_mode {self.tokenizer.tokenizer_mode!r})."
            )
        return aligned, tokens, [bool(encoding.overflowing) for encoding in encodings]


def _tokenizer(model_name: str, context_length: int | None) -> Any:
    open_clip = require("open_clip", "encoders")
    try:
        tokenizer = open_clip.get_tokenizer(_source(model_name), context_length=context_length)
    except Exception as cause:  # transformers raises as it pleases
        raise TokenizerError(
            f"the tokenizer of {model_name} cannot be loaded ({describe(cause)})."
        ) from cause
    native = isinstance(tokenizer, open_clip.SimpleTokenizer)
    inner: Any = getattr(tokenizer, "tokenizer", None)
    if not native and not (getattr(inner, "is_fast", False) and hasattr(tokenizer, "clean_fn")):
        raise TokenizerError(
            f"{model_name} has a {type(inner or tokenizer).__name__}, which cannot tell words; a "
            f"native or a fast tokenizer is needed."
        )
    if not native and set(inner.get_vocab()) <= set(inner.all_special_tokens):
        raise TokenizerError(
            f"the tokenizer of {model_name} knows no token but its special ones: its vocabulary "
            f"was not found."
        )
    return tokenizer


def _create(
    model_name: str, pretrained: str | Path | bool | None, tower: str, **forced: Any
) -> tuple[Any, dict[str, Any]]:
    """A model of which the named tower is complete, and its config."""
    open_clip = require("open_clip", "encoders")
    if not isinstance(model_name, str | Path):
        raise DtypeError(f"model_name must be a string; got {type(model_name).__name__}.")
    source = _source(model_name)
    config = _read_config(open_clip, source)
    weights = _check_pretrained(open_clip, source, pretrained)
    replaced: dict[str, Any] = {}
    if config["text_cfg"].get("hf_model_name") == ".":
        here = {"hf_model_name": source.partition(":")[2], "hf_model_pretrained": False}
        replaced["text_cfg"] = {**config["text_cfg"], **here}
    if not pretrained:
        others = SMALLEST.keys() & config.keys() - {tower}
        replaced.update((name, SMALLEST[name]) for name in others)
    try:
        with nullcontext() if pretrained else _without_warnings_of(open_clip.factory):
            model = open_clip.create_model(
                source,
                pretrained=weights,
                load_weights=bool(pretrained),
                require_pretrained=bool(pretrained),
                pretrained_text=False,
                force_custom_text=True,  # text in a module of its own
                force_patch_dropout=0.0,
                **forced,
                **replaced,
            )
    except Exception as cause:
        problem = f"({describe(cause)})"
        if pretrained:
            raise CheckpointError(
                f"{model_name} cannot be made with the weights {pretrained} {problem}."
            ) from cause
        raise OptionError(f"open_clip cannot make {model_name} {problem}.") from cause
    return model, config


@contextmanager
def _without_warnings_of(module: ModuleType) -> Iterator[None]:
    """Inside, what a module logs to the root logger is dropped: that weights are random, say."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.pathname != module.__file__

    root = logging.getLogger()
    root.addFilter(is_of_others)
    try:
        yield
    finally:
        root.removeFilter(is_of_others)


def _source(model_name: str | Path) -> str:
    """The name as open_clip reads it: a folder is marked as one."""
    return f"local-dir:{model_name}" if Path(model_name).is_dir() else str(model_name)


def _read_config(open_clip: ModuleType, source: str) -> dict[str, Any]:
    try:
        config: dict[str, Any] | None = open_clip.get_model_config(
            source if ":" in source else source.replace("/", "-")
        )
    except (OSError, ValueError) as cause:
        raise OptionError(
            f"{source} has no config that can be read: {cause}. A folder must hold {CONFIG_FILE}."
        ) from cause
    if config is not None:
        return config
    near = nearest(source, open_clip.list_models(), 3)
    raise UnknownNameError(
        f"open_clip has no model {source!r}, and there is no such folder.{near} "
        f"open_clip.list_models() lists what there is."
    )


def _check_pretrained(
    open_clip: ModuleType, source: str, pretrained: str | Path | bool | None
) -> str | None:
    """The tag or file that open_clip is to load; None = none, or what comes with the source."""
    if not pretrained:
        return None
    if ":" in source:
        if pretrained is not True:
            raise OptionError(
                f"{source} comes with its own weights: pretrained must be True or None; got "
                f"{str(pretrained)!r}."
            )
        return None
    tags = open_clip.list_pretrained_tags_by_model(source.replace("/", "-"))
    if pretrained is True or not (str(pretrained) in tags or Path(pretrained).is_file()):
        listed = ", ".join(tags) or "none"
        raise OptionError(
            f"pretrained must be a file or one of the tags of {source} ({listed}); got "
            f"{str(pretrained)!r}."
        )
    return str(pretrained)


def _write_config(
    folder: Path, config: dict[str, Any], tower: str, preparation: dict[str, Any]
) -> None:
    """Write a config that open_clip reads, with nothing of the towers that are not here."""
    kept = {name: value for name, value in config.items() if name not in SMALLEST}
    other = "text_cfg" if tower == "vision_cfg" else "vision_cfg"
    kept |= {tower: config[tower], other: SMALLEST[other]}
    text = json.dumps({"model_cfg": kept, "preprocess_cfg": preparation}, indent=2)
    (Path(folder) / CONFIG_FILE).write_text(text + "\n")
