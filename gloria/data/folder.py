"""Images of a folder, with nothing said about them."""

from __future__ import annotations

import os
from pathlib import Path

from gloria.data.dicom import Window, is_dicom
from gloria.data.radiographs import Radiographs, Record
from gloria.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom")
"""What an image file is called; DICOM files may be called anything."""


class ImageFolder(Radiographs):
    """Every image of a folder and the folders in it, without reports or labels.

    An image is a file with one of :data:`SUFFIXES`, or DICOM by its first bytes; what is hidden is
    left out. Links to other folders are followed, into each folder once. Ids are paths relative to
    the folder, in their order.

    Args:
        folder: where the images are.
        size, channels, bits, window: as in :class:`~gloria.data.Radiographs`.

    Raises:
        DataError: there is no such folder, or no image in it.
        OptionError: ``size`` has a side below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: tuple[int, int],
        channels: int = 1,
        bits: int | None = None,
        window: Window | None = None,
    ) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder.")
        names = sorted(path.relative_to(folder).as_posix() for path in _images(folder))
        if not names:
            raise DataError(f"{folder} holds no image: no {', '.join(SUFFIXES)} and no DICOM file.")
        records = [Record(name, folder / name, where="") for name in names]
        super().__init__(records, size=size, channels=channels, bits=bits, window=window)


def _images(folder: Path) -> list[Path]:
    found = []
    seen: set[str] = set()
    places = [str(folder)]
    for start in places:  # which grow by the links that are found
        for place, inner, files in os.walk(start):
            real = os.path.realpath(place)
            if real in seen:  # by a link to a folder around it, or to one that is here anyway
                inner.clear()
                continue
            seen.add(real)
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            inside = [f"{place}/{name}" for name in inner]
            places += [path for path in inside if os.path.islink(path)]
            paths = [Path(place, name) for name in files if not name.startswith(".")]
            found += [path for path in paths if path.is_file() and _is_image(path)]
    return found


def _is_image(path: Path) -> bool:
    try:
        return path.suffix.lower() in SUFFIXES or is_dicom(path)
    except OSError:
        return True  # whoever reads it will say what is wrong with it
