"""gloria: global-local contrastive learning of medical images and their reports."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gloria.catalog import (
        create_aggregator,
        create_image_encoder,
        create_loss,
        create_text_encoder,
        list_aggregators,
        list_image_encoders,
        list_losses,
        list_text_encoders,
        plugin_report,
        register_aggregator,
        register_image_encoder,
        register_loss,
        register_text_encoder,
    )
    from gloria.model import AttentionMaps, GLoRIA, GLoRIAOutput, create_model
    from gloria.published import load_published
    from gloria.types import ImageFeatures, TextFeatures
    from gloria.weights import export_image_encoder, load_model, load_weights, save_model

# Where each public name lives. A name is imported when it is first used, so that the command
# line's help and a plugin's import cost nothing.
_HOMES = {
    "AttentionMaps": "model",
    "GLoRIA": "model",
    "GLoRIAOutput": "model",
    "ImageFeatures": "types",
    "TextFeatures": "types",
    "create_aggregator": "catalog",
    "create_image_encoder": "catalog",
    "create_loss": "catalog",
    "create_model": "model",
    "create_text_encoder": "catalog",
    "export_image_encoder": "weights",
    "list_aggregators": "catalog",
    "list_image_encoders": "catalog",
    "list_losses": "catalog",
    "list_text_encoders": "catalog",
    "load_model": "weights",
    "load_published": "published",
    "load_weights": "weights",
    "plugin_report": "catalog",
    "register_aggregator": "catalog",
    "register_image_encoder": "catalog",
    "register_loss": "catalog",
    "register_text_encoder": "catalog",
    "save_model": "weights",
}

# The public modules and packages: `gloria.losses` after `import gloria`, imported when first used.
_ROOMS = (
    "aggregators",
    "catalog",
    "contrastive",
    "data",
    "distributed",
    "encoders",
    "errors",
    "evaluation",
    "functional",
    "geometry",
    "heads",
    "losses",
    "matching",
    "model",
    "plugins",
    "published",
    "registry",
    "training",
    "types",
    "visualize",
    "weights",
)

__all__ = [
    "AttentionMaps",
    "GLoRIA",
    "GLoRIAOutput",
    "ImageFeatures",
    "TextFeatures",
    "__version__",
    "create_aggregator",
    "create_image_encoder",
    "create_loss",
    "create_model",
    "create_text_encoder",
    "export_image_encoder",
    "list_aggregators",
    "list_image_encoders",
    "list_losses",
    "list_text_encoders",
    "load_model",
    "load_published",
    "load_weights",
    "plugin_report",
    "register_aggregator",
    "register_image_encoder",
    "register_loss",
    "register_text_encoder",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"gloria.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'gloria' has no attribute {name!r}")
    return getattr(import_module(f"gloria.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
