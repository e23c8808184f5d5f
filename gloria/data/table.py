"""Your own images and reports, from a CSV file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from pathlib import Path

from torch.utils.data import Dataset

from gloria.data.images import check_size, fit, load_image
from gloria.data.pairs import ImageReport
from gloria.errors import DataError

_WORD = re.compile(r"[^\W_]")


class ImageReportTable(Dataset[ImageReport]):
    """Pairs of a CSV file: a column with image paths, one with reports, one with the split.

    Args:
        path: the CSV file in UTF-8, with a header. Image paths are relative to its folder, or
            absolute.
        split: the rows to take; None = all.
        size: ``(height, width)`` that images are fitted into, aspect kept, padded with black.
        channels: 1 (grayscale) or 3.
        bits: how many bits the pixels of 16-bit images have, as in
            :func:`~gloria.data.load_image`.
        image_column: name of the column with the image path.
        report_column: name of the column with the report.
        split_column: name of the column with the split; read only if ``split`` is given.

    Raises:
        DataError: the file or a column is missing, the file is no UTF-8 or no CSV, a report has no
            word, an image file does not exist (each with row and column), or no row has the split.
            Reading an item raises it for an image that can't be read. Rows are numbered as a
            spreadsheet does: the header is row 1, a blank line is a row, and a report of several
            lines is in one. Where the file can't be read as a table, its line is named, as a text
            editor numbers it.
        OptionError: ``size`` has a side below 1.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        size: tuple[int, int],
        channels: int = 1,
        bits: int | None = None,
        image_column: str = "image",
        report_column: str = "report",
        split_column: str = "split",
    ) -> None:
        check_size(size)
        self.path = Path(path)
        self.size = size
        self.channels = channels
        self.bits = bits
        self.image_column = image_column
        self.reports: list[str] = []
        self._images: list[str] = []
        self._rows: list[int] = []
        columns = [image_column, report_column, *([] if split is None else [split_column])]
        splits: set[str] = set()
        for row, record in _read_rows(self.path, columns):
            if split is not None:
                splits.add(record[split_column])
                if record[split_column] != split:
                    continue
            report, image = record[report_column], record[image_column]
            if not _WORD.search(report):
                raise DataError(
                    f"{self.path}, row {row}, column {report_column!r}: empty report, {report!r} "
                    f"has no word."
                )
            if not image:
                raise DataError(f"{self.path}, row {row}, column {image_column!r}: no image path.")
            file = self.path.parent / image
            if not file.is_file():
                raise DataError(
                    f"{self.path}, row {row}, column {image_column!r}: {file} does not exist."
                )
            self.reports.append(report)
            self._images.append(image)
            self._rows.append(row)
        if not self.reports:
            found = f"its splits are {', '.join(sorted(splits))}" if splits else "it has no rows"
            raise DataError(f"{self.path} has no row with split {split!r}; {found}.")

    def __len__(self) -> int:
        return len(self.reports)

    def __getitem__(self, index: int) -> ImageReport:
        file = self.path.parent / self._images[index]
        try:
            image = load_image(file, self.channels, bits=self.bits)
        except DataError as cause:
            raise DataError(
                f"{self.path}, row {self._rows[index]}, column {self.image_column!r}: {cause}"
            ) from cause
        return ImageReport(fit(image, self.size), self.reports[index])

    def fingerprint(self) -> str:
        """SHA-256 of every image path, as the file has it, and every report, in their order."""
        pairs = list(zip(self._images, self.reports, strict=True))
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def read_splits(path: str | Path, split_column: str = "split") -> list[str]:
    """The splits that a CSV file has, sorted.

    Raises:
        DataError: the file or the column is missing, or it is no UTF-8 or no CSV.
    """
    rows = _read_rows(Path(path), [split_column])
    return sorted({record[split_column] for _, record in rows})


def _read_rows(path: Path, columns: list[str]) -> list[tuple[int, dict[str, str]]]:
    """The columns of all rows that are not blank, stripped, with the numbers of the rows."""
    table = _read_table(path)
    header = table[0] if table else []
    for column in columns:
        if column not in header:
            raise DataError(
                f"{path} has no column {column!r}; it has {', '.join(header) or 'none'}."
            )
    rows = []
    for number, cells in enumerate(table[1:], start=2):
        if not cells:
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            raise DataError(
                f"{path}, row {number}: {len(cells)} cells for {len(header)} columns; is a comma "
                f"in a report not quoted?"
            )
        record = dict(zip(header, cells, strict=False))
        for column in columns:
            if column not in record:
                raise DataError(f"{path}, row {number}, column {column!r}: the row is too short.")
        rows.append((number, {column: record[column].strip() for column in columns}))
    return rows


def _read_table(path: Path) -> list[list[str]]:
    """All rows as lists of cells; a blank line is an empty one."""
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = cause.object.count(b"\n", 0, cause.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 ({cause.reason}). Save the file as UTF-8."
        ) from cause
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        return list(reader)
    except csv.Error as cause:
        raise DataError(
            f"{path}, line {reader.line_num}: not CSV ({cause}). Is a quote never closed?"
        ) from cause
