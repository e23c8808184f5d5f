"""Checkpoints of the published code, read without running what is in them.

Such a file is a pickle of Lightning's: weights, and around them a tree of settings, classes of
callbacks and the optimizer's state. Unpickling can run any code. Here only tensors and plain
containers come out of it; the classes that such a file names are replaced by :class:`_Inert`, and
any other name is refused.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from gloria.checks import check_choice, check_device, check_integer, check_positive
from gloria.errors import CheckpointError, OptionError, reason
from gloria.model import GLoRIA, create_model
from gloria.weights import fill_model

RELEASED: dict[str, Any] = {
    "model.vision.model_name": "resnet_50",
    "model.text.bert_type": "emilyalsentzer/Bio_ClinicalBERT",
    "model.text.last_n_layers": 4,
    "model.text.aggregate_method": "sum",
    "model.text.agg_tokens": True,
    "model.text.norm": False,
    "model.gloria.local_loss_weight": 1.0,
    "model.gloria.global_loss_weight": 1.0,
    "model.gloria.temp1": 4.0,
    "model.gloria.temp2": 5.0,
    "model.gloria.temp3": 10.0,
    "data.text.word_num": 97,
    "transforms.norm": "half",
}
"""The settings that are read, with the released values; these hold where a file does not say."""

FIXED = ("model.vision.model_name", "model.text.agg_tokens", "model.text.norm", "transforms.norm")
"""Those whose released value is the only one that can be composed here."""


def load_published(
    checkpoint: str | Path,
    text_encoder: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
) -> GLoRIA:
    """Load a checkpoint of the published code (``chexpert_resnet50.ckpt``), in eval mode.

    The model is what :func:`gloria.create_model` makes of ``"timm:resnet50"``, of
    ``"hf:<text_encoder>"`` and of the loss preset ``"official"`` with the file's temperatures and
    weights, so :func:`gloria.save_model` and :func:`gloria.load_model` take it. Its
    ``trained_image_size`` is 299 x 299, to which the published code enlarges every image inside
    the model; here that is up to whoever prepares images, and
    :func:`gloria.data.published_image` and :func:`gloria.data.published_text` do it.

    Args:
        checkpoint: the file. Nothing in it is run, and no other way of reading it is tried.
        text_encoder: a name on the Hugging Face hub, or a folder, with the text encoder's config
            and tokenizer; its weights are in the checkpoint. None = the one that the file names,
            released: ``"emilyalsentzer/Bio_ClinicalBERT"``.
        device: where to put the model.

    Raises:
        CheckpointError: the file is missing, damaged or no such checkpoint; it names a class that
            none has; or its weights are not exactly the model's. BERT's ``pooler`` and
            ``position_ids``, which nothing here uses, are left out; nothing else is.
        OptionError: the file's settings ask for what can't be composed here, or ``device`` can't be
            used here.

    **The published scores** are ``model.similarity(images, texts, "both", aggregation="max",
    weights=(0.5, 2.5))``. There the published code does not count [CLS] as a word, and neither
    does the model; in training it does: set ``model.text_encoder.cls_as_word = True`` to train on.
    Two departures: when it scores, the published code takes a text's number of characters for its
    number of words, so that [SEP] and zero vectors of padding are words, too; here only words are.
    And each [UNK] takes one word off the end of its text in training; here none is lost. What its
    training froze (``freeze_cnn``, ``freeze_bert``) is not frozen here.

    Source: Huang et al., GLoRIA (ICCV 2021), and its published code.

    Example::

        model = gloria.load_published("chexpert_resnet50.ckpt")
        gloria.save_model(model, "gloria-resnet50")
    """
    check_device(device)
    checkpoint = Path(checkpoint)
    weights, tree = _read(checkpoint)
    settings = _read_settings(tree, checkpoint)
    source = text_encoder or settings["model.text.bert_type"]
    match_scale, scale = settings["model.gloria.temp2"], settings["model.gloria.temp3"]
    model = create_model(
        "timm:resnet50",
        f"hf:{source}",
        image_options={"pretrained_cfg_overlay": {"mean": [0.5] * 3, "std": [0.5] * 3}},
        text_options={
            "pretrained": False,
            "last_n_layers": settings["model.text.last_n_layers"],
            "layer_reduction": settings["model.text.aggregate_method"],
            "max_length": settings["data.text.word_num"],
        },
        loss_options={
            "preset": "official",
            "global_weight": settings["model.gloria.global_loss_weight"],
            "local_weight": settings["model.gloria.local_loss_weight"],
            "global_options": {"temperature": 1 / scale},
            "local_options": {
                "attention_temperature": 1 / settings["model.gloria.temp1"],
                "match_temperature": 1 / match_scale,
                # the published Z lacks its outer temperature
                "temperature": 1 / (match_scale * scale),
            },
        },
    )
    fill_model(model, _rename(weights), checkpoint)
    model.trained_image_size = (299, 299)
    return model.to(device).eval()


# Reading.


class _Inert:
    """Takes the place of any class that a checkpoint names: it keeps a state and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _plain_dict(*args: Any) -> dict[Any, Any]:
    """Takes the place of ``defaultdict``; the unpickler fills nothing but plain dicts."""
    return {}


