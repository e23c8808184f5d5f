"""What gloria calls: the source of names ``xrv:``, whose encoder alone imports TorchXRayVision."""

from __future__ import annotations

from gloria.hookspecs import Register

NAMES = (
    "densenet121-res224-all",
    "densenet121-res224-chex",
    "densenet121-res224-mimic_ch",
    "densenet121-res224-mimic_nb",
    "densenet121-res224-nih",
    "densenet121-res224-pc",
    "densenet121-res224-rsna",
    "resnet50-res512-all",
)
"""TorchXRayVision's own names: architecture, resolution, and the data it was trained on."""


def gloria_register_image_encoders(register: Register) -> None:
    """Register the encoders."""
    register(
        "xrv:", "gloria_torchxrayvision.encoder:XRVImageEncoder", list_names=lambda: list(NAMES)
    )
