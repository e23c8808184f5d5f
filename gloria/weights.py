"""Saving and loading models: weights in safetensors, everything else in JSON; never pickled code.

A saved model is a folder::

    config.json          how to build the model again, without its weights; the size of the
                         images it was trained on, if that is known
    model.safetensors    the weights
    image_encoder/       files an encoder needs beside its weights, if any
    text_encoder/        (a tokenizer, a transformer's config)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from safetensors.torch import save_model as save_safetensors
from torch import Tensor, nn

import gloria
from gloria.checks import require
from gloria.encoders.timm_image import TimmImageEncoder
from gloria.errors import CheckpointError, OptionError, UnknownNameError, reason
from gloria.model import GLoRIA, create_model
from gloria.types import Recipe, SavesRecipe

COMPOSITION = ("embedding_dim", "projection", "loss", "loss_options")
"""What the description of a model holds besides the recipes of its encoders."""

FORMAT = 1
"""Version of the folder's layout; a reader refuses one it does not know."""


def save_model(model: GLoRIA, folder: str | Path) -> Path:
    """Save a model as a folder, all or nothing; a model that was saved there is replaced.

    A model made by :func:`gloria.create_model` from named or self-describing encoders comes back
    with :func:`load_model`. Of any other, the weights are saved, and :func:`load_weights` puts
    them into a model you compose the same way.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder is a file, or holds something else, which would be lost; or the
            weights can't be written, as on a full disk.
    """
    check_nothing_is_lost(folder)
    try:
        return write_folder(folder, lambda target: _write(model, target))
    except SafetensorError as cause:
        raise CheckpointError(f"{folder} can't be written: {reason(cause)}.") from cause


def check_nothing_is_lost(folder: str | Path) -> None:
    """Require what :func:`save_model` may replace: nothing, an empty folder, or a saved model.

    Raises:
        CheckpointError: the folder is a file, or holds something else.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} must be a folder; it is a file.")
    for path in sorted(folder.glob("*")):
        if path.name not in _PARTS:
            raise CheckpointError(
                f"{folder} must be a new folder, or hold a saved model and nothing else; it holds "
                f"{path.name}, which would be lost."
            )


def load_model(
    folder: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
) -> GLoRIA:
    """Load a saved model, in eval mode.

    Args:
        folder: what :func:`save_model` wrote; or, as a string, the name ``"owner/name"`` of a
            repository on the Hugging Face hub that holds the same: see :func:`find_model`.
        revision: of the repository: a branch, tag or commit; None = the newest.
        device: where to put it.

    Raises:
        CheckpointError: the folder or a file is missing, damaged, of another format, does not fit
            the model it describes, or does not describe one; or the repository is out of reach.
        OptionError: ``revision`` is given for a folder.
        UnknownNameError: an encoder or the loss has a name that nothing installed here brings.
    """
    folder = find_model(folder, revision=revision)
    config = _read_config(folder)
    size = _read_size(config, folder)
    recipe = config["model"]
    if isinstance(recipe, str):
        raise CheckpointError(
            f"{folder} holds weights, not how to build their model: {recipe} "
            f"Compose it again and call gloria.load_weights(model, folder)."
        )
    try:
        image_name, image_options = _find_files(recipe["image_encoder"], folder / "image_encoder")
        text_name, text_options = _find_files(recipe["text_encoder"], folder / "text_encoder")
        rest = {name: recipe[name] for name in COMPOSITION}
    except KeyError as cause:
        raise CheckpointError(f"{folder / 'config.json'} lacks the entry {cause}.") from cause
    except TypeError as cause:
        raise CheckpointError(f"{folder / 'config.json'} describes no model: {cause}.") from cause
    try:
        model = create_model(
            image_name, text_name, image_options=image_options, text_options=text_options, **rest
        )
    except UnknownNameError as error:
        error.add_note(f"{folder} was saved where this name was known: is a plugin missing here?")
        raise
    load_weights(model, folder)
    model.trained_image_size = size
    return model.to(device).eval()


def find_model(folder: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a saved model: the one that is named, or the local copy of a repository.

    Args:
        folder: a folder; or, as a string, the name ``"owner/name"`` of a repository on the Hugging
            Face hub, unless there is a folder of that name. Without network, the local cache of
            the hub is looked into.
        revision: of the repository: a branch, tag or commit; None = the newest.

    Returns:
        The folder, which may hold no model.

    Raises:
        CheckpointError: the repository is out of reach.
        OptionError: ``revision`` is given for a folder.
    """
    if Path(folder).exists() or not isinstance(folder, str) or not _REPOSITORY.fullmatch(folder):
        if revision is not None:
            raise OptionError(
                f"revision is for a repository on the Hugging Face hub; {folder} names a folder."
            )
        return Path(folder)
    try:
        hub = require("huggingface_hub", "encoders")
        return Path(hub.snapshot_download(folder, revision=revision, allow_patterns=_FILES))
    except Exception as cause:  # the hub raises as it pleases
        why = reason(cause).partition("\n")[0]
        raise CheckpointError(
            f"{folder} is no folder here, and as a repository it can't be had from the Hugging "
            f"Face hub or its local cache ({type(cause).__name__}: {why})."
        ) from cause


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load the weights of a saved model into a model of the same architecture.

    Raises:
        CheckpointError: the file is missing or damaged, or a weight is missing, unexpected or of
            another shape; nothing is loaded then.
    """
    file = Path(folder) / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist. A saved model is a folder with that file.")
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as cause:
        raise CheckpointError(
            f"{file} is damaged or not a safetensors file: {reason(cause)}."
        ) from cause
    fill_model(model, weights, file)


def fill_model(model: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Put weights into a model, all of them and every one of its own.

    Args:
        model: takes them.
        weights: by their names in the model.
        source: the file they are from, for the message.

    Raises:
        CheckpointError: a weight is missing, unexpected or of another shape; nothing is loaded
            then.
    """
    state = model.state_dict()
    # a tensor that two names share is stored once
    shared = {
        name: twin
        for name, tensor in state.items()
        if name not in weights
        for twin in weights
        if twin in state and state[twin].data_ptr() == tensor.data_ptr() and tensor.numel()
    }
    weights = weights | {name: weights[twin] for name, twin in shared.items()}
    problems = [f"missing {name}" for name in state if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in state]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise CheckpointError(
            f"{source} does not fit the model: {len(problems)} differences: {shown}."
        )
    model.load_state_dict(weights)