_STAND_INS: list[Any] = [
    (_plain_dict, "collections.defaultdict"),
    *(
        (_Inert, name)
        for name in (
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.nodes.AnyNode",
            "omegaconf.nodes.BooleanNode",
            "omegaconf.nodes.FloatNode",
            "omegaconf.nodes.IntegerNode",
            "omegaconf.nodes.StringNode",
            "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
            "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
            "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
            "numpy._core.multiarray.scalar",
            "numpy.core.multiarray.scalar",
            "numpy.dtype",
            "builtins.bool",
            "builtins.dict",
            "builtins.float",
            "builtins.int",
            "builtins.list",
            "builtins.str",
            "typing.Any",
        )
    ),
]

_READING = threading.Lock()  # the list of safe names is the whole process's


def _read(checkpoint: Path) -> tuple[dict[str, Tensor], Any]:
    """Weights and tree of settings of a file, classes replaced by :class:`_Inert`."""
    if not checkpoint.is_file():
        raise CheckpointError(f"checkpoint {checkpoint} does not exist, or is no file.")
    try:
        with _READING, safe_globals(_STAND_INS):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except UnpicklingError as cause:
        # not chained: torch's text advises to read the file unsafely
        raise CheckpointError(_refusal(checkpoint, str(cause))) from None
    except Exception as cause:  # a damaged file makes torch raise as it pleases
        raise CheckpointError(
            f"{checkpoint} is damaged or no checkpoint: {reason(cause)}."
        ) from cause
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{checkpoint} has no state_dict, so it is no such checkpoint.")
    for key, value in weights.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"state_dict of {checkpoint} must hold tensors by name; {key!r} is a "
                f"{type(value).__name__}."
            )
    return weights, content.get("hyper_parameters")


def _refusal(checkpoint: Path, message: str) -> str:
    named = re.search(r"GLOBAL (\S+)", message)
    if named is None:
        return f"{checkpoint} is damaged or no checkpoint: it can't be read safely."
    return (
        f"{checkpoint} names {named[1]}, which no checkpoint of the published code does. It was "
        f"not read, and nothing of it was run."
    )


# Settings.


def _read_settings(tree: Any, checkpoint: Path) -> dict[str, Any]:
    """The values of :data:`RELEASED`, those of the file where it has them.

    What :func:`create_model` does not check under another name is checked here.
    """
    settings = {name: _look_up(tree, name, released) for name, released in RELEASED.items()}
    for name in FIXED:
        if settings[name] != RELEASED[name]:
            raise OptionError(
                f"{name} must be {RELEASED[name]!r}; in {checkpoint} it is {settings[name]!r}, "
                f"which can't be composed here."
            )
    reduction = settings["model.text.aggregate_method"]
    check_choice("model.text.aggregate_method", reduction, ("sum", "mean"))
    # with one layer, the published code takes other states and merges no word pieces
    check_integer("model.text.last_n_layers", settings["model.text.last_n_layers"], 2)
    for name in ("temp1", "temp2", "temp3"):
        check_positive(f"model.gloria.{name}", settings[f"model.gloria.{name}"])
    return settings


def _look_up(tree: Any, path: str, released: Any) -> Any:
    """The value at a dotted path, or the released one where the path ends early."""
    for name in path.split("."):
        tree = _unwrap(tree)
        if not isinstance(tree, dict) or name not in tree:
            return released
        tree = tree[name]
    return _unwrap(tree)


def _unwrap(node: Any) -> Any:
    """What OmegaConf wraps: the content of a container, the value of a leaf."""
    state = getattr(node, "__dict__", {})
    return state.get("_content", state.get("_val", node))


# Weights.

_PARTS = {
    "gloria.img_encoder.model.": "image_encoder.model.",
    "gloria.img_encoder.global_embedder.": "image_head.layers.",
    "gloria.img_encoder.local_embedder.": "region_head.layers.",
    "gloria.text_encoder.model.": "text_encoder.model.",
}
"""Where a name there begins, and where here; behind it they are alike."""

_UNUSED = (
    "gloria.text_encoder.model.embeddings.position_ids",
    "gloria.text_encoder.model.pooler.",
)


def _rename(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names; a name that is no part's stays, to be told as unexpected."""
    weights = {}
    for name, tensor in theirs.items():
        if name.startswith(_UNUSED):
            continue
        part = next((part for part in _PARTS if name.startswith(part)), None)
        weights[name if part is None else _PARTS[part] + name.removeprefix(part)] = tensor
    convolution = weights.get("region_head.layers.weight")
    if convolution is not None and convolution.shape[2:] == (1, 1):
        weights["region_head.layers.weight"] = convolution.flatten(1)
    return weights
