"""DICOM files come out as they should be shown: rescaled, windowed, white is high."""

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from gloria.data import Radiographs, Record, load_image
from gloria.data.masks import Box
from gloria.errors import BrokenItemError, DataError, OptionError

RAMP = np.arange(30).reshape(6, 5)


def shown(path, **options):
    return load_image(path, **options)[0].double().numpy()


def shows(path, expected, **options):
    np.testing.assert_allclose(shown(path, **options), expected, atol=1e-6)


@pytest.mark.parametrize("bits, highest", [(8, 255), (12, 4095), (16, 65535)])
def test_scaled_by_the_bits_that_are_stored(write_dicom, tmp_path, bits, highest):
    pixels = RAMP * (highest // 29)
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=bits)
    shows(path, pixels / highest)
    assert load_image(path, channels=3).shape == (3, 6, 5)


def test_monochrome1_is_inverted(write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    shows(path, 1 - RAMP / 255)


@pytest.mark.parametrize(
    "orientation, turned",
    [
        (["L", "F"], lambda film: film),
        (["R", "F"], np.fliplr),  # patient's left on the left
        (["L", "H"], np.flipud),  # head down
        (["R", "H"], lambda film: film[::-1, ::-1]),
        (["F", "L"], lambda film: film.T),
        (["F", "R"], lambda film: np.rot90(film, -1)),  # the head is on the left
        (["H", "L"], np.rot90),
        (["RA", "FR"], np.fliplr),
        (["A", "F"], lambda film: film),  # from the side
        (["P", "F"], lambda film: film),
        (["P", "H"], np.flipud),
        (["R", "P"], lambda film: film),  # from below; no film
        ("", lambda film: film),
        ("R", lambda film: film),
        (["", "F"], lambda film: film),
    ],
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_a_film_is_upright_as_its_patient_orientation_says(
    write_dicom, tmp_path, orientation, turned, kind
):
    options = {"PatientOrientation": orientation, "PhotometricInterpretation": kind}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **options)
    expected = turned(RAMP) / 255
    shows(path, expected if kind == "MONOCHROME2" else 1 - expected)
    assert load_image(path, channels=3).shape == (3, *expected.shape)


def test_masks_and_boxes_are_of_the_stored_pixels(write_dicom, tmp_path):
    """Where a data set brings them, a film stays with them."""
    path = write_dicom(tmp_path / "a.dcm", RAMP, PatientOrientation=["F", "R"])

    def mask(height, width):
        assert (height, width) == RAMP.shape
        return RAMP == 7

    marked = Record("a", path, "", mask=mask, boxes=(Box(2, 1, 1, 1),))
    item = Radiographs([marked], size=RAMP.shape)[0]
    np.testing.assert_allclose(item.image[0], RAMP / 255, atol=1e-6)
    assert item.image[item.mask].tolist() == [pytest.approx(7 / 255)]
    assert Radiographs([marked], size=RAMP.shape).boxes(0).tolist() == [[2, 1, 3, 2]]
    # one rule for all: or it would tell which of them has a finding
    other = Radiographs([Record("b", path, ""), marked], size=RAMP.shape)[0]
    torch.testing.assert_close(other.image, item.image)
    plain = Radiographs([Record("a", path, "")], size=RAMP.T.shape)
    np.testing.assert_allclose(plain[0].image[0], np.rot90(RAMP, -1) / 255, atol=1e-6)


def linear(values, center, width):
    """The window function of the standard, PS3.3 C.11.2.1.2.1, for one value at a time."""
    out = []
    for x in values.ravel().tolist():
        y = (x - (center - 0.5)) / (width - 1) + 0.5
        out.append(min(max(y, 0), 1))
    return np.array(out).reshape(values.shape)


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_the_files_own_window(write_dicom, tmp_path, kind):
    pixels = RAMP * 100
    window = {"WindowCenter": [1000, 5], "WindowWidth": [800, 2]}  # the first of two
    path = write_dicom(
        tmp_path / "a.dcm", pixels, bits=12, PhotometricInterpretation=kind, **window
    )
    expected = linear(pixels, 1000, 800)
    shows(path, expected if kind == "MONOCHROME2" else 1 - expected)


def test_a_window_is_in_units_after_rescaling(write_dicom, tmp_path):
    pixels = RAMP * 100
    path = write_dicom(
        tmp_path / "a.dcm",
        pixels,
        bits=12,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        WindowCenter=500,
        WindowWidth=600,
    )
    shows(path, linear(pixels * 2 - 1000, 500, 600))
    shows(path, linear(pixels * 2 - 1000, 0, 100), window=(0, 100))


@pytest.mark.parametrize("slope", [2, -2])
def test_rescaling_without_a_window(write_dicom, tmp_path, slope):
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=slope, RescaleIntercept=7)
    expected = RAMP / 255 if slope > 0 else 1 - RAMP / 255
    shows(path, expected)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 9, "WindowWidth": 4}])
