"""Adapters that turn other libraries' models into image and text encoders.

Importing this room imports none of those libraries; each is imported when its encoder is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gloria.encoders.freezing import Freezable
    from gloria.encoders.hf_text import HFTextEncoder
    from gloria.encoders.open_clip import OpenClipImageEncoder, OpenClipTextEncoder
    from gloria.encoders.timm_image import TimmImageEncoder

_HOMES = {
    "Freezable": "gloria.encoders.freezing",
    "HFTextEncoder": "gloria.encoders.hf_text",
    "OpenClipImageEncoder": "gloria.encoders.open_clip",
    "OpenClipTextEncoder": "gloria.encoders.open_clip",
    "TimmImageEncoder": "gloria.encoders.timm_image",
}

__all__ = [
    "Freezable",
    "HFTextEncoder",
    "OpenClipImageEncoder",
    "OpenClipTextEncoder",
    "TimmImageEncoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
