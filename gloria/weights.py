"""Saving and loading models: weights in safetensors, everything else in JSON; never pickled code.

A saved model is a folder::

    config.json          how to build the model again, without its weights; the packages of plugins
                         that this takes; the size of the images it was trained on, if known
    model.safetensors    the weights
    image_encoder/       files an encoder needs beside its weights, if any
    text_encoder/        (a tokenizer, a transformer's config)
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from warnings import warn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

import gloria
from gloria.catalog import default_catalog
from gloria.checks import check_device, require
from gloria.encoders.timm_image import TimmImageEncoder
from gloria.errors import (
    CheckpointError,
    ContractError,
    DtypeError,
    GloriaError,
    OptionError,
    PluginWarning,
    UnknownNameError,
    describe,
    reason,
)
from gloria.files import write_file, write_folder
from gloria.model import GLoRIA, create_model, is_json
from gloria.types import Recipe, SavesRecipe
from gloria.wrapping import unwrapped, wrapped_in

COMPOSITION = ("embedding_dim", "projection", "loss", "loss_options")
"""What the description of a model holds besides the recipes of its encoders."""

FORMAT = 1
"""Version of the folder's layout; a reader refuses one it does not know."""


def save_model(model: GLoRIA, folder: str | Path) -> Path:
    """Save a model as a folder, all or nothing, and return that; a saved model there is replaced.

    A model made by :func:`gloria.create_model` from named or self-describing encoders comes back
    with :func:`load_model`. Of any other, the weights are saved, and :func:`load_weights` puts
    them into a model you compose the same way. What :func:`torch.compile` or
    :class:`~gloria.distributed.AcrossRanks` wraps is saved as if it were not wrapped.

    Raises:
        CheckpointError: the folder is a file, or holds something else, which would be lost; or the
            weights can't be written, as on a full disk.
        OptionError: the weights are spread over processes, by FSDP say, or on the meta device.
        DtypeError: ``model`` is no :class:`~gloria.model.GLoRIA`, but what wraps one, say.
        ContractError: the model's ``state_dict`` holds something else than tensors.
    """
    check_model(model)
    check_nothing_is_lost(folder)
    return write_folder(folder, lambda target: _write(model, target))


def why_not_loadable(model: GLoRIA) -> str:
    """Why :func:`load_model` will not make this model again, in a sentence; empty = it will.

    Good to ask before a long training: the weights are saved in any case. To find out, the model
    is made again from its description.

    Raises:
        DtypeError, OptionError, ContractError: as :func:`save_model`.
    """
    check_model(model)
    weights = _weights_of(model)
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        described = _describe(model, Path(folder))
        if isinstance(described, str):
            return described
        try:
            again = _make(json.loads(json.dumps(described)), Path(folder))
            differences = _differences(weights, _weights_of(again))
        except Exception as cause:  # what a plugin raises, too, or a layer without its shape
            return f"making it from its description fails: {_said(cause)}."
    for name in ("image_encoder", "text_encoder"):
        own, made = (_class_of(getattr(each, name)) for each in (model, again))
        if own is not made:
            return _another_class(name, own, made)
    if differences:
        return f"made from its description, it is another one: {differences}."
    return ""


def check_model(model: GLoRIA) -> None:
    """Require a :class:`~gloria.model.GLoRIA`, which :func:`torch.compile` may wrap."""
    if not isinstance(unwrapped(model), GLoRIA):
        raise DtypeError(
            f"model must be a GLoRIA; got {type(model).__name__}. Of what wraps one, for several "
            f"GPUs or for averaging, take what is inside, model.module."
        )


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
    """Load a saved model, in eval mode and in torch's default dtype, whatever it was saved in.

    Args:
        folder, revision: what :func:`save_model` wrote, here or in a repository on the Hugging Face
            hub, as for :func:`find_model`.
        device: where to put it.

    Raises:
        CheckpointError: the folder or a file is missing, damaged, of another format, does not fit
            the model it describes, or does not describe one; or the repository is out of reach.
        OptionError: ``revision`` is given for a folder, or ``device`` can't be used here.
        UnknownNameError: an encoder or the loss has a name that nothing installed here brings.

    Warns:
        PluginWarning: what a plugin brought when it was saved is made by something else here.
    """
    check_device(device)
    folder = find_model(folder, revision=revision)
    config, file = _read_config(folder), folder / "config.json"
    recipe = config["model"]
    if isinstance(recipe, str):
        raise CheckpointError(
            f"{folder} holds weights, not how to build their model: {recipe} "
            f"Compose it again and call gloria.load_weights(model, folder)."
        )
    plugins = config.get("plugins") or {}
    if not isinstance(plugins, dict):
        raise CheckpointError(
            f"{file} is damaged: plugins must be versions by package; got {plugins!r}."
        )
    try:
        model = _make(recipe, folder)
        load_weights(model, folder)
    except GloriaError as error:
        _tell_of_plugins(error, config, folder)
        raise
    except MemoryError:  # no fault of the folder
        raise
    except Exception as cause:  # what a plugin raises, too
        fault = CheckpointError(f"{file} describes a model that can't be made: {describe(cause)}.")
        _tell_of_plugins(fault, config, folder)
        raise fault from cause
    try:
        model.trained_image_size = config.get("trained_image_size")
    except OptionError as cause:
        raise CheckpointError(f"{file} is damaged: {cause}") from cause
    _warn_of_namesakes(config, folder)
    return model.to(device).eval()