def test_a_slope_of_zero_is_named(write_dicom, tmp_path, window):
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=0, RescaleIntercept=7, **window)
    with pytest.raises(DataError, match=r"a\.dcm can't be read: .*RescaleSlope is 0"):
        load_image(path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS", "ignore:.* encountered in multiply")
@pytest.mark.parametrize("window", [None, (9, 4)])
@pytest.mark.parametrize(
    "elements",
    [
        {"RescaleSlope": "nan", "RescaleIntercept": 0},
        {"RescaleSlope": "inf", "RescaleIntercept": 0},
        {"RescaleSlope": 1, "RescaleIntercept": "nan"},
        {"WindowCenter": "nan", "WindowWidth": 4},
        {"WindowCenter": 9, "WindowWidth": "nan"},
    ],
)
def test_a_film_that_would_be_shown_as_nan_is_named(write_dicom, tmp_path, elements, window):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **elements)
    if window is not None and "WindowCenter" in elements:  # the given one takes its place
        assert load_image(path, window=window).isfinite().all()
        return
    with pytest.raises(DataError, match=r"a\.dcm can't be read: it would be shown as NaN"):
        load_image(path, window=window)


def test_signed_pixels(write_dicom, tmp_path):
    pixels = RAMP - 15
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=12)
    shows(path, (pixels + 2048) / 4095)


@pytest.mark.parametrize("rescaled", [False, True])
def test_a_lookup_table(write_dicom, tmp_path, rescaled):
    table = pydicom.Dataset()
    table.LUTDescriptor = [30, 0, 12]
    table.add_new("LUTData", "US", [4095 - 100 * value for value in range(30)])
    more = {"RescaleSlope": 1, "RescaleIntercept": 0} if rescaled else {}
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[table], **more)
    shows(path, (4095 - 100 * RAMP) / 4095)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_files_are_the_same(write_dicom, tmp_path, syntax):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48))
    path = write_dicom(tmp_path / "a.dcm", pixels)
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    dataset.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(shown(tmp_path / "b.dcm"), shown(path))


def test_jpeg_as_rsna_and_siim_have_it(write_dicom, write_image, tmp_path):
    smooth = np.add.outer(np.arange(32), np.arange(48)) * 3
    jpeg = write_image(tmp_path / "a.jpg", smooth.astype(np.uint8)).read_bytes()
    path = write_dicom(tmp_path / "a.dcm", smooth)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    np.testing.assert_allclose(shown(path), smooth / 255, atol=5 / 255)


def test_files_without_a_name_are_known_by_their_first_bytes(write_dicom, tmp_path):
    path = write_dicom(tmp_path / "no_suffix", RAMP)
    shows(path, RAMP / 255)


def test_a_file_without_pixels_is_named(write_dicom, tmp_path):
    path = write_dicom(tmp_path / "report.dcm", None)
    with pytest.raises(DataError, match=r"DICOM file .*report\.dcm has no pixels"):
        load_image(path)


@pytest.mark.parametrize("keep", [0, 100, 300, -10])
def test_a_cut_file_is_named(write_dicom, tmp_path, keep):
    path = write_dicom(tmp_path / "cut.dcm", RAMP)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"cut\.dcm (can't be read|has no pixels)"):
        load_image(path)


