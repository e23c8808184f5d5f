"""The one place that knows matplotlib: figures, colours, and saving them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gloria.checks import check_positive, require
from gloria.errors import OptionError
from gloria.files import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too; blue and orange first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
INK, FAINT, GRID = "#222222", "#6E6E6E", "#E4E4E4"


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, sizes in inches, that no global list of figures knows."""
    figure: Any = require("matplotlib.figure", "viz").Figure(
        figsize=(width, height), layout="constrained", facecolor="white"
    )
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.01, hspace=0.01)
    require("matplotlib.backends.backend_agg", "viz").FigureCanvasAgg(figure)
    return cast("Figure", figure)


def without_math(figure: Figure) -> Figure:
    """The figure, its texts as they are: the dollar signs of a report or a name are no formula."""
    text: Any = require("matplotlib.text", "viz").Text
    for each in figure.findobj(text):
        cast("Any", each).set_parse_math(False)
    return figure


def save_figure(figure: Figure, path: str | Path, *, dpi: float = 150) -> Path:
    """Write a figure; the file is whole or not there, also when the process is killed.

    Args:
        figure: any matplotlib figure.
        path: where; the ending gives the format (``.png``, ``.pdf``, ``.svg``). Missing folders
            are made.
        dpi: dots per inch.

    Returns:
        ``path``.

    Raises:
        OptionError: ``dpi`` is not positive, or matplotlib knows no format of this ending.
    """
    check_positive("dpi", dpi)
    path = Path(path)
    kind = path.suffix[1:].lower()
    if kind not in figure.canvas.get_supported_filetypes():
        raise OptionError(f"path must end in .png, .pdf, .svg or another picture's; got {path}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda draft: figure.savefig(draft, dpi=dpi, format=kind))
    return path


def style_axes(axes: Any, title: str = "", x_label: str = "") -> None:
    """Quiet axes: a light grid behind the data, no box around it."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(x_label, fontsize=9, color=INK)
