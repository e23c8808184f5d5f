"""Prompts of zero-shot classification: the texts that tell a class, and a file format for them.

Our own for chest radiographs are in :mod:`gloria.data.chest_prompts`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gloria.checks import check_integer, check_names, check_options, require
from gloria.data.rows import read_text
from gloria.errors import DataError, DtypeError, OptionError, UnknownNameError
from gloria.files import write_text


@dataclass(frozen=True, kw_only=True)
class Combinations:
    """Prompts of a severity, a subtype and a location, each with each; "" leaves a place empty.

    Args:
        severity: such as ``"mild"``.
        subtype: what the finding is called, never "".
        location: such as ``"on the left"``.

    Raises:
        DtypeError: one of them is no sequence of strings.
        OptionError: one of them has nothing, or the same twice; or a subtype is empty.

    What makes no sense together belongs into different combinations.

    Example:
        >>> Combinations(severity=["", "small"], subtype=["pneumothorax"]).prompts
        ['pneumothorax', 'small pneumothorax']
    """

    severity: Sequence[str] = ("",)
    subtype: Sequence[str]
    location: Sequence[str] = ("",)

    def __post_init__(self) -> None:
        for part in fields(self):
            _check_strings(part.name, getattr(self, part.name))
            object.__setattr__(self, part.name, tuple(getattr(self, part.name)))
        if not all(subtype.strip() for subtype in self.subtype):
            raise OptionError(f"subtype must hold no empty text; got {list(self.subtype)}.")

    @property
    def prompts(self) -> list[str]:
        """All combinations; the location changes fastest."""
        return combine(self.severity, self.subtype, self.location)


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a class.

    Args:
        positive: what a report of an image with the finding could say: combinations, or prompts
            written out.
        negative: what one without it could say, for pairs of positive and negative prompts.

    Raises:
        DtypeError: an entry is something else.
        OptionError: there is no positive prompt, one is empty, or one comes twice.

    Example:
        >>> prompts = PromptSet(["effusion", Combinations(subtype=["fluid"])], ["clear lungs"])
        >>> prompts.prompts, prompts.negative_prompts
        (['effusion', 'fluid'], ['clear lungs'])
    """

    positive: Sequence[str | Combinations]
    negative: Sequence[str | Combinations] = ()

    def __post_init__(self) -> None:
        if not self.prompts:
            raise OptionError("positive must hold at least one prompt; got none.")
        every = self.prompts + self.negative_prompts
        _check_strings("prompts", every)
        if not all(prompt.strip() for prompt in every):
            raise OptionError("prompts must hold no empty text; got one.")
        object.__setattr__(self, "positive", tuple(self.positive))
        object.__setattr__(self, "negative", tuple(self.negative))

    @property
    def prompts(self) -> list[str]:
        """All positive prompts, in a fixed order."""
        return _flatten("positive", self.positive)

    @property
    def negative_prompts(self) -> list[str]:
        """All negative prompts, in a fixed order."""
        return _flatten("negative", self.negative)

    def draw(self, count: int, *, seed: int) -> PromptSet:
        """Some of the positive prompts, chosen by seed, in their order; all negative ones.

        The published code draws five of each class.

        Raises:
            OptionError: ``count`` is not from 1 to the number of prompts, or ``seed`` negative.
        """
        prompts = self.prompts
        check_integer("count", count, 1, len(prompts))
        check_integer("seed", seed, 0)
        chosen = np.random.default_rng(seed).permutation(len(prompts))[:count]
        return PromptSet([prompts[index] for index in sorted(chosen)], self.negative)


def combine(*parts: Sequence[str]) -> list[str]:
    """Each of a part with each of the others, joined by spaces; "" leaves its place empty.

    Example:
        >>> combine(["", "mild"], ["edema"])
        ['edema', 'mild edema']
    """
    return [" ".join(word for word in words if word) for words in product(*parts)]


def select_prompts(
    prompts: Mapping[str, PromptSet], classes: Sequence[str]
) -> dict[str, PromptSet]:
    """The prompts of some classes, in the order of the classes: that of a data set's labels, say.

    Args:
        prompts: by class.
        classes: names, such as a data set's ``classes``.

    Raises:
        UnknownNameError: a class has no prompts.
        DtypeError: ``classes`` is one string.
    """
    check_names("classes", classes)
    for name in classes:
        if name not in prompts:
            raise UnknownNameError(
                f"there are no prompts for the class {name!r}; there are for {', '.join(prompts)}."
            )
    return {name: prompts[name] for name in classes}


