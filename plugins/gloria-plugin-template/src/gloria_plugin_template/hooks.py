"""What gloria calls: names, and where to import what they stand for when it is used.

Nothing heavy is imported here: gloria imports this module when it first looks for plugins.
"""

from __future__ import annotations

from gloria.hookspecs import Register


def gloria_register_image_encoders(register: Register) -> None:
    """Register the image encoder."""
    register("template_patches", "gloria_plugin_template.encoder:PatchEncoder")


def gloria_register_aggregators(register: Register) -> None:
    """Register the aggregator."""
    register("template_midrange", "gloria_plugin_template.aggregator:MidRange")


def gloria_register_losses(register: Register) -> None:
    """Register the loss."""
    register("template_alignment", "gloria_plugin_template.loss:AlignmentLoss")
