"""Argument checks. Every message says what was expected, what was given and how to get there.

The checks read shapes and dtypes only, never values, so they cost nothing on any device and
trace away under ``torch.compile``.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from numbers import Integral, Real
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gloria.errors import (
    ContractError,
    DataError,
    DeviceError,
    DtypeError,
    MissingDependencyError,
    OptionError,
    ShapeError,
    UnknownOptionError,
    describe,
    reason,
)
from gloria.signatures import signature_of
from gloria.types import ImageInput

_LARGEST = 1e30
"""Of a number that float32 multiplies by."""


def check_tensor(name: str, value: Any, axes: tuple[str, ...], hint: str = "") -> None:
    """Require a dense floating-point tensor with the named axes."""
    _check_axes(name, value, axes, hint)
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise DtypeError(
            f"{name} must be a floating-point tensor of 16, 32 or 64 bits; got dtype {value.dtype}."
        )


def check_floating(name: str, value: Any) -> None:
    """Require a floating-point tensor, of any axes."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise DtypeError(f"{name} must be a floating-point tensor; got {given}.")


def check_images(images: Any, channels: int, size: tuple[int, int] | None = None) -> None:
    """Require a batch of images with these channels and, unless it is None, of this size."""
    check_tensor("images", images, ("image", "channel", "height", "width"))
    if images.shape[1] != channels:
        one = images.shape[1] == 1
        convert = f"expand(-1, {channels}, -1, -1)" if one else "mean(1, keepdim=True)"
        how = f"Convert them (images.{convert}), or make" if one or channels == 1 else "Make"
        raise ShapeError(
            f"images must have {channels} channel{'s' * (channels > 1)}; got "
            f"{tuple(images.shape)}. {how} the encoder for them, as timm's by in_chans."
        )
    if not images.shape[0]:  # len() would fix it in an exported graph
        raise ShapeError(f"images must hold at least one image; got {tuple(images.shape)}.")
    given = tuple(images.shape[2:])
    if size is not None and given != size:
        raise ShapeError(
            f"images must be of {size} pixels; got {given}. Resize them, or make the encoder with "
            f"image_size={given}."
        )


def check_images_suit(images: Tensor, model: nn.Module) -> None:
    """Require images that a model failed on to be on the device and in the dtype of its weights."""
    weight = next(model.parameters(), images)
    if images.device != weight.device:
        raise DeviceError(
            f"images must be on the device of the encoder, {weight.device}; got {images.device}."
        )
    if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
        raise DtypeError(
            f"images must be in the dtype of the encoder, {weight.dtype}; got {images.dtype}."
        )


