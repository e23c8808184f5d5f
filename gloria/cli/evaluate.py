r"""Evaluate a trained model: retrieval, zero-shot, classification, segmentation.

Prints the four tables of GLoRIA's paper with confidence intervals; below those of phantoms and of
the paper's data sets, what was published. Without --data, on the built-in phantoms:

  gloria evaluate --model runs/demo/model --out runs/demo/evaluation
  gloria evaluate --model runs/a/model runs/b/model --tasks retrieval,zero-shot --out runs/both

On a data set, the tasks that its labels permit:

  gloria evaluate --model runs/mine/model --out runs/mine/chexpert \
      --format chexpert --data CheXpert-v1.0-small/train.csv
  gloria evaluate --model runs/mine/model --out runs/mine/siim \
      --format siim --data train-rle.csv --images dicom-images-train
  gloria evaluate --model runs/mine/model --out runs/mine/own \
      --data my.csv --classes Edema,Pneumonia

Without labels, whether images find their own reports, on the split test or, without one, val:

  gloria evaluate --model runs/mine/model --out runs/mine/pairs --data my.csv

Images are fitted into the size of the model's training, which a saved model knows; give the
--sections, --bits and --window of its training, which it does not.

Writes into the folder --out:

  results.json    every figure, its interval, and how it came about
  tables.md       the tables

A command that was stopped goes on where it stood when it is given again. Figures of phantoms show
that training works. They are no evidence about real radiographs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gloria.cli.arguments import (
    IMAGE_SIZE,
    MODEL,
    AddNames,
    add_workers_argument,
    locate_model,
    pick_image_size,
    refuse_unread,
)
from gloria.cli.reading import (
    COLUMNS,
    add_reading_arguments,
    find_splits,
    find_validation,
    leave_out_broken,
    quote,
    read_reports,
    tell_unread,
)
from gloria.cli.results import accept_data, open_results, show_results, write_results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gloria.data import Radiographs, Record
    from gloria.data.transfer import TransferData
    from gloria.training.transfer import TransferSettings

FORMATS = ("phantom", "csv", "chexpert", "chexpert-plus", "mimic-cxr", "rsna", "siim")
READ_BY = {
    "images": ("chexpert", "chexpert-plus", "rsna", "siim"),
    "labels": ("chexpert-plus",),
    "sections": ("csv", "chexpert-plus", "mimic-cxr"),
    "classes": ("csv", "mimic-cxr"),
    "patient_column": ("csv",),
    **dict.fromkeys(COLUMNS, ("csv",)),
    "bits": ("csv",),
    "window": ("csv",),
    "prompts": FORMATS[1:],
    "skip_broken": FORMATS[1:],
    "per_class": FORMATS,
}
"""Option: the formats that read it."""

TOO_GOOD = "a patient in two splits makes figures too good. --patient-column names a csv's column."
"""What is noted of splits by image."""

PHANTOMS = {"train": 4000, "val": 200, "test": 800, "per_class": 100}
"""How many are drawn."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME",
        help=f"each {MODEL}",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the results"
    )
    parser.add_argument(
        "--tasks",
        action=AddNames,
        metavar="NAME,...",
        help="retrieval,zero-shot,classification,segmentation; default: what the data permit",
    )
    parser.add_argument(
        "--fractions",
        type=_percents,
        action="extend",
        metavar="PERCENT,...",
        help="shares of the labels that train; default: 1,10,100",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="how many draws of each share"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of data, splits, draws, intervals"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto: the fastest")
    add_workers_argument(parser)
    parser.add_argument("--json", action="store_true", help="print results.json, not the tables")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")

    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="PATH", help="CSV file, or MIMIC-CXR's folder")
    data.add_argument("--format", choices=FORMATS, help="default: phantom; csv with --data")
    data.add_argument(
        "--images", type=Path, metavar="DIR", help="of RSNA and SIIM; of CheXpert's: their root"
    )
    data.add_argument(
        "--labels", type=Path, metavar="FILE", help="of chexpert-plus, which needs it"
    )
    add_reading_arguments(data)
    data.add_argument(
        "--classes",
        action=AddNames,
        metavar="NAME,...",
        help="columns of labels of a csv; without them, images ask for their own reports",
    )
    data.add_argument(
        "--patient-column",
        metavar="NAME",
        help="of a csv; splits are by patient; default: patient, PatientID or subject_id, however "
        "spelled",
    )
    data.add_argument(
        "--report-column",
        metavar="NAME",
        help="of a csv; images without a report are left out; default: report, if it is there and, "
        "with --classes, in every row",
    )
    data.add_argument("--prompts", type=Path, metavar="FILE", help="YAML or JSON; default: ours")
    data.add_argument(
        "--per-class",
        type=int,
        metavar="N",
        help="images of each class for retrieval and zero-shot; default: 200, phantoms 100",
    )
    data.add_argument("--image-size", type=int, metavar="PX", help=IMAGE_SIZE)


