"""Curves and comparisons: every figure that was logged is drawn, and nothing else."""

import numpy as np
import pytest

from gloria.errors import DataError
from gloria.visualize import plot_comparison, plot_training_curves

pytest.importorskip("matplotlib")


def draw_history(steps):
    rng = np.random.default_rng(0)
    history = []
    for step in range(1, steps + 1):
        record = {"step": step, "learning_rate": 1e-3, "loss": 14 / step + rng.random()}
        record |= {"global_image_to_text": 3 / step, "local_image_to_text": 3 / step}
        record["gradient_norm"] = rng.random()
        if step % 10 == 0:
            record |= {"validation_loss": 15 / step, "validation_precision@5": step / steps}
        history.append(record)
    return history


def curves(figure):
    """Label of each line to its points."""
    return {
        line.get_label(): line.get_xydata()
        for axes in figure.axes
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def headings(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.axison]


@pytest.mark.parametrize("steps", [1, 12, 200])
def test_everything_logged_is_drawn(steps):
    figure = plot_training_curves(draw_history(steps), title="A run")
    expected = {
        "loss",
        "learning rate",
        "global image to text",
        "local image to text",
        "gradient norm",
    }
    panels = {"Loss", "Terms of the loss", "Learning rate", "Gradient norm"}
    if steps >= 10:
        expected |= {"validation loss", "validation precision@5"}
        panels |= {"Validation"}
    assert set(curves(figure)) == expected
    assert set(headings(figure)) == panels
    figure.canvas.draw()


@pytest.mark.parametrize("steps", [1, 12, 200])
def test_names_are_below_the_curves_unless_the_heading_says_them(steps):
    figure = plot_training_curves(draw_history(steps), title="A run")
    figure.canvas.draw()
    named = {}
    for panel in figure.axes:
        if legend := panel.get_legend():
            assert legend.get_window_extent().y1 < panel.get_window_extent().y0
            named[panel.get_title(loc="left")] = [text.get_text() for text in legend.get_texts()]
    expected = {"Terms of the loss": ["global image to text", "local image to text"]}
    if steps >= 10:
        expected["Loss"] = ["loss", "validation loss"]
        expected["Validation"] = ["validation precision@5"]
    assert named == expected


def test_lines_hold_what_was_logged():
    drawn = curves(plot_training_curves(draw_history(200)))
    np.testing.assert_allclose(
        drawn["validation loss"], [(step, 15 / step) for step in range(10, 201, 10)]
    )
    np.testing.assert_allclose(drawn["learning rate"][:, 1], 1e-3)


def test_the_smooth_line_is_the_mean_of_the_steps_around():
    history = draw_history(200)
    smooth = curves(plot_training_curves(history))["loss"]
    values = [record["loss"] for record in history]
    for index in (0, 3, 100, 199):
        around = values[max(index - 4, 0) : index + 5]
        assert smooth[index, 1] == pytest.approx(sum(around) / len(around))


@pytest.mark.parametrize("wild", [1e20, float("inf"), float("nan")])
def test_one_wild_step_is_in_the_means_around_it_only(wild):
    losses = [1.0] * 40
    losses[3] = wild
    figure = plot_training_curves([{"step": i, "loss": each} for i, each in enumerate(losses)])
    smooth = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(smooth[6:], 1)


def test_records_need_not_be_alike():
    figure = plot_training_curves([{"step": 1, "loss": 2.0}, {"step": 2, "validation_loss": 1.0}])
    assert set(curves(figure)) == {"loss", "validation loss"}


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "history must hold at least one record"),
        ([{"step": 1, "loss": 1.0}, {"loss": 1.0}], r"history\[1\] has no 'step'; .*'loss'"),
        ([{"step": 1}], "history must hold figures besides 'step'"),
    ],
)
def test_bad_histories_are_named(history, message):
    with pytest.raises(DataError, match=message):
        plot_training_curves(history)


def test_a_comparison_has_a_line_per_figure_and_a_colour_per_model():
    figures = {
        "precision@5": {"trained": 0.8, "untrained": 0.21, "chance": 0.2},
        "AUROC": {"trained": 0.9, "other image": 0.8, "chance": 0.5},
    }
    figure = plot_comparison(figures, title="Trained and controls")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(figures)
    points = {dots.get_label(): dots.get_offsets().tolist() for dots in axes.collections}
    assert points == {
        "trained": [[0.8, 0], [0.9, 1]],
        "untrained": [[0.21, 0]],
        "chance": [[0.2, 0], [0.5, 1]],
        "other image": [[0.8, 1]],
    }
    order = {dots.get_label(): dots.get_zorder() for dots in axes.collections}
    assert order["chance"] < min(order[name] for name in order if name != "chance")
    colours = [tuple(dots.get_facecolor()[0]) for dots in axes.collections]
    assert len(set(colours)) == 4
    figure.canvas.draw()


def test_a_comparison_of_nothing_is_an_error():
    with pytest.raises(DataError, match="figures must hold at least one"):
        plot_comparison({})
    with pytest.raises(DataError, match="figures must hold a value in every line; 'AUROC' has"):
        plot_comparison({"P@5": {"trained": 1.0}, "AUROC": {}})


def test_what_a_line_lacks_is_left_out_and_a_line_may_have_chance_alone():
    figures = {
        "first": {"trained": 0.5},
        "second": {"chance": 0.2},
        "third": {"other image": 0.4, "trained": 0.7, "chance": 0.1},
    }
    figure = plot_comparison(figures)
    (axes,) = figure.axes
    points = {dots.get_label(): dots.get_offsets().tolist() for dots in axes.collections}
    assert points == {
        "trained": [[0.5, 0], [0.7, 2]],
        "chance": [[0.2, 1], [0.1, 2]],
        "other image": [[0.4, 2]],
    }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(points)
    figure.canvas.draw()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_comparison_of_what_is_no_number_is_an_error(value):
    with pytest.raises(DataError, match=f"'AUROC' of 'untrained' is {value}"):
        plot_comparison({"AUROC": {"trained": 0.9, "untrained": value}})


def test_dollar_signs_are_no_formula():
    name = "$x_$"
    plot_comparison({name: {name: 0.5}}, title=name).canvas.draw()
    plot_training_curves([{"step": 1, name: 0.5}, {"step": 2, name: 1}], title=name).canvas.draw()
