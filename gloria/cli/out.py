"""The folder that a command writes into is tried before hours of work, not after."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile

from gloria.errors import OptionError, reason
from gloria.training.checkpoints import made
from gloria.weights import check_nothing_is_lost

RUN_FOLDERS = ("model", "best", "checkpoints")
"""What `gloria train` makes in its folder, and replaces as a whole."""


def check_out(folder: Path, *models: str) -> None:
    """Require that ``--out`` can be written into, with ``models`` in it; nothing of it is left."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"out must be a folder; {folder} is a file.")
    for each in (folder, *folder.absolute().parents):
        if (each / "model.safetensors").exists():
            raise OptionError(f"out must be a folder of its own; {each} is a saved model.")
        if each.name in RUN_FOLDERS and (each.parent / "checkpoints").is_dir():
            raise OptionError(f"out must be a folder of its own; {each} is of the run around it.")
    for name in models:
        check_nothing_is_lost(folder / name)
    try:
        with made(folder), TemporaryFile(dir=folder):
            pass
    except OSError as cause:
        raise OptionError(
            f"out must be a folder that can be written into; {folder}: {reason(cause)}."
        ) from cause
