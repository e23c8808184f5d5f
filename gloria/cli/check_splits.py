"""Look for patients, images and exact copies that are in more than one split.

Give one CSV file with a split column, or a file for each split: CSV files as CheXpert, MIMIC-CXR,
RSNA and SIIM have them, or id lists.

  gloria check-splits --data my.csv
  gloria check-splits --data train.csv valid.csv chexpert_5x200.txt
  gloria check-splits --data train.csv val.csv --images dicom-images-train --pixels

Exit code 1 if anything leaks, 2 if it could not look at all. What it could not check, such as
patients that no column names, it says; that alone is exit code 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="CSV files, id lists",
    )
    parser.add_argument("--split-column", default="split", metavar="NAME", help="of CSV files")
    parser.add_argument(
        "--image-column",
        metavar="NAME",
        help="of CSV files; default: image, or what a known data set calls it",
    )
    parser.add_argument(
        "--patient-column",
        metavar="NAME",
        help="of CSV files; default: patient, PatientID or subject_id, however spelled",
    )
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="finds the patient in an image's id, where there is no column; default: CheXpert's "
        "and MIMIC-CXR's",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="where the images are; default: beside the file"
    )
    copies = parser.add_mutually_exclusive_group()
    copies.add_argument("--no-files", action="store_true", help="do not look for exact copies")
    copies.add_argument("--pixels", action="store_true", help="compare pixels, not files' bytes")
    parser.add_argument(
        "--first", type=int, default=5, metavar="N", help="how many of each kind to show"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Read, compare, report."""
    from gloria.checks import check_integer
    from gloria.cli.progress import Progress
    from gloria.data.leaks import PATIENT_PATTERN, describe_leaks, find_leaks, read_split_files
    from gloria.errors import DataError

    check_integer("first", args.first, 0)
    splits = read_split_files(
        args.data,
        split_column=args.split_column,
        image_column=args.image_column,
        patient_column=args.patient_column,
        patient_pattern=args.patient_pattern or PATIENT_PATTERN,
        images=args.images,
    )
    if len(splits) < 2:
        raise DataError(
            f"a leak is between splits; got one, {', '.join(splits)!r}. Give a file for each "
            f"split, or a CSV file with a column of their names, which --split-column names "
            f"(now: {args.split_column})."
        )
    total = sum(map(len, splits.values()))
    with Progress(total, "compare", args.quiet or args.no_files) as progress:
        leaks = find_leaks(
            splits, files=not args.no_files, pixels=args.pixels, progress=progress.advance
        )
    if args.json:
        print(json.dumps({"leaks": bool(leaks), **vars(leaks)}, indent=2))
    else:
        print(describe_leaks(leaks, args.first))
    return int(bool(leaks))
