r"""Train GLoRIA on your own images and reports.

The CSV file has a header and one row per pair: an image path (relative to the file), a report, and
a split, "train" or "val". Without a "val" split nothing is validated.

  gloria train --data my.csv --out runs/mine
  gloria train --data my.csv --out runs/mine --image-encoder timm:resnet50 --pretrained \
      --text-encoder hf:emilyalsentzer/Bio_ClinicalBERT --image-size 224 --channels 3

A run that was stopped goes on where it stood when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gloria.cli.progress import StepProgress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, type=Path, metavar="CSV", help="images and reports")
    data.add_argument("--image-column", default="image", metavar="NAME")
    data.add_argument("--report-column", default="report", metavar="NAME")
    data.add_argument("--split-column", default="split", metavar="NAME")
    data.add_argument("--train-split", default="train", metavar="NAME")
    data.add_argument("--val-split", default="val", metavar="NAME")
    data.add_argument("--image-size", type=int, default=64, metavar="PX", help="square side")
    data.add_argument("--channels", type=int, default=1, choices=(1, 3), help="1: grayscale")
    data.add_argument("--workers", type=int, default=2, metavar="N", help="loading processes")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--image-encoder",
        metavar="NAME",
        help="such as timm:resnet50; default: a small ResNet, trained from scratch",
    )
    model.add_argument(
        "--text-encoder",
        metavar="NAME",
        help="such as hf:FOLDER; default: a small BERT with the reports' own vocabulary",
    )
    model.add_argument("--pretrained", action="store_true", help="pretrained image encoder")
    model.add_argument("--embedding-dim", type=int, default=128, metavar="N")
    model.add_argument("--loss", default="global_local_contrastive", metavar="NAME")
    model.add_argument(
        "--preset", help="the loss's constants: paper, official, stable; default: stable"
    )

    training = parser.add_argument_group("training")
    training.add_argument("--out", type=Path, required=True, help="folder of the run")
    training.add_argument("--steps", type=int, default=700)
    training.add_argument("--batch-size", type=int, default=32)
    training.add_argument("--learning-rate", type=float, default=2e-3)
    training.add_argument("--validate-every", type=int, default=100, metavar="STEPS")
    training.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--device", default="auto", help="cpu, cuda, mps; auto: the fastest")
    training.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Train, and save the model, its history and its curves."""
    from gloria.data import ImageReportTable, read_splits
    from gloria.training import TrainingRecipe, train
    from gloria.training.devices import pick_device
    from gloria.training.randomness import isolated
    from gloria.training.small import small_model
    from gloria.visualize import plot_training_curves, save_figure
    from gloria.weights import save_model

    def table(split: str) -> ImageReportTable:
        return ImageReportTable(
            args.data,
            split,
            size=(args.image_size, args.image_size),
            channels=args.channels,
            image_column=args.image_column,
            report_column=args.report_column,
            split_column=args.split_column,
        )

    recipe = TrainingRecipe(
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        validate_every=args.validate_every,
        checkpoint_every=args.checkpoint_every,
        seed=args.seed,
    )
    pairs = table(args.train_split)
    validation = None
    if args.val_split in read_splits(args.data, args.split_column):
        validation = table(args.val_split)
    else:
        say(f"no rows with split {args.val_split!r}: nothing is validated", args.quiet)
    device = pick_device(args.device)
    image_options = {"in_chans": args.channels, "pretrained": args.pretrained}
    with isolated(args.seed):
        model = small_model(
            pairs.reports,
            image_encoder=args.image_encoder,
            text_encoder=args.text_encoder,
            image_options=image_options,
            embedding_dim=args.embedding_dim,
            loss=args.loss,
            preset=args.preset,
        )
    with StepProgress(recipe.steps, "train", args.quiet) as progress:
        history = train(
            model.to(device),
            pairs,
            recipe,
            validation=validation,
            folder=args.out,
            workers=args.workers,
            on_step=progress,
        )
    save_model(model, args.out / "model")
    (args.out / "history.json").write_text(json.dumps(history) + "\n")
    save_figure(plot_training_curves(history), args.out / "curves.png")
    last = history[-1]
    say(f"loss {last['loss']:.3f} after {recipe.steps} steps; model in {args.out / 'model'}", False)
    return 0
