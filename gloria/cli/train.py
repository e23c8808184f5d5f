r"""Train GLoRIA on your own images and reports.

The CSV file has a header and one row per pair: an image path (relative to the file), a report, and
a split, "train" or "val" ("valid", "validate" and "validation" will do). Without the latter nothing
is validated. CheXpert Plus and MIMIC-CXR-JPG are read as they are released.

  gloria train --data my.csv --out runs/mine
  gloria train --format mimic-cxr --data mimic-cxr-jpg/2.1.0 --sections findings,impression \
      --skip-incomplete --image-size 224 --out runs/mimic
  gloria train --data my.csv --out runs/mine --image-encoder timm:resnet50 --pretrained \
      --text-encoder hf:emilyalsentzer/Bio_ClinicalBERT --image-size 224 --channels 3
  gloria train --data my.csv --out runs/mine --text-encoder hf:FOLDER --text-option frozen=true \
      --loss-option local_weight=0.5
  gloria train --data more.csv --out runs/tuned --model runs/mine/model --learning-rate 2e-4

With --model, training starts from the weights of a saved model and goes through a schedule of its
own; the model, its loss and the size of its images are the saved one's.

Writes into the folder --out:

  model/         the model after the last step (gloria evaluate, search and load_model take it)
  best/          the same, of the lowest validation loss, if there is a "val" split
  history.json   loss, its terms, learning rate and gradient norm of every step
  curves.png     the same, drawn
  left_out.json  what was left out of each split, and why
  checkpoints/   where a stopped run goes on, when the same command is given again;
                 Ctrl-C and SIGTERM stop it after the step that it is at
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from operator import itemgetter
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from gloria.cli.arguments import (
    MODEL,
    add_workers_argument,
    locate_model,
    pick_image_size,
    refuse_unread,
)
from gloria.cli.reading import (
    COLUMNS,
    VALIDATION,
    add_reading_arguments,
    find_splits,
    find_validation,
    leave_out_broken,
    quote,
    read_reports,
    tell_unread,
)

if TYPE_CHECKING:
    from gloria.data import Radiographs, Record
    from gloria.model import GLoRIA
    from gloria.training import TrainingRecipe

FORMATS = ("csv", "chexpert-plus", "mimic-cxr")
READ_BY = {"images": ("chexpert-plus",), **dict.fromkeys(("bits", "window", *COLUMNS), ("csv",))}
"""Option: the formats that read it, if not all do."""

NEW_MODEL: dict[str, Any] = {
    "channels": 1,
    "image_encoder": None,
    "text_encoder": None,
    "pretrained": False,
    "embedding_dim": 128,
    "projection": "linear",
    "loss": "global_local_contrastive",
    "preset": None,
    "image_option": (),
    "text_option": (),
    "loss_option": (),
}
"""What a saved model has already: the options that describe a new one, and their defaults."""

COUNTED = 10_000
"""Of how many reports tokens are counted and sentences drawn, evenly taken; of all, it may take
minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        required=True,
        type=Path,
        metavar="PATH",
        help="the CSV file, or MIMIC-CXR's folder",
    )
    data.add_argument("--format", default="csv", choices=FORMATS, help="of the data")
    data.add_argument(
        "--images", type=Path, metavar="DIR", help="CheXpert Plus's images; default: beside the CSV"
    )
    add_reading_arguments(data)
    data.add_argument(
        "--report-column", default=COLUMNS["report_column"], metavar="NAME", help="of a csv"
    )
    data.add_argument(
        "--skip-incomplete", action="store_true", help="leave out pairs without a word to read"
    )
    data.add_argument(
        "--train-split", default="train", metavar="NAME", help="the split that trains"
    )
    data.add_argument(
        "--val-split",
        metavar="NAME",
        help=f"the split that validates; default: {', '.join(VALIDATION)}, the first that is there",
    )
    data.add_argument(
        "--image-size",
        type=int,
        metavar="PX",
        help="side of the square that images are fitted into, padded with black; default: 64, or "
        "that of the training of --model",
    )
    data.add_argument(
        "--channels",
        type=int,
        default=argparse.SUPPRESS,
        choices=(1, 3),
        help="of the images; 1: grayscale; default: 1",
    )
    add_workers_argument(data, default=2)

    # what is not given is not there, and told from a default that is
    model = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    model.add_argument(
        "--model",
        type=Path,
        default=None,
        metavar="NAME",
        help=f"start from {MODEL}; default: from a new model, as the options below tell",
    )
    model.add_argument(
        "--image-encoder",
        metavar="NAME",
        help="such as timm:resnet50; default: a small ResNet, trained from scratch",
    )
    model.add_argument(
        "--text-encoder",
        metavar="NAME",
        help="such as hf:FOLDER; default: small_bert, a small BERT with the reports' own words",
    )
    model.add_argument(
        "--pretrained", action="store_true", help="start from the image encoder's published weights"
    )
    model.add_argument(
        "--embedding-dim",
        type=_width,
        metavar="N",
        help="width of the shared space; text: the text encoder's own, which is not projected; "
        "default: 128",
    )
    model.add_argument(
        "--projection",
        choices=("linear", "mlp"),
        help="into the shared space; mlp is ConVIRT's; default: linear",
    )
    model.add_argument(
        "--loss",
        metavar="NAME",
        help="such as sparc; `gloria info` lists them; default: global_local_contrastive",
    )
    model.add_argument(
        "--preset",
        help="the loss's constants, such as paper; default: stable for the default loss, else the "
        "loss's own",
    )
    for part in ("image", "text", "loss"):
        model.add_argument(
            f"--{part}-option",
            type=_option,
            action="append",
            metavar="NAME=VALUE",
            help=f"an argument of the {part + ' encoder' if part != 'loss' else part}; VALUE is "
            "JSON, or else text; can be given again",
        )

    training = parser.add_argument_group("training")
    training.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the run"
    )
    training.add_argument("--steps", type=int, default=700, metavar="N", help="batches to train on")
    training.add_argument("--batch-size", type=int, default=32, metavar="N", help="pairs of a step")
    training.add_argument(
        "--mini-batch-size",
        type=int,
        metavar="N",
        help="pairs encoded at a time, for less memory and more time; the loss is that of the "
        "whole batch; default: all",
    )
    training.add_argument(
        "--learning-rate", type=float, default=2e-3, metavar="RATE", help="the highest, of AdamW"
    )
    training.add_argument("--weight-decay", type=float, default=0.05, metavar="W", help="of AdamW")
    training.add_argument(
        "--clip-norm",
        type=float,
        default=1.0,
        metavar="NORM",
        help="to which longer gradients are cut",
    )
    training.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="of the model's products; weights and gloria's losses are in float32 all the same",
    )
    training.add_argument(
        "--one-sentence",
        action="store_true",
        help="read one random sentence of each report per step, as GLoRIA and ConVIRT do",
    )
    training.add_argument(
        "--validate-every", type=int, default=100, metavar="STEPS", help="between validations"
    )
    training.add_argument(
        "--checkpoint-every",
        type=int,
        default=100,
        metavar="STEPS",
        help="between checkpoints, from the last of which a run goes on; Ctrl-C writes one, too",
    )
    training.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights and training"
    )
    training.add_argument("--device", default="auto", help="cpu, cuda, mps; auto: the fastest")
    training.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args: argparse.Namespace) -> int:
    """Train, and save the model, its history and its curves."""
    from gloria.errors import BrokenItemError
    from gloria.training.checkpoints import last_checkpoint

    try:
        return _run(args)
    except BrokenItemError as fault:
        newest = last_checkpoint(args.out / "checkpoints")
        if newest is not None and not args.skip_broken:
            fault.add_note(
                f"{args.out} goes on with all its images only: give another --out, too. --model "
                f"{newest / 'model'} starts from its weights."
            )
        raise


