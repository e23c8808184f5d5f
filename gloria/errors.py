"""Every exception and warning that gloria raises on purpose.

Each error is a :class:`GloriaError` and also the builtin a caller would expect, so both
``except GloriaError`` and ``except ValueError`` work. Each warning is a :class:`GloriaWarning`.
"""

from textwrap import shorten


class GloriaError(Exception):
    """Base of every error raised on purpose by gloria."""


class ShapeError(GloriaError, ValueError):
    """A tensor has the wrong rank, or sizes that do not fit together."""


class DtypeError(GloriaError, TypeError):
    """An argument has the wrong dtype or Python type."""


class DeviceError(GloriaError, RuntimeError):
    """Tensors that belong together are on different devices."""


class OptionError(GloriaError, ValueError):
    """An option has a value outside what is allowed."""


class UnknownOptionError(OptionError, TypeError):
    """Something is made with an option that it does not have."""


class EmptyTextError(GloriaError, ValueError):
    """A text has no valid word left, so it can be matched with nothing."""


class EmptyImageError(GloriaError, ValueError):
    """An image has no valid region left, so it can be matched with nothing."""


class BackendError(GloriaError, RuntimeError):
    """A matching backend that was asked for by name cannot run the problem."""


class UnknownNameError(GloriaError, KeyError):
    """A registry has no such name."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class DuplicateNameError(GloriaError, ValueError):
    """A name is registered twice; nothing was overwritten."""


class ContractError(GloriaError, TypeError):
    """A plugin, or what a registered factory made, does not keep the contract of its registry."""


class MissingDependencyError(GloriaError, ImportError):
    """An optional dependency is missing, or installed and broken."""


class GloriaWarning(UserWarning):
    """Base of every warning of gloria."""


class PluginWarning(GloriaWarning):
    """A plugin was skipped; the message names the plugin, the place and the cause."""


class TruncatedTextWarning(GloriaWarning):
    """A text is longer than its encoder takes; the message says how much of it was kept."""


class UnknownWordWarning(GloriaWarning):
    """A text has words that its encoder's vocabulary lacks; the message names them."""


class TokenizerError(GloriaError, ValueError):
    """A tokenizer cannot serve: it is not a fast one, or its vocabulary does not fit."""


class DataError(GloriaError, ValueError):
    """A data file, row or image cannot be used; the message says where."""


class BrokenItemError(DataError):
    """An image of a data set, or its mask, can't be read; its other images may be whole."""


class IncompleteItemError(DataError):
    """An image of a data set lacks a report or labels; its other images may have them."""


class CheckpointError(GloriaError, RuntimeError):
    """A checkpoint is missing, incomplete, damaged or of another format."""


class NonFiniteLossError(GloriaError, FloatingPointError):
    """Training met a loss or gradient that is NaN or infinite."""


def reason(cause: BaseException) -> str:
    r"""What went wrong, in a line, for a message that has named the file and ends in a full stop.

    Example:
        >>> reason(PermissionError(13, "Permission denied", "films/1.png"))
        'Permission denied'
        >>> reason(RuntimeError("no such device.\nA list of twenty others follows."))
        'no such device'
        >>> reason(RuntimeError("no decoder is whole:\n\tgdcm: not there\n\tpillow: broken"))
        'no decoder is whole: gdcm: not there pillow: broken'
    """
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror  # its text would repeat the path
    text = str(cause).strip()
    first = text.partition("\n")[0]
    if first.endswith(":"):  # what is wrong comes after it, as which decoders pydicom misses
        first = shorten(text, 300)
    return first.rstrip(".")


def describe(value: object) -> str:
    """A value or an exception in a message: its type, and what it says."""
    kind = type(value).__name__
    try:
        text = str(value) if isinstance(value, BaseException) else repr(value)
    except Exception:  # it can't even say what it is
        return kind
    return f"{kind}: {text[:500]}" if text else kind