@pytest.mark.filterwarnings("ignore")  # pydicom warns of the odd file, too
def test_why_no_decoder_reads_a_film_is_told(write_dicom, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    damaged = pydicom.dcmread(path)
    damaged.file_meta.TransferSyntaxUID = RLELossless
    damaged.PixelData = pydicom.encaps.encapsulate([bytes(60)])
    damaged["PixelData"].VR = "OB"
    damaged.save_as(path)
    with pytest.raises(DataError, match=r"a\.dcm can't be read: .*: pydicom: .*64 bytes long\.$"):
        load_image(path)


def test_colours_and_films_are_no_radiographs(write_dicom, tmp_path):
    colour = write_dicom(tmp_path / "rgb.dcm", RAMP, PhotometricInterpretation="RGB")
    with pytest.raises(DataError, match=r"rgb\.dcm is no radiograph: its pixels are RGB"):
        load_image(colour)
    film = write_dicom(tmp_path / "film.dcm", RAMP, NumberOfFrames=2, Rows=3)
    with pytest.raises(DataError, match=r"film\.dcm has 2 frames"):
        load_image(film)


def test_a_window_of_other_files(write_image, tmp_path):
    path = write_image(tmp_path / "a.png", (RAMP * 100).astype(np.uint16))
    expected = np.clip((RAMP * 100 - 500) / 1000, 0, 1)
    shows(path, expected, window=(1000, 1000))
    path = write_image(tmp_path / "b.png", RAMP.astype(np.uint8))
    expected = torch.from_numpy(np.clip((RAMP - 10) / 10, 0, 1)).float()
    for channels in (1, 3):
        image = load_image(path, channels, window=(15, 10))
        torch.testing.assert_close(image, expected.expand(channels, -1, -1))
    for window in (15, (15,), (15, 0, 1)):
        with pytest.raises(OptionError, match=r"window must be \(center, width\); got "):
            load_image(path, window=window)
    with pytest.raises(OptionError, match="width in window must be a finite number above 0"):
        load_image(path, window=(15, 0))
    with pytest.raises(OptionError, match="centre in window must be a finite number"):
        load_image(path, window=(float("nan"), 10))


def test_a_given_window_is_linear_whatever_the_files_own_is(write_dicom, tmp_path):
    window = {"WindowCenter": 9, "WindowWidth": 4, "VOILUTFunction": "SIGMOID"}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **window)
    shows(path, 1 / (1 + np.exp(9 - RAMP)))
    shows(path, linear(RAMP, 15, 10), window=(15, 10))


