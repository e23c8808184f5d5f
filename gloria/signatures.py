"""How a callable is called."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any


def signature_of(function: Callable[..., Any], *, follow_wrapped: bool = True) -> inspect.Signature:
    """As :func:`inspect.signature`, whatever annotations name.

    Python 3.14 evaluates them when they are asked for; one may name what is imported for type
    checkers alone.

    Raises:
        TypeError, ValueError: it is not callable, or has none, as some callables of C.
    """
    how: dict[str, Any] = {"follow_wrapped": follow_wrapped}
    if sys.version_info >= (3, 14):
        from annotationlib import Format

        how["annotation_format"] = Format.FORWARDREF
    return inspect.signature(function, **how)
