"""Pictures: attention over images, training curves, comparisons of figures.

Every function returns a matplotlib ``Figure`` and touches no global state of matplotlib; it can be
saved with :func:`save_figure`, or shown by a notebook as it is. Without matplotlib, each is a
:class:`~gloria.errors.MissingDependencyError`.
"""

from gloria.visualize.attention import (
    GroundingExample,
    overlay_attention,
    plot_attention,
    plot_grounding_examples,
)
from gloria.visualize.curves import plot_comparison, plot_training_curves
from gloria.visualize.figure import save_figure

__all__ = [
    "GroundingExample",
    "overlay_attention",
    "plot_attention",
    "plot_comparison",
    "plot_grounding_examples",
    "plot_training_curves",
    "save_figure",
]
