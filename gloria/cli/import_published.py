r"""Make a saved model of a checkpoint of the published GLoRIA code.

  gloria import-published chexpert_resnet50.ckpt --out gloria-resnet50
  gloria evaluate --model gloria-resnet50 --out evaluation \
      --format chexpert --data CheXpert-v1.0-small/train.csv

The checkpoint is a pickle, which could run any code: nothing in it is run, and one that names what
no such checkpoint does is refused. Config and tokenizer of the text encoder come from the Hugging
Face hub or its local cache, or from the folder --text-encoder; its weights are in the checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a .ckpt file")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write, a new one"
    )
    parser.add_argument(
        "--text-encoder",
        metavar="NAME",
        help="on the Hugging Face hub, or a folder; default: what the checkpoint names",
    )


def run(args: argparse.Namespace) -> int:
    """Read, compose, save."""
    from gloria.cli.out import check_out
    from gloria.errors import OptionError
    from gloria.published import load_published
    from gloria.weights import save_model

    if args.out.exists():
        raise OptionError(f"out must be a new folder; {args.out} exists.")
    check_out(args.out)
    model = load_published(args.checkpoint, args.text_encoder)
    print(save_model(model, args.out))
    return 0
