"""Your own images and reports, from a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

from torch.utils.data import Dataset

from gloria.data.images import fit, load_image
from gloria.data.pairs import ImageReport
from gloria.errors import DataError


class ImageReportTable(Dataset[ImageReport]):
    """Pairs of a CSV file: a column with image paths, one with reports, one with the split.

    Args:
        path: the CSV file, with a header. Image paths are relative to its folder, or absolute.
        split: the rows to take; None = all.
        size: ``(height, width)`` that images are fitted into, aspect kept, padded with black.
        channels: 1 (grayscale) or 3.
        image_column: name of the column with the image path.
        report_column: name of the column with the report.
        split_column: name of the column with the split; read only if ``split`` is given.

    Raises:
        DataError: the file or a column is missing, a report is empty, an image file does not
            exist (each with row and column), or no row has the split. Reading an item raises it
            for an image that can't be read. Rows are numbered as in a spreadsheet: the header is
            row 1.
    """

    def __init__(
        self,
        path: str | Path,
        split: str | None = None,
        *,
        size: tuple[int, int],
        channels: int = 1,
        image_column: str = "image",
        report_column: str = "report",
        split_column: str = "split",
    ) -> None:
        self.path = Path(path)
        self.size = size
        self.channels = channels
        self.reports: list[str] = []
        self._images: list[Path] = []
        self._rows: list[int] = []
        columns = [image_column, report_column, *([] if split is None else [split_column])]
        splits: set[str] = set()
        for row, record in _read_rows(self.path, columns):
            if split is not None:
                splits.add(record[split_column])
                if record[split_column] != split:
                    continue
            report, image = record[report_column].strip(), record[image_column].strip()
            if not report:
                raise DataError(f"{self.path}, row {row}, column {report_column!r}: empty report.")
            if not image:
                raise DataError(f"{self.path}, row {row}, column {image_column!r}: no image path.")
            file = self.path.parent / image
            if not file.is_file():
                raise DataError(
                    f"{self.path}, row {row}, column {image_column!r}: {file} does not exist."
                )
            self.reports.append(report)
            self._images.append(file)
            self._rows.append(row)
        if not self.reports:
            found = f"its splits are {', '.join(sorted(splits))}" if splits else "it has no rows"
            raise DataError(f"{self.path} has no row with split {split!r}; {found}.")

    def __len__(self) -> int:
        return len(self.reports)

    def __getitem__(self, index: int) -> ImageReport:
        try:
            image = load_image(self._images[index], self.channels)
        except DataError as cause:
            raise DataError(f"{self.path}, row {self._rows[index]}: {cause}") from cause
        return ImageReport(fit(image, self.size), self.reports[index])


def read_splits(path: str | Path, split_column: str = "split") -> list[str]:
    """The splits that a CSV file has, sorted.

    Raises:
        DataError: the file or the column is missing.
    """
    rows = _read_rows(Path(path), [split_column])
    return sorted({record[split_column] for _, record in rows})


def _read_rows(path: Path, columns: list[str]) -> list[tuple[int, dict[str, str]]]:
    """All rows with their numbers, the header being row 1; every column asked for is there."""
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        for column in columns:
            if column not in header:
                raise DataError(
                    f"{path} has no column {column!r}; it has {', '.join(header) or 'none'}."
                )
        rows = []
        for number, record in enumerate(reader, start=2):
            for column in columns:
                if record[column] is None:
                    raise DataError(
                        f"{path}, row {number}, column {column!r}: the row is too short."
                    )
            rows.append((number, record))
    return rows
