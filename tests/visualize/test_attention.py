"""Overlays by formula; figures by what stands in them."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from gloria.errors import DataError, DtypeError, OptionError, ShapeError
from gloria.visualize import (
    GroundingExample,
    overlay_attention,
    plot_attention,
    plot_grounding_examples,
)

matplotlib = pytest.importorskip("matplotlib")

IMAGE = torch.linspace(0, 1, 20 * 16).view(20, 16)
MASK = torch.zeros(20, 16, dtype=torch.bool)
MASK[3:9, 2:8] = True


def draw_maps(words, seed=0):
    return torch.rand(words, 20, 16, generator=torch.Generator().manual_seed(seed))


def example(**changes):
    arguments = {
        "image": IMAGE,
        "words": ["small", "left", "pleural", "effusion", "."],
        "start": 2,
        "stop": 4,
        "maps": {"trained": draw_maps(1)[0], "untrained": torch.full((20, 16), 0.01)},
        "mask": MASK,
        "title": "pleural effusion",
    }
    return GroundingExample(**{**arguments, **changes})


def panels(figure):
    return [axes for axes in figure.axes if axes.images]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def titles(figure):
    return [axes.get_title("left") or axes.get_title() for axes in panels(figure)]


def pixels(axes):
    return np.asarray(axes.images[0].get_array())


def drawn(figure):
    figure.canvas.draw()  # raises (or warns, which is an error here) where a figure is broken
    return np.asarray(figure.canvas.buffer_rgba())


def test_nothing_attended_leaves_the_image_and_the_most_gets_the_colour():
    attention = torch.zeros(20, 16)
    attention[4, 5], attention[6, 7] = 2.0, 1.0
    overlay = overlay_attention(IMAGE, attention, alpha=0.8)
    untouched = attention.numpy() == 0
    grey = np.repeat(IMAGE.numpy()[..., None], 3, -1)
    np.testing.assert_allclose(overlay[untouched], grey[untouched], rtol=1e-6)
    colours = matplotlib.colormaps["inferno"]
    np.testing.assert_allclose(
        overlay[4, 5], 0.2 * grey[4, 5] + 0.8 * np.array(colours(1.0)[:3]), rtol=1e-6
    )
    np.testing.assert_allclose(
        overlay[6, 7], 0.6 * grey[6, 7] + 0.4 * np.array(colours(0.5)[:3]), rtol=1e-6
    )


def test_colour_images_arrays_and_shared_scales():
    colour = torch.rand(3, 20, 16)
    attention = draw_maps(1)[0]
    overlay = overlay_attention(colour.numpy(), attention.numpy(), highest=2)
    assert overlay.shape == (20, 16, 3)
    assert overlay.min() >= 0
    assert overlay.max() <= 1
    np.testing.assert_allclose(overlay, overlay_attention(colour, attention * 3, highest=6))
    np.testing.assert_allclose(
        overlay_attention(colour, attention * 0), colour.numpy().transpose(1, 2, 0), rtol=1e-6
    )
    np.testing.assert_allclose(
        overlay_attention(IMAGE, attention), overlay_attention(IMAGE[None], attention)
    )


@pytest.mark.parametrize("count", [1, 5, 6, 13])
def test_every_word_has_its_panel_on_one_scale(count):
    words = [f"word{i}" for i in range(count)]
    maps = draw_maps(count)
    maps[0] *= 100
    figure = plot_attention(IMAGE, words, maps, mask=MASK, title="a report " * 30)
    assert titles(figure) == ["image", *words]
    shown = panels(figure)
    np.testing.assert_allclose(pixels(shown[0])[..., 0], IMAGE, rtol=1e-6)
    for axes, map_ in zip(shown[1:], maps, strict=True):
        expected = overlay_attention(IMAGE, map_, highest=maps.max().item())
        np.testing.assert_allclose(pixels(axes), expected)
        # what the one loud word's colours hide of the others
        assert float(axes.get_title("right")) == pytest.approx(map_.max().item(), rel=0.05)
    assert drawn(figure).std() > 0


def test_a_map_of_zeros_and_a_mask_of_the_whole_image_can_be_drawn():
    drawn(plot_attention(IMAGE, ["none"], torch.zeros(1, 20, 16), mask=MASK | True))


def test_dollar_signs_are_no_formula():
    """Matplotlib would set what is between two of them, or stumble over it."""
    drawn(plot_attention(IMAGE, ["$x_$"], draw_maps(1), title="for $5_ or $6_"))
    row = example(
        words=["a", "$x_$"], start=0, stop=1, title="$y_$", maps={"$m_$": draw_maps(1)[0]}
    )
    drawn(plot_grounding_examples([row], title="$t_$"))


def test_the_outline_runs_around_the_mask():
    figure = plot_attention(IMAGE, ["effusion"], draw_maps(1), mask=MASK)
    for axes in panels(figure):
        corners = np.concatenate(
            [path.vertices for lines in axes.collections for path in lines.get_paths()]
        )
        np.testing.assert_allclose(corners.min(0), (1.5, 2.5))
        np.testing.assert_allclose(corners.max(0), (7.5, 8.5))


def test_examples_stand_in_rows_with_their_controls():
    figure = plot_grounding_examples([example(), example(title="edema", mask=None)], title="Where")
    assert titles(figure)[:3] == ["image", "trained", "untrained"]
    assert len(panels(figure)) == 6 + 1  # and the colours of the key
    assert {"pleural effusion", "edema"} <= set(texts(figure))
    bold = [
        text.get_text()
        for axes in figure.axes
        for text in axes.texts
        if text.get_weight() == "bold" and text.get_size() < 9
    ]
    assert bold == ["pleural", "effusion"] * 2
    assert figure.get_suptitle() == "Where"
    drawn(figure)


def test_the_key_has_the_colours_and_outline_of_the_maps():
    def key(**changes):
        figure = plot_grounding_examples([example(**changes)])
        drawn(figure)
        return panels(figure), {text.get_text() for text in figure.texts}

    shown, words = key()
    grey, scale = torch.full((1, 64), 0.5), torch.linspace(0, 1, 64)[None]
    np.testing.assert_allclose(pixels(shown[-1]), overlay_attention(grey, scale))
    assert words == {"attention: none", "the most in its row", "where the finding truly is"}
    _, words = key(mask=None)
    assert "where the finding truly is" not in words
    shown, words = key(maps={})
    assert (len(shown), words) == (1, set())  # the image alone needs none


def test_the_maps_of_an_example_share_one_scale():
    strong, weak = draw_maps(2)
    figure = plot_grounding_examples([example(maps={"strong": strong, "weak": weak / 50})])
    expected = overlay_attention(IMAGE, weak / 50, highest=strong.max().item())
    np.testing.assert_allclose(pixels(panels(figure)[2]), expected)


def test_a_sentence_is_wrapped_without_losing_words():
    sentence = "there is a small - to - moderate right - sided pleural effusion , unchanged ."
    words = sentence.split(" ")
    figure = plot_grounding_examples([example(words=words, start=10, stop=12, title="")])
    assert texts(figure) == words
    places = [text.xyann for text in figure.axes[0].texts]
    assert len({y for _, y in places}) > 1
    assert all(left[1] > right[1] or left[0] < right[0] for left, right in pairwise(places))


def test_a_long_report_is_cut_with_a_sign():
    figure = plot_grounding_examples([example(words=["opacity"] * 200, start=0, stop=1)])
    assert texts(figure)[-1] == " …"
    drawn(figure)


def test_figures_are_in_no_global_list():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = dict(matplotlib.rcParams)
    plot_attention(IMAGE, ["one"], draw_maps(1))
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": IMAGE * 255}, DataError, r"image must hold values in \[0, 1\]"),
        ({"image": IMAGE * float("nan")}, DataError, "image must hold values"),
        ({"image": IMAGE[None, None]}, ShapeError, r"image must be \(height, width\) or \(3"),
        ({"attention": torch.rand(8, 8)}, ShapeError, r"attention .*\(20, 16\).*upsample_att"),
        ({"attention": -draw_maps(1)[0]}, DataError, "attention must be finite and not negative"),
        ({"attention": draw_maps(1)[0] / 0}, DataError, "attention must be finite"),
        ({"alpha": 1.5}, OptionError, r"alpha must be from 0 to 1; got 1\.5"),
        ({"highest": 0.0}, OptionError, "highest must be"),
    ],
)
def test_bad_overlays_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        overlay_attention(**{"image": IMAGE, "attention": draw_maps(1)[0], **arguments})


def test_bad_panels_are_named():
    with pytest.raises(ShapeError, match=r"maps \(word, .* \(1, 20, 16\); got \(2, 20, 16\)"):
        plot_attention(IMAGE, ["one"], draw_maps(2))
    with pytest.raises(
        ShapeError, match=r"maps \(word, height, width\) must be on .*got \(20, 16\)"
    ):
        plot_attention(IMAGE, ["one"], draw_maps(1)[0])
    with pytest.raises(DataError, match="words must hold at least one"):
        plot_attention(IMAGE, [], draw_maps(0))
    with pytest.raises(ShapeError, match=r"mask must be of the image's size, \(20, 16\)"):
        plot_attention(IMAGE, ["one"], draw_maps(1), mask=MASK.T)
    with pytest.raises(OptionError, match="columns must be at least 1; got 0"):
        plot_attention(IMAGE, ["one"], draw_maps(1), columns=0)
    with pytest.raises(DtypeError, match=r"columns must be an integer; got 1\.5"):
        plot_attention(IMAGE, ["one"], draw_maps(1), columns=1.5)


def test_bad_examples_are_named():
    with pytest.raises(DataError, match="examples must hold at least one"):
        plot_grounding_examples([])
    with pytest.raises(DataError, match="examples must have the same maps in every row"):
        plot_grounding_examples([example(), example(maps={"trained": draw_maps(1)[0]})])
    with pytest.raises(OptionError, match="start and stop must be words of the 5"):
        plot_grounding_examples([example(stop=6)])
    with pytest.raises(ShapeError, match=r"maps\['trained'\] must be on the image's pixels"):
        plot_grounding_examples([example(maps={"trained": torch.rand(8, 8)})])
