"""Finding the installed plugins and letting them register, each one isolated from the others.

The environment variable ``GLORIA_DISABLE_PLUGINS`` leaves plugins out: names of entry points or
distributions, separated by commas, or ``all``.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pluggy

from gloria import hookspecs
from gloria.errors import ContractError, describe
from gloria.registry import Origin, Registry, Target, registering_as

GROUP = "gloria.plugins"
DISABLE = "GLORIA_DISABLE_PLUGINS"

_HOOKS = [name for name in vars(hookspecs) if name.startswith(hookspecs.PREFIX)]


class PluginRecord(NamedTuple):
    """What became of one plugin.

    Attributes:
        name: name of its entry point.
        distribution: what ``pip`` calls the package that it is in.
        version: the version of that package.
        status: ``"loaded"``, ``"skipped"`` (it is faulty) or ``"disabled"`` (by the user).
        place: what was being done when it failed, and the plugin's line.
        cause: why it is not loaded.
        registered: the names that it registered, by hook (``"losses": [...]``).
    """

    name: str
    distribution: str
    version: str
    status: Literal["loaded", "skipped", "disabled"]
    place: str = ""
    cause: str = ""
    registered: Mapping[str, list[str]] = {}

    def __str__(self) -> str:
        origin = Origin("plugin", self.name, self.distribution, self.version)
        return f"{origin} is {self.outcome}"

    @property
    def outcome(self) -> str:
        """Its status and, where it is not loaded, why."""
        why = [f"{self.place} failed"] if self.place else []
        return ": ".join([self.status, *why, *filter(None, [self.cause])])


def load_plugins(registries: Mapping[str, Registry[Any]]) -> list[PluginRecord]:
    """Let every installed plugin register, in the order of their names.

    Args:
        registries: by the last word of the hook that fills them: ``gloria_register_<key>``.

    Returns:
        One record per plugin; a faulty one leaves nothing in the registries.
    """
    found = [(_origin(point), point) for point in entry_points(group=GROUP)]
    found.sort(key=lambda pair: (_normalized(pair[0].distribution), pair[0].plugin))
    try:
        return [_load(point, origin, registries) for origin, point in found]
    except BaseException:  # Ctrl-C in a slow import: the next attempt starts afresh
        for origin, _ in found:
            _unregister(registries, origin)
        raise


def disabled_in_vain(records: Sequence[PluginRecord]) -> list[str]:
    """What ``GLORIA_DISABLE_PLUGINS`` names that is no installed plugin."""
    known = {"all"}.union(*(_names(each.name, each.distribution) for each in records))
    return sorted(_disabled() - known)


def _origin(point: EntryPoint) -> Origin:
    fields: Any = point.dist and point.dist.metadata  # an email message: any field can be missing
    name = fields.get("Name", point.name)
    return Origin("plugin", point.name, name, fields.get("Version", ""))


def _load(
    point: EntryPoint, origin: Origin, registries: Mapping[str, Registry[Any]]
) -> PluginRecord:
    """Import one plugin and call its hooks: all of it, or nothing."""
    identity = (origin.plugin, origin.distribution, origin.version)
    if _is_disabled(origin):
        return PluginRecord(*identity, "disabled", cause=f"{DISABLE}={os.environ[DISABLE]}")
    place = f"importing {point.value}"
    try:
        with registering_as(origin):
            plugin = point.load()
            place = f"reading the hooks of {point.value}"
            manager = _read_hooks(plugin, point.name)
            for key, registry in registries.items():
                place = f"calling {hookspecs.PREFIX}{key}"
                _call(manager, key, registry)
    except KeyboardInterrupt:
        raise
    except BaseException as cause:  # SystemExit too, and whatever else is no Exception
        _unregister(registries, origin)
        return PluginRecord(*identity, "skipped", place + _line(cause), describe(cause))
    registered = {
        key: [entry.listed_name for entry in registry.entries() if entry.origin is origin]
        for key, registry in registries.items()
    }
    return PluginRecord(*identity, "loaded", registered=registered)


class _Manager(pluggy.PluginManager):
    """Takes every function that is named as a hook for one, decorated or not.

    It asks a plugin for nothing else: a module may import what it names when it is asked for it.
    """

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        if not name.startswith(hookspecs.PREFIX):
            return None
        return super().parse_hookimpl_opts(plugin, name) or {}


def _read_hooks(plugin: object, name: str) -> _Manager:
    """Verify the hooks; one manager per plugin, so that a faulty one leaves no trace."""
    manager = _Manager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name)
    manager.check_pending()
    callers = manager.get_hookcallers(plugin)
    if not callers:
        raise ContractError(f"it defines none of the hooks {', '.join(_HOOKS)}.")
    for caller in callers:
        if any("register" not in hook.argnames for hook in caller.get_hookimpls()):
            raise ContractError(f"{caller.name} must take one argument, 'register'.")
    return manager


def _call(manager: _Manager, key: str, registry: Registry[Any]) -> None:
    def register(name: str, target: Target, *, list_names: Target | None = None) -> None:
        registry.register(name, target, list_names=list_names)

    hook = getattr(manager.hook, hookspecs.PREFIX + key)
    if results := hook(register=register):
        raise ContractError(
            f"a hook registers by calling register(name, target) and returns nothing; "
            f"got {describe(results[0])}."
        )


def _unregister(registries: Mapping[str, Registry[Any]], origin: Origin) -> None:
    for registry in registries.values():
        registry.unregister(origin)


def _disabled() -> set[str]:
    return {_normalized(name.strip()) for name in os.environ.get(DISABLE, "").split(",")} - {""}


def _is_disabled(origin: Origin) -> bool:
    return not _disabled().isdisjoint(_names(origin.plugin, origin.distribution))


def _names(plugin: str, distribution: str) -> set[str]:
    """What leaves a plugin out."""
    return {"all", _normalized(plugin), _normalized(distribution)}


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _line(error: BaseException) -> str:
    """The innermost line of the plugin's own code that an error passed through."""
    ours = (str(Path(__file__).parent), str(Path(pluggy.__file__).parent), "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(ours) and "importlib" not in frame.filename:
            return f" ({frame.filename}:{frame.lineno})"
    return ""
