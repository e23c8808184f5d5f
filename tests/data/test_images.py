"""Image files become tensors in [0, 1], whatever their bit depth, and keep their shape."""

import numpy as np
import pytest
import torch
from PIL import Image

from gloria.data.images import center_crop, fit, load_image, normalize
from gloria.errors import DataError, GloriaError, OptionError, ShapeError
from gloria.types import ImageInput


@pytest.fixture
def ramp():
    return np.linspace(0, 255, 6 * 5).reshape(6, 5).astype(np.uint8)


def test_eight_bits(ramp, tmp_path):
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.dtype == torch.float32
    np.testing.assert_allclose(image.numpy(), ramp[None] / 255, atol=1e-7)
    assert load_image(tmp_path / "a.png", channels=3).shape == (3, 6, 5)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_film_that_lies_on_its_side_is_turned_upright(tmp_path, kind):
    """An EXIF orientation of 6: what is the top row lies in the last column."""
    pixels = np.linspace(0, np.iinfo(kind).max, 30).reshape(6, 5).astype(kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels).copy()).save(tmp_path / "a.png", exif=exif)
    upright = load_image(tmp_path / "a.png")[0].numpy()
    np.testing.assert_allclose(upright, pixels / np.iinfo(kind).max, atol=1e-6)


def test_sixteen_bits_are_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 30).reshape(6, 5).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    for channels in (1, 3):
        image = load_image(tmp_path / "a.png", channels)
        assert image.shape == (channels, 6, 5)
        np.testing.assert_allclose(image[-1].numpy(), deep / 65535, atol=1e-6)


def test_twelve_bits_in_a_sixteen_bit_file_are_never_nearly_black(tmp_path):
    film = np.linspace(0, 4095, 30).reshape(6, 5).astype(np.uint16)
    Image.fromarray(film).save(tmp_path / "a.png")
    with pytest.raises(OptionError, match=r"a\.png has 16 bits a pixel and uses 12: .* bits=12"):
        load_image(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", bits=12)
    np.testing.assert_allclose(image[0].numpy(), film / 4095, atol=1e-6)
    dark = load_image(tmp_path / "a.png", bits=16)  # said so, believed
    np.testing.assert_allclose(dark[0].numpy(), film / 65535, atol=1e-6)
    with pytest.raises(OptionError, match="pixels outside 10 bits: they are from 0 to 4095"):
        load_image(tmp_path / "a.png", bits=10)
    with pytest.raises(OptionError, match="bits must be from 1 to 16; got 24"):
        load_image(tmp_path / "a.png", bits=24)


def test_the_brightness_of_a_film_does_not_depend_on_its_own_maximum(tmp_path):
    for name, maximum in (("dim", 1000), ("bright", 4000)):
        Image.fromarray(np.array([[500, maximum]], np.uint16)).save(tmp_path / f"{name}.png")
    first, second = (load_image(tmp_path / f"{name}.png", bits=12) for name in ("dim", "bright"))
    assert first[0, 0, 0] == second[0, 0, 0] == torch.tensor(500 / 4095)


def test_colours_and_palettes(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (4, 7, 3), np.uint8)
    Image.fromarray(colour).save(tmp_path / "rgb.png")
    np.testing.assert_allclose(
        load_image(tmp_path / "rgb.png", 3).numpy(), colour.transpose(2, 0, 1) / 255, atol=1e-7
    )
    assert load_image(tmp_path / "rgb.png", 1).shape == (1, 4, 7)
    Image.fromarray(colour).convert("P").save(tmp_path / "p.png")
    Image.fromarray(colour).convert("RGBA").save(tmp_path / "rgba.png")
    assert load_image(tmp_path / "p.png", 3).shape == (3, 4, 7)
    assert load_image(tmp_path / "rgba.png", 3).shape == (3, 4, 7)


def test_files_that_are_no_images(tmp_path, ramp):
    Image.fromarray(ramp).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.png", "empty.png", "text.png"):
        with pytest.raises(DataError, match=name) as broken:
            load_image(tmp_path / name)
        assert str(broken.value).count(name) == 1
        assert not str(broken.value).endswith("..")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png can't be read: Is a directory\.$"):
        load_image(tmp_path / "folder.png")
    with pytest.raises(GloriaError, match=r"none\.png does not exist"):
        load_image(tmp_path / "none.png")


def test_pixels_without_a_range_and_channels_that_are_none(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff has float pixels without a range"):
        load_image(tmp_path / "a.tiff")
    with pytest.raises(OptionError, match="channels must be 1 or 3; got 2"):
        load_image(tmp_path / "a.tiff", channels=2)


@pytest.mark.parametrize("shape", [(2, 5, 7), (5, 7)])
def test_center_crop(shape):
    images = torch.arange(torch.Size(shape).numel()).reshape(shape)
    assert torch.equal(center_crop(images, (3, 2)), images[..., 1:4, 2:4])
    assert torch.equal(center_crop(images, (5, 7)), images)
    with pytest.raises(ShapeError, match=r"at least \(6, 2\), the crop's size; got \(5, 7\)"):
        center_crop(images, (6, 2))


@pytest.mark.parametrize("shape", [(40, 40), (40, 20), (13, 57), (8, 8), (1, 9)])
def test_fit_keeps_the_aspect_and_centres(shape):
    image = torch.ones(1, *shape)
    fitted = fit(image, (16, 16))
    assert fitted.shape == (1, 16, 16)
    rows, columns = fitted[0].any(1).sum(), fitted[0].any(0).sum()
    assert max(rows, columns) == 16
    assert abs(rows / columns - shape[0] / shape[1]) < 0.1 or min(rows, columns) <= 2
    top, bottom = fitted[0].any(1).int().argmax(), fitted[0].flip(0).any(1).int().argmax()
    assert abs(top - bottom) <= 1


def test_fit_leaves_an_image_of_that_size_alone():
    image = torch.rand(3, 16, 12)
    assert torch.equal(fit(image, (16, 12)), image)


@pytest.mark.parametrize(
    ("size", "message"), [((0, 8), "height in size must be at least 1; got 0"), ((8, -1), "width")]
)
def test_fit_needs_pixels(size, message):
    with pytest.raises(OptionError, match=message):
        fit(torch.ones(1, 4, 4), size)
    with pytest.raises(ShapeError, match="image must be"):
        fit(torch.ones(4, 4), (8, 8))


def test_one_channel_does_not_spread_over_three():
    image_input = ImageInput(3, None, (0.5,) * 3, (0.5,) * 3)
    for shape in ((2, 1, 4, 4), (1, 4, 4), (4, 4)):
        with pytest.raises(ShapeError, match="with 3 channels, as the image encoder wants; got"):
            normalize(torch.zeros(shape), image_input)


def test_normalize():
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    image_input = ImageInput(3, None, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    expected = (images.numpy() - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array(
        [0.5, 0.6, 0.7]
    )[:, None, None]
    np.testing.assert_allclose(
        normalize(images, image_input).numpy(), expected, rtol=1e-5, atol=1e-6
    )
