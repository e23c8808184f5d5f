"""GLoRIA: two encoders, their projections and a loss, composed.

Nothing here is hidden from someone composing by hand: the encoders return
:class:`~gloria.types.ImageFeatures` and :class:`~gloria.types.TextFeatures`, the heads project
them, and the loss takes the tensors it names.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from gloria import catalog
from gloria.checks import (
    check_choice,
    check_fusion_weights,
    check_image_encoder,
    check_integer,
    check_module,
    check_same_size,
    check_tensor,
    check_text_encoder,
    check_texts,
    height_width,
)
from gloria.errors import ContractError, DataError, EmptyTextError, OptionError
from gloria.functional import global_similarity
from gloria.geometry import upsample_attention
from gloria.heads import Projection
from gloria.losses import GlobalLocalContrastiveLoss, LocalContrastiveLoss, inputs_of
from gloria.losses.base import is_sum_of_terms
from gloria.matching import AggregatorFunction, WordAggregation
from gloria.mini_batches import encode_mini_batches, join_images, join_texts, split_texts
from gloria.signatures import signature_of
from gloria.types import (
    ImageEncoder,
    ImageFeatures,
    RegionGeometry,
    TextEncoder,
    TextFeatures,
    TokenizedText,
)
from gloria.wrapping import unwrapped

Texts = Sequence[str] | TokenizedText

_HEADS = ("image_head", "region_head", "text_head", "word_head")


class GLoRIAOutput(NamedTuple):
    """What a training step returns; ``loss`` first, as training frameworks expect."""

    loss: Tensor
    terms: dict[str, Tensor]
    images: ImageFeatures
    texts: TextFeatures


class AttentionMaps(NamedTuple):
    """Where each word of one text looks in one image.

    Attributes:
        words: the words, as strings.
        grid_maps: attention on the region grid, ``(word, grid height, grid width)``; each map
            sums to 1 over the real regions.
        maps: the same laid over the image, ``(word, height, width)``, in the unit of
            ``grid_maps`` (weight per region).
    """

    words: list[str]
    grid_maps: Tensor
    maps: Tensor


class GLoRIA(nn.Module):
    """Two encoders, four projections and a loss.

    Args:
        image_encoder: an ``nn.Module`` with the contract of :class:`~gloria.types.ImageEncoder`.
        text_encoder: one with the contract of :class:`~gloria.types.TextEncoder`.
        loss: any module whose ``forward`` names its inputs as in
            :data:`gloria.losses.LOSS_INPUTS`; default: the paper's objective.
        image_head: projects ``pooled`` of the image, ``(image, pooled_dim)``; None = identity.
        region_head: projects ``regions``, ``(image, region, region_dim)``; None = identity.
        text_head: projects ``pooled`` of the text; None = identity.
        word_head: projects ``words``; None = identity.

    :func:`create_model` builds the same from names, heads included.

    Source: GLoRIA (Huang et al., ICCV 2021), section 3. The published code projects the image
    only; text projections are the paper's.
    """

    __call__: Callable[..., GLoRIAOutput]  # to type checkers; nn.Module says Any

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        *,
        loss: nn.Module | None = None,
        image_head: nn.Module | None = None,
        region_head: nn.Module | None = None,
        text_head: nn.Module | None = None,
        word_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_image_encoder("image_encoder", image_encoder)
        check_text_encoder("text_encoder", text_encoder)
        self.composition: dict[str, Any] | None = None
        """How :func:`create_model` put this together, for saving; None if composed by hand, or if
        its loss or a head was replaced."""
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        # `or` would ask what torch.compile made of a module for its length
        self.image_head = nn.Identity() if image_head is None else image_head
        self.region_head = nn.Identity() if region_head is None else region_head
        self.text_head = nn.Identity() if text_head is None else text_head
        self.word_head = nn.Identity() if word_head is None else word_head
        self.loss = GlobalLocalContrastiveLoss() if loss is None else loss
        self.trained_image_size: tuple[int, int] | None = None
        """``(height, width)`` of the images it was trained on, in pixels, for whoever feeds it
        next; :func:`gloria.training.train` sets it, and it is saved. None = unknown."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a part; another loss or head than before is no longer what ``composition`` says."""
        if name == "trained_image_size":
            value = height_width(name, value)
        if name == "loss":
            check_module("loss", value)
            self._loss_inputs = inputs_of(value)
        if name in ("loss", *_HEADS):
            before = getattr(self, name, value)
            if unwrapped(before) is not unwrapped(value):
                self.composition = None
        super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are; the CPU if it has none."""
        return next((each.device for each in self.parameters()), torch.device("cpu"))

    def forward(
        self, images: Tensor, texts: Texts, *, mini_batch_size: int | None = None
    ) -> GLoRIAOutput:
        """Features and loss of a batch of pairs; text k belongs to image k.

        Args:
            images: ``(image, channel, height, width)``, normalised as
                ``image_encoder.image_input`` says.
            texts: as many texts, as strings or tokenized.
            mini_batch_size: encode so many images, and so many texts, at a time, and once more in
                the backward, which then needs memory for these only. The loss and its gradient are
                the whole batch's all the same. In training a BatchNorm sees mini-batches, and what
                else an encoder changes there, as spectral norms do, it changes twice. None = all at
                once.

        Source of ``mini_batch_size``: GradCache (Gao et al., RepL4NLP 2021).
        """
        if mini_batch_size is None:
            image_features, text_features = self.encode_image(images), self.encode_text(texts)
        else:
            encode = self._encode_mini_batches
            if torch.compiler.is_compiling():  # no graph knows of running statistics that stay
                encode = torch.compiler.disable(encode)
            image_features, text_features = encode(images, texts, mini_batch_size)
        loss, terms = self.compute_loss(image_features, text_features)
        return GLoRIAOutput(loss, terms, image_features, text_features)

    def _encode_mini_batches(
        self, images: Tensor, texts: Texts, size: int
    ) -> tuple[ImageFeatures, TextFeatures]:
        check_integer("mini_batch_size", size, 1)
        if not isinstance(texts, TokenizedText):
            texts = self.tokenize(texts)
        some_images = encode_mini_batches(self, self.encode_image, images.split(size))
        # there already: by what it is given, checkpoint knows whose autocast to repeat
        some = split_texts(texts.to(self.device), size)
        some_texts = encode_mini_batches(self, self.encode_text, some)
        return join_images(some_images), join_texts(some_texts)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Projected features: ``pooled (image, dim)``, ``regions (image, region, dim)``.

        Raises what the image encoder raises for images it cannot take, and ContractError where the
        encoder returns something else than its :class:`~gloria.types.ImageFeatures` should be.
        """
        features = self.image_encoder(images)
        _check_image_features(self.image_encoder, features, images.shape[0])
        return features._replace(
            pooled=self.image_head(features.pooled), regions=self.region_head(features.regions)
        )

    def encode_text(self, texts: Texts) -> TextFeatures:
        """Projected features: ``pooled (text, dim)``, ``words (text, word, dim)``.

        Raises what :meth:`tokenize` does, what the text encoder raises for texts it cannot take,
        and ContractError where the encoder returns something else than its
        :class:`~gloria.types.TextFeatures` should be.
        """
        if not isinstance(texts, TokenizedText):
            tokenize = self.tokenize
            if torch.compiler.is_compiling():  # strings are no business of a graph: one for each
                tokenize = torch.compiler.disable(tokenize)
            texts = tokenize(texts)
        features = self.text_encoder(texts.to(self.device))
        _check_text_features(self.text_encoder, features, texts.word_ids.shape[0])
        pooled, words = self.text_head(features.pooled), self.word_head(features.words)
        # not by _replace, which torch 2.11 does not trace over strings
        return TextFeatures(pooled, words, features.word_mask, features.tokens)

    def tokenize(self, texts: Sequence[str]) -> TokenizedText:
        """What :meth:`encode_text` makes of strings, on the CPU.

        Raises:
            DtypeError, ShapeError: ``texts`` is no sequence of strings, or empty.
            EmptyTextError: a text has no word.
            ContractError: the text encoder does not return a TokenizedText of as many texts.
        """
        check_texts(texts)  # of one string a tokenizer would make a batch of letters
        tokenized = self.text_encoder.tokenize(texts)
        _check_tokenized(self.text_encoder, tokenized, len(texts))
        for index, words in enumerate(tokenized.tokens):
            if not words:
                raise EmptyTextError(f"texts[{index}] has no word: {texts[index]!r}. Leave it out.")
        return tokenized

    def compute_loss(
        self, images: ImageFeatures, texts: TextFeatures
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its named terms, from projected features.

        Raises what the loss does, and ContractError where it returns no scalar tensor.
        """
        available = {
            "image_embeddings": images.pooled,
            "text_embeddings": texts.pooled,
            "regions": images.regions,
            "words": texts.words,
            "word_mask": texts.word_mask,
            "region_mask": images.region_mask,
        }
        inputs = {name: available[name] for name in self._loss_inputs}
        if is_sum_of_terms(self.loss):  # what forward does, without computing the terms twice
            terms = self.loss.terms(**inputs)
            loss: Tensor = self.loss.total(terms)
        else:
            loss = self.loss(**inputs)
            terms = {"loss": loss}
        _check_loss(self.loss, loss)
        return loss, terms

    def similarity(
        self,
        images: Tensor | ImageFeatures,
        texts: Texts | TextFeatures,
        kind: Literal["global", "local", "both"] | None = None,
        *,
        aggregation: WordAggregation | AggregatorFunction | None = None,
        weights: tuple[float, float] = (0.5, 0.5),
    ) -> Tensor:
        """Similarity of every image with every text, ``(image, text)``; their numbers may differ.

        Put the model in eval mode first, or BatchNorm makes an image depend on its batch.

        Args:
            images: normalised images, or what :meth:`encode_image` returned.
            texts: texts, or what :meth:`encode_text` returned.
            kind: ``"global"``: :meth:`global_similarity` of the pooled embeddings; ``"local"``: the
                similarity of the model's own local loss; ``"both"``: their weighted sum; None: what
                the loss trains, so ``"both"`` where it has a global and a local part.
            aggregation: of words, instead of the local loss's own; for GLoRIA's local loss.
            weights: of the global and the local part in ``"both"``. The published code's score is
                ``aggregation="max", weights=(0.5, 2.5)``.

        Raises:
            OptionError: the model's loss has no local part and ``kind`` needs one, or takes no
                ``aggregation``; ``weights`` are not two finite numbers; ``kind`` is None and the
                loss trains none.
        """
        kind = self.trained_kind if kind is None else kind
        check_choice("kind", kind, ("global", "local", "both"))
        check_fusion_weights(weights)
        if not isinstance(images, ImageFeatures):
            images = self.encode_image(images)
        if not isinstance(texts, TextFeatures):
            texts = self.encode_text(texts)
        if kind == "global":
            return self.global_similarity(images.pooled, texts.pooled)
        matcher: Any = unwrapped(self.local_loss)
        options = {} if aggregation is None else {"aggregation": aggregation}
        if options and not isinstance(matcher, LocalContrastiveLoss):
            raise OptionError(
                f"aggregation is for LocalContrastiveLoss; the model's is {type(matcher).__name__}."
            )
        local: Tensor = matcher.similarity(
            images.regions, texts.words, texts.word_mask, images.region_mask, **options
        )
        _checked_pairs(matcher, local, images.pooled, texts.pooled)
        if kind == "local":
            return local
        whole = self.global_similarity(images.pooled, texts.pooled)
        return weights[0] * whole + weights[1] * local

    def global_similarity(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Similarity of pooled embeddings, as the loss compares them, ``(image, text)``.

        That of the loss, or of its ``global_loss``, if it has a method ``similarity(
        image_embeddings, text_embeddings)``; else the cosine.
        """
        for loss in (self.loss, getattr(self.loss, "global_loss", None)):
            if (compare := _similarity_of(loss, "image_embeddings")) is not None:
                compared = compare(image_embeddings, text_embeddings)
                return _checked_pairs(loss, compared, image_embeddings, text_embeddings)
        return global_similarity(image_embeddings, text_embeddings)

    @property
    def trained_kind(self) -> Literal["global", "local", "both"]:
        """Which similarities the loss trains; what :meth:`similarity` gives unless told.

        Of a loss that sees no pooled vectors and has no similarity of its own, an OptionError.
        """
        is_local = self._find_local_loss() is not None
        if "image_embeddings" in self._loss_inputs:
            return "both" if is_local else "global"
        if is_local:
            return "local"
        raise OptionError(
            f"the model's loss {type(self.loss).__name__} takes {', '.join(self._loss_inputs)} and "
            f"has no method similarity(regions, words, word_mask, region_mask): nothing says how "
            f"it compares an image with a text. Give it one. (model.similarity(images, texts, "
            f"'global') compares pooled vectors, which it does not train.)"
        )

    def attention(self, image: Tensor, text: str) -> AttentionMaps:
        """One map per word of a text: where it looks in an image.

        Put the model in eval mode first, or dropout and BatchNorm blur the answer.

        Args:
            image: ``(channel, height, width)``, normalised as ``image_encoder.image_input`` says.
            text: one text.

        Raises:
            ShapeError, DtypeError: not one image.
            OptionError: as :meth:`attention_maps`.
            ContractError: the text encoder names more or fewer words than it encodes.
            DataError: the attention is not finite.
        """
        check_tensor("image", image, ("channel", "height", "width"))
        images, texts = self.encode_image(image[None]), self.encode_text([text])
        weights = self.attention_maps(images, texts)
        if not weights.isfinite().all():
            raise DataError("the attention is not finite; is the image, and is the model trained?")
        words = texts.tokens[0]
        positions = int(texts.word_mask[0].nonzero().max()) + 1
        if len(words) != positions:
            raise ContractError(
                f"{type(self.text_encoder).__name__} must return as many tokens of a text as it "
                f"has positions up to its last real word, {positions}; got {len(words)}: {words}."
            )
        grid_maps = weights[0, : len(words)].unflatten(-1, images.grid)
        height, width = image.shape[1:]
        return AttentionMaps(words, grid_maps, self.lay_over(grid_maps, (height, width)))

    def attention_maps(self, images: ImageFeatures, texts: TextFeatures) -> Tensor:
        """Where each word of text k looks in image k, ``(pair, word, region)``.

        The ``attention_maps`` of the model's loss, or of its ``local_loss``, from what
        :meth:`encode_image` and :meth:`encode_text` returned.

        Raises:
            OptionError: the model's loss attends to nothing.
        """
        loss: Any = self.loss if hasattr(self.loss, "attention_maps") else self.local_loss
        if not hasattr(loss, "attention_maps"):
            raise OptionError(
                f"the model's loss {type(unwrapped(loss)).__name__} attends to nothing: it has no "
                f"method attention_maps(regions, words, word_mask, region_mask)."
            )
        weights: Tensor = loss.attention_maps(
            images.regions, texts.words, texts.word_mask, images.region_mask
        )
        return weights

    def lay_over(self, grid_maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps on the image encoder's region grid, laid over an image of ``size`` in pixels.

        From ``(..., grid height, grid width)`` to ``(..., height, width)``.
        """
        geometry: RegionGeometry | None = getattr(self.image_encoder, "region_geometry", None)
        stride, offset = geometry or (None, None)
        return upsample_attention(grid_maps, size, stride=stride, offset=offset)

    @property
    def local_loss(self) -> Any:
        """The local part of the model's loss: the matcher of training is the one of inference.

        The loss, or its ``local_loss``, if it has a method ``similarity(regions, words, word_mask,
        region_mask)``, as :class:`~gloria.losses.LocalContrastiveLoss` does.
        """
        local = self._find_local_loss()
        if local is None:
            raise OptionError(
                f"the model's loss {type(self.loss).__name__} has no local matching, which "
                f"attention and a similarity other than kind='global' need: a loss that is or has "
                f"(as `local_loss`) one with a method similarity(regions, words, word_mask, "
                f"region_mask)."
            )
        return local

    def _find_local_loss(self) -> Any:
        local = getattr(self.loss, "local_loss", self.loss)
        return None if _similarity_of(local, "regions") is None else local


def create_model(
    image_encoder: str | ImageEncoder,
    text_encoder: str | TextEncoder,
    *,
    embedding_dim: int | None = None,
    projection: str = "linear",
    loss: str | nn.Module = "global_local_contrastive",
    image_options: Mapping[str, Any] | None = None,
    text_options: Mapping[str, Any] | None = None,
    loss_options: Mapping[str, Any] | None = None,
) -> GLoRIA:
    """A :class:`GLoRIA` from names or objects, with the projections that make them fit.

    Args:
        image_encoder: ``"timm:resnet50"``, another registered name, or a module.
        text_encoder: ``"hf:emilyalsentzer/Bio_ClinicalBERT"``, another name, or a module.
        embedding_dim: width of the shared space; all four features are projected to it. None: the
            text encoder's own width, and only the image is projected, as in the published code.
        projection: ``"linear"`` or ``"mlp"`` (ConVIRT's).
        loss: a registered name or a module.
        image_options: keyword arguments for the image encoder, when it is a name.
        text_options: for the text encoder, when it is a name; ``"small_bert"`` needs ``reports``.
        loss_options: for the loss, when it is a name; ``{"preset": "official"}``, say. One that
            takes ``embedding_dim`` is given the width of the shared space.

    Example:
        The architecture of the published code, with its loss::

            gloria.create_model(
                "timm:resnet50",
                "hf:emilyalsentzer/Bio_ClinicalBERT",
                image_options={"pretrained": True},
                text_options={"cls_as_word": True},
                loss_options={"preset": "official"},
            )

        It resizes its 224-pixel images to 299 and normalises them with 0.5 and 0.5; here that is
        up to whoever prepares the images.
    """
    if embedding_dim is not None:  # before an encoder is loaded
        check_integer("embedding_dim", embedding_dim, 1)
    vision: ImageEncoder = _resolve(
        image_encoder, catalog.create_image_encoder, "image_options", image_options
    )
    language: TextEncoder = _resolve(
        text_encoder, catalog.create_text_encoder, "text_options", text_options
    )
    check_image_encoder("image_encoder", vision)
    check_text_encoder("text_encoder", language)
    text_head = word_head = None
    width = embedding_dim
    if width is None:
        width, pooled = language.word_dim, language.pooled_dim
        hint = "Give embedding_dim to project both to one width."
        check_same_size("width", "text_encoder.pooled_dim", pooled, "its word_dim", width, hint)
    else:
        text_head = Projection(language.pooled_dim, width, kind=projection)
        word_head = Projection(language.word_dim, width, kind=projection)
    loss_module: nn.Module = _resolve(
        loss,
        lambda name, **options: catalog.make_loss(name, options, embedding_dim=width),
        "loss_options",
        loss_options,
    )
    model = GLoRIA(
        vision,
        language,
        loss=loss_module,
        image_head=Projection(vision.pooled_dim, width, kind=projection),
        region_head=Projection(vision.region_dim, width, kind=projection, bias=False),
        text_head=text_head,
        word_head=word_head,
    )
    is_told = isinstance(loss, str) and is_json(dict(loss_options or {}))
    model.composition = {
        "embedding_dim": embedding_dim,
        "projection": projection,
        "loss": loss if is_told else None,
        "loss_options": dict(loss_options or {}) if is_told else None,
    }
    return model


def _similarity_of(loss: Any, first: str) -> Callable[..., Tensor] | None:
    """A loss's ``similarity``, if this is the first that it takes."""
    method = getattr(loss, "similarity", None)
    takes = signature_of(method).parameters if callable(method) else ()
    return method if next(iter(takes), None) == first else None


def _resolve(given: Any, create: Any, argument: str, options: Mapping[str, Any] | None) -> Any:
    """The object itself, or the one its name stands for."""
    if isinstance(given, str):
        return create(given, **(options or {}))
    if options:
        raise OptionError(
            f"{argument} go with a name; got them with a {type(given).__name__} object. Set them "
            f"on the object instead."
        )
    return given


def _check_image_features(encoder: ImageEncoder, features: ImageFeatures, count: int) -> None:
    """What an encoder does not keep of its contract would surface far from it, or never."""
    _check_kind(encoder, features, ImageFeatures)
    grid: Any = features.grid
    if (
        not isinstance(grid, Sequence)
        or len(grid) != 2
        or not all(isinstance(side, Integral | torch.SymInt) for side in grid)
    ):
        _refuse(encoder, "grid = (height, width), two integers", repr(grid))
    regions = {"image": count, "height * width of grid": grid[0] * grid[1]}
    _check_part(encoder, features, "pooled", {"image": count, "pooled_dim": encoder.pooled_dim})
    _check_part(encoder, features, "regions", {**regions, "region_dim": encoder.region_dim})
    if features.region_mask is not None:
        _check_part(encoder, features, "region_mask", regions)


def _check_text_features(encoder: TextEncoder, features: TextFeatures, count: int) -> None:
    """As of images; the number of word positions is the encoder's own."""
    _check_kind(encoder, features, TextFeatures)
    words, tokens = features.words, features.tokens
    has_axes = isinstance(words, Tensor) and words.dim() == 3
    axes = {"text": count, "word": words.shape[1] if has_axes else "any"}
    _check_part(encoder, features, "pooled", {"text": count, "pooled_dim": encoder.pooled_dim})
    _check_part(encoder, features, "words", {**axes, "word_dim": encoder.word_dim})
    _check_part(encoder, features, "word_mask", axes)
    are_lists = isinstance(tokens, Sequence) and not any(isinstance(each, str) for each in tokens)
    if not are_lists or len(tokens) != count:
        got = f"{len(tokens)} lists" if are_lists else reprlib.repr(tokens)
        _refuse(encoder, f"tokens, a list of words of each of the {count} texts", got)


def _check_tokenized(encoder: TextEncoder, tokenized: TokenizedText, count: int) -> None:
    _check_kind(encoder, tokenized, TokenizedText, ".tokenize")
    for name, value in {**tokenized.inputs, "word_ids": tokenized.word_ids}.items():
        if not isinstance(value, Tensor):  # as tokenizers give lists unless asked for tensors
            _refuse(encoder, f"{name} as a tensor", type(value).__name__, ".tokenize")
    rows, lists = len(tokenized.word_ids), len(tokenized.tokens)
    if not rows == lists == count:
        got = f"{rows} rows of word_ids and {lists} of tokens"
        _refuse(encoder, f"as many texts as it is given, {count}", got, ".tokenize")


def _check_loss(loss: nn.Module, value: Tensor) -> None:
    expected = "a scalar floating-point tensor"
    if _shape_of(value) != ():
        _refuse(loss, expected, _shape_of(value))
    if not value.is_floating_point():
        _refuse(loss, expected, value.dtype)


def _checked_pairs(loss: object, similarity: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    """A pair matrix of a loss, if it is one."""
    expected = images.shape[0], texts.shape[0]
    if _shape_of(similarity) != expected:
        got = _shape_of(similarity)
        _refuse(loss, f"a matrix {expected} = (image, text)", got, ".similarity")
    return similarity


def _shape_of(value: object) -> tuple[int, ...] | str:
    """The shape of a tensor; of what is none, its type."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _check_kind(encoder: object, returned: object, expected: type, how: str = "") -> None:
    if not isinstance(returned, expected):
        _refuse(encoder, expected.__name__, type(returned).__name__, how)


def _check_part(encoder: object, features: Any, name: str, axes: Mapping[str, int | str]) -> None:
    """A part of what an encoder returns: its shape and device, and that it is numbers or a mask."""
    value = getattr(features, name)
    shape = tuple(axes.values())
    is_mask = name.endswith("mask")
    if _shape_of(value) != shape:
        sizes = f"({', '.join(map(str, shape))}) = ({', '.join(axes)})"
        _refuse(encoder, f"{name} of shape {sizes}", _shape_of(value))
    if value.device != features.pooled.device:
        _refuse(encoder, f"{name} on the device of pooled, {features.pooled.device}", value.device)
    if is_mask and value.dtype != torch.bool:
        _refuse(encoder, f"a boolean {name}, True = real", value.dtype)
    if not is_mask and not value.is_floating_point():
        _refuse(encoder, f"{name} as floating-point numbers", value.dtype)


def _refuse(part: object, expected: str, got: object, how: str = "") -> NoReturn:
    raise ContractError(f"{type(part).__name__}{how} must return {expected}; got {got}.")


def is_json(value: object) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
