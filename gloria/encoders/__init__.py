"""Adapters that turn other libraries' models into image and text encoders.

Importing this room imports none of those libraries; each is imported when its encoder is made.
"""

from gloria.encoders.freezing import Freezable
from gloria.encoders.hf_text import HFTextEncoder
from gloria.encoders.open_clip import OpenClipImageEncoder, OpenClipTextEncoder
from gloria.encoders.timm_image import TimmImageEncoder

__all__ = [
    "Freezable",
    "HFTextEncoder",
    "OpenClipImageEncoder",
    "OpenClipTextEncoder",
    "TimmImageEncoder",
]