def _run(args: argparse.Namespace) -> int:
    """As above; a broken image stops it."""
    from gloria.checks import require
    from gloria.cli.progress import StepProgress, say
    from gloria.cli.stopping import Stopping
    from gloria.errors import OptionError
    from gloria.files import write_text
    from gloria.training import train
    from gloria.training.checkpoints import last_step
    from gloria.training.devices import pick_device
    from gloria.training.randomness import isolated
    from gloria.training.small import small_model

    require("matplotlib", "train,viz")  # before hours of training, not after
    recipe = _check(args)
    device = pick_device(args.device)
    if args.model is None:
        model, described = None, _describe(args)
        size = pick_image_size(64 if args.image_size is None else args.image_size, {})
    else:
        model, described = _load(args)
        size = pick_image_size(args.image_size, {str(args.model): model})
        args.channels = model.image_encoder.image_input.channels
    stands = last_step(args.out / "checkpoints")
    if not stands and (args.out / "model" / "model.safetensors").exists():
        raise OptionError(
            f"out must be another folder, or {args.out / 'model'} be removed: it is a saved model, "
            f"which would be replaced, for there are no checkpoints to go on from."
        )
    say(f"reading {args.data}", args.quiet)
    pairs, validation = _read(args, size)
    settings = {
        **described,
        "image_size": size[0] if size[0] == size[1] else size,
        "channels": args.channels,
        "bits": args.bits,
        "window": args.window,
        "validation_data": None if validation is None else validation.fingerprint(),
    }
    if model is None:
        with isolated(args.seed):
            model = small_model(pairs.reports, **described)
    _tell_beforehand(args, model, pairs, validation)
    if stands:
        say(f"{args.out} stands at step {stands} of {recipe.steps}", args.quiet)
    left_out = {args.train_split: pairs.skipped}
    if validation is not None:
        left_out[args.val_split] = validation.skipped
    try:
        with StepProgress(recipe.steps, "train", args.quiet) as progress, Stopping() as stopping:

            def after_step(record: dict[str, float]) -> None:
                if record["step"] == stands + 1:  # not before: the run may be refused
                    write_text(args.out / "left_out.json", json.dumps(left_out, indent=1) + "\n")
                progress(record)
                stopping.check()

            history = train(
                model.to(device),
                pairs,
                recipe,
                validation=validation,
                folder=args.out,
                settings=settings,
                workers=args.workers,
                on_step=after_step,
            )
    except KeyboardInterrupt:
        stands = last_step(args.out / "checkpoints")
        on = f"stands at step {stands}; the same command goes on from there"
        say(f"{args.out} {on if stands else 'has no checkpoint: the command starts anew'}")
        raise
    _save(args.out, model, history)
    return 0


