r"""Find the images of a folder that fit a text best.

  gloria search "Small left pleural effusion." --model runs/mine/model --images films
  gloria search "Moderate cardiomegaly." --model runs/mine/model --images films \
      --cache films.features --top 20 --json

Ask in whole sentences of reports, with their full stop. Scores rank; they do not tell whether any
image fits. Every image is encoded and ranked by its global similarity; the best --shortlist of them
are ranked again, region by region and word by word. With --cache their features are kept, and the
next search encodes only images that are new or changed. Give the --bits and --window of the model's
training: a saved model knows the size of its images, not these. Images that can't be read, or have
other bits, are named on stderr and left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gloria.cli.arguments import (
    add_model_arguments,
    add_workers_argument,
    locate_model,
    pick_image_size,
)

SHOWN = 10
"""How many of the images that are left out are named, each with its reason."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("text", help="what to look for")
    add_model_arguments(parser)
    parser.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="searched with its subfolders"
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="images to show")
    parser.add_argument(
        "--shortlist",
        type=int,
        metavar="N",
        help="images to compare by region; default: 200, or as many as are shown",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep features here; default: a temporary folder"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time")
    add_workers_argument(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto: the fastest")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Encode what is new, rank, print."""
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from gloria.cli.progress import Progress, say
    from gloria.data.folder import ImageFolder
    from gloria.errors import OptionError
    from gloria.evaluation.embeddings import store_images
    from gloria.evaluation.search import check_counts, search_images
    from gloria.training.devices import pick_device
    from gloria.weights import hash_model, load_model

    shortlist = max(200, args.top) if args.shortlist is None else args.shortlist
    check_counts(args.top, shortlist)
    if not args.text.strip():
        raise OptionError(f"text must hold a word to look for; got {args.text!r}.")
    device = pick_device(args.device)
    folder = locate_model(args.model, args.quiet)
    fingerprint = hash_model(folder)  # now: a training may write it anew
    model = load_model(folder, device=device)
    kind = model.trained_kind  # there may be none, which is told before images are encoded
    data = ImageFolder(
        args.images,
        size=pick_image_size(args.image_size, {str(args.model): model}),
        channels=model.image_encoder.image_input.channels,
        bits=args.bits,
        window=args.window,
    )
    with ExitStack() as stack:
        cache = args.cache or Path(stack.enter_context(TemporaryDirectory()))
        with Progress(len(data), "encode", args.quiet) as progress:
            images = store_images(
                cache,
                model,
                data,
                fingerprint=fingerprint,
                batch_size=args.batch_size,
                workers=args.workers,
                progress=progress.advance,
            )
        by_region = {"global": 0, "local": len(images)}.get(kind, min(shortlist, len(images)))
        with Progress(by_region, "compare", args.quiet or not by_region) as progress:
            found = search_images(
                model,
                images,
                args.text,
                top=args.top,
                shortlist=shortlist,
                progress=progress.advance,
            )
    for fault in images.broken[:SHOWN]:
        say(f"left out: {fault}")
    if count := len(images.broken):
        more = f"; --json names those after the first {SHOWN}, too" if count > SHOWN else ""
        say(f"{count} of {len(data)} images are left out{more}")
    if args.json:
        report = {
            "text": args.text,
            "similarity": kind,
            "searched": len(images),
            "encoded": images.encoded,
            "broken": list(images.broken),
            "found": [
                {"rank": rank, "score": each.score, "path": str(each.path)}
                for rank, each in enumerate(found, start=1)
            ],
        }
        print(json.dumps(report, indent=2))
    else:
        say(f"{len(images)} images searched, {images.encoded} of them encoded now", args.quiet)
        print(f"rank  {'score':>7}  path")
        for rank, each in enumerate(found, start=1):
            print(f"{rank:>4}  {each.score:7.4f}  {each.path}")
    return 0
