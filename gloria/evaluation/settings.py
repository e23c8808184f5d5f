"""Whether what is in a folder was made by the settings that are given now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, setting by setting; of two hashes only that they do. Empty = nothing.

    Example:
        >>> describe_changes({"seed": 0, "data": 64 * "a"}, {"seed": 1, "data": 64 * "b"})
        'data changed; seed was 0, is 1'
    """
    changes = []
    for name in sorted(before.keys() | now.keys()):
        was, value = before.get(name), now.get(name)
        if was != value:
            hashes = _is_hash(was) and _is_hash(value)
            changes.append(f"{name} changed" if hashes else f"{name} was {was!r}, is {value!r}")
    return "; ".join(changes)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
