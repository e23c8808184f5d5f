"""Small encoders that learn from scratch in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gloria.model import GLoRIA, create_model

SMALL_IMAGE_ENCODER = "timm:resnet10t"
SMALL_IMAGE_OPTIONS: Mapping[str, Any] = {
    "in_chans": 1,
    "channels": (24, 48, 96, 192),
    "output_stride": 8,
    # its pooling has even kernels, which would leave open where a region is
    "avg_down": False,
    # after the second of four stages: what a region sees is near it
    "region_stage": -3,
}
SMALL_TEXT_ENCODER = "small_bert"
DEFAULT_LOSS = "global_local_contrastive"


def pick_preset(loss: str, preset: str | None) -> str | None:
    """The constants of a loss: those asked for, else ``"stable"`` for our own objective."""
    return "stable" if preset is None and loss == DEFAULT_LOSS else preset


def small_model(
    reports: Sequence[str],
    *,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    image_options: Mapping[str, Any] | None = None,
    text_options: Mapping[str, Any] | None = None,
    embedding_dim: int | None = 128,
    projection: str = "linear",
    loss: str = DEFAULT_LOSS,
    preset: str | None = None,
    loss_options: Mapping[str, Any] | None = None,
) -> GLoRIA:
    """GLoRIA with small encoders, each of which a name can replace.

    The image encoder is timm's ``resnet10t``, 24 to 192 channels wide, with a region every 8
    pixels after the second of its four stages; the text encoder a BERT of 2 layers, 128 wide, with
    a vocabulary of its own.

    Args:
        reports: the training reports; the vocabulary of a text encoder that brings none is built
            from them.
        image_encoder, text_encoder: registered names instead of the small ones.
        image_options, text_options: keyword arguments for them.
        embedding_dim: width of the shared space; None = the text encoder's own, as in
            :func:`~gloria.create_model`.
        projection: ``"linear"`` or ``"mlp"``.
        loss: a registered name.
        preset: the loss's constants; default ``"stable"`` for our own objective, else none.
        loss_options: more keyword arguments for the loss.
    """
    image_options = dict(image_options or {})
    if image_encoder is None:
        image_encoder = SMALL_IMAGE_ENCODER
        image_options = {**SMALL_IMAGE_OPTIONS, **image_options}
    preset = pick_preset(loss, preset)
    return create_model(
        image_encoder,
        text_encoder or SMALL_TEXT_ENCODER,
        embedding_dim=embedding_dim,
        projection=projection,
        loss=loss,
        image_options=image_options,
        text_options={"reports": reports, **(text_options or {})},
        loss_options={**({} if preset is None else {"preset": preset}), **(loss_options or {})},
    )
