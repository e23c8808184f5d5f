"""What a plugin implements: one function for each kind of thing that it brings.

A plugin is any installed distribution with an entry point in the group ``gloria.plugins``::

    # pyproject.toml
    [project.entry-points."gloria.plugins"]
    my_plugin = "my_plugin.hooks"

The entry point names a module that defines some of the functions below. Their names are enough;
they need no decorator and nothing imported from gloria::

    # my_plugin/hooks.py
    def gloria_register_losses(register):
        register("my_loss", "my_plugin.losses:MyLoss")

    def gloria_register_image_encoders(register):
        register("my_encoder", "my_plugin.encoders:MyEncoder")
        register("my_zoo:", "my_plugin.zoo:from_zoo", list_names="my_plugin.zoo:names")

Now ``create_loss("my_loss", margin=0.2)`` calls ``MyLoss(margin=0.2)``, and
``create_image_encoder("my_zoo:small", ...)`` calls ``from_zoo("small", ...)``.

A target is written ``"module:attribute"`` and is imported when somebody uses it, so that a plugin
costs nothing until then: keep the module with the hooks free of heavy imports. What a target
returns must keep the contract stated at its hook.

A plugin is taken whole or not at all. One that raises, that asks for a name which is taken, or
that defines a hook gloria does not know is skipped with one
:class:`~gloria.errors.PluginWarning`; ``gloria info`` shows the cause.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pluggy

PROJECT = "gloria"
PREFIX = "gloria_register_"

hookspec = pluggy.HookspecMarker(PROJECT)


class Register(Protocol):
    """The callback that a hook is given."""

    def __call__(
        self,
        name: str,
        target: str | Callable[..., Any],
        *,
        list_names: str | Callable[[], Any] | None = None,
    ) -> None:
        """Register ``target`` as ``name``; see :meth:`gloria.registry.Registry.register`."""
        ...


@hookspec
def gloria_register_image_encoders(register: Register) -> None:
    """Register makers of ``nn.Module`` s that are a :class:`gloria.types.ImageEncoder`."""


@hookspec
def gloria_register_text_encoders(register: Register) -> None:
    """Register makers of ``nn.Module`` s that are a :class:`gloria.types.TextEncoder`.

    A maker that takes an argument ``reports`` is given the training reports.
    """


@hookspec
def gloria_register_aggregators(register: Register) -> None:
    """Register makers of callables that are a :class:`gloria.types.Aggregator`."""


@hookspec
def gloria_register_losses(register: Register) -> None:
    """Register makers of ``nn.Module`` s that return a scalar tensor.

    A maker that takes an argument ``embedding_dim`` is given the width of the vectors that the loss
    will compare. A loss with named constants has a class method
    ``from_preset(preset, **overrides)``; one that changes while it trains is a
    :class:`gloria.types.ScheduledLoss`.
    """