def find_model(folder: str | Path, *, revision: str | None = None) -> Path:
    """The folder of a model, if it is one: the one that is named, or a repository's local copy.

    Args:
        folder: a folder; or, as a string, the name ``"owner/name"`` of a repository on the Hugging
            Face hub, unless there is a folder of that name. Without network, the local cache of
            the hub is looked into.
        revision: of the repository: a branch, tag or commit; None = the newest.

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
        raise CheckpointError(
            f"{folder} is no folder here, and as a repository it can't be had from the Hugging "
            f"Face hub or its local cache ({type(cause).__name__}: {reason(cause)})."
        ) from cause


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load the weights of a saved model into a model of the same architecture.

    Raises:
        CheckpointError: the file is missing or damaged, or a weight is missing, unexpected, of
            another shape, or quantised (whole numbers, float8) where the model's is not; nothing is
            loaded then.
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
    """Put weights by name into a model, all of them and every one of its own.

    Raises:
        CheckpointError: a weight is missing, unexpected, of another shape, or quantised (whole
            numbers, float8) where the model's is not, which names the ``source`` of the weights;
            nothing is loaded then.
        OptionError, ContractError: of the model, as :func:`save_model`.
    """
    state = _weights_of(model)
    if differences := _differences(weights, state):
        raise CheckpointError(f"{source} does not fit the model: {differences}.")
    names = zip(model.state_dict(), state, strict=True)
    model.load_state_dict({name: weights[plain] for name, plain in names})


def _differences(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What keeps weights from going into a model with this state; empty = nothing."""
    found = [f"missing {name}" for name in state if name not in weights]
    found += [f"unexpected {name}" for name in weights if name not in state]
    found += [
        f"{name} is {tuple(weights[name].shape)}, the model's is {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found += [  # of a quantised model; without their scales they would be taken for the weights
        f"{name} is {weights[name].dtype}, the model's is {tensor.dtype}"
        for name, tensor in state.items()
        if name in weights and _kind(weights[name]) != _kind(tensor)
    ]
    shown = "; ".join(found[:5]) + ("; ..." if len(found) > 5 else "")
    return f"{len(found)} differences: {shown}" if found else ""


def _kind(tensor: Tensor) -> str:
    """What a number stands for: itself, or something that a scale belongs to."""
    if not tensor.is_floating_point():
        return "other"
    return "float8" if tensor.itemsize == 1 else "float"


def export_image_encoder(model: GLoRIA, path: str | Path) -> None:
    """Write the weights of the image encoder's timm backbone under timm's own names.

    ``TimmImageEncoder(name, pretrained=path)`` takes the file, and so does everyone else's code
    that takes timm's weights, of a model made with the same options. The projections and the other
    encoder are not in it.

    Args:
        model: one whose image encoder is a :class:`~gloria.encoders.TimmImageEncoder`.
        path: the file, ``.safetensors``; an existing one is replaced, its folder made.

    Raises what :func:`save_model` raises for a model; also
        OptionError: the image encoder is another one, or the file has another ending.
        OSError: the file can't be written.

    Example::

        gloria.export_image_encoder(model, "resnet50.safetensors")
        backbone = timm.create_model("resnet50", num_classes=0)
        backbone.load_state_dict(safetensors.torch.load_file("resnet50.safetensors"))
    """
    check_model(model)
    encoder: Any = model.image_encoder
    if not isinstance(unwrapped(encoder), TimmImageEncoder):
        raise OptionError(
            f"model must have a TimmImageEncoder, whose weights timm can name; its image encoder "
            f"is a {type(encoder).__name__}."
        )
    if Path(path).suffix != ".safetensors":  # by which timm tells how to read a file
        raise OptionError(f"path must end in .safetensors; got {path}.")
    weights = _copied(_weights_of(encoder.model))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda draft: draft.write_bytes(save(weights)))


