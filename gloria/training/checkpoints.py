"""Training checkpoints: whole or not there, so that a killed run resumes exactly."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gloria.errors import CheckpointError, OptionError, reason
from gloria.evaluation.settings import describe_changes
from gloria.files import write_folder
from gloria.model import GLoRIA
from gloria.weights import load_weights, save_model

_STEP = re.compile(r"step-(\d+)")


@dataclass
class Standing:
    """Where a run stands: steps done, what was logged, the best validation so far."""

    step: int
    history: list[dict[str, float]]
    best: float = float("inf")


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a checkpoint gives them back: lists for tuples, and Python's own numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise OptionError(f"settings must be JSON values; got the {type(value).__name__} {value}.")

    found: dict[str, Any] = json.loads(json.dumps(dict(settings), default=plain))
    return found


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Inside, a folder is there; folders made for it in which nothing is written do not stay."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # there is something in it
            for each in missing:
                each.rmdir()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process is so in a folder, which is :func:`made`; a kill frees it.

    Raises:
        CheckpointError: one is, which is not told on Windows, nor of a disk without locks; or
            the folder can't be made.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(made(folder))
        except OSError as cause:
            raise CheckpointError(f"{folder} can't be made: {reason(cause)}.") from cause
        try:
            import fcntl

            lock = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # not by closing: processes that load items have it open, too
            stack.callback(fcntl.flock, lock, fcntl.LOCK_UN)
        except BlockingIOError as cause:
            raise CheckpointError(f"another process is writing into {folder}.") from cause
        except (ImportError, OSError):
            pass
        yield


def save_checkpoint(
    folder: Path,
    model: GLoRIA,
    optimizer: torch.optim.Optimizer,
    standing: Standing,
    settings: dict[str, Any],
) -> None:
    """Write ``folder/step-N`` and then remove the ones before it.

    Raises:
        CheckpointError: it can't be written, as on a full disk; the ones before it stay.
    """

    def write(target: Path) -> None:
        save_model(model, target / "model")
        try:
            torch.save(optimizer.state_dict(), target / "optimizer.pt")
        except RuntimeError as cause:  # torch has no other class for a full disk
            raise OSError(str(cause)) from cause
        record = {**vars(standing), "settings": settings}
        (target / "progress.json").write_text(json.dumps(record))

    write_folder(folder / f"step-{standing.step:06d}", write)
    for step, older in _checkpoints(folder).items():
        if step < standing.step:
            shutil.rmtree(older)


def resume(
    folder: Path, model: GLoRIA, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> Standing:
    """Put the newest checkpoint into model and optimizer; step 0 if there is none.

    Raises:
        CheckpointError: it is damaged, or the run it belongs to had other settings, or trained
            other parameters.
    """
    newest = last_checkpoint(folder)
    if newest is None:
        return Standing(0, [])
    try:
        record = json.loads((newest / "progress.json").read_text())
        before = record["settings"]
        standing = Standing(int(record["step"]), list(record["history"]), float(record["best"]))
        # on the CPU: the optimizer moves what belongs on the device, and keeps its counters here
        state = torch.load(newest / "optimizer.pt", map_location="cpu", weights_only=True)
    except Exception as cause:
        # torch.load raises whatever a damaged file leads it into
        raise CheckpointError(
            f"{newest} is damaged ({type(cause).__name__}: {cause}). Remove it to start this run "
            f"again."
        ) from cause
    if changed := describe_changes(before, settings):
        raise CheckpointError(
            f"{newest} belongs to a run with other settings: {changed}. Resume with the same ones, "
            f"or choose another folder for a new run, which may start from the weights of this "
            f"one: `gloria train --model {newest / 'model'}`."
        )
    load_weights(model, newest / "model")
    try:
        optimizer.load_state_dict(state)
    except ValueError as cause:
        raise CheckpointError(
            f"{newest} belongs to a run that trained other parameters ({cause}). Freeze the same "
            f"ones, or choose another folder for a new run."
        ) from cause
    return standing


def last_step(folder: Path) -> int:
    """The step that a run stands at, by its newest checkpoint; 0 if there is none."""
    return max(_checkpoints(folder), default=0)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run, whose ``model`` is a saved model; None if there is none."""
    return _checkpoints(folder).get(last_step(folder))


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Complete checkpoints by their steps."""
    found = ((_STEP.fullmatch(path.name), path) for path in folder.glob("step-*"))
    return {int(name[1]): path for name, path in found if name}
