"""The files of `gloria evaluate`: results.json, from which it goes on, tables.md, and ids/."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gloria.data.transfer import TransferData
    from gloria.evaluation.tables import Table


def open_results(
    out: Path, settings: Mapping[str, Any], hashes: Mapping[str, str]
) -> dict[str, Any]:
    """What is in the folder, if it is of these settings and models; an empty beginning if nothing.

    Warns:
        GloriaWarning: another version of gloria made what is there.
    """
    import gloria
    from gloria.errors import CheckpointError, GloriaWarning
    from gloria.evaluation.settings import describe_changes

    file = out / "results.json"
    if not file.is_file():
        return {
            "gloria": gloria.__version__,
            "settings": settings,
            "note": "",
            "data": None,
            "skipped": {},
            "left_out": {},
            "models": {},
        }
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        made_by, before, known = results["gloria"], results["settings"], results["models"]
    except (ValueError, KeyError, TypeError) as cause:
        raise CheckpointError(f"{file} is damaged: {cause}. Delete it to start over.") from cause
    if changed := describe_changes(before, settings):
        raise CheckpointError(f"{file} is of other settings: {changed}. Give another --out.")
    for name, model in known.items():
        if name in hashes and model["sha256"] != hashes[name]:
            raise CheckpointError(
                f"{file} is of another model in {name}, which was written anew since. Give another "
                f"--out."
            )
    if known and made_by != gloria.__version__:
        warnings.warn(
            f"{file} has figures that gloria {made_by} made; this is {gloria.__version__}. Another "
            f"--out makes them anew.",
            GloriaWarning,
            stacklevel=2,
        )
    return results


def accept_data(out: Path, results: dict[str, Any], data: TransferData) -> None:
    """Note what the data are; refuse others than those of earlier results."""
    from gloria.errors import CheckpointError

    digest = data.fingerprint()
    if results["data"] not in (None, digest):
        raise CheckpointError(
            f"{out / 'results.json'} is of other data in {results['settings']['data']}, which "
            f"changed since (rows, masks, or an image file's size or time). Give another --out."
        )
    results |= {"data": digest, "note": data.note}
    if results["settings"]["format"] != "phantom":
        results["ids"] = _write_ids(out / "ids", data)
        results["left_out"] = _left_out(data)


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Both files, each whole or not at all."""
    from gloria.evaluation.tables import as_markdown
    from gloria.files import write_text

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    parts = ["# Evaluation\n", *([f"{results['note']}\n"] if results["note"] else [])]
    parts += [as_markdown(table, _published(results)) for table in _tables(results)]
    parts += [f"{remark}\n" for remark in _remarks(results)]
    write_text(out / "tables.md", "\n".join(parts))


def show_results(results: dict[str, Any]) -> str:
    """The tables, and what must be said of them, for a terminal."""
    from gloria.evaluation.tables import as_text

    parts = [as_text(table, _published(results)) for table in _tables(results)]
    parts += [*_remarks(results), *([results["note"]] if results["note"] else [])]
    return "\n\n".join(parts)


def _left_out(data: TransferData) -> dict[str, list[str]]:
    """Split: why images of it were left out; "data": of all, before splits were drawn of it."""
    found = {name: list(part.skipped) for name, part in data.labelled._asdict().items()}
    if found["train"] == found["val"] == found["test"]:  # of splits on disk no two name one row
        found = {"data": found["train"]}
    return {name: reasons for name, reasons in found.items() if reasons}


def _write_ids(folder: Path, data: TransferData) -> dict[str, str]:
    """The lists of which images are trained and tested on, for others to use; their hashes."""
    from gloria.data import write_ids

    # without labels nothing is trained, and the splits are the gallery
    parts = {**(data.labelled._asdict() if data.classes else {}), "gallery": data.gallery}
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: write_ids(folder / f"{name}.txt", list(part.ids), about="of gloria evaluate")
        for name, part in parts.items()
        if part is not None and len(part)
    }


def _tables(results: dict[str, Any]) -> list[Table]:
    """Of each task, with a row for each model that has it."""
    from gloria.data.transfer import TASKS
    from gloria.training.transfer import transfer_table

    tables = []
    for task in TASKS:
        models = results["models"].items()
        reports = {name: each["tasks"][task] for name, each in models if task in each["tasks"]}
        if reports:
            tables.append(transfer_table(task, reports))
    return tables


def _published(results: dict[str, Any]) -> list[str]:
    """The data sets whose published rows stand below: the one that this is; of phantoms, all."""
    from gloria.evaluation.published import DATA_SETS

    form = results["settings"]["format"]
    return [each for each in DATA_SETS if form == "phantom" or form.startswith(each.lower())]


def _remarks(results: dict[str, Any]) -> list[str]:
    """What is not in the tables: tasks, and images."""
    return [
        *(f"{task} skipped: {reason}." for task, reason in results["skipped"].items()),
        *(
            f"left out of {name}: {len(reasons)} images, which results.json names."
            for name, reasons in results["left_out"].items()
        ),
    ]