def run(args: argparse.Namespace) -> int:
    """Evaluate what is not there yet; print and write the tables."""
    from gloria.cli.out import check_out
    from gloria.training.checkpoints import alone_in

    _check(args)
    check_out(args.out)
    with alone_in(args.out):  # of two, each would write its own results over the other's
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    """As above; nobody else writes into the folder."""
    from gloria.cli.progress import Progress, say
    from gloria.errors import DataError, OptionError
    from gloria.training.devices import pick_device
    from gloria.training.transfer import count_resamples, count_work, evaluate_task, why_not
    from gloria.weights import hash_model, load_model

    if args.format == "csv":
        _find_reports(args)
        _find_patients(args)
    device = pick_device(args.device)
    folders = {path.as_posix(): locate_model(path, args.quiet) for path in args.model}
    # now: a training may write them anew while they are evaluated
    hashes = {name: hash_model(folder) for name, folder in folders.items()}
    models = {name: load_model(folder, device=device) for name, folder in folders.items()}
    channels = {model.image_encoder.image_input.channels for model in models.values()}
    if len(channels) > 1:
        raise OptionError(
            f"models must take images of equally many channels; they take {sorted(channels)}. "
            f"Evaluate them one by one."
        )
    args.image_size = pick_image_size(args.image_size, models)
    if args.format == "phantom":
        _check_phantoms(next(iter(models)), args.image_size, *channels)
    settings = _settings(args)
    results = open_results(args.out, _describe(args, settings), hashes)
    done = {name: found["tasks"] for name, found in results["models"].items()}
    todo = [
        (name, task)
        for name in models
        for task in args.tasks
        if task not in done.get(name, ()) and task not in results["skipped"]
    ]
    if todo or args.format != "phantom":  # what is drawn can't have changed
        data = _read_data(args, channels.pop())
        accept_data(args.out, results, data)
        reasons = {task: why_not(task, data, settings) for task in args.tasks}
        results["skipped"] |= {task: reason for task, reason in reasons.items() if reason}
    for name, task in todo:
        if task in ("retrieval", "zero-shot") and task not in results["skipped"]:
            _ = models[name].trained_kind  # there may be none, which is told before all the work
    if all(task in results["skipped"] for task in args.tasks):
        why = "; ".join(f"{task}: {results['skipped'][task]}" for task in args.tasks)
        raise DataError(f"nothing that was asked for can be evaluated. {why}.")
    for name, task in todo:
        if task in results["skipped"]:
            say(f"{task} skipped: {results['skipped'][task]}", args.quiet)
            continue
        with Progress(count_work(task, data, settings), task, args.quiet) as progress:
            intervals = progress.then(count_resamples(task, settings), f"{task}, intervals")
            report = evaluate_task(
                task, models[name], data, settings, progress=progress.advance, resampled=intervals
            )
        model = results["models"].setdefault(name, {"sha256": hashes[name], "tasks": {}})
        model["tasks"][task] = report
        write_results(args.out, results)
    write_results(args.out, results)
    print(json.dumps(results, indent=2) if args.json else show_results(results))
    say(f"\nTables and all figures: {args.out}", args.quiet)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Wrong and unread options are errors, before anything is loaded."""
    from gloria.checks import check_choice, check_integer
    from gloria.data.transfer import TASKS
    from gloria.errors import OptionError

    if len(set(args.model)) < len(args.model):
        raise OptionError(f"model must name each model once; got {list(map(str, args.model))}.")
    args.tasks = args.tasks or TASKS
    args.fractions = tuple(args.fractions or (0.01, 0.1, 1.0))
    for task in args.tasks:
        check_choice("tasks", task, TASKS)
    args.format = args.format or ("csv" if args.data else "phantom")
    if args.per_class is not None:
        check_integer("per-class", args.per_class, 1)
    check_integer("workers", args.workers, 0)
    if (args.data is None) != (args.format == "phantom"):
        needs = "needs --data" if args.data is None else "takes no --data"
        raise OptionError(f"--format {args.format} {needs}.")
    if args.format in ("rsna", "siim") and args.images is None:
        raise OptionError(f"--format {args.format} needs --images: the folder of its DICOM files.")
    if args.format == "chexpert-plus" and args.labels is None:
        raise OptionError(
            "--format chexpert-plus needs --labels: impression_fixed.json, or CheXpert's train.csv."
        )
    usual: dict[str, str | None] = {**COLUMNS, "report_column": None}  # which need not be there
    refuse_unread(args, READ_BY, usual)
    for name in ("per_class", "prompts"):
        if args.format == "csv" and not args.classes and getattr(args, name) is not None:
            raise OptionError(f"{name.replace('_', '-')} is for a csv with --classes.")


def _find_reports(args: argparse.Namespace) -> None:
    """Those of a csv are where `gloria train` looks for them, if nothing else is said."""
    from gloria.errors import OptionError

    usual = COLUMNS["report_column"]
    # images without a report are left out, which nobody asked who gave labels
    blank = _find_blank(args, usual) if args.report_column is None else None
    if blank is not None and not (blank and args.classes):
        args.report_column = usual
    if not args.classes and args.report_column is None:
        raise OptionError(
            f"--format csv needs reports or labels: {args.data} has no column {usual!r}. "
            f"--report-column names one with reports, --classes those with labels."
        )


def _find_blank(args: argparse.Namespace, column: str) -> list[str] | None:
    """The rows of a csv with nothing in a column; None = there is no such column."""
    from gloria.data.rows import is_blank, read_header, read_rows

    if column not in read_header(args.data):
        return None
    return [where for where, cells in read_rows(args.data, [column]) if is_blank(cells[column])]


def _find_patients(args: argparse.Namespace) -> None:
    """Splits that are drawn, with labels, are by a usual column of patients, if one is full."""
    from gloria.data.leaks import find_patient_columns
    from gloria.data.rows import read_header

    if args.classes and args.patient_column is None:
        there = find_patient_columns(read_header(args.data))
        args.patient_column = next((name for name in there if not _find_blank(args, name)), None)


def _check_phantoms(model: str, size: tuple[int, int], channels: int) -> None:
    """What phantoms can't be is told before thousands are drawn."""
    from gloria.errors import OptionError

    if channels != 1:
        raise OptionError(f"phantoms have 1 channel; {model} takes {channels}: give --data.")
    height, width = size
    if height != width:
        raise OptionError(
            f"image-size must be given for phantoms, which are square; {model}'s is "
            f"{height} x {width}."
        )


