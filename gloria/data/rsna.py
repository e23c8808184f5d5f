"""RSNA pneumonia detection: DICOM files, and a CSV file with boxes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from gloria.data.dicom import Window
from gloria.data.masks import Box, draw_boxes
from gloria.data.radiographs import Radiographs, Record
from gloria.data.rows import read_label, read_rows
from gloria.errors import DataError


class RSNA(Radiographs):
    """RSNA pneumonia: ``stage_2_train_labels.csv`` and DICOM files, with a label, boxes and a mask.

    The file has a row for each box, so several for some patients; each patient has one image. The
    mask is the union of the boxes.

    Args:
        path: the CSV file, with the columns ``patientId``, ``x``, ``y``, ``width``, ``height`` and
            ``Target``.
        images: the folder with ``<patientId>.dcm``.
        size, channels, window: as in :class:`~gloria.data.Radiographs`.

    Raises:
        DataError: the file, a column or the first images are missing; a patient has a box and is
            negative, or is positive without one; a box is no four numbers.

    Source: Shih et al., Radiology: Artificial Intelligence, 2019.
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
        places: dict[str, str] = {}
        boxes: dict[str, list[Box]] = {}
        sides = ["x", "y", "width", "height"]
        for where, cells in read_rows(Path(path), ["patientId", *sides, "Target"]):
            patient = cells["patientId"]
            label = read_label(f"{where}, column 'Target'", cells["Target"])
            written = [cells[name] for name in sides]
            if label not in (0, 1) or any(written) != bool(label):
                raise DataError(f"{where}: Target is {label} and the box {written}.")
            known = boxes.setdefault(patient, [])
            if patient in places and not (label and known):
                raise DataError(f"{where}: {patient} has a row without a box and another one.")
            places.setdefault(patient, where)
            if label:
                try:
                    box = Box(*map(float, written))
                except ValueError as cause:
                    raise DataError(f"{where}: a box is four numbers; got {written}.") from cause
                if not all(map(math.isfinite, box)) or min(box.width, box.height) <= 0:
                    raise DataError(f"{where}: a box must have a place and a size; got {written}.")
                known.append(box)
        records = [
            Record(
                id=patient,
                path=Path(images, f"{patient}.dcm"),
                where=where,
                patient=patient,
                labels=(int(bool(boxes[patient])),),
                mask=partial(draw_boxes, boxes[patient]),
                boxes=tuple(boxes[patient]),
            )
            for patient, where in places.items()
        ]
        super().__init__(
            records, classes=("Pneumonia",), size=size, channels=channels, window=window
        )
