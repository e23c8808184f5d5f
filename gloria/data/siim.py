"""SIIM-ACR pneumothorax segmentation: DICOM files, and a CSV file with run-length masks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gloria.data.dicom import Window
from gloria.data.masks import decode_runs, parse_runs
from gloria.data.radiographs import Radiographs, Record
from gloria.data.rows import read_rows
from gloria.errors import DataError


class SIIM(Radiographs):
    """SIIM pneumothorax: ``train-rle.csv`` and DICOM files, with a label and a mask.

    The file has a row for each marked area, so several for some images, and ``-1`` where there is
    none. A row is not an item: an image is one item, its mask the union of its rows, and so it
    can't be on both sides of a split. Patients are not told; each image counts as its own.

    Args:
        path: the CSV file, with the columns ``ImageId`` and ``EncodedPixels``.
        images: the folder that holds ``<ImageId>.dcm``, at any depth.
        size: ``(height, width)`` that images are fitted into.
        channels: 1 (grayscale) or 3.
        window: as in :func:`~gloria.data.load_image`.

    Raises:
        DataError: the file, a column or an image is missing; a mask is no run lengths; an image has
            a mask and none. Reading an item raises it for a mask that leaves the image. Files
            without a row are listed in ``skipped``.
    """

    def __init__(
        self,
        path: str | Path,
        images: str | Path,
        *,
        size: tuple[int, int],
        channels: int = 1,
        window: Window | None = None,
    ) -> None:
        path, images = Path(path), Path(images)
        places: dict[str, str] = {}
        runs: dict[str, list[str]] = {}
        for row, cells in read_rows(path, ["ImageId", "EncodedPixels"]):
            image, where = cells["ImageId"], f"{path}, row {row}"
            try:
                marked = len(parse_runs(cells["EncodedPixels"])) > 0
            except DataError as cause:
                raise DataError(f"{where}: {cause}") from cause
            known = runs.setdefault(image, [])
            if image in places and not (marked and known):
                raise DataError(f"{where}: {image} has an empty mask and another one.")
            places.setdefault(image, where)
            if marked:
                known.append(cells["EncodedPixels"])
        files = {file.stem: file for file in sorted(images.rglob("*.dcm"))}
        missing = [image for image in places if image not in files]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(places)} images of {path} are not under {images}; "
                f"first: {places[missing[0]]}: {missing[0]}.dcm."
            )
        records = [
            Record(
                id=image,
                path=files[image],
                where=where,
                labels=(int(bool(runs[image])),),
                mask=partial(decode_runs, runs[image]),
            )
            for image, where in places.items()
        ]
        super().__init__(
            records,
            classes=("Pneumothorax",),
            size=size,
            channels=channels,
            window=window,
            skipped=[
                f"{file}: {path} has no row of it."
                for name, file in files.items()
                if name not in places
            ],
        )