def hash_model(folder: str | Path, *, revision: str | None = None) -> str:
    """SHA-256 of a saved model: of its files' names and bytes, so of weights and architecture.

    Args:
        folder, revision: what :func:`save_model` wrote, as for :func:`load_model`. A model card
            beside it does not count.

    Raises:
        CheckpointError: it is no saved model, or the repository is out of reach.
        OptionError: ``revision`` is given for a folder.
    """
    folder = find_model(folder, revision=revision)
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
    described = _describe(model, folder)
    config = {
        "format": FORMAT,
        "gloria": gloria.__version__,
        "plugins": {} if isinstance(described, str) else _plugins_behind(described),
        "model": described,
        "trained_image_size": model.trained_image_size,
    }
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    config_file.write_text(json.dumps(config, indent=2) + "\n")
    save_file(_copied(_weights_of(model)), weights_file)
    # safetensors writes for the owner only
    shutil.copymode(config_file, weights_file)


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Every weight by its name; tied ones by each, since a model made again may not tie them."""
    state = _plainly_named(model, model.state_dict())
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ContractError(
                f"{name} in the model's state_dict must be a tensor; it is a "
                f"{type(tensor).__name__}. Keep it in a buffer, or in the encoder's recipe."
            )
        if hasattr(tensor, "full_tensor"):  # FSDP's and tensor parallelism's
            raise OptionError(
                f"model must have its weights in this process; {name} is spread over several. "
                f"Gather them first, as docs/training-loops.md does."
            )
        if tensor.is_meta:
            raise OptionError(
                f"model must have memory for its weights; {name} is on the meta device, which has "
                f"none."
            )
    return state


def _plainly_named(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict by the names that its tensors have where nothing is wrapped."""
    prefixes = []
    for outer_name, outer in model.named_modules():
        inner = wrapped_in(outer)
        for child_name, child in outer.named_children():
            if child is inner:
                plain = f"{outer_name}." if outer_name else ""
                prefixes.append((f"{plain}{child_name}.", plain))
    named = {}
    for name, tensor in state.items():
        for wrapped, plain in reversed(prefixes):  # the innermost first
            if name.startswith(wrapped):
                name = plain + name.removeprefix(wrapped)
        named[name] = tensor
    return named


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, contiguous, each in memory of its own."""
    layout = torch.contiguous_format
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=layout)
        for name, tensor in weights.items()
    }


def _describe(model: GLoRIA, folder: Path) -> dict[str, Any] | str:
    """How to build the model again, or a sentence that says why that can't be written down."""
    composition = model.composition
    if composition is None:
        return "it was composed by hand, or its loss or a head was replaced."
    if composition["loss"] is None:
        return "its loss was given as an object, or with options that are no JSON."
    recipes: dict[str, Any] = {}
    for name in ("image_encoder", "text_encoder"):
        encoder: Any = getattr(model, name)
        if not isinstance(unwrapped(encoder), SavesRecipe):
            return f"its {name}, a {type(encoder).__name__}, has no recipe method."
        (folder / name).mkdir()
        try:
            recipe = encoder.recipe(folder / name)
            _check_recipe(recipe, folder / name)
            made = default_catalog().class_behind(f"{name}s", recipe.name)
        except Exception as cause:  # the weights are worth saving all the same
            return f"its {name}, a {type(encoder).__name__}, can't be described: {_said(cause)}."
        own = _class_of(encoder)
        if made is not None and made is not own and issubclass(own, made):
            return _another_class(name, own, made)
        recipes[name] = recipe._asdict()
        if not any((folder / name).iterdir()):
            (folder / name).rmdir()
    return {**composition, **recipes}


def _class_of(encoder: nn.Module) -> type:
    """Its class, without those that torch makes of it to shard or parametrize it."""
    kinds = type(unwrapped(encoder)).__mro__
    return next(kind for kind in kinds if not kind.__module__.startswith("torch."))


def _another_class(name: str, own: type, made: type) -> str:
    return (
        f"its {name} is a {own.__name__}, and by its description a {made.__name__} would be made: "
        f"register {own.__name__}, and give it a recipe with that name."
    )


