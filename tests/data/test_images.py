"""Image files become tensors in [0, 1], whatever their bit depth, and keep their shape."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from gloria.data import Radiographs, Record
from gloria.data.images import center_crop, fit, load_image, normalize
from gloria.errors import DataError, DtypeError, GloriaError, OptionError, ShapeError
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


def test_a_program_is_not_run_whatever_the_file_is_called(tmp_path, ramp, monkeypatch):
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given: ran.append(given))
    Image.fromarray(ramp).save(tmp_path / "a.png", "EPS")
    with pytest.raises(DataError, match=r"a\.png is PostScript, a program; it is not run"):
        load_image(tmp_path / "a.png")
    assert not ran


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


@pytest.mark.parametrize("shape, inner", [((400, 20), (8, 1)), ((20, 400), (1, 8))])
def test_what_is_left_of_a_strip_is_one_pixel_wide(shape, inner):
    """Each pixel the mean of those below a triangle around it, in float64."""

    def shrink(image, pixels):
        stride = image.shape[-1] / pixels
        old, new = torch.arange(image.shape[-1]).double(), torch.arange(pixels).double()
        distance = ((old + 0.5)[None] - (new[:, None] + 0.5) * stride).abs()
        weights = (1 - distance / stride).clamp(min=0)
        return image @ (weights / weights.sum(1, keepdim=True)).T

    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    top, left = (8 - inner[0]) // 2, (8 - inner[1]) // 2
    fitted = fit(image, (8, 8))[:, top : top + inner[0], left : left + inner[1]]
    expected = shrink(shrink(image.double(), inner[1]).mT, inner[0]).mT
    torch.testing.assert_close(fitted.double(), expected, rtol=0, atol=1e-6)


def test_fit_leaves_an_image_of_that_size_alone():
    image = torch.rand(3, 16, 12)
    assert torch.equal(fit(image, (16, 12)), image)


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_fit_needs_pixels(size):
    with pytest.raises(OptionError, match=r"size must be .* in pixels, above 0; got"):
        fit(torch.ones(1, 4, 4), size)
    with pytest.raises(ShapeError, match="image must be"):
        fit(torch.ones(4, 4), (8, 8))


def test_one_channel_does_not_spread_over_three():
    image_input = ImageInput(3, None, (0.5,) * 3, (0.5,) * 3)
    for shape in ((2, 1, 4, 4), (1, 4, 4), (4, 4)):
        with pytest.raises(ShapeError, match="with 3 channels, as the image encoder wants; got"):
            normalize(torch.zeros(shape), image_input)


def test_images_of_0_to_255_are_not_normalized():
    with pytest.raises(DtypeError, match=r"in \[0, 1\]; got torch.uint8"):
        normalize(torch.zeros(1, 1, 2, 2).byte(), ImageInput(1, None, (0.5,), (0.5,)))


def test_normalize():
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    image_input = ImageInput(3, None, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    found = normalize(images, image_input)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.6), (0.3, 0.7)]):
        torch.testing.assert_close(found[:, channel], (images[:, channel] - mean) / std)


SIDES = np.array([[250, 250, 120], [120, 10, 10]], np.uint8).repeat(8, 0).repeat(8, 1)
"""Bright above and on the left: every way to turn or mirror it is another picture."""


@pytest.mark.parametrize("kind", ["jpg", "png", "tiff"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.T),
        (6, lambda stored: np.rot90(stored, -1)),
        (7, lambda stored: stored[::-1, ::-1].T),
        (8, lambda stored: np.rot90(stored, 1)),
    ],
)
def test_a_picture_is_turned_and_mirrored_as_it_says(kind, orientation, upright, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(SIDES).save(path, exif=exif, **({"quality": 100} if kind == "jpg" else {}))
    expected = upright(SIDES / 255)
    for channels in (1, 3):
        image = load_image(path, channels)[-1].numpy()
        assert image.shape == expected.shape
        np.testing.assert_allclose(image, expected, atol=0.02)
    data = Radiographs([Record("a", path, "")], size=expected.shape)
    np.testing.assert_allclose(data[0].image[0].numpy(), expected, atol=0.02)


def test_sixteen_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SIDES.astype(np.uint16) * 257).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_allclose(
        load_image(tmp_path / "a.png")[0].numpy(), np.rot90(SIDES, -1) / 255, atol=1e-6
    )


def test_what_is_transparent_is_black_not_what_lies_below(tmp_path):
    alpha = np.array([[255, 0], [51, 255]], np.uint8)
    white = np.full_like(alpha, 255)
    Image.fromarray(np.dstack([white, alpha])).save(tmp_path / "la.png")
    Image.fromarray(np.dstack([white, white, white, alpha])).save(tmp_path / "rgba.png")
    for name in ("la.png", "rgba.png"):
        for channels in (1, 3):
            image = load_image(tmp_path / name, channels)
            assert image.shape == (channels, 2, 2)
            np.testing.assert_allclose(image[-1].numpy(), alpha / 255, atol=1e-6)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([255] * 6)
    palette.save(tmp_path / "p.png", transparency=0)
    assert load_image(tmp_path / "p.png").tolist() == [[[0, 1]]]


def test_opaque_alpha_changes_nothing(tmp_path, ramp):
    Image.fromarray(ramp).save(tmp_path / "l.png")
    Image.fromarray(ramp).convert("RGBA").save(tmp_path / "rgba.png")
    assert torch.equal(load_image(tmp_path / "l.png"), load_image(tmp_path / "rgba.png"))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_file_in_which_zero_is_white(bits, tmp_path):
    levels = np.array([[0, 255, 51]], np.uint8).astype("<u2" if bits == 16 else "u1")
    data = (levels * 257 if bits == 16 else levels).tobytes()
    entries = {256: 3, 257: 1, 258: bits, 259: 1, 262: 0, 273: 8, 277: 1, 278: 1, 279: len(data)}
    directory = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
        for tag, value in entries.items()
    )
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    directory = struct.pack("<H", len(entries)) + directory + bytes(4)
    (tmp_path / "a.tiff").write_bytes(header + data + directory)
    np.testing.assert_allclose(load_image(tmp_path / "a.tiff").numpy(), [[[1, 0, 0.8]]], atol=1e-6)
    low = load_image(tmp_path / "a.tiff", window=(25500, 51000) if bits == 16 else (100, 200))
    assert low[0, 0, :2].tolist() == [1, 0]


def test_several_frames_are_not_one(tmp_path, ramp):
    frames = [Image.fromarray(ramp), Image.fromarray(ramp.T.copy())]
    for name in ("stack.tiff", "film.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=f"{name} has 2 frames; one was expected"):
            load_image(tmp_path / name)


def test_colours_of_sixteen_bits_would_lose_half_of_them(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    film = np.full((2, 3, 3), 4095, ">u2")  # white of 12 bits; 15 of 255 for Pillow
    rows = b"".join(b"\0" + row.tobytes() for row in film)
    header = struct.pack(">IIBBBBB", 3, 2, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"a\.png has colours of 16 bits; Pillow would read 8"):
        load_image(tmp_path / "a.png", 3, bits=12)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGB", "P", "CMYK", "I;16"])
def test_three_channels_of_a_gray_file_are_three_times_one(mode, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (61, 43)).astype(np.uint8)
    picture = Image.fromarray(levels)
    if mode == "I;16":
        picture = Image.fromarray(levels.astype(np.uint16) * 257)
    elif mode != "L":
        picture = picture.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    one, three = (
        Radiographs([Record("a", path, "")], size=(16, 16), channels=channels)[0].image
        for channels in (1, 3)
    )
    assert three.shape == (3, 16, 16)
    assert three.is_contiguous()
    assert torch.equal(three, fit(load_image(path, 3), (16, 16)))
    assert torch.equal(three, one.expand(3, -1, -1))