def _check(args: argparse.Namespace) -> TrainingRecipe:
    """What can be told of the options before the data is read, which may take long; the recipe."""
    from gloria.checks import check_integer
    from gloria.cli.out import check_out
    from gloria.data import random_sentences
    from gloria.errors import OptionError
    from gloria.training import TrainingRecipe

    if (processes := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise OptionError(
            f"gloria train is one process, and WORLD_SIZE says {processes}: start it without "
            f"torchrun. docs/training-loops.md has a loop for several."
        )
    given = [f"--{name.replace('_', '-')}" for name in NEW_MODEL if name in args]
    if args.model is not None and given:
        raise OptionError(f"--model has its own: leave out {', '.join(given)}.")
    vars(args).update(NEW_MODEL | vars(args))
    if args.pretrained and args.image_encoder is None:
        raise OptionError(
            "pretrained needs image-encoder, such as timm:resnet50: the small default encoder has "
            "no weights to start from."
        )
    named = {each.name for each in fields(TrainingRecipe)}
    own = {name: value for name, value in vars(args).items() if name in named}
    recipe = TrainingRecipe(**own, text_policy=random_sentences if args.one_sentence else None)
    if args.embedding_dim is not None:
        check_integer("embedding-dim", args.embedding_dim, 1)
    check_integer("workers", args.workers, 0)
    refuse_unread(args, READ_BY, COLUMNS)
    check_out(args.out, "model", "best")
    if args.model is None:
        _check_names(args)
    return recipe


def _check_names(args: argparse.Namespace) -> None:
    """Names that nothing has, and options that the loss does not take."""
    from gloria.catalog import default_catalog, make_loss
    from gloria.training.randomness import isolated
    from gloria.training.small import pick_preset
    from gloria.training.steps import check_initialized

    for kind, name in (
        ("image_encoders", args.image_encoder),
        ("text_encoders", args.text_encoder),
    ):
        if name is not None:
            default_catalog().check(kind, name)
    with isolated(args.seed):  # a loss may draw weights
        given = {
            "preset": pick_preset(args.loss, args.preset),
            **dict(args.loss_option),
        }
        # of the text encoder's width, which only it knows, a usual one will do to see the options
        loss = make_loss(args.loss, given, embedding_dim=args.embedding_dim or 768)
    check_initialized(loss)


def _describe(args: argparse.Namespace) -> dict[str, Any]:
    """What a new model is made from."""
    return {
        "image_encoder": args.image_encoder,
        "text_encoder": args.text_encoder,
        "image_options": _image_options(args),
        "text_options": dict(args.text_option),
        "embedding_dim": args.embedding_dim,
        "projection": args.projection,
        "loss": args.loss,
        "preset": args.preset,
        "loss_options": dict(args.loss_option),
    }


def _load(args: argparse.Namespace) -> tuple[GLoRIA, dict[str, Any]]:
    """The saved model that training starts from, and what tells it from others."""
    from gloria.errors import OptionError
    from gloria.weights import hash_model, load_model

    folder = locate_model(args.model, args.quiet)
    if folder.resolve() in [(args.out / name).resolve() for name in ("model", "best")]:
        raise OptionError(f"out must be another folder: {folder}, of --model, would be replaced.")
    described = {"model": hash_model(folder)}
    return load_model(folder), described


def _tell_beforehand(
    args: argparse.Namespace, model: GLoRIA, pairs: Radiographs, validation: Radiographs | None
) -> None:
    """What would surprise after hours of training, or can hardly be meant."""
    import torch

    from gloria.cli.progress import say
    from gloria.data import random_sentences
    from gloria.encoders import HFTextEncoder
    from gloria.losses import SoftTargetContrastiveLoss
    from gloria.weights import why_not_loadable

    if why := why_not_loadable(model):
        say(
            f"the model's weights are saved, but evaluate, search and gloria.load_model can't make "
            f"it again: {why}"
        )
    twice = len(pairs) - len({(record.file, record.report) for record in pairs.records})
    if twice:
        say(f"{twice} of {len(pairs)} pairs that train are there again: image and report")
    some = pairs.reports[:: max(len(pairs) // COUNTED, 1)]
    read, what = pairs.reports, "reports that train"
    if args.one_sentence:
        drawn = torch.Generator().manual_seed(args.seed)
        read, what = random_sentences(some, drawn), "sentences drawn of reports that train"
    ((same, count),) = Counter(read).most_common(1)
    in_batch = count * args.batch_size / len(read)
    if count > 1 and in_batch >= 2 and not isinstance(model.loss, SoftTargetContrastiveLoss):
        say(
            f"{count} of {len(read)} {what} are {shorten(same, 60)!r}: of a batch of "
            f"{args.batch_size} about {in_batch:.0f}, of which each is a wrong answer for the "
            f"images of the others (docs/losses.md; not with --loss soft_target)"
        )
    encoder = model.text_encoder
    if isinstance(encoder, HFTextEncoder) and not args.one_sentence:
        of = f"{len(some)} looked at of {len(pairs)}" if len(some) < len(pairs) else len(some)
        counts, reads = encoder.token_counts(some), encoder.max_length
        if cut := sum(count > reads for count in counts):
            can = not args.model and (args.text_encoder is None or encoder.longest > reads)
            more = "; --text-option max_length=N reads more" if can else ""
            say(
                f"{cut} of {of} reports that train are longer than the {reads} tokens that "
                f"the text encoder reads, and are cut: the longest has {max(counts)}{more}"
            )
    if validation is not None and len(validation) < args.batch_size:
        say(
            f"{len(validation)} pairs are validated in one batch, training's have "
            f"{args.batch_size}: the two losses can't be compared, fewer pairs have a smaller one",
            args.quiet,
        )


def _tell_leaks(train: Sequence[Record], validation: Sequence[Record]) -> None:
    """What trains and is validated, too."""
    from gloria.cli.progress import say
    from gloria.data.leaks import find_leaks

    leaks = find_leaks({"training": train, "validation": validation}, files=False)
    if leaks:
        patients = "" if leaks.patients is None else f" and {len(leaks.patients)} patients"
        say(
            f"of what trains, {len(leaks.images)} images{patients} are validated, too: "
            f"gloria check-splits names them"
        )


def _read(
    args: argparse.Namespace, size: tuple[int, int]
) -> tuple[Radiographs, Radiographs | None]:
    """The pairs that train, and those that validate, if there are any."""
    from gloria.cli.progress import say
    from gloria.errors import DataError

    def read(split: str) -> Radiographs:
        options = {"channels": args.channels, "skip_incomplete": args.skip_incomplete}
        return leave_out_broken(args, read_reports(args, split, size=size, **options), split)

    splits = find_splits(args)
    for option, does in (("train_split", "trains"), ("val_split", "validates")):
        name = getattr(args, option)
        if splits and name not in (None, *splits):
            raise DataError(
                f"{args.data} has no row with split {name!r}; its splits are {quote(splits)}. "
                f"--{option.replace('_', '-')} names the one that {does}."
            )
    pairs = read(args.train_split)
    args.val_split = args.val_split or find_validation(splits.keys() - {args.train_split})
    tell_unread(args, splits, (args.train_split, args.val_split))
    if args.val_split is None:
        say(f"no rows with split {' or '.join(VALIDATION)}: nothing is validated", args.quiet)
        return pairs, None
    validation = read(args.val_split)
    # pairs of a csv do not say whose they are
    rows = splits if args.format == "csv" else {}
    _tell_leaks(
        rows.get(args.train_split, pairs.records), rows.get(args.val_split, validation.records)
    )
    return pairs, validation


def _save(out: Path, model: GLoRIA, history: list[dict[str, float]]) -> None:
    """The trained model, its history and its curves, and say where the models are."""
    from gloria.cli.progress import say
    from gloria.files import write_text
    from gloria.visualize import plot_training_curves, save_figure
    from gloria.weights import save_model

    save_model(model, out / "model")
    write_text(out / "history.json", json.dumps(history) + "\n")
    save_figure(plot_training_curves(history), out / "curves.png")
    last = history[-1]
    say(f"loss {last['loss']:.3f} after {len(history)} steps; model in {out / 'model'}")
    validated = [record for record in history if "validation_loss" in record]
    if validated:
        best = min(validated, key=itemgetter("validation_loss"))
        where = "in" if (out / "best").exists() else "is no longer in"
        say(
            f"validation loss {best['validation_loss']:.3f}, the lowest, at step "
            f"{best['step']:.0f}; that model {where} {out / 'best'}"
        )


def _image_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the image encoder is made with; some take a number of channels."""
    from gloria.catalog import default_catalog

    options: dict[str, Any] = {}
    name = args.image_encoder
    if name is None or default_catalog().takes("image_encoders", name, "in_chans"):
        options["in_chans"] = args.channels
    if args.pretrained:
        options["pretrained"] = True
    return options | dict(args.image_option)


def _width(text: str) -> int | None:
    """A number, or "text" for the text encoder's own width."""
    if text == "text":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number or 'text'; got {text!r}") from None


def _option(text: str) -> tuple[str, Any]:
    """``NAME=VALUE``, the value as JSON if it is JSON; Python's spelling of it will do."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE; got {text!r}")
    spelled = {"True": "true", "False": "false", "None": "null"}
    try:
        return name, json.loads(spelled.get(value, value))
    except ValueError:
        return name, value