def _plugins_behind(described: Mapping[str, Any]) -> dict[str, str]:
    """Packages and versions of the plugins that brought the names in a model's description."""
    names = [
        ("image_encoders", described["image_encoder"]["name"]),
        ("text_encoders", described["text_encoder"]["name"]),
        ("losses", described["loss"]),
        *(("aggregators", name) for name in _aggregators_in(described)),
    ]
    registries = default_catalog().registries
    origins = [registries[kind].origin(name) for kind, name in names]
    plugins = [origin for origin in origins if origin and origin.kind == "plugin"]
    return {origin.distribution: origin.version for origin in plugins}


def _aggregators_in(described: Mapping[str, Any]) -> Iterator[str]:
    for option, value in described.items():
        if option in ("aggregation", "pooling"):
            name = value.get("name") if isinstance(value, Mapping) else value
            yield from [name] if isinstance(name, str) else []
        elif isinstance(value, Mapping):
            yield from _aggregators_in(value)


def _check_recipe(recipe: Any, folder: Path) -> None:
    """What an author's method gets wrong would else surface when the model is loaded."""
    if not isinstance(recipe, Recipe):
        raise ContractError(f"its recipe must be a Recipe; it is a {type(recipe).__name__}.")
    for option, value in recipe.options.items():
        if not is_json(value):
            raise ContractError(
                f"options in its recipe must be JSON values; {option!r} is {value!r}."
            )
    for file in recipe.files.values():
        if not (folder / file).is_file():
            raise ContractError(
                f"files in its recipe must be in the folder that it was given, where it writes "
                f"them; {file!r} is not."
            )


def _said(cause: Exception) -> str:
    """An error within a sentence; its type only where the message was not written for that."""
    return str(cause).rstrip(".") if isinstance(cause, GloriaError) else describe(cause)


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
    except (ValueError, RecursionError, OSError) as cause:
        raise CheckpointError(f"{file} can't be read as JSON: {reason(cause)}.") from cause
    if not isinstance(config, dict) or config.get("format") != FORMAT or "model" not in config:
        found = config.get("format") if isinstance(config, dict) else None
        raise CheckpointError(
            f"{file} must have format {FORMAT}; it has {found!r}. "
            f"This is gloria {gloria.__version__}; a newer one may be needed."
        )
    return config


def _make(description: Mapping[str, Any], folder: Path) -> GLoRIA:
    """The model of a description, without its weights."""
    image_name, image_options = _find_files(description["image_encoder"], folder / "image_encoder")
    text_name, text_options = _find_files(description["text_encoder"], folder / "text_encoder")
    rest = {name: description[name] for name in COMPOSITION}
    return create_model(
        image_name, text_name, image_options=image_options, text_options=text_options, **rest
    )


def _tell_of_plugins(error: Exception, config: Mapping[str, Any], folder: Path) -> None:
    """Add to an error of loading which plugins the model was saved with that are not here."""
    loaded = {each.distribution for each in default_catalog().plugins() if each.status == "loaded"}
    if missing := _listed(config.get("plugins") or {}, loaded):
        error.add_note(f"{folder} was saved with plugins that are not loaded here: {missing}.")
    elif isinstance(error, UnknownNameError):
        error.add_note(f"{folder} was saved where this name was known: is a plugin missing here?")


def _warn_of_namesakes(config: Mapping[str, Any], folder: Path) -> None:
    """What has the same name and takes the same weights may still compute something else."""
    here = _plugins_behind(config["model"])
    if gone := _listed(config.get("plugins") or {}, here):
        told = (
            f"{folder} was saved with plugins of {gone}; what has the same names here may compute "
            f"something else: plugins of {_listed(here) or 'no package'}."
        )
        warn(PluginWarning(told), stacklevel=3)


def _listed(plugins: Mapping[str, str], known: Collection[str] = ()) -> str:
    """Packages and versions, without those that are known."""
    named = [f"{name} {version}".strip() for name, version in plugins.items() if name not in known]
    return ", ".join(named)


def _find_files(recipe: dict[str, Any], files: Path) -> tuple[str, dict[str, Any]]:
    """Name and options of a recipe, pointing at the files beside it."""
    name, options, own_files = Recipe(**recipe)
    if name.endswith(":."):
        if not files.is_dir():  # or it would be taken for a name on the hub
            raise CheckpointError(f"{files} does not exist. It belongs to the saved model.")
        name = f"{name[:-1]}{files}"
    for file in own_files.values():
        if Path(file).is_absolute() or ".." in Path(file).parts:  # a config may be a stranger's
            raise CheckpointError(f"{file} is outside the saved model's folder; it is not read.")
    paths = {option: files / file for option, file in own_files.items()}
    for path in paths.values():
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist. It belongs to the saved model.")
    return name, options | paths
