"""A registry: names, what they stand for, and who registered them.

Nothing is imported by registering or listing: a target may be a ``"module:attribute"`` string,
which is imported when it is first used.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pkgutil import resolve_name
from typing import Any, Generic, Literal, TypeVar, overload
from warnings import warn

from gloria.errors import (
    ContractError,
    DtypeError,
    DuplicateNameError,
    GloriaError,
    MissingDependencyError,
    OptionError,
    PluginWarning,
    UnknownNameError,
    UnknownOptionError,
    describe,
)
from gloria.signatures import signature_of

T = TypeVar("T")
Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Target = str | Callable[..., Any]

_NAME = re.compile(r"[\w.-]+:?")
_TARGET = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
_SHOWN = 40  # names in the message of an unknown one
_NOT_GIVEN: Any = object()


@dataclass(frozen=True)
class Origin:
    """Who registered a name.

    Attributes:
        kind: whether gloria itself, an installed plugin or code of this process did it.
        plugin: the plugin's entry-point name.
        distribution: what ``pip`` calls the package that the plugin is in.
        version: the version of that package.
    """

    kind: Literal["built-in", "plugin", "in-process"]
    plugin: str = ""
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        if self.kind != "plugin":
            return self.kind
        return f"plugin {self.plugin!r} of {self.distribution} {self.version}".rstrip()


BUILT_IN = Origin("built-in")
IN_PROCESS = Origin("in-process")

_registering: ContextVar[Origin] = ContextVar("gloria_registering", default=IN_PROCESS)


@contextmanager
def registering_as(origin: Origin) -> Iterator[None]:
    """Everything registered inside the block, by whatever route, has this origin."""
    token = _registering.set(origin)
    try:
        yield
    finally:
        _registering.reset(token)


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        name: ``"name"``, or ``"source:"`` for a source of names.
        target: the factory, or where to import it from.
        origin: who registered it.
        list_names: for a source: a callable that returns the names it can serve, or where to
            import it from; None = the source can't tell.
    """

    name: str
    target: Target
    origin: Origin
    list_names: Target | None = None

    @property
    def listed_name(self) -> str:
        """The name as a list shows it; a source reads ``"source:*"``."""
        return f"{self.name}*" if self.name.endswith(":") else self.name

    def __str__(self) -> str:
        return f"{self.listed_name!r} ({self.origin}, {describe_target(self.target)})"