def _settings(args: argparse.Namespace) -> TransferSettings:
    """How the tasks are evaluated: small phantoms with a small U-Net, pairs by their own K."""
    from gloria.training.transfer import PHANTOM_UNET, TransferSettings

    own: Mapping[str, Any] = PHANTOM_UNET if args.format == "phantom" else {}
    if args.format == "csv" and not args.classes:
        own = {"ks": (1, 5, 10)}  # as recall of the one right report is usually given
    return TransferSettings(
        fractions=args.fractions, seeds=args.seeds, seed=args.seed, workers=args.workers, **own
    )


def _describe(args: argparse.Namespace, settings: TransferSettings) -> dict[str, Any]:
    """What decides the figures, in JSON values."""
    from gloria.data.prompts import read_prompts

    given = {name: getattr(args, name) for name in ("format", "data", *READ_BY, "image_size")}
    if args.prompts is not None:  # their texts count, whatever the file is called
        sets = read_prompts(args.prompts).items()
        texts = [[name, each.prompts, each.negative_prompts] for name, each in sets]
        given["prompts"] = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    return {**json.loads(json.dumps(given, default=str)), **settings.description()}


def _read_data(args: argparse.Namespace, channels: int) -> TransferData:
    """The data, and on them what each task needs."""
    from gloria.cli.progress import Progress
    from gloria.data import draw_exclusive
    from gloria.data.chest_prompts import CHEST_PROMPTS
    from gloria.data.chexpert import COMPETITION_CLASSES, PATHOLOGIES
    from gloria.data.prompts import read_prompts
    from gloria.data.transfer import NO_REPORTS, Splits, TransferData, draw_patients
    from gloria.errors import DataError, reason

    if args.format == "phantom":
        sizes = {**PHANTOMS, **({"per_class": args.per_class} if args.per_class else {})}
        count = sum(sizes.values()) + 4 * sizes["per_class"]
        with Progress(count, "draw", args.quiet) as progress:
            return TransferData.phantoms(
                seed=args.seed, size=args.image_size[0], progress=progress.advance, **sizes
            )
    if args.format == "csv" and not args.classes:
        return _read_pairs(args, channels)
    prompts = CHEST_PROMPTS if args.prompts is None else read_prompts(args.prompts)
    per_class = args.per_class or 200
    common: dict[str, Any] = {"per_class": per_class, "seed": args.seed, "prompts": prompts}
    classes = args.classes or COMPETITION_CLASSES
    names, note = _name_splits(args)
    parts = [_read_part(args, channels, classes, name) for name in names]
    pool, gallery = parts[-1], None  # the test split, or everything
    if args.format in ("chexpert", "chexpert-plus"):
        # exclusive among all findings, of which the tables' classes are five
        every = _read(args, channels, PATHOLOGIES, uncertain=-1).select(pool.ids)
        try:
            gallery = pool.select(draw_exclusive(every, classes, per_class, seed=args.seed))
        except DataError as cause:  # the other tasks need none
            common["no_gallery"] = reason(cause).replace("per_class", "--per-class")
    if len(parts) == 1:
        rest = pool if gallery is None else pool.without_patients(gallery.patients)
        splits = draw_patients(rest, seed=args.seed)
    else:
        splits = Splits(*parts)
    data = TransferData.of_radiographs(args.format, splits, gallery=gallery, **common)
    missing = dict(data.missing)
    if missing.get("retrieval") == NO_REPORTS and args.format == "csv" and not args.report_column:
        usual = COLUMNS["report_column"]
        blank = _find_blank(args, usual)
        missing["retrieval"] = (
            f"rows without a report: {len(blank)}, first: {blank[0]}; --report-column {usual} "
            f"leaves their images out"
            if blank
            else f"{NO_REPORTS}; --report-column names the column that has them"
        )
    return replace(data, missing=missing, note=note)