def check_mask(name: str, value: Any, shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    """Require a boolean tensor of exactly ``shape``."""
    _check_axes(name, value, axes, "")
    if value.dtype != torch.bool:
        raise DtypeError(
            f"{name} must be boolean, True = real; got dtype {value.dtype}. "
            f"Convert 0/1 masks with mask.bool()."
        )
    if tuple(value.shape) != shape:
        raise ShapeError(f"{name} must be {shape} = ({', '.join(axes)}); got {tuple(value.shape)}.")


def check_same_size(
    what: str, first_name: str, first: int, second_name: str, second: int, hint: str = ""
) -> None:
    """Require two sizes to agree."""
    if first != second:
        message = (
            f"{first_name} and {second_name} must agree in {what}; got {first} and {second}. {hint}"
        )
        raise ShapeError(message.rstrip())


def check_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Require a tensor to be where another is."""
    if value.device != other.device:
        raise DeviceError(
            f"{name} must be on the device of {other_name}, {other.device}; got {value.device}. "
            f"Move it with {name}.to({other_name}.device)."
        )


def check_device(device: torch.device | str) -> None:
    """Require a device, or its name, that can be used here."""
    try:
        torch.empty(0, device=device)
    except Exception as cause:  # a build without that device, no such card: each raises its own
        raise OptionError(f"device {str(device)!r} can't be used here: {reason(cause)}.") from cause


def check_positive(name: str, value: float) -> None:
    """Require a finite number above zero, that float32 can divide and multiply by."""
    _check_number(name, value, " above 0", 1e-30, _LARGEST)


def check_temperature(name: str, value: float | Tensor) -> None:
    """Require a finite number above zero, or a tensor of one element, which may be learned."""
    if isinstance(value, Tensor):
        _check_single(name, value)
    else:
        check_positive(name, value)


def check_weight(name: str, value: float) -> None:
    """Require a finite number of at least zero, that float32 can multiply by."""
    _check_number(name, value, " of at least 0", 0, _LARGEST)


def check_share(name: str, value: float) -> None:
    """Require a number from 0 to 1."""
    _check_number(name, value, " from 0 to 1", 0, 1)


def check_finite(name: str, value: float | Tensor) -> None:
    """Require a finite number, or a tensor of one element, which may be learned."""
    if isinstance(value, Tensor):
        _check_single(name, value)
    else:
        _check_number(name, value, "", -math.inf)


def check_fusion_weights(weights: Sequence[float]) -> None:
    """Require the weights of a global and of a local similarity."""
    if not isinstance(weights, Sized) or len(weights) != 2:
        raise OptionError(f"weights must be (global, local), two numbers; got {weights!r}.")
    for weight in weights:
        check_finite("weights", weight)


def check_boolean(name: str, value: Any) -> None:
    """Require True or False: a string, "no" say, would count as True."""
    if not isinstance(value, bool):
        raise DtypeError(f"{name} must be True or False; got {value!r}.")


def check_integer(
    name: str, value: Any, lowest: int | None = None, highest: int | None = None
) -> None:
    """Require an integer of at least the lowest, and at most the highest."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise DtypeError(f"{name} must be an integer; got {value!r}.")
    number = int(value)
    if (lowest is not None and number < lowest) or (highest is not None and number > highest):
        bounds = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise OptionError(f"{name} must be {bounds}; got {value}.")


def height_width(name: str, size: Any) -> Any:
    """A size in pixels, one number or ``(height, width)``, as a pair of integers; None stays None.

    Raises:
        OptionError: it is something else, or not above 0.
    """
    if size is None:
        return None
    pair = size if isinstance(size, tuple | list) else (size, size)
    if not _are_pixels(pair):
        raise OptionError(
            f"{name} must be a number of pixels or (height, width), above 0; got {size!r}."
        )
    return int(pair[0]), int(pair[1])


def check_size(size: Any) -> None:
    """Require a height and a width of at least one pixel."""
    if not _are_pixels(size):
        raise OptionError(f"size must be (height, width) in pixels, above 0; got {size!r}.")


def _are_pixels(pair: Any) -> bool:
    sides = pair if isinstance(pair, tuple | list) else ()
    return len(sides) == 2 and all(isinstance(each, Integral) and int(each) > 0 for each in sides)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Require one of the named choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise OptionError(
            f"{name} must be one of {listed}; got {value!r}.{nearest(value, choices)}"
        )


def nearest(given: Any, known: Collection[str], most: int = 1) -> str:
    """The end of a message about a misspelt name: the nearest known ones, or nothing."""
    near = difflib.get_close_matches(str(given), known, n=most)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_texts(texts: Sequence[str]) -> None:
    """Require a sequence of at least one string."""
    if isinstance(texts, str):
        raise DtypeError(
            f"texts must be a sequence of strings; got one string. Wrap it: [{texts!r}]"
        )
    if isinstance(texts, Mapping) or not hasattr(texts, "__getitem__"):  # a set has no order
        raise DtypeError(f"texts must be a sequence of strings; got {type(texts).__name__}.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DtypeError(f"texts[{index}] must be a string; got {type(text).__name__}.")
        try:
            text.encode()
        except UnicodeEncodeError as cause:  # of a file or terminal in another encoding
            raise DataError(f"texts[{index}] must be valid Unicode; got {text!r}.") from cause
    if len(texts) == 0:
        raise ShapeError("texts must hold at least one text; got none.")


def check_names(name: str, value: Iterable[str]) -> None:
    """Require names, and not one string, whose letters would be taken for them."""
    if isinstance(value, str):
        raise DtypeError(
            f"{name} must be a sequence of names; got one string. Wrap it: [{value!r}]"
        )


def check_options(
    subject: str, maker: Callable[..., Any], given: Collection[str], *more: str
) -> None:
    """Require that a class or function takes options of these names, and needs no others.

    One that takes any ``**options``, or has no signature, takes them all. ``subject`` is what it
    makes, for the message; ``more`` are names that are known besides.

    Raises:
        UnknownOptionError: it does not take one; the message has the nearest name, and all.
        OptionError: it needs another one.
    """
    try:
        parameters = signature_of(maker, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):  # as some callables of C
        return
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = [
        each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    known = [*more, *(each.name for each in named)]
    for name in given:
        if name not in known and not takes_any:
            raise UnknownOptionError(
                f"{subject} has no option {name!r}."
                + nearest(name, known)
                + f" It has {', '.join(known) or 'none'}."
            )
    needed = [each.name for each in named if each.default is each.empty and each.name not in given]
    if needed:
        raise OptionError(f"{subject} must be given {' and '.join(map(repr, needed))}.")


def check_module(name: str, value: Any, what: str = "a module") -> None:
    """Require a module."""
    if not isinstance(value, nn.Module):
        raise ContractError(
            f"{name} must be {what}: it is no nn.Module, it is {type(value).__name__}."
        )


def check_image_encoder(name: str, value: Any) -> None:
    """Require a module that is an :class:`~gloria.types.ImageEncoder`."""
    what = "an image encoder"
    _check_encoder(name, value, what, ("pooled_dim", "region_dim"), "image_input")
    wanted = value.image_input
    if (
        not isinstance(wanted, ImageInput)
        or not all(isinstance(each, Sized) for each in (wanted.mean, wanted.std))
        or not len(wanted.mean) == len(wanted.std) == wanted.channels
        or not all(each > 0 for each in wanted.std)
    ):
        raise ContractError(
            f"{name} must be {what}: its image_input must be an ImageInput with a mean and a std "
            f"above 0 for each channel; it is {wanted!r}."
        )


def check_text_encoder(name: str, value: Any) -> None:
    """Require a module that is a :class:`~gloria.types.TextEncoder`."""
    _check_encoder(name, value, "a text encoder", ("pooled_dim", "word_dim"), "tokenize")


def _check_encoder(name: str, value: Any, what: str, widths: tuple[str, ...], more: str) -> None:
    check_module(name, value, what)
    # not isinstance with the protocol: it does not see what a compiled encoder has
    if missing := [each for each in (*widths, more) if not hasattr(value, each)]:
        raise ContractError(
            f"{name} must be {what}: {type(value).__name__} lacks {', '.join(missing)}. Of a "
            f"GLoRIA model, take its encoder."
        )
    for width in widths:
        size = getattr(value, width)
        if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
            raise ContractError(
                f"{name} must be {what}: its {width} must be an integer above 0; it is {size!r}."
            )


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say how to install it.

    A package can be installed *and broken*, and then raises anything at all: every exception is
    chained under one :class:`~gloria.errors.MissingDependencyError`.
    """
    try:
        return importlib.import_module(module)
    except Exception as cause:
        package = module.partition(".")[0]
        raise MissingDependencyError(
            f"{package} is needed here and could not be imported ({describe(cause)})."
            f" Install it with: pip install 'gloria-torch[{extra}]'"
        ) from cause


def _check_single(name: str, value: Tensor) -> None:
    """One number, and no more axes than a pair matrix, which would get them."""
    if value.numel() != 1 or value.dim() > 2:
        raise ShapeError(f"{name} must be a single number; got a tensor {tuple(value.shape)}.")
    # a learned value is bounded by its module; reading it here would synchronise


def _check_number(
    name: str, value: Any, which: str, lowest: float, highest: float = math.inf
) -> None:
    # numpy's scalars are Real too
    if isinstance(value, bool) or not isinstance(value, Real):
        raise DtypeError(f"{name} must be a number{which}; got {value!r}.")
    # compared in half precision, the lowest number would be 0
    number = int(value) if isinstance(value, Integral) else float(value)
    if not lowest <= number <= highest or abs(number) == math.inf:
        finite = "finite " if highest >= _LARGEST else ""
        why = ", too small for float32" if 0 < number < lowest else ""
        if highest == _LARGEST < number < math.inf:
            why = ", too large for float32"
        raise OptionError(f"{name} must be a {finite}number{which}; got {value}{why}.")


def _check_axes(name: str, value: Any, axes: tuple[str, ...], hint: str) -> None:
    expected = f"({', '.join(axes)})"
    if not isinstance(value, Tensor):
        raise DtypeError(f"{name} must be a tensor {expected}; got {type(value).__name__}.")
    if value.layout != torch.strided:
        raise DtypeError(f"{name} must be a dense tensor {expected}; got layout {value.layout}.")
    if value.dim() != len(axes):
        raise ShapeError(f"{name} must be {expected}; got {tuple(value.shape)}. {hint}".rstrip())