class Registry(Generic[T]):
    """Names of one kind of thing, each standing for a factory.

    A **name** stands for a factory called with the user's options. A **source**, registered with
    a trailing colon, stands for many: ``"timm:resnet50"`` calls the factory of ``"timm:"`` with
    ``("resnet50", **options)``. A factory may have presets, named constants to start from: with
    an option ``preset`` its ``from_preset(preset, **options)`` is called.

    Args:
        kind: what the things are, in the singular, for messages.
        check: called with words for a thing that a factory made and with the thing, raises where
            it is of no use; or where to import that from.

    Example:
        >>> colors = Registry("color")
        >>> colors.register("mix", "fractions:Fraction")
        >>> @colors.register("plain")
        ... def plain(shade=1):
        ...     return shade
        >>> colors.list("*i*")
        ['mix', 'plain']
        >>> colors.create("plain", shade=3)
        3
    """

    def __init__(self, kind: str, check: Target = lambda name, thing: None) -> None:
        self.kind = kind
        self._one = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        self._check = check
        self._entries: dict[str, Entry] = {}

    @overload
    def register(
        self, name: str, *, list_names: Target | None = None
    ) -> Callable[[Decorated], Decorated]: ...

    @overload
    def register(self, name: str, target: Target, *, list_names: Target | None = None) -> None: ...

    def register(
        self, name: str, target: Target = _NOT_GIVEN, *, list_names: Target | None = None
    ) -> Callable[[Decorated], Decorated] | None:
        """Register a factory under a name; without ``target``, as a decorator.

        Args:
            name: letters, digits, ``_``, ``.`` and ``-``; with a colon at the end for a source.
            target: a class or function that makes the thing, or ``"module:attribute"``, which is
                imported when it is first used.
            list_names: for a source, a callable without arguments (or ``"module:attribute"``)
                that returns the names which it can serve.

        Raises:
            DuplicateNameError: the name is taken; nothing is overwritten.
            OptionError, DtypeError: the name or the target is malformed.
        """
        self._check_name(name)
        if target is _NOT_GIVEN:

            def decorate(decorated: Decorated) -> Decorated:
                self.register(name, decorated, list_names=list_names)
                return decorated

            return decorate

        self._check_target(name, target)
        if list_names is not None:
            if not name.endswith(":"):
                raise OptionError(f"list_names goes with a source, '{name}:'; got {name!r}.")
            self._check_target(name, list_names)
        entry = Entry(name, target, _registering.get(), list_names)
        holder = self._entries.setdefault(name, entry)  # one step, so of two threads one wins
        if holder is not entry:
            raise DuplicateNameError(
                f"{self.kind} {holder} is already registered; {entry.origin}, "
                f"{describe_target(target)} cannot take its name. Choose another one."
            )
        return None

    def unregister(self, origin: Origin) -> None:
        """Take back everything that was registered with exactly this ``origin`` object."""
        for entry in self.entries():
            if entry.origin is origin:
                del self._entries[entry.name]

    def __contains__(self, name: object) -> bool:
        """Whether a name is registered, or the source of ``"source:rest"``."""
        return isinstance(name, str) and self.origin(name) is not None

    def entries(self) -> tuple[Entry, ...]:
        """Everything registered, sorted by name."""
        entries = self._entries.copy().values()  # a copy: other threads may be registering
        return tuple(sorted(entries, key=lambda entry: entry.name))

    def list(self, pattern: str | None = None) -> Names:
        """The names that can be created, sorted.

        Args:
            pattern: None lists what is registered and imports nothing; a source reads
                ``"timm:*"``. A pattern with the wildcards of :mod:`fnmatch` (case matters) is
                matched against complete names, and for that asks each source that could serve a
                match for its names: ``"timm:*resnet*"`` asks timm only, ``"*resnet*"`` all.
                A source that can't tell its names stays ``"hf:*"``.

        Raises:
            MissingDependencyError: a source that the pattern names can't be imported.
            ContractError: it raises, or does not return names.

        Warns:
            PluginWarning: a source that the pattern does not name can't be asked.
        """
        names: set[str] = set()
        for entry in self.entries():
            names.update([entry.listed_name] if pattern is None else self._match(entry, pattern))
        return sorted(names)

    def get(self, name: str) -> Callable[..., T]:
        """The factory behind a name, imported; for ``"source:rest"``, bound to ``rest``.

        Raises:
            UnknownNameError: gives the nearest names and the list.
            MissingDependencyError: the target cannot be imported; the cause is chained.
        """
        entry, rest = self._find(name)
        factory = self._load(entry, entry.target)
        return partial(factory, rest) if rest else factory

    def origin(self, name: str) -> Origin | None:
        """Who registered a name, or the source of ``"source:rest"``; None = nobody."""
        entry = self._entries.get("".join(name.partition(":")[:2]))
        return None if entry is None else entry.origin

    def takes(self, name: str, argument: str) -> bool:
        """Whether the factory behind a name has an argument of this name.

        Raises:
            UnknownNameError, MissingDependencyError: as :meth:`get`.
        """
        try:
            return argument in signature_of(self.get(name)).parameters
        except (TypeError, ValueError):  # a callable without a signature, such as some of C
            return False

    def create(self, name: str, /, **options: Any) -> T:
        """Make the thing behind a name.

        Args:
            name: a registered name, or ``"source:rest"``.
            options: keyword arguments for the factory.

        Raises:
            UnknownNameError: gives the nearest names and the list.
            UnknownOptionError: the factory has no such option; gives the nearest and the list.
            OptionError: the factory needs an option that is not given.
            MissingDependencyError: a package is missing or broken; the cause is chained.
            ContractError: the factory made something that is of no use here.
        """
        from gloria.checks import check_options  # imports torch

        factory: Any = self.get(name)
        made = f"{self.kind} {self._find(name)[0]}"
        known = []
        if hasattr(factory, "from_preset"):
            known = ["preset"]
            if "preset" in options:
                factory = partial(factory.from_preset, options.pop("preset"))
        check_options(made, factory, options, *known)
        try:
            thing: T = factory(**options)
        except GloriaError:
            raise
        except ImportError as cause:
            raise MissingDependencyError(
                f"{made} needs something that cannot be imported: {describe(cause)}."
            ) from cause
        except Exception as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if isinstance(error, TypeError) and unknown and unknown[1] in options:  # of **options
                raise UnknownOptionError(
                    f"{made} has no option {unknown[1]!r}: {error}."
                ) from error
            which = f", of the name {name!r}" if ":" in name else ""
            error.add_note(f"while creating {made}{which}")
            raise
        _imported(self._check)(f"what {made} made", thing)
        return thing

    def _find(self, name: str) -> tuple[Entry, str]:
        """The entry of a name, and what follows the colon of a source."""
        if not isinstance(name, str):
            raise DtypeError(f"the name of {self._one} must be a string; got {describe(name)}.")
        source, colon, rest = name.partition(":")
        entry = self._entries.get(source + colon)
        if entry is None:
            raise UnknownNameError(self._unknown(name))
        if colon and not rest:
            raise UnknownNameError(
                f"{name!r} is a source of names; say which {self.kind}: '{name}<name>'."
            )
        return entry, rest

    def _unknown(self, name: str) -> str:
        known = self.list()
        source, colon, rest = name.partition(":")
        nearest = difflib.get_close_matches(source + colon, list(self._entries), n=3)
        guesses = [f"{each}{rest}" if each.endswith(":") else each for each in nearest]
        if not guesses and not colon:
            guesses = self._sourced(name)
        message = f"no {self.kind} is named {name!r}."
        if guesses:
            message += f" Did you mean {' or '.join(map(repr, guesses))}?"
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        return f"{message} Registered: {', '.join(known[:_SHOWN]) or 'none'}{more}."

    def _sourced(self, name: str) -> Names:
        """A name with the sources that serve it or, where none does, with those that can't tell."""
        # what follows a dot may be a tag, such as timm's of weights, that no list has
        untagged = name.partition(".")[0]
        serve, may = [], []
        for entry in self.entries():
            if entry.list_names is None:
                may += [entry.name + name] if entry.name.endswith(":") else []
                continue
            with suppress(GloriaError):
                if {entry.name + name, entry.name + untagged} & {*self._names_of(entry)}:
                    serve.append(entry.name + name)
        return serve or may

    def _match(self, entry: Entry, pattern: str) -> Iterable[str]:
        fixed = re.split(r"[*?[]", pattern, maxsplit=1)[0]  # what every match begins with
        if entry.list_names is None:
            return [entry.listed_name] if fnmatchcase(entry.listed_name, pattern) else []
        if not (fixed.startswith(entry.name) or entry.name.startswith(fixed)):
            return []
        try:
            return [name for name in self._names_of(entry) if fnmatchcase(name, pattern)]
        except GloriaError as cause:
            if fixed.startswith(entry.name):
                raise
            warn(PluginWarning(str(cause)), stacklevel=4)
            return []

    def _names_of(self, entry: Entry) -> Names:
        """The names that a source serves, with it in front."""
        try:
            return [entry.name + name for name in self._load(entry, entry.list_names)()]
        except Exception as cause:
            kind = MissingDependencyError if isinstance(cause, ImportError) else ContractError
            told = f"the names of {self.kind} {entry} are not listed: {describe(cause)}"
            raise kind(told) from cause

    def _load(self, entry: Entry, target: Target | None) -> Callable[..., Any]:
        """Import a target."""
        try:
            loaded: Callable[..., Any] = _imported(target)
        except Exception as cause:
            raise MissingDependencyError(
                f"{self.kind} {entry} cannot be imported: {describe(cause)}."
            ) from cause
        if not callable(loaded):
            raise ContractError(f"{self.kind} {entry} is not callable; got {describe(loaded)}.")
        return loaded

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str):
            raise DtypeError(
                f"the name of {self._one} must be a string, as in register('name', target) or "
                f"@register('name'); got {describe(name)}."
            )
        if not _NAME.fullmatch(name):
            raise OptionError(
                f"the name of {self._one} must be letters, digits, '_', '.' and '-', with ':' "
                f"at the end for a source; got {name!r}."
            )

    def _check_target(self, name: str, target: object) -> None:
        if isinstance(target, str):
            if not _TARGET.fullmatch(target):
                raise OptionError(
                    f"the target of {self.kind} {name!r} must be 'module:attribute'; "
                    f"got {target!r}."
                )
        elif not callable(target):
            raise DtypeError(
                f"the target of {self.kind} {name!r} must be a class, a function or "
                f"'module:attribute'; got {describe(target)}."
            )


Names = list[str]  # inside Registry, `list` is the method


def _imported(target: Target | None) -> Any:
    return resolve_name(target) if isinstance(target, str) else target


def describe_target(target: Target) -> str:
    """Where a target is: ``"module:attribute"``."""
    if isinstance(target, str):
        return target
    module = getattr(target, "__module__", None) or type(target).__module__
    return f"{module}:{getattr(target, '__qualname__', type(target).__qualname__)}"
