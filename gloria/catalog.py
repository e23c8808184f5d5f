"""The four registries: image encoders, text encoders, aggregators and losses.

Strings at the edge, objects inside: ``create_*`` turn a name into an object, and everything else
in gloria takes objects. Built-ins are registered as strings, so that listing imports nothing.
Plugins (see :mod:`gloria.hookspecs`) are looked for once: when a list, or a name that is not built
in, is first asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, cast
from warnings import warn

from gloria.errors import ContractError, OptionError, PluginWarning, UnknownNameError, describe
from gloria.plugins import DISABLE, PluginRecord, disabled_in_vain, load_plugins
from gloria.registry import BUILT_IN, Registry, registering_as

if TYPE_CHECKING:  # torch takes seconds; names take none
    from torch import nn

    from gloria.types import Aggregator, ImageEncoder, TextEncoder


class Catalog:
    """Four registries and the plugins that add to them.

    The functions of this module use one catalog for the whole process. Another one is good for
    seeing what a fresh process would see.

    Attributes:
        image_encoders, text_encoders, aggregators, losses: the registries, for registering.
    """

    def __init__(self) -> None:
        self.image_encoders: Registry[ImageEncoder] = Registry(
            "image encoder", "gloria.checks:check_image_encoder"
        )
        self.text_encoders: Registry[TextEncoder] = Registry(
            "text encoder", "gloria.checks:check_text_encoder"
        )
        self.aggregators: Registry[Aggregator] = Registry("aggregator", _check_aggregator)
        self.losses: Registry[nn.Module] = Registry("loss", "gloria.checks:check_module")
        self.registries: dict[str, Registry[Any]] = {
            "image_encoders": self.image_encoders,
            "text_encoders": self.text_encoders,
            "aggregators": self.aggregators,
            "losses": self.losses,
        }
        """By the last word of the hook that fills them."""
        self._records: list[PluginRecord] | None = None
        self._lock = RLock()
        with registering_as(BUILT_IN):
            _register_built_ins(self)

    def plugins(self) -> list[PluginRecord]:
        """What became of each installed plugin; looks for them if that has not been done.

        Warns:
            PluginWarning: once for every faulty plugin, and for a name in
                ``GLORIA_DISABLE_PLUGINS`` that is none's.
        """
        with self._lock:
            if self._records is not None:
                return self._records
            self._records = []  # what a plugin sees that asks while it is being loaded
            try:
                self._records = load_plugins(self.registries)
            except BaseException:
                self._records = None
                raise
        for name in disabled_in_vain(self._records):
            warn(PluginWarning(f"{DISABLE} names {name!r}: no such plugin."), stacklevel=2)
        for record in self._records:
            if record.status == "skipped":
                advice = f"{DISABLE}={record.name} leaves it out."
                warn(PluginWarning(f"{str(record).removesuffix('.')}. {advice}"), stacklevel=2)
        return self._records

    def list(self, kind: str, pattern: str | None = None) -> Names:
        """Names in the registry ``kind``, those of plugins included."""
        self.plugins()
        return self.registries[kind].list(pattern)

    def check(self, kind: str, name: str) -> None:
        """Require that the registry ``kind`` knows a name; nothing is made.

        Of ``"source:rest"`` the source is known; it may still have no ``rest``.

        Raises:
            UnknownNameError: gives the nearest names and the list, and the plugins not loaded.
            MissingDependencyError: what makes it cannot be imported.
        """
        with self._registry_with(kind, name) as registry:
            registry.get(name)

    def takes(self, kind: str, name: str, argument: str) -> bool:
        """Whether what makes a name of the registry ``kind`` has an argument of this name."""
        with self._registry_with(kind, name) as registry:
            return registry.takes(name, argument)

    def class_behind(self, kind: str, name: str) -> type | None:
        """The class that a name makes one of; None where a function makes what it likes.

        Raises:
            UnknownNameError, MissingDependencyError: as :meth:`check`.
        """
        with self._registry_with(kind, name) as registry:
            maker: Any = registry.get(name)
        maker = getattr(maker, "func", maker)  # of a source, with what follows its colon
        return maker if isinstance(maker, type) else None

    def create(
        self, kind: str, name: str, options: dict[str, Any], offered: Mapping[str, Any] = {}
    ) -> Any:
        """Make something by its name in the registry ``kind``.

        What is ``offered`` are more options, for a factory that has them; others do without.
        """
        with self._registry_with(kind, name) as registry:
            taken = {key: value for key, value in offered.items() if registry.takes(name, key)}
            return registry.create(name, **taken, **options)

    @contextmanager
    def _registry_with(self, kind: str, name: str) -> Iterator[Registry[Any]]:
        """The registry ``kind``; for a name that it does not know, the plugins are asked first.

        An error says which were not loaded: the name may be one of theirs.
        """
        registry = self.registries[kind]
        if name not in registry:
            self.plugins()
        try:
            yield registry
        except UnknownNameError as error:
            for record in self.plugins():
                if record.status != "loaded":
                    error.add_note(f"Not loaded: {record}")
            raise


Names = list[str]  # inside Catalog, `list` is the method


def _register_built_ins(catalog: Catalog) -> None:
    register = catalog.image_encoders.register
    timm_names = partial(_models_of, "timm")
    open_clip_names = partial(_models_of, "open_clip")
    register("timm:", "gloria.encoders.timm_image:TimmImageEncoder", list_names=timm_names)
    register(
        "open_clip:", "gloria.encoders.open_clip:OpenClipImageEncoder", list_names=open_clip_names
    )

    register = catalog.text_encoders.register
    register("hf:", "gloria.encoders.hf_text:HFTextEncoder")
    register("small_bert", "gloria.encoders.small_text:small_text_encoder")
    register(
        "open_clip:", "gloria.encoders.open_clip:OpenClipTextEncoder", list_names=open_clip_names
    )

    register = catalog.aggregators.register
    register("sum", "gloria.aggregators:Sum")
    register("mean", "gloria.aggregators:Mean")
    register("max", "gloria.aggregators:Max")
    register("logsumexp", "gloria.aggregators:LogSumExp")
    register("logmeanexp", "gloria.aggregators:LogMeanExp")
    register("first", "gloria.aggregators:First")
    register("last_n_sum", "gloria.aggregators:LastNSum")
    register("last_n_mean", "gloria.aggregators:LastNMean")
    register("gem", "gloria.aggregators:GeM")
    register("attention", "gloria.aggregators:AttentionPooling")
    register("weldon", "gloria.aggregators:Weldon")

    register = catalog.losses.register
    register("global_contrastive", "gloria.losses:GlobalContrastiveLoss")
    register("local_contrastive", "gloria.losses:LocalContrastiveLoss")
    register("global_local_contrastive", "gloria.losses:GlobalLocalContrastiveLoss")
    register("sigmoid", "gloria.losses:SigmoidContrastiveLoss")
    register("soft_target", "gloria.losses:SoftTargetContrastiveLoss")
    register("sparc", "gloria.losses:SPARCLoss")
    register("mgca", "gloria.losses:MGCALoss")
    register("filip", "gloria.losses:FILIPLoss")
    register("colbert", "gloria.losses:ColBERTLoss")


def _models_of(package: str) -> list[str]:
    """The model names that timm or open_clip knows."""
    from gloria.checks import require  # imports torch

    names: list[str] = require(package, "encoders").list_models()
    return names


def _check_aggregator(name: str, thing: object) -> None:
    if not callable(thing):
        raise ContractError(f"{name} must be an aggregator: it is not callable, {describe(thing)}.")


_catalog = Catalog()

register_image_encoder = _catalog.image_encoders.register
register_text_encoder = _catalog.text_encoders.register
register_aggregator = _catalog.aggregators.register
register_loss = _catalog.losses.register


def create_image_encoder(name: str, /, **options: Any) -> ImageEncoder:
    """Make an image encoder by its name.

    Args:
        name: ``"source:name"``, such as ``"timm:resnet50"``, or a registered name.
        options: keyword arguments of that encoder, such as ``pretrained=False``.

    Raises:
        UnknownNameError: gives the nearest names and the list.
        MissingDependencyError: a package is missing or broken; the cause is chained.
        ContractError: a plugin made something that is no image encoder.
    """
    encoder: ImageEncoder = _catalog.create("image_encoders", name, options)
    return encoder


def create_text_encoder(
    name: str, /, *, reports: Sequence[str] | None = None, **options: Any
) -> TextEncoder:
    """Make a text encoder by its name, such as ``"hf:emilyalsentzer/Bio_ClinicalBERT"``.

    Args:
        name: a registered name, or ``"source:name"``.
        reports: the training reports, for an encoder that builds its vocabulary from them, such as
            ``"small_bert"``; others do without.
        options: keyword arguments of that encoder. The ``pooling`` of an ``"hf:"`` encoder, of
            ``"small_bert"`` and of a subclass may also be a registered aggregator: its name, such
            as ``"gem"``, or with options ``{"name": "gem", "p": 4.0}``.

    Raises what :func:`create_image_encoder` raises.
    """
    given = options.get("pooling")
    if given is not None:
        from gloria.encoders.hf_text import POOLINGS, HFTextEncoder

        if name == "small_bert" or _makes("text_encoders", name, HFTextEncoder):
            options = _with_aggregator(options, "pooling", POOLINGS)
    offered = {} if reports is None else {"reports": reports}
    encoder: Any = _catalog.create("text_encoders", name, options, offered)
    if options.get("pooling") is not given:
        encoder.pooling_recipe = options["pooling"], copy.deepcopy(given)
    return cast("TextEncoder", encoder)


def create_aggregator(name: str, /, **options: Any) -> Aggregator:
    """Make an aggregator by its name.

    Arguments and errors are those of :func:`create_image_encoder`.

    Example:
        >>> create_aggregator("last_n_sum", n=2)
        LastNSum(n=2)
    """
    aggregator: Aggregator = _catalog.create("aggregators", name, options)
    return aggregator


def create_loss(name: str, /, *, preset: str | None = None, **options: Any) -> nn.Module:
    """Make a loss by its name.

    Args:
        name: a registered name, such as ``"local_contrastive"``.
        preset: named constants to start from, such as ``"official"``; ``options`` override them.
        options: keyword arguments of that loss, such as ``temperature=0.1``. The ``aggregation`` of
            ``"local_contrastive"``, and of a subclass, may also be a registered aggregator: its
            name, such as ``"gem"``, or with options ``{"name": "gem", "p": 4.0}``; so in the
            ``local_options`` of ``"global_local_contrastive"``.

    Raises:
        OptionError: the loss has no such preset.
        UnknownNameError, MissingDependencyError, ContractError: as :func:`create_image_encoder`.
    """
    return make_loss(name, {**options, "preset": preset})


def make_loss(
    name: str, options: Mapping[str, Any], *, embedding_dim: int | None = None
) -> nn.Module:
    """As :func:`create_loss`, the preset among the options.

    Args:
        name: a registered name.
        options: keyword arguments of that loss.
        embedding_dim: width of the vectors that it will compare, for a loss that takes it.
    """
    options = dict(options)
    preset = options.pop("preset", None)
    if name == "global_local_contrastive":
        if isinstance(options.get("local_options"), dict):
            options["local_options"] = _with_aggregation(options["local_options"])
        preset = preset or "paper"  # the defaults; the options of its parts go with a preset
    elif "aggregation" in options:
        from gloria.losses import LocalContrastiveLoss  # imports torch

        if _makes("losses", name, LocalContrastiveLoss):
            options = _with_aggregation(options)
    if preset is not None:
        options["preset"] = preset
    is_given = embedding_dim is None or "embedding_dim" in options
    offered = {} if is_given else {"embedding_dim": embedding_dim}
    loss: nn.Module = _catalog.create("losses", name, options, offered)
    return loss


def _makes(kind: str, name: str, base: type) -> bool:
    """Whether a name makes one of a class, or of a class below it."""
    made = _catalog.class_behind(kind, name)
    return made is not None and issubclass(made, base)


def _with_aggregation(options: dict[str, Any]) -> dict[str, Any]:
    from gloria.matching import WORD_AGGREGATIONS  # imports torch

    return _with_aggregator(options, "aggregation", WORD_AGGREGATIONS)


def _with_aggregator(options: dict[str, Any], key: str, own: Collection[str]) -> dict[str, Any]:
    """The options, with the registered aggregator that one of them names by none of its ``own``."""
    given = options.get(key)
    if isinstance(given, str):
        if given in own:
            return options
        given = {"name": given}
    if not isinstance(given, Mapping):
        return options
    named = dict(given)
    if not isinstance(named.get("name"), str):
        raise OptionError(
            f'{key} must have a name, as in {{"name": "gem", "p": 4.0}}; got {given!r}.'
        )
    try:
        return {**options, key: create_aggregator(named.pop("name"), **named)}
    except UnknownNameError as error:
        error.add_note(f"{key} takes {', '.join(map(repr, own))} and registered aggregators.")
        raise


def list_image_encoders(pattern: str | None = None) -> list[str]:
    """Names that :func:`create_image_encoder` takes.

    Args:
        pattern: None lists what is registered and imports nothing: ``"timm:*"`` stands for all
            of timm's names. A pattern with wildcards also asks the sources that could serve a
            match: ``"timm:*resnet*"`` imports timm only, ``"*resnet*"`` all of them.

    Example:
        >>> "timm:*" in list_image_encoders()
        True
    """
    return _catalog.list("image_encoders", pattern)


def list_text_encoders(pattern: str | None = None) -> list[str]:
    """Names that :func:`create_text_encoder` takes; see :func:`list_image_encoders`."""
    return _catalog.list("text_encoders", pattern)


def list_aggregators(pattern: str | None = None) -> list[str]:
    """Names that :func:`create_aggregator` takes; see :func:`list_image_encoders`.

    Example:
        >>> list_aggregators("log*")
        ['logmeanexp', 'logsumexp']
    """
    return _catalog.list("aggregators", pattern)


def list_losses(pattern: str | None = None) -> list[str]:
    """Names that :func:`create_loss` takes; see :func:`list_image_encoders`.

    Example:
        >>> list_losses("local*")
        ['local_contrastive']
    """
    return _catalog.list("losses", pattern)


def plugin_report() -> list[PluginRecord]:
    """What became of each installed plugin: loaded, skipped and why, or disabled."""
    return _catalog.plugins()


def default_catalog() -> Catalog:
    """The catalog that the functions of this module use."""
    return _catalog