def _read_pairs(args: argparse.Namespace, channels: int) -> TransferData:
    """Images that ask for their own reports, which takes no labels: those that are left to test.

    Warns:
        GloriaWarning: none are left.

    Raises:
        DataError: a patient or an image is in two splits.
    """
    from gloria.cli.progress import say
    from gloria.data.leaks import check_splits
    from gloria.data.transfer import TransferData
    from gloria.errors import GloriaWarning

    there = find_splits(args)
    if len(there) > 1:
        check_splits(there)
    split = "test" if "test" in there else find_validation(there)
    note = _note_untold(there) if split and len(there) > 1 else ""
    if split is not None and split != "test":
        chose = f"Images of the split {split}, by which `gloria train` chose the model in best/."
        note = f"{chose} {note}".rstrip()
    elif there and split is None:
        note = (
            f"{args.data} has no split test and no split val, but {quote(there)}: all its images "
            f"are taken. Figures are too good if `gloria train` saw them."
        )
        warnings.warn(note, GloriaWarning, stacklevel=2)
    say(f"images of {'all rows' if split is None else f'the split {split!r}'}", args.quiet)
    if split is not None:
        tell_unread(args, there, (split,))
    pairs = _read_part(args, channels, (), split)
    return TransferData.of_pairs(args.format, pairs, note=note)


