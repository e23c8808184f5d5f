"""Write the built-in phantom radiographs to disk: PNG images and masks, a CSV file, prompts.

What is written is what the demo trains on, in the form of your own data:

  gloria phantoms --out phantoms
  gloria train --data phantoms/phantoms.csv --out runs/phantoms

Phantoms that are in the folder already are replaced; other files there stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write into"
    )
    parser.add_argument(
        "--train", type=int, default=4000, metavar="N", help="training images; 0: none"
    )
    parser.add_argument(
        "--val", type=int, default=800, metavar="N", help="validation images; 0: none"
    )
    parser.add_argument("--test", type=int, default=800, metavar="N", help="test images; 0: none")
    parser.add_argument(
        "--per-class",
        type=int,
        default=100,
        metavar="N",
        help="images of each class in the splits val_5xN and test_5xN; 0: none",
    )
    parser.add_argument("--size", type=int, default=64, metavar="PX", help="side of the images")
    parser.add_argument(
        "--contrast",
        type=float,
        default=1.7,
        metavar="FACTOR",
        help="of the findings; 1.7 is the demo's, 1.25 is hard to see",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the drawing")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Draw and write."""
    from gloria.checks import check_integer
    from gloria.cli.out import check_out
    from gloria.cli.progress import Progress
    from gloria.data.phantom import PhantomDataset, write_phantoms
    from gloria.errors import OptionError

    for name in ("train", "val", "test", "per_class"):
        check_integer(name.replace("_", "-"), getattr(args, name), 0)
    counts: dict[str, int | None] = {"train": args.train, "val": args.val, "test": args.test}
    if args.per_class:
        counts |= dict.fromkeys((f"val_5x{args.per_class}", f"test_5x{args.per_class}"))
    datasets = [
        PhantomDataset(split, count=count, seed=args.seed, size=args.size, contrast=args.contrast)
        for split, count in counts.items()
        if count != 0
    ]
    if not datasets:
        raise OptionError("train, val, test and per-class must not all be 0.")
    check_out(args.out)
    with Progress(sum(map(len, datasets)), "write", args.quiet) as progress:
        table = write_phantoms(args.out, datasets, progress=progress.advance)
    print(table)
    return 0