def export_image_encoder(model: GLoRIA, path: str | Path) -> None:
    """Write the weights of the image encoder's timm backbone under timm's own names.

    ``TimmImageEncoder(name, pretrained=path)`` takes the file, and so does everyone else's code
    that takes timm's weights. The projections and the other encoder are not in it.

    Args:
        model: one whose image encoder is a :class:`~gloria.encoders.TimmImageEncoder`.
        path: the file, ``.safetensors``; an existing one is replaced.

    Raises:
        OptionError: the image encoder is another one, or the file has another ending.

    Example::

        gloria.export_image_encoder(model, "resnet50.safetensors")
        backbone = timm.create_model("resnet50", num_classes=0)
        backbone.load_state_dict(safetensors.torch.load_file("resnet50.safetensors"))
    """
    encoder = model.image_encoder
    if not isinstance(encoder, TimmImageEncoder):
        raise OptionError(
            f"model must have a TimmImageEncoder, whose weights timm can name; its image encoder "
            f"is a {type(encoder).__name__}."
        )
    if Path(path).suffix != ".safetensors":  # by which timm tells how to read a file
        raise OptionError(f"path must end in .safetensors; got {path}.")
    weights = {
        # copied: safetensors takes no tensors that share memory
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in encoder.model.state_dict().items()
    }
    write_file(path, lambda draft: draft.write_bytes(save(weights)))


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a new folder and put it in place when it is whole.

    An old folder of that name is moved aside in the instant before; a kill in between leaves both
    beside each other, under hidden names.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid4().hex[:8]
    fresh = folder.with_name(f".{folder.name}.{mark}.new")
    fresh.mkdir()
    try:
        write(fresh)
        if folder.exists():
            old = folder.with_name(f".{folder.name}.{mark}.old")
            os.replace(folder, old)
            os.replace(fresh, folder)
            shutil.rmtree(old)
        else:
            os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def write_file(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a new file and put it in place when it is whole."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}.new")
    try:
        write(draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def hash_model(folder: str | Path) -> str:
    """SHA-256 of a saved model: of its files' names and bytes, so of weights and architecture.

    Args:
        folder: what :func:`save_model` wrote. A model card beside it does not count.

    Raises:
        CheckpointError: it is no saved model.
    """
    folder = Path(folder)
    _read_config(folder)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.relative_to(folder).parts[0] not in _PARTS:
            continue
        with path.open("rb") as file:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")

_FILES = ["config.json", "model.safetensors", "image_encoder/*", "text_encoder/*"]
_PARTS = {pattern.partition("/")[0] for pattern in _FILES}


def _write(model: GLoRIA, folder: Path) -> None:
    config = {
        "format": FORMAT,
        "gloria": gloria.__version__,
        "model": _describe(model, folder),
        "trained_image_size": model.trained_image_size,
    }
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    config_file.write_text(json.dumps(config, indent=2) + "\n")
    save_safetensors(model, str(weights_file))
    # safetensors writes for the owner only
    shutil.copymode(config_file, weights_file)


def _describe(model: GLoRIA, folder: Path) -> dict[str, Any] | str:
    """How to build the model again, or a sentence that says why that can't be written down."""
    composition = model.composition
    if composition is None:
        return "it was composed by hand."
    if composition["loss"] is None:
        return "its loss was given as an object, or with options that are no JSON."
    encoders = {"image_encoder": model.image_encoder, "text_encoder": model.text_encoder}
    recipes: dict[str, Any] = {}
    for name, encoder in encoders.items():
        if not isinstance(encoder, SavesRecipe):
            return f"its {name}, a {type(encoder).__name__}, has no recipe method."
        (folder / name).mkdir()
        try:
            recipes[name] = encoder.recipe(folder / name)._asdict()
        except OptionError as cause:
            # the weights are worth saving all the same
            return f"its {name} can't be described: {cause}"
        if not any((folder / name).iterdir()):
            (folder / name).rmdir()
    return {**composition, **recipes}


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; a saved model is a folder.")
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError as cause:
        inner = folder / "model"  # of a run's folder
        meant = f" Did you mean {inner}?" if (inner / "config.json").is_file() else ""
        raise CheckpointError(
            f"{file} does not exist: {folder} is no saved model.{meant}"
        ) from cause
    except (ValueError, OSError) as cause:
        raise CheckpointError(f"{file} can't be read as JSON: {reason(cause)}.") from cause
    if not isinstance(config, dict) or config.get("format") != FORMAT or "model" not in config:
        found = config.get("format") if isinstance(config, dict) else None
        raise CheckpointError(
            f"{file} must have format {FORMAT}; it has {found!r}. "
            f"This is gloria {gloria.__version__}; a newer one may be needed."
        )
    return config


def _read_size(config: dict[str, Any], folder: Path) -> tuple[int, int] | None:
    """The size of the images of training; folders of before it was recorded do not have it."""
    match config.get("trained_image_size"):
        case None:
            return None
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
        case other:
            raise CheckpointError(
                f"trained_image_size in {folder / 'config.json'} must be [height, width] in "
                f"pixels, or null; it is {other!r}."
            )


def _find_files(recipe: dict[str, Any], files: Path) -> tuple[str, dict[str, Any]]:
    """Name and options of a recipe, pointing at the files beside it."""
    name, options, own_files = Recipe(**recipe)
    if name.endswith(":."):
        name = f"{name[:-1]}{files}"
    for file in own_files.values():
        if Path(file).is_absolute() or ".." in Path(file).parts:  # a config may be a stranger's
            raise CheckpointError(f"{file} is outside the saved model's folder; it is not read.")
    paths = {option: files / file for option, file in own_files.items()}
    for path in paths.values():
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist. It belongs to the saved model.")
    return name, options | paths
