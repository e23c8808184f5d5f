"""Files and folders that are there whole, or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from gloria.errors import CheckpointError, reason

_DRAFT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>new|old)")
"""A hidden name, of a folder or file that is not in place yet, or not any more."""


def signature(path: str | Path) -> tuple[int, int]:
    """Size and time of modification of a file, which tell that it changed; of no file, -1."""
    try:
        facts = os.stat(path)
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def write_folder(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a new folder and put it in place when it is whole.

    An old folder of that name is moved aside in the instant before; a kill in between leaves both
    beside each other, under hidden names. Of a link, it is the folder that it leads to.

    Raises:
        CheckpointError: the disk is full, or won't be written to, or the folder has no name of its
            own; an old folder stays.
    """
    folder = Path(folder)
    if not folder.name:  # "." is where this process is: it can't be moved aside
        raise CheckpointError(f"folder must have a name of its own; got {str(folder)!r}.")
    place = folder.resolve()
    mark = uuid4().hex[:8]
    fresh, old = (place.with_name(f".{place.name}.{mark}.{kind}") for kind in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        write(fresh)
        for path in (*fresh.rglob("*"), fresh):
            _flush(path)
        if there := place.exists():
            os.replace(place, old)
        os.replace(fresh, place)
        _flush(place.parent)
        if there:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as cause:
        raise CheckpointError(f"{folder} can't be written: {reason(cause)}.") from cause
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def write_file(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a new file and put it in place when it is whole.

    Raises:
        OSError: it can't be written; the error names ``path``, not the hidden file.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}.new")
    try:
        write(draft)
        _flush(draft)
        os.replace(draft, path)
        _flush(path.parent)
    except OSError as cause:
        raise OSError(cause.errno, reason(cause), str(path)) from cause
    finally:
        draft.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk.

    Else a loss of power may leave a file empty under a name that is in place.
    """
    if os.name != "posix":  # Windows opens no folder
        return
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        # some folders may be written into and not read, and some disks of a network flush none
        if not path.is_dir():
            raise


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def remove_drafts(folder: Path) -> None:
    """Remove what :func:`write_folder` and :func:`write_file` had begun when they were killed.

    An old folder that was aside while the new one was not in place comes back. Nobody else may be
    writing into the folder now.
    """
    for path in folder.glob(".*"):
        draft = _DRAFT.fullmatch(path.name)
        if draft is None:
            continue
        if draft["kind"] == "old" and not (folder / draft["name"]).exists():
            os.replace(path, folder / draft["name"])
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