def read_prompts(path: str | Path) -> dict[str, PromptSet]:
    """Read prompts from a YAML or JSON file, in the order of the file.

    The file maps each class to its prompts: a list, or ``positive`` and ``negative`` lists. An
    entry is a prompt, or combinations of ``severity``, ``subtype`` and ``location``, each a list.
    A word of YAML such as ``no`` is a text::

        Pneumothorax:
          positive:
            - collapsed lung
            - severity: ["", small, large]
              subtype: [pneumothorax]
              location: [on the left, on the right]
          negative:
            - no pneumothorax

    Args:
        path: a file named ``.yaml``, ``.yml`` or ``.json``; :func:`write_prompts` writes them.

    Raises:
        DataError: the file is missing or of another format; the message names the file, the class
            and the entry, and says what was expected. A key that comes twice is an error, too.
        MissingDependencyError: YAML needs pyyaml.
    """
    path = Path(path)
    parse = _parse_json if _is_json(path) else _parse_yaml
    text = read_text(path)
    with _located(str(path)):
        content = parse(text)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} must map classes to their prompts; got {reprlib.repr(content)}.")
    prompts = {}
    for name, value in content.items():
        with _located(f"{path}, class {name!r}"):
            prompts[name] = _read_class(value)
    return prompts


def write_prompts(path: str | Path, prompts: Mapping[str, PromptSet]) -> None:
    """Write prompts as YAML or JSON, whole or not at all, for :func:`read_prompts`.

    Args:
        path: named ``.yaml``, ``.yml`` or ``.json``.
        prompts: by class.

    Raises:
        DataError: the file's name says another format.
        MissingDependencyError: YAML needs pyyaml.
    """
    path = Path(path)
    content = {
        name: {
            "positive": [_plain(entry) for entry in each.positive],
            "negative": [_plain(entry) for entry in each.negative],
        }
        for name, each in prompts.items()
    }
    if _is_json(path):
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    else:
        yaml = require("yaml", "tasks")
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    write_text(path, text)


def _flatten(name: str, entries: Sequence[str | Combinations]) -> list[str]:
    _check_list(name, entries, "prompts")
    prompts = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, str | Combinations):
            raise DtypeError(
                f"{name}, entry {number}: must be a prompt or Combinations; got "
                f"{reprlib.repr(entry)}."
            )
        prompts += [entry] if isinstance(entry, str) else entry.prompts
    return prompts


def _check_list(name: str, values: Any, of: str) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise DtypeError(f"{name} must be a list of {of}; got {reprlib.repr(values)}.")


def _check_strings(name: str, values: Any) -> None:
    """Require a list of different strings, at least one."""
    _check_list(name, values, "texts")
    if not len(values):
        raise OptionError(f"{name} must hold at least one text; got none.")
    seen = set()
    for value in values:
        if not isinstance(value, str):
            raise DtypeError(f"{name} must hold texts; got {reprlib.repr(value)}.")
        if value in seen:
            raise OptionError(f"{name} must differ from each other; {value!r} comes twice.")
        seen.add(value)


def _read_class(value: Any) -> PromptSet:
    if not isinstance(value, dict):
        value = {"positive": value}
    check_options("a class", PromptSet, value)
    return PromptSet(**{key: _read_entries(key, entries) for key, entries in value.items()})


def _read_entries(key: str, entries: Any) -> list[str | Combinations]:
    _check_list(key, entries, "prompts")
    read: list[str | Combinations] = []
    for number, entry in enumerate(entries, start=1):
        with _located(f"{key}, entry {number}"):
            if isinstance(entry, dict):
                check_options("a prompt that is no text", Combinations, entry)
                entry = Combinations(**entry)
            read.append(entry)
    return read


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Inside: an error says where in the file it arose."""
    try:
        yield
    except (DataError, DtypeError, OptionError) as cause:
        raise DataError(f"{where}: {cause}") from cause


def _plain(entry: str | Combinations) -> str | dict[str, list[str]]:
    """As files have it, without the parts that are left empty."""
    if isinstance(entry, str):
        return entry
    parts = {part.name: list(getattr(entry, part.name)) for part in fields(entry)}
    return {name: words for name, words in parts.items() if words != [""]}


def _is_json(path: Path) -> bool:
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise DataError(f"{path} must be named .yaml, .yml or .json.")
    return path.suffix.lower() == ".json"


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_unique([key for key, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as cause:
        raise DataError(f"no JSON: {cause}") from cause


def _parse_yaml(text: str) -> Any:
    yaml = require("yaml", "tasks")

    class Loader(yaml.BaseLoader):  # type: ignore[name-defined]
        """Makes texts, lists and mappings, and nothing else: an unquoted no is a word here."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            _check_unique([key.value for key, _ in node.value], node.start_mark.line + 1)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError) as cause:
        raise DataError(f"no YAML: {cause}") from cause


def _check_unique(keys: list[str], line: int | None = None) -> None:
    where = "" if line is None else f"in the mapping that begins in line {line}, "
    for key in keys:
        if keys.count(key) > 1:
            raise DataError(f"{where}the key {key!r} comes twice.")
