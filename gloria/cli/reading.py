"""What `train` and `evaluate` read: images with reports, their splits, and what is left out."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from gloria.cli.arguments import AddNames, add_pixel_arguments

if TYPE_CHECKING:
    from gloria.data import Radiographs, Record

COLUMNS = {"image_column": "image", "report_column": "report", "split_column": "split"}
"""What the columns of a csv are called unless said otherwise."""

VALIDATION = ("val", "valid", "validate", "validation")
"""What the split that validates may be called; the first of them that is there is it."""


def add_reading_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare what of the data is read, and how; of a csv, too."""
    group.add_argument(
        "--sections",
        action=AddNames,
        metavar="NAME,...",
        help="of the reports, such as findings,impression; default: the whole report",
    )
    group.add_argument(
        "--skip-broken",
        action="store_true",
        default=None,  # as the options that only some formats read
        help="read every image first; leave out those that are broken or not there",
    )
    for name in ("image_column", "split_column"):
        group.add_argument(
            f"--{name.replace('_', '-')}", default=COLUMNS[name], metavar="NAME", help="of a csv"
        )
    add_pixel_arguments(group, " of a csv")


def read_reports(args: argparse.Namespace, split: str | None, **options: Any) -> Radiographs:
    """The images of a split (None: of all), of a format that has reports."""
    from gloria.data import MIMICCXR, CheXpertPlus, ImageReportTable, ReportPolicy

    options["policy"] = ReportPolicy(args.sections)
    if args.format == "chexpert-plus":
        return CheXpertPlus(args.data, split, root=args.images, **options)
    if args.format == "mimic-cxr":
        return MIMICCXR(args.data, split, **options)
    return ImageReportTable(
        args.data,
        split,
        bits=args.bits,
        window=args.window,
        check_files=not args.skip_broken,
        image_column=args.image_column,
        report_column=args.report_column,
        split_column=args.split_column,
        **options,
    )


def leave_out_broken(args: argparse.Namespace, data: Radiographs, split: str | None) -> Radiographs:
    """The images that can be read, if only these were asked for; what is left out is told."""
    from gloria.cli.progress import Progress, say

    if args.skip_broken:
        with Progress(len(data), f"read {split or ''}".rstrip(), args.quiet) as progress:
            data = data.without_broken(progress=progress.advance)
    if data.skipped:
        where = f"{split}: " if split else ""
        say(f"{where}{len(data.skipped)} images left out, first: {data.skipped[0]}")
    return data


def find_splits(args: argparse.Namespace) -> dict[str, list[Record]]:
    """The splits that the data name; of a csv with their rows, as `gloria check-splits` reads them.

    No image need be here. A csv may lack the usual column of splits, but none that was given; its
    patients are in the column that is named, or in the usual one, or in the paths.
    """
    from gloria.data import read_splits
    from gloria.data.leaks import read_split_table
    from gloria.data.rows import read_header

    column = args.split_column
    if args.format == "mimic-cxr":
        return {"train": [], "validate": [], "test": []}
    if args.format == "chexpert-plus":
        return {name: [] for name in read_splits(args.data, column)}
    usual = column == COLUMNS["split_column"]
    if args.format != "csv" or (usual and column not in read_header(args.data)):
        return {}
    return read_split_table(
        args.data,
        column,
        image_column=args.image_column,
        patient_column=getattr(args, "patient_column", None),
    )


def find_validation(splits: Collection[str]) -> str | None:
    """The split that validates; None if there is none."""
    return next((name for name in VALIDATION if name in splits), None)


def tell_unread(
    args: argparse.Namespace, splits: Iterable[str], read: Iterable[str | None]
) -> None:
    """Say which splits nothing reads: a name may be misspelt, but for those of MIMIC-CXR."""
    from gloria.cli.progress import say

    others = set(splits) - set(read)
    if others and args.format != "mimic-cxr":
        say(f"rows of other splits are not read: {quote(others)}", args.quiet)


def quote(splits: Iterable[str]) -> str:
    """Splits by name; one without a name is seen, too."""
    return ", ".join(map(repr, sorted(splits)))