def _read_part(
    args: argparse.Namespace, channels: int, classes: Sequence[str], split: str | None
) -> Radiographs:
    """The images of a data set, or of a split of it, without those that are to be left out.

    Raises:
        DataError: an image is in two rows.
    """
    from gloria.errors import DataError

    data = _read(args, channels, classes, split=split)
    first: dict[str, str] = {}
    for record in data.records:
        if (other := first.setdefault(record.file, record.place)) != record.place:
            raise DataError(
                f"{record.place}: {record.path} is there already, in {other}. To evaluate, each "
                f"image must be in one row: remove one of the two."
            )
    return leave_out_broken(args, data, split)


def _read(
    args: argparse.Namespace,
    channels: int,
    classes: Sequence[str],
    *,
    split: str | None = None,
    **options: Any,
) -> Radiographs:
    """The images of a data set, or of a split of it."""
    from gloria.data import RSNA, SIIM, CheXpert

    options |= {"size": args.image_size, "channels": channels}
    if args.format == "rsna":
        return RSNA(args.data, args.images, **options)
    if args.format == "siim":
        return SIIM(args.data, args.images, **options)
    options["classes"] = classes
    if args.format == "chexpert":
        return CheXpert(args.data, root=args.images, **options)
    if args.format == "chexpert-plus":
        options["labels"] = args.labels
    if args.format == "csv":
        options["patient_column"] = args.patient_column
    return read_reports(args, split, skip_incomplete=True, **options)


def _name_splits(args: argparse.Namespace) -> tuple[tuple[str | None, ...], str]:
    """What the data's own splits are called, one None if they must be drawn; what to note of it.

    Warns:
        GloriaWarning: they must be, though `gloria train` reads one of the data's own.

    Raises:
        DataError: a patient or an image is in two splits of a csv.
    """
    from gloria.cli.progress import say
    from gloria.data.leaks import check_splits
    from gloria.errors import GloriaWarning

    there = find_splits(args)
    validation = find_validation(there) or "val"
    names = ("train", validation, "test")
    lacking = [name for name in names if name not in there]
    if not lacking:
        tell_unread(args, there, names)
        if args.format == "csv":  # patients that only some rows name, or only paths, count, too
            parts = {name: there[name] for name in names}
            check_splits(parts)
            return names, _note_untold(parts)
        return names, ""
    how, note = "patient by patient", ""
    if args.format == "siim" or (args.format == "csv" and args.patient_column is None):
        how = "image by image, since it is not told whose they are"
        note = f"Splits were drawn {how}: {TOO_GOOD}"
    if not there:
        say(f"no splits train, {validation} and test: drawn, {how}", args.quiet)
        return (None,), note
    drawn = (
        f"{args.data} has no split {' and no split '.join(lacking)}, but {quote(there)}: all its "
        f"images are split anew, {how}. Figures are too good if `gloria train` saw what is tested "
        f"on."
    )
    warnings.warn(
        f"{drawn} Write {' and '.join(lacking)} into the column {args.split_column}, for patients "
        f"to hold out, before training.",
        GloriaWarning,
        stacklevel=2,
    )
    return (None,), f"{drawn} {note}".rstrip()


def _note_untold(splits: Mapping[str, Sequence[Record]]) -> str:
    """What to note of splits of which not every image says whose it is; empty = all do."""
    patients = [record.patient for records in splits.values() for record in records]
    count = patients.count(None)
    if not count:
        return ""
    return f"It is not told whose {count} of {len(patients)} images are: {TOO_GOOD}"


def _percents(text: str) -> tuple[float, ...]:
    """``"1,10,100"`` as shares."""
    try:
        shares = tuple(float(word) / 100 for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be percents, as 1,10,100; got {text!r}") from None
    if not all(0 < share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"must each be above 0, at most 100; got {text!r}")
    return shares
