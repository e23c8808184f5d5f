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
        size, channels, window: as in :class:`~gloria.data.Radiographs`.

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
        masks: dict[str, tuple[str, list[str]]] = {}
        for where, cells in read_rows(Path(path), ["ImageId", "EncodedPixels"]):
            image, text = cells["ImageId"], cells["EncodedPixels"]
            try:
                parse_runs(text)
            except DataError as cause:
                raise DataError(f"{where}: {cause}") from cause
            _, runs = masks.setdefault(image, (where, []))
            runs.append(text)
            if len(runs) > 1 and "-1" in runs:
                raise DataError(f"{where}: {image} has an empty mask and another one.")
        files = {file.stem: file for file in sorted(Path(images).rglob("*.dcm"))}
        missing = [image for image in masks if image not in files]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(masks)} images of {path} are not under {images}; "
                f"first: {masks[missing[0]][0]}: {missing[0]}.dcm."
            )
        records = [
            Record(
                id=image,
                path=files[image],
                where=where,
                labels=(int(runs != ["-1"]),),
                mask=partial(decode_runs, runs),
            )
            for image, (where, runs) in masks.items()
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
                if name not in masks
            ],
        )
