"""Where words look: attention maps over images."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gloria.checks import check_integer, check_positive, require
from gloria.errors import DataError, OptionError, ShapeError
from gloria.visualize.figure import FAINT, INK, new_figure, without_math

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Picture = Tensor | ArrayLike

_OUTLINE = "#35E0FF"  # cyan: seen on grey and on every colour of the maps
_COLORMAP = "inferno"
_ALPHA = 0.65
_NAMED = "#B33C00"

# Sentences are set in a fixed-width font of 8 points: how wide a character, how high a line is.
_CHARACTER, _LINE = 4.82, 11.5
_TEXT_CHARACTERS, _MOST_LINES = 32, 7


@dataclass(frozen=True)
class GroundingExample:
    """One row of :func:`plot_grounding_examples`: a sentence, and where one of its words looks.

    Attributes:
        image: ``(height, width)`` or ``(3, height, width)``, in [0, 1].
        words: the sentence, or the whole report, word by word.
        start: index of the first word that the maps are of.
        stop: index after the last of them.
        maps: title to map ``(height, width)``: the trained model's and its controls, in the order
            of the columns.
        mask: ``(height, width)`` boolean, where the finding truly is; None = not known.
        title: what the row shows, such as the finding's name.
    """

    image: Picture
    words: Sequence[str]
    start: int
    stop: int
    maps: Mapping[str, Picture]
    mask: Picture | None = None
    title: str = ""


def overlay_attention(
    image: Picture, attention: Picture, *, alpha: float = _ALPHA, highest: float | None = None
) -> Array:
    """Lay an attention map over an image.

    The more attention, the more colour and the less of the image: a pixel is
    ``(1 - a) * image + a * colour`` with ``a = alpha * attention / highest``, so an image shows
    unchanged where nothing is attended.

    Args:
        image: ``(height, width)`` or ``(3, height, width)``, in [0, 1].
        attention: ``(height, width)``, not negative;
            :func:`~gloria.geometry.upsample_attention` brings a grid's map there.
        alpha: how much the strongest attention hides of the image, 0 to 1.
        highest: the attention that gets the strongest colour. None = the map's own maximum: fine
            for one map, but a flat one then looks strong. Give maps that are compared the same.

    Returns:
        ``(height, width, 3)`` in [0, 1].

    Raises:
        ShapeError: the shapes do not fit.
        DataError: values are out of range or NaN.
        OptionError: ``alpha`` is not from 0 to 1, or ``highest`` not positive.
    """
    picture = _picture(image)
    weights = _map("attention", attention, picture.shape[:2])
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha must be from 0 to 1; got {alpha}.")
    if highest is None:
        highest = float(weights.max()) or 1.0
    check_positive("highest", highest)
    return _blend(picture, weights, highest, alpha)


def plot_attention(
    image: Picture,
    words: Sequence[str],
    maps: Picture,
    *,
    mask: Picture | None = None,
    title: str = "",
    columns: int = 6,
) -> Figure:
    """Where each word of a text looks: the image first, then one panel per word.

    All panels share one colour scale, so that a word that looks nowhere in particular also looks
    faint. The number above a panel is its highest attention, of a faint one, too.

    Args:
        image: ``(height, width)`` or ``(3, height, width)``, in [0, 1].
        words: as many as maps.
        maps: ``(word, height, width)``.
        mask: ``(height, width)`` boolean, outlined in every panel.
        title: over the figure, for example the report.
        columns: panels in a row.

    Returns:
        A matplotlib figure.

    Raises:
        ShapeError: the shapes do not fit.
        DataError: values are out of range or NaN; no word.
        DtypeError, OptionError: ``columns`` is no integer of at least 1.
    """
    picture = _picture(image)
    if not len(words):
        raise DataError("words must hold at least one word; there is nothing to draw.")
    layers = _map("maps (word, height, width)", maps, (len(words), *picture.shape[:2]))
    outline = None if mask is None else _mask(mask, picture.shape[:2])
    check_integer("columns", columns, 1)
    columns = min(columns, len(words) + 1)
    rows = math.ceil((len(words) + 1) / columns)
    side = 1.6
    height = rows * (side * picture.shape[0] / picture.shape[1] + 0.2)
    lines = textwrap.wrap(title, int(columns * side * 11.5))
    figure = new_figure(columns * side + 0.75, height + 0.25 * len(lines) + 0.1)
    panels = figure.subplots(rows, columns, squeeze=False)
    highest = float(layers.max()) or 1.0
    for index, axes in enumerate(panels.flat):
        axes.set_axis_off()
        if index == 0:
            _show(axes, picture, outline)
            axes.set_title("image", loc="left", fontsize=9, color=FAINT, style="italic")
        elif index <= len(words):
            layer = layers[index - 1]
            _show(axes, _blend(picture, layer, highest), outline)
            word = _shorten(words[index - 1])
            axes.set_title(word, loc="left", fontsize=10, color=INK)
            axes.set_title(f"{layer.max():.2g}", loc="right", fontsize=8, color=FAINT)
    _add_colourbar(figure, panels, highest)
    if lines:
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11, color=INK)
    return without_math(figure)


def plot_grounding_examples(examples: Sequence[GroundingExample], *, title: str = "") -> Figure:
    """Words that name a finding and where they look, beside controls: one row per example.

    A row shows the image, its sentence with the words in bold, and one column per map with the
    true mask outlined. The maps of a row share one colour scale, so that a flat control looks
    faint instead of noisy; a key below the rows says so.

    Args:
        examples: rows, all with the same titles of maps, in the same order.
        title: over the figure.

    Returns:
        A matplotlib figure.

    Raises:
        DataError: no example, or rows with different maps; values out of range or NaN.
        ShapeError: the shapes do not fit.
        OptionError: ``start`` and ``stop`` are no words of the sentence.
    """
    if not examples:
        raise DataError("examples must hold at least one row; there is nothing to draw.")
    columns = list(examples[0].maps)
    for example in examples:
        if list(example.maps) != columns:
            raise DataError(
                f"examples must have the same maps in every row; got {columns} and "
                f"{list(example.maps)}."
            )
        if not 0 <= example.start < example.stop <= len(example.words):
            raise OptionError(
                f"start and stop must be words of the {len(example.words)} in the sentence; "
                f"got {example.start} and {example.stop}."
            )
    side, text = 1.7, (_TEXT_CHARACTERS + 2) * _CHARACTER / 72
    pictures = [_picture(example.image) for example in examples]
    height = side * max(each.shape[0] / each.shape[1] for each in pictures)
    heading, key = 0.3 if title else 0.0, 0.3 if columns else 0.0
    high = height * len(examples) + 0.25 + heading + key
    figure = new_figure(text + side * (1 + len(columns)), high)
    layout: Any = figure.get_layout_engine()
    layout.set(rect=(0, key / high, 1, 1 - key / high))
    panels = figure.subplots(
        len(examples),
        2 + len(columns),
        squeeze=False,
        gridspec_kw={"width_ratios": [text / side, *[1] * (1 + len(columns))]},
    )
    for row, example, picture in zip(panels, examples, pictures, strict=True):
        _draw_example(row, example, picture)
    for axes, name in zip(panels[0, 1:], ["image", *columns], strict=True):
        axes.set_title(name, fontsize=10, color=INK)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, fontweight="bold")
    if columns:
        _add_key(figure, any(example.mask is not None for example in examples))
    return without_math(figure)


def _blend(picture: Array, weights: Array, highest: float, alpha: float = _ALPHA) -> Array:
    strength = np.clip(weights / highest, 0, 1)
    colours = require("matplotlib", "viz").colormaps[_COLORMAP](strength)[..., :3]
    opacity = alpha * strength[..., None]
    return np.asarray((1 - opacity) * picture + opacity * colours, dtype=np.float64)


def _draw_example(row: Any, example: GroundingExample, picture: Array) -> None:
    size = picture.shape[:2]
    outline = None if example.mask is None else _mask(example.mask, size)
    maps = [_map(f"maps[{name!r}]", each, size) for name, each in example.maps.items()]
    highest = max((float(each.max()) for each in maps), default=0.0) or 1.0
    for axes in row:
        axes.set_axis_off()
    _write_sentence(row[0], example)
    _show(row[1], picture, outline)
    for axes, each in zip(row[2:], maps, strict=True):
        _show(axes, _blend(picture, each, highest), outline)


def _write_sentence(axes: Any, example: GroundingExample) -> None:
    """The sentence, wrapped; matplotlib has no bold inside a text, so it is set word by word."""
    lines = _wrap(example.words)
    heading = 1.5 if example.title else 0.0
    top = (len(lines) + heading) / 2

    def write(column: int, line: float, text: str, **font: Any) -> None:
        place = (column * _CHARACTER, (top - line) * _LINE)
        axes.annotate(
            text, (0, 0.5), place, "axes fraction", "offset points", va="top", **font
        ).set_in_layout(False)

    if example.title:
        write(0, 0, example.title, fontsize=10, color=INK, fontweight="bold")
    for number, line in enumerate(lines):
        for column, index, word in line:
            named = example.start <= index < example.stop
            write(
                column,
                number + heading,
                word,
                family="DejaVu Sans Mono",  # comes with matplotlib
                fontsize=8,
                color=_NAMED if named else INK,
                fontweight="bold" if named else "normal",
            )


def _wrap(words: Sequence[str]) -> list[list[tuple[int, int, str]]]:
    """Lines of (column, index, word); punctuation clings to the word before it."""
    lines: list[list[tuple[int, int, str]]] = [[]]
    column = 0
    for index, word in enumerate(words):
        clings = index == 0 or not word[:1].isalnum() or words[index - 1] == "-"
        start = column if clings or not lines[-1] else column + 1
        hangs = clings and len(word) == 1  # a comma may stand in the margin
        if start + len(word) > _TEXT_CHARACTERS + hangs and lines[-1]:
            lines.append([])
            start = 0
        lines[-1].append((start, index, word))
        column = start + len(word)
    if len(lines) > _MOST_LINES:
        del lines[_MOST_LINES:]
        start, _, word = lines[-1][-1]
        lines[-1].append((min(start + len(word), _TEXT_CHARACTERS), -1, " …"))
    return lines


def _show(axes: Any, picture: Array, outline: NDArray[np.bool_] | None) -> None:
    axes.imshow(picture, interpolation="bilinear", vmin=0, vmax=1)
    if outline is not None and outline.any():
        # a frame of background closes the outline of a mask that touches the border
        framed = np.pad(outline.astype(float), 1)
        rows, columns = (np.arange(-1, side + 1) for side in outline.shape)
        for colour, width in (("black", 2.2), (_OUTLINE, 1.1)):
            axes.contour(columns, rows, framed, levels=[0.5], colors=colour, linewidths=width)
        axes.set_xlim(-0.5, outline.shape[1] - 0.5)
        axes.set_ylim(outline.shape[0] - 0.5, -0.5)


def _add_key(figure: Any, outlined: bool) -> None:
    """What colour and outline mean, in the lowest 0.3 inches: the colours as on grey tissue."""
    width, height = figure.get_size_inches()

    def place(left: float, wide: float) -> Any:
        axes = figure.add_axes((left / width, 0.09 / height, wide / width, 0.12 / height))
        axes.set_axis_off()
        return axes

    def write(left: float, text: str) -> None:
        font = {"fontsize": 8, "color": FAINT, "va": "center_baseline"}
        figure.text(left / width, 0.15 / height, text, **font)

    colours = _blend(np.full((1, 64, 3), 0.5), np.linspace(0, 1, 64)[None], 1.0)
    write(0.05, "attention: none")
    place(1.0, 1.2).imshow(colours, aspect="auto", interpolation="bilinear")
    write(2.27, "the most in its row")
    if outlined:
        line = place(3.65, 0.25)
        for colour, thick in (("black", 2.2), (_OUTLINE, 1.1)):
            line.plot((0, 1), (0, 0), color=colour, linewidth=thick)
        write(3.97, "where the finding truly is")


def _add_colourbar(figure: Any, panels: Any, highest: float) -> None:
    cm = require("matplotlib.cm", "viz")
    colors = require("matplotlib.colors", "viz")
    scale = cm.ScalarMappable(colors.Normalize(0, highest), _COLORMAP)
    length = min(1.0, 2.5 / len(panels))
    bar = figure.colorbar(
        scale, ax=panels, fraction=0.02, pad=0.01, aspect=25, shrink=length, anchor=(0, 1)
    )
    bar.outline.set_visible(False)
    bar.set_label("attention per region", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8, colors=FAINT)


def _shorten(word: str) -> str:
    return word if len(word) <= 15 else word[:14] + "…"


def _picture(image: Picture) -> Array:
    """``(height, width, 3)`` in [0, 1]."""
    values = _array(image)
    if values.ndim == 3 and values.shape[0] in (1, 3):
        values = np.broadcast_to(np.moveaxis(values, 0, -1), (*values.shape[1:], 3))
    elif values.ndim == 2:
        values = np.repeat(values[..., None], 3, axis=-1)
    else:
        raise ShapeError(
            f"image must be (height, width) or (3, height, width); got {values.shape}."
        )
    if values.size == 0 or not (values.min() >= 0 and values.max() <= 1):
        raise DataError(
            "image must hold values in [0, 1]; undo the encoder's normalisation, or divide "
            "8-bit values by 255."
        )
    return values


def _map(name: str, values: Picture, shape: tuple[int, ...]) -> Array:
    weights = _array(values)
    if weights.shape != shape:
        raise ShapeError(
            f"{name} must be on the image's pixels, {shape}; got {weights.shape}. "
            f"Lay a grid's map on the image with upsample_attention."
        )
    if not (weights.min() >= 0 and weights.max() < np.inf):
        raise DataError(f"{name} must be finite and not negative.")
    return weights


def _mask(values: Picture, size: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = _array(values) > 0.5
    if mask.shape != size:
        raise ShapeError(f"mask must be of the image's size, {size}; got {mask.shape}.")
    return mask


def _array(values: Picture) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
