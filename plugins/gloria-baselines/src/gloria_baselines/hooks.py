"""What this plugin registers; see :mod:`gloria.hookspecs`."""

from __future__ import annotations

from gloria.hookspecs import Register


def gloria_register_image_encoders(register: Register) -> None:
    """``baselines:vse`` and ``baselines:dsve``."""
    names = "gloria_baselines.image:list_names"
    register("baselines:", "gloria_baselines.image:create", list_names=names)


def gloria_register_text_encoders(register: Register) -> None:
    """``baselines:gru`` and ``baselines:sru``."""
    names = "gloria_baselines.text:list_names"
    register("baselines:", "gloria_baselines.text:create", list_names=names)


def gloria_register_aggregators(register: Register) -> None:
    """The last valid state of a recurrent network."""
    register("last", "gloria_baselines.text:Last")


def gloria_register_losses(register: Register) -> None:
    """The losses of the three systems, and VSE0's."""
    register("convirt", "gloria_baselines.losses:convirt")
    register("vse0", "gloria_baselines.losses:vse0")
    register("vse_plus_plus", "gloria_baselines.losses:vse_plus_plus")
    register("dsve", "gloria_baselines.losses:vse_plus_plus")