def test_a_table_of_the_modality(write_dicom, tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [30, 0, 16]
    table.ModalityLUTType = "US"
    table.add_new("LUTData", "US", [65535 - 2000 * value for value in range(30)])
    path = write_dicom(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=[table])
    shows(path, (65535 - 2000 * RAMP) / 65535)


def test_a_film_that_would_be_nearly_of_one_gray(write_dicom, tmp_path):
    pixels = RAMP * 100  # 12 bits of the 16 that are declared
    path = write_dicom(tmp_path / "a.dcm", pixels, bits=16)
    with pytest.raises(
        DataError,
        match=r"a\.dcm has values from 0 to 2900: .* the 16 bits a pixel that it declares",
    ):
        load_image(path)
    shows(path, linear(pixels, 1450, 2900), window=(1450, 2900))
    path = write_dicom(tmp_path / "b.dcm", pixels, bits=16, WindowCenter=1450, WindowWidth=2900)
    shows(path, linear(pixels, 1450, 2900))
    path = write_dicom(tmp_path / "b.dcm", pixels - 1450, bits=16, WindowCenter=0, WindowWidth=2900)
    shows(path, linear(pixels - 1450, 0, 2900))
    write_dicom(tmp_path / "c.dcm", RAMP * 1000, bits=16)  # uses enough of them
    load_image(tmp_path / "c.dcm")


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": 300, "WindowWidth": 1200},
        {"RescaleSlope": -2, "RescaleIntercept": 50},
        {"RescaleSlope": 0.5, "RescaleIntercept": -7, "WindowCenter": 90, "WindowWidth": 301},
        {"WindowCenter": 300, "WindowWidth": 1200, "VOILUTFunction": "SIGMOID"},
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_large_film_is_shown_as_a_small_one(write_dicom, tmp_path, elements, signed):
    """Of a film with more pixels than values, each value is shown once."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(-512 if signed else 0, 512 if signed else 1024, (64, 96))
    large = shown(write_dicom(tmp_path / "large.dcm", pixels, bits=10, **elements))
    assert pixels.size > 1 << 10
    for row in (0, 17):
        strip = pixels[row : row + 4]  # as few pixels as are shown one by one
        strip[0, 0] = -1 if signed else strip[0, 0]  # or it would be written as unsigned
        path = write_dicom(tmp_path / "small.dcm", strip, bits=10, **elements)
        small = shown(path)
        assert np.array_equal(small[1:], large[row + 1 : row + 4])


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("bits", [12, 16])
def test_a_film_that_its_own_window_makes_nearly_of_one_gray(write_dicom, tmp_path, kind, bits):
    own = {"WindowCenter": 40000, "WindowWidth": 10, "PhotometricInterpretation": kind}
    path = write_dicom(tmp_path / "a.dcm", RAMP * 100, bits=bits, **own)
    fault = r"a\.dcm has values from 0 to 2900: .* own window, center 40000.* and width 10.* Say"
    with pytest.raises(DataError, match=fault) as broken:
        load_image(path)
    assert not isinstance(broken.value, OptionError)  # of this file, which can be left out
    assert np.ptp(shown(path, window=(1450, 2900))) > 0.9  # the way on
    write_dicom(path, RAMP * 100, bits=bits, **own | {"RescaleSlope": 1, "RescaleIntercept": 38600})
    load_image(path)  # it is of the values after rescaling
    sigmoid = {"WindowWidth": 2000, "VOILUTFunction": "SIGMOID"}
    write_dicom(path, RAMP * 100, bits=bits, **own | sigmoid)
    with pytest.raises(DataError, match="its own window"):
        load_image(path)


def test_a_film_that_its_own_table_makes_nearly_of_one_gray(write_dicom, tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [30, 0, 12]
    table.add_new("LUTData", "US", [4000 + value for value in range(30)])
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=[table])
    with pytest.raises(DataError, match="nearly of one gray by its own VOI lookup table"):
        load_image(path)


def test_a_window_that_makes_films_nearly_of_one_gray(write_dicom, write_image, tmp_path):
    """Of files of 8 bits, too."""
    levels = np.linspace(0, 255, 30).reshape(6, 5).astype(np.uint8)
    colours = np.stack([levels] * 3, -1)
    paths = [
        write_dicom(tmp_path / "a.dcm", RAMP * 8, bits=12, WindowCenter=120, WindowWidth=240),
        write_image(tmp_path / "b.png", levels.astype(np.uint16)),
        write_image(tmp_path / "c.png", levels),
        write_image(tmp_path / "d.png", colours),
    ]
    for path in paths:
        for window in ((2048, 4096), (-50, 20), (70000, 10)):
            fault = rf"{path.name} has pixel values from 0 to 2\d\d: .* window=\({window[0]}, "
            with pytest.raises(DataError, match=fault):
                load_image(path, 3, window=window)
        assert np.ptp(shown(path, window=(120, 240))) > 0.9
        films = [Record("x", path, "my.csv, row 2")]
        data = Radiographs(films, size=(8, 8), window=(9999, 1))
        with pytest.raises(DataError, match=r"is left of 1; first: my\.csv, row 2: .*of one gray"):
            data.without_broken()
        write_dicom(tmp_path / "other.dcm", RAMP * 2000, bits=16)
        films.append(Record("y", tmp_path / "other.dcm", "my.csv, row 3"))
        data = Radiographs(films, size=(8, 8), window=(29000, 58000))
        with pytest.raises(BrokenItemError, match=r"my\.csv, row 2: .*of one gray"):
            data[0]
        whole = data.without_broken()  # one film is no reason to stop
        assert whole.ids == ["y"]
        assert "my.csv, row 2" in whole.skipped[0]


@pytest.mark.parametrize("window", [None, (2048, 4096)])
def test_a_dark_film_and_one_of_a_single_value_are_no_fault_of_a_window(
    write_dicom, write_image, tmp_path, window
):
    own = {"WindowCenter": 2048, "WindowWidth": 4096}
    dark, blank = np.full((6, 5), 20), np.full((6, 5), 20)
    dark[3, 3] = 20 + 4096 // 16  # as little of the range as may be
    for name, pixels in (("dark", dark), ("blank", blank)):
        shown = load_image(
            write_dicom(tmp_path / f"{name}.dcm", pixels, bits=12, **own), window=window
        )
        assert shown.max() < 0.1
        path = write_image(tmp_path / f"{name}.png", pixels.astype(np.uint16))
        assert load_image(path, bits=12, window=window).max() < 0.1
    collimated = RAMP * 10
    collimated[:3] = 4095
    load_image(write_dicom(tmp_path / "edge.dcm", collimated, bits=12, **own), window=window)
