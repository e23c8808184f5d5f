"""Train GLoRIA on the built-in phantom radiographs and see what it learned.

Draws the data, trains from scratch, and compares with chance, with the untrained model and with
other images: retrieval, zero-shot classification, and where the findings' words attend. Writes
into the folder --out:

  model/           the trained model (gloria.load_model)
  metrics.json     every figure, with its controls
  curves.png       loss and its terms
  comparison.png   the main figures beside their controls
  attention.png    where words look, trained and untrained
  history.json     what was logged at every step

The figures show that training works. They are no evidence about real radiographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder of the run"
    )
    parser.add_argument(
        "--preset",
        choices=("quick", "long"),
        default="quick",
        help="quick: 4,000 phantoms, 700 steps; long: 12,000 and 4,000",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="default: the preset's")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of data, weights and training"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto: the fastest")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Draw, train, evaluate, write."""
    from dataclasses import replace

    from gloria.checks import require
    from gloria.cli.out import check_out
    from gloria.cli.progress import Progress, StepProgress, say
    from gloria.errors import OptionError
    from gloria.training.demo import PRESETS, DemoData, figures, run_demo
    from gloria.training.devices import pick_device

    settings = PRESETS[args.preset]
    if args.steps is not None:
        settings = replace(settings, steps=args.steps)
    settings.recipe(args.seed)  # checks the steps before anything is drawn
    require("matplotlib", "train,viz")
    device = pick_device(args.device)
    check_out(args.out, "model")
    for name in ("checkpoints", "best", "left_out.json"):  # which the demo does not write
        if (args.out / name).exists():
            raise OptionError(
                f"out must be another folder: {args.out} holds {name}, of a run of gloria train, "
                f"whose model would be replaced."
            )
    args.out.mkdir(parents=True, exist_ok=True)
    with Progress(sum(settings.splits().values()), "draw", args.quiet) as drawing:
        data = DemoData.draw(settings, seed=args.seed, progress=drawing.advance)
    with StepProgress(settings.steps, "train", args.quiet) as training:
        metrics = run_demo(
            data,
            settings,
            args.out,
            seed=args.seed,
            device=device,
            on_step=training,
            say=lambda message: say(message, args.quiet),
        )
    print(format_figures(figures(metrics)))
    print(f"\n{metrics['note']}\nPictures, model and all figures: {args.out}")
    return 0


def format_figures(figures: dict[str, dict[str, float]]) -> str:
    """The main figures as a table."""
    from gloria.evaluation.tables import align

    columns = ("trained", "untrained", "chance", "other image")
    rows = [
        (name, *(f"{values[c]:.3f}" if c in values else "" for c in columns))
        for name, values in figures.items()
    ]
    return align([("", *columns), *rows])
