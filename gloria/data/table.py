"""Your own images, with reports or labels, from a CSV file."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from gloria.checks import check_names
from gloria.data.dicom import Window
from gloria.data.radiographs import Radiographs, Record, skipping
from gloria.data.reports import FULL_REPORT, ReportPolicy, check_policy, read_report
from gloria.data.rows import fault_of_file, is_blank, read_label, read_rows
from gloria.errors import BrokenItemError, DataError, DtypeError


class ImageReportTable(Radiographs):
    """Radiographs of a CSV file: a column with image paths, and what else it has.

    Args:
        path: the CSV file in UTF-8, with a header, its columns separated by commas, semicolons or
            tabs. Image paths are relative to its folder, or absolute; they are the images' ids.
        split: the rows to take; None = all.
        size: ``(height, width)`` that images are fitted into, aspect kept, padded with black.
        channels: 1 (grayscale) or 3.
        bits: as in :func:`~gloria.data.load_image`.
        window: as in :func:`~gloria.data.load_image`.
        policy: what of the reports is read.
        skip_incomplete: leave out rows whose report has no word under the policy; they are listed
            in ``skipped``. Otherwise they are an error.
        image_column: name of the column with the image path.
        report_column: name of the column with the report; None = there are no reports.
        split_column: name of the column with the split; read only if ``split`` is given.
        patient_column: name of the column with the patient; None = it is not known.
        classes: names of columns with labels: 1, 0, or -1 for uncertain.
        check_files: require every image's file now; False = an image that is not there is told when
            it is read, or left out by ``without_broken``.

    Raises:
        DataError: the file or a column is missing, the file is no UTF-8 or no CSV, a label is NaN
            or no label, or no row has the split. Rows are numbered as a spreadsheet does: the
            header is row 1, a blank line is a row, and a report of several lines is in one. Where
            the file can't be read as a table, its line is named, as a text editor numbers it.
        DtypeError: ``path`` is no path: a table of pandas, say.
        IncompleteItemError: a report has no word.
        BrokenItemError: an image file does not exist, or, when its item is read, can't be.
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
        window: Window | None = None,
        policy: ReportPolicy = FULL_REPORT,
        skip_incomplete: bool = False,
        image_column: str = "image",
        report_column: str | None = "report",
        split_column: str = "split",
        patient_column: str | None = None,
        classes: Sequence[str] = (),
        check_files: bool = True,
    ) -> None:
        check_policy(policy)
        check_names("classes", classes)
        if not isinstance(path, str | PathLike):
            raise DtypeError(
                f"path must be that of a CSV file; got {type(path).__name__}. Rows of another kind "
                f"go through gloria.data.Radiographs, with a gloria.data.Record for each."
            )
        path = Path(path)
        optional = [report_column, patient_column, None if split is None else split_column]
        columns = [image_column, *(name for name in optional if name is not None), *classes]
        records: list[Record] = []
        skipped: list[str] = []
        for place, cells in read_rows(path, columns):
            if split is not None and cells[split_column] != split:
                continue
            where = f"{place}, column"
            image = cells[image_column]
            if not image:
                raise DataError(f"{where} {image_column!r}: no image path.")
            file = path.parent / image
            if check_files and (fault := fault_of_file(file)):
                hint = " Folders end in /, not in a backslash." if "\\" in image else ""
                raise BrokenItemError(f"{where} {image_column!r}: {fault}.{hint}")
            labels = tuple(read_label(f"{where} {name!r}", cells[name]) for name in classes)
            patient = None if patient_column is None else cells[patient_column]
            if patient is not None and is_blank(patient):
                raise DataError(f"{where} {patient_column!r}: no patient; got {patient!r}.")
            record = Record(image, file, f"{where} {image_column!r}", patient, labels=labels)
            with skipping(skipped if skip_incomplete else None):
                if report_column is not None:
                    source = cells[report_column]
                    report = read_report(f"{where} {report_column!r}", source, policy)
                    record = record._replace(report=report)
                records.append(record)
        if not records and not skipped:
            splits = [] if split is None else read_splits(path, split_column)
            found = f"its splits are {', '.join(splits)}" if splits else "it has no rows"
            raise DataError(f"{path} has no row with split {split!r}; {found}.")
        super().__init__(
            records,
            classes=classes,
            size=size,
            channels=channels,
            bits=bits,
            window=window,
            skipped=skipped,
        )


def read_splits(path: str | Path, split_column: str = "split") -> list[str]:
    """The splits that a CSV file has, sorted.

    Raises:
        DataError: the file or the column is missing, or it is no UTF-8 or no CSV.
    """
    return sorted({cells[split_column] for _, cells in read_rows(Path(path), [split_column])})
