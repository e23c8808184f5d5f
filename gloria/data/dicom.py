"""A DICOM file's pixels as they should be shown, by pydicom."""

from __future__ import annotations

from collections.abc import MutableSequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gloria.checks import require
from gloria.errors import DataError

_UP_AND_DOWN = ("H", "F")  # head, foot
_SIDES = ("L", "R", "A", "P")  # of the patient; from the side, anterior or posterior

Window = tuple[float, float]
"""Centre and width of the pixel values that are spread from black to white."""

LEAST_CONTRAST = 1 / 16
"""How far apart the darkest and the brightest pixel must be shown, black being 0 and white 1."""


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes or its name."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


def read_dicom(
    path: Path, window: Window | None = None, *, upright: bool = True
) -> NDArray[np.float32]:
    """Read a radiograph from a DICOM file as it should be shown.

    The modality's rescaling is applied, then the file's VOI lookup table or first window, then
    MONOCHROME1 is inverted, so that high is always white. The result is scaled by the range that
    the file declares, never by the values that happen to be in it. A film that PatientOrientation
    tells to be mirrored or turned is put right: head up, and the patient's left on the right.

    Args:
        path: the file.
        window: centre and width, in units after rescaling, instead of the file's own.
        upright: False = leave the pixels where they are stored, whatever PatientOrientation says.

    Returns:
        ``(height, width)`` in [0, 1].

    Raises:
        DataError: the file has no pixels, several frames or colours; or the film would be nearly
            of one gray: ``window``, its own window or its lookup table makes it so, or it has none,
            declares more than 12 bits and uses less than a sixteenth of their range.
        Exception: anything, as pydicom does of a damaged file; of a missing decoder, it is named.
    """
    pydicom = require("pydicom", "tasks")
    dataset = pydicom.dcmread(path)
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        raise DataError(f"DICOM file {path} has no pixels.")
    kind = dataset.PhotometricInterpretation
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise DataError(f"DICOM file {path} is no radiograph: its pixels are {kind}.")
    pixels = dataset.pixel_array
    if pixels.ndim != 2:
        raise DataError(f"DICOM file {path} has {len(pixels)} frames; one was expected.")
    shown = _shown_once(dataset, pixels, window)
    if np.ptp(shown) < LEAST_CONTRAST:
        _check_contrast(path, dataset, pixels, shown, window)
    if kind == "MONOCHROME1":
        shown = 1 - shown
    return _upright(dataset.get("PatientOrientation"), shown) if upright else shown


def _upright(directions: Any, film: NDArray[np.float32]) -> NDArray[np.float32]:
    r"""A film as one reads it: head up and, seen from the front, the patient's left on the right.

    Args:
        directions: PatientOrientation, where rows and columns run to: ``L\F`` is such a film,
            ``R\F`` its mirror image; further letters of a direction are its lesser parts. Anything
            that does not tell what is up leaves the film as it is.
        film: ``(height, width)``.
    """
    if not isinstance(directions, MutableSequence) or len(directions) != 2:
        return film
    across, down = (direction[:1] for direction in directions)
    if across in _UP_AND_DOWN and down in _SIDES:
        film, across, down = film.T, down, across
    if across in _SIDES and down in _UP_AND_DOWN:
        film = film[::-1] if down == "H" else film
        film = film[:, ::-1] if across == "R" else film
    return film


def check_window(
    path: Path, values: NDArray[Any], shown: NDArray[np.float32], window: Window
) -> None:
    """Refuse a given window that makes nearly one gray of a film which is not of one value.

    ``values`` are in the window's units, and ``shown`` is what it makes of them.
    """
    if np.ptp(shown) < LEAST_CONTRAST and values.min() < values.max():
        raise DataError(
            f"{path} has pixel values from {values.min():g} to {values.max():g}: it would be "
            f"nearly of one gray by window=({window[0]:g}, {window[1]:g}), which is for every "
            f"file. Leave this one out, or give a window that suits all, or none: DICOM files have "
            f"their own, files of 8 bits need none, and for those of 16 give their bits, such as "
            f"bits=12, or --bits 12."
        )


def _check_contrast(
    path: Path,
    dataset: Any,
    pixels: NDArray[Any],
    shown: NDArray[np.float32],
    window: Window | None,
) -> None:
    """Refuse a film of nearly one gray, where it is how it is shown that makes it so."""
    processing = require("pydicom.pixels.processing", "tasks")
    values = processing.apply_modality_lut(pixels, dataset)
    if window is not None:
        check_window(path, values, shown, window)
        return
    fault: bool = pixels.min() < pixels.max()
    if dataset.get("VOILUTSequence"):
        how = "its own VOI lookup table"
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        how = f"its own window, center {dataset.WindowCenter} and width {dataset.WindowWidth}"
    elif dataset.get("ModalityLUTSequence"):
        how = "its own lookup table of the modality"
    else:
        how = f"the {dataset.BitsStored} bits a pixel that it declares, having no window"
        fault = dataset.BitsStored > 12
    if fault:
        raise DataError(
            f"DICOM file {path} has values from {values.min():g} to {values.max():g}: it would be "
            f"nearly of one gray by {how}. Say which values to show: window=(center, width), or "
            f"--window; or leave it out."
        )


def _shown_once(dataset: Any, pixels: NDArray[Any], window: Window | None) -> NDArray[np.float32]:
    """What is shown of the pixels; of each value once, where there are more pixels than values."""
    lowest, highest = _stored(dataset)
    if pixels.size <= highest - lowest:
        return _shown(dataset, pixels, window)
    table = _shown(dataset, np.arange(lowest, highest + 1), window)
    return table.take(pixels.astype(np.intp) - lowest, mode="clip")


def _stored(dataset: Any) -> tuple[int, int]:
    """The lowest and the highest value that a pixel can have."""
    values = 1 << dataset.BitsStored
    lowest = -values // 2 if dataset.PixelRepresentation else 0
    return lowest, lowest + values - 1


def _shown(dataset: Any, pixels: NDArray[Any], window: Window | None) -> NDArray[np.float32]:
    """Rescaled, windowed, and from the lowest value that can come out, 0, to the highest, 1."""
    processing = require("pydicom.pixels.processing", "tasks")
    if window is not None:
        dataset.WindowCenter, dataset.WindowWidth = window
        dataset.VOILUTFunction = "LINEAR"  # the file's own may be a sigmoid, which has no ends
    stored = _stored(dataset)
    values = processing.apply_modality_lut(pixels, dataset)
    low, high = processing.apply_modality_lut(np.array(stored, np.int64), dataset)
    if dataset.get("ModalityLUTSequence"):
        low, high = 0, (1 << dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    if window is None and dataset.get("VOILUTSequence"):
        low, high = 0, (1 << dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        # the table is looked up by whole numbers; rescaling made them floats
        values = processing.apply_voi(np.rint(values).astype(np.int64), dataset)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        values = processing.apply_windowing(values, dataset)
    else:
        low, high = min(low, high), max(low, high)  # the slope may be negative
    if low == high:
        raise ValueError("its values have no range, RescaleSlope is 0")
    scaled = (values.astype(np.float64) - low) / (float(high) - float(low))
    if np.isnan(scaled).any():
        raise ValueError("it would be shown as NaN, by its rescaling, its window or its pixels")
    shown: NDArray[np.float32] = np.clip(scaled, 0, 1).astype(np.float32)
    return shown
