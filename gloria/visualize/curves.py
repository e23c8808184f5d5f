"""Figures over training steps, and final figures beside their controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from gloria.errors import DataError
from gloria.visualize.figure import COLOURS, FAINT, GRID, INK, new_figure, style_axes, without_math

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, float]


def plot_training_curves(history: Sequence[Record], *, title: str = "") -> Figure:
    """What was logged in training, over the steps.

    One panel each for the loss with its validation, the loss's terms, other validation figures,
    and what the optimizer did; a panel without data is left out. Single steps are drawn faint, the
    line is their running mean.

    Args:
        history: one record per step, in order: ``step``, and any of ``loss``,
            ``validation_loss``, ``learning_rate``, ``gradient_norm``, ``validation_...``; every
            other name counts as a term of the loss. A record need not hold all of them.
        title: over the figure.

    Returns:
        A matplotlib figure.

    Raises:
        DataError: there is no record, or one without ``step``.
    """
    if not history:
        raise DataError("history must hold at least one record; there is nothing to draw.")
    for number, record in enumerate(history):
        if "step" not in record:
            raise DataError(f"history[{number}] has no 'step'; it holds {sorted(record)}.")
    names = list(dict.fromkeys(name for record in history for name in record))
    optimizer = [name for name in names if name in ("learning_rate", "gradient_norm")]
    loss = [name for name in names if name in ("loss", "validation_loss")]
    validation = [name for name in names if name.startswith("validation_") and name not in loss]
    terms = [name for name in names if name not in {"step", *optimizer, *loss, *validation}]
    panels = [("Loss", loss), ("Terms of the loss", terms), ("Validation", validation)]
    panels += [(_words(name).capitalize(), [name]) for name in optimizer]
    panels = [(heading, shown) for heading, shown in panels if shown]
    if not panels:
        raise DataError("history must hold figures besides 'step'; there is nothing to draw.")

    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(5.2 * columns, 3.1 * rows + (0.35 if title else 0))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (heading, shown) in zip(axes, panels, strict=False):
        style_axes(panel, heading, x_label="step")
        panel.xaxis.get_major_locator().set_params(integer=True)
        for name, colour in zip(shown, cycle(COLOURS), strict=False):
            _draw_curve(panel, history, name, colour)
        if [_words(name).capitalize() for name in shown] != [heading]:
            # below the curves, which may be anywhere in a short run
            place: Any = {"loc": "upper left", "bbox_to_anchor": (0, -0.2), "borderaxespad": 0}
            panel.legend(ncols=2, frameon=False, fontsize=9, labelcolor=INK, **place)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, fontweight="bold")
    return without_math(figure)


def plot_comparison(figures: Mapping[str, Mapping[str, float]], *, title: str = "") -> Figure:
    """Figures beside their controls: one line per figure, one dot per model or control.

    Args:
        figures: name of a figure to ``{"trained": .9, "untrained": .2, "chance": .2}``, any names,
            any number of them, all on one scale. A line need not have all of them: leave out
            what is missing.
        title: over the figure.

    Returns:
        A matplotlib figure. ``"chance"`` is drawn as a tick and not as a dot.

    Raises:
        DataError: there is no figure, one without values, or a value that is not finite.
    """
    if not figures:
        raise DataError("figures must hold at least one figure; there is nothing to draw.")
    for name, values in figures.items():
        if not values:
            raise DataError(f"figures must hold a value in every line; {name!r} has none.")
        for model, value in values.items():
            if not math.isfinite(value):
                raise DataError(
                    f"figures must be finite, leave out what is missing; {name!r} of {model!r} is "
                    f"{value}."
                )
    series = list(dict.fromkeys(name for values in figures.values() for name in values))
    result = new_figure(6.4, 0.9 + 0.36 * len(figures) + (0.35 if title else 0))
    axes = result.subplots()
    style_axes(axes, title)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    positions = range(len(figures))
    for position, values in zip(positions, figures.values(), strict=True):
        axes.plot([min(values.values()), max(values.values())], [position] * 2, color=GRID, lw=3)
    coloured = cycle(COLOURS)
    for name in series:
        points = [
            (values[name], position)
            for position, values in zip(positions, figures.values(), strict=True)
            if name in values
        ]
        if name == "chance":
            # behind the dots, one of which is often there too
            style: dict[str, Any] = {"marker": "|", "s": 330, "lw": 2, "color": FAINT, "zorder": 2}
        else:
            style = {"marker": "o", "s": 52, "color": next(coloured), "edgecolors": "white"}
        axes.scatter(*zip(*points, strict=True), label=name, **{"zorder": 3, **style})
    axes.set_yticks(list(positions), list(figures), fontsize=9, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(figures) - 0.4, -0.6)
    everything = [value for values in figures.values() for value in values.values()]
    if min(everything) >= 0 and max(everything) <= 1:
        axes.set_xlim(-0.02, 1.02)
    result.legend(loc="outside lower center", ncols=min(len(series), 4), frameon=False, fontsize=9)
    return without_math(result)


def _draw_curve(panel: Any, history: Sequence[Record], name: str, colour: str) -> None:
    points = [(record["step"], record[name]) for record in history if name in record]
    steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    label = _words(name)
    if name == "learning_rate" or len(steps) < 30:
        markers = "o" if len(steps) < 30 else None
        panel.plot(steps, values, color=colour, lw=1.8, marker=markers, markersize=4, label=label)
        return
    window = max(len(steps) // 50, 2)
    panel.plot(steps, values, color=colour, lw=0.7, alpha=0.25)
    panel.plot(steps, _running_mean(values, window), color=colour, lw=1.8, label=label)


def _running_mean(values: Any, window: int) -> Any:
    """The mean of up to ``window`` values on either side; a wild one spoils no other mean."""
    near = np.ones(2 * window + 1)
    return np.convolve(values, near, "same") / np.convolve(np.ones(len(values)), near, "same")


def _words(name: str) -> str:
    return name.replace("_", " ")
