"""Rows of a CSV file, each with its place, so that a fault can be named."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from gloria.checks import nearest
from gloria.errors import DataError


def read_rows(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The columns of all rows that are not blank, stripped, with what an error calls each row.

    Args:
        path: a CSV file in UTF-8 with a header, or one compressed as ``.gz``. What separates the
            columns, commas, semicolons or tabs, is told by the header's line.
        columns: what to read; spaces around the header's names do not count.

    Raises:
        DataError: the file, its header or a column is missing, a column is there twice, it is no
            UTF-8 or no CSV, or a row has fewer or more cells than it should. The header is row 1, a
            blank line is a row.
    """
    table = _read_table(path)
    header = [name.strip() for name in next(table)]
    for column in columns:
        if column not in header:
            raise DataError(
                f"{path} has no column {column!r}; it has {list_columns(header, column)}."
                f"{nearest(column, header)}"
            )
        if header.count(column) > 1:
            raise DataError(f"{path} has {header.count(column)} columns {column!r}; which one?")
    rows = []
    for number, cells in enumerate(table, start=2):
        where = f"{path}, row {number}"
        if not cells:
            continue
        if any(cell.strip() for cell in cells[len(header) :]):
            raise DataError(
                f"{where}: {len(cells)} cells for {len(header)} columns; is a comma (or what else "
                f"separates columns) in a report not quoted?"
            )
        record = dict(zip(header, cells, strict=False))
        for column in columns:
            if column not in record:
                raise DataError(f"{where}, column {column!r}: the row is too short.")
        rows.append((where, {column: record[column].strip() for column in columns}))
    return rows


def list_columns(header: Sequence[str], wanted: str, most: int = 20) -> str:
    """The names of columns, for a message; of many, those most like the one that is wanted."""
    if len(header) <= most:
        return ", ".join(header)
    shown = difflib.get_close_matches(wanted, header, n=most, cutoff=0)
    return f"{', '.join(shown)} and {len(header) - most} more"


def rows_by(path: Path, key: str, columns: Sequence[str]) -> dict[str, tuple[str, dict[str, str]]]:
    """Rows by the column that names them: where each is, and its cells; no two may differ."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for where, cells in read_rows(path, [key, *columns]):
        first, known = found.setdefault(cells[key], (where, cells))
        if cells != known:
            raise DataError(f"{where}: {key} {cells[key]!r} has other values in {first}.")
    return found


def read_header(path: Path) -> list[str]:
    """The names of a CSV file's columns."""
    return [name.strip() for name in next(_read_table(path))]


def read_label(where: str, cell: str, blank: int | None = None) -> int:
    """A label from its cell: 1 positive, 0 negative, -1 uncertain, written as any number is.

    Args:
        where: what an error calls the cell.
        cell: its text.
        blank: what an empty cell means; None = it is an error.
    """
    if not cell and blank is not None:
        return blank
    try:
        number = float(cell)
    except ValueError:
        number = float("nan")
    if number not in (-1, 0, 1):
        how = "" if cell else " Write 0 or -1 there: a blank cell does not say which is meant."
        raise DataError(
            f"{where}: a label is 1 (positive), 0 (negative) or -1 (uncertain); got {cell!r}.{how}"
        )
    return int(number)


def is_blank(cell: str) -> bool:
    """Whether a cell says nothing: it is empty, or what programs write for what they have not."""
    return cell.lower() in ("", "nan", "none", "null", "<na>")


def check_file(path: Path) -> None:
    """Require a file, and no folder."""
    if fault := fault_of_file(path):
        raise DataError(f"{fault}.")


def fault_of_file(path: Path) -> str:
    """Why a path is no file's; empty = it is one's."""
    if os.path.isfile(path):  # which takes a report for a path, too
        return ""
    if os.path.isdir(path):
        return f"{path} must be a file; it is a folder"
    return f"{path} does not exist"


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark."""
    check_file(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise DataError(f"{path} is not UTF-8 ({cause.reason}). Save the file as UTF-8.") from cause


def _read_table(path: Path) -> Iterator[list[str]]:
    """All rows as lists of cells, at least a header; a blank line is an empty one."""
    check_file(path)
    begins = 1
    try:
        # piece by piece: large tables would take gigabytes
        with _open_binary(path) as file:
            head = file.readline().decode("utf-8")
            file.seek(0)
            lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            # strict: or a quote that is never closed takes all rows below it into its cell
            reader = csv.reader(
                map(_without_spaces_behind_quotes, lines),
                delimiter=max(",;\t", key=head.count),
                skipinitialspace=True,
                strict=True,
            )
            header = next(reader, [])
            if not any(map(str.strip, header)):
                what = "its first line is blank" if any(reader) else "it is empty"
                raise DataError(
                    f"{path} must begin with a header, the names of its columns; {what}."
                )
            yield header
            begins = reader.line_num + 1
            for cells in reader:
                yield cells
                begins = reader.line_num + 1
    except UnicodeDecodeError as cause:
        with _open_binary(path) as file:
            line = next(number for number, line in enumerate(file, start=1) if not _is_utf8(line))
        raise DataError(
            f"{path}, line {line}: not UTF-8 ({cause.reason}). Save the file as UTF-8."
        ) from cause
    except (EOFError, gzip.BadGzipFile, zlib.error) as cause:
        raise DataError(f"{path} is no whole .gz file: {cause}.") from cause
    except csv.Error as cause:
        raise DataError(
            f"{path}, line {begins}: what begins there is not CSV ({cause}). Is a quote never "
            f"closed, or one inside a quoted text not written twice? Does a cell only begin with a "
            f"quoted word?"
        ) from cause


def _open_binary(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """A file's bytes, unpacked."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _without_spaces_behind_quotes(line: str) -> str:
    """Some programs write them between a quoted cell and the comma; the strict reader minds."""
    return re.sub(r'" +(?=[,;\t\r\n]|$)', '"', line) if '" ' in line else line
