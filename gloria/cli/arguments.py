"""Arguments that several commands take, and checks of them."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gloria.errors import OptionError

if TYPE_CHECKING:
    from gloria.model import GLoRIA

IMAGE_SIZE = "square side; default: that of the model's training"
"""Help of ``--image-size``."""

MODEL = (
    "a saved model: a folder, such as the folder model of a run, or owner/name on the Hugging Face "
    "hub"
)
"""Help of ``--model``."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--model``, of a command that needs one, and what its images are."""
    parser.add_argument("--model", type=Path, required=True, metavar="NAME", help=MODEL)
    parser.add_argument("--image-size", type=int, metavar="PX", help=IMAGE_SIZE)
    add_pixel_arguments(parser)


def add_workers_argument(parser: argparse._ActionsContainer, default: int = 0) -> None:
    """Declare ``--workers``."""
    parser.add_argument(
        "--workers",
        type=int,
        default=default,
        metavar="N",
        help="processes that load images, beside this one; large films take most of the time",
    )


def add_pixel_arguments(parser: argparse._ActionsContainer, whose: str = "") -> None:
    """Declare ``--bits`` and ``--window``: what pixel values mean."""
    parser.add_argument(
        "--bits", type=int, metavar="N", help=f"of the pixels of 16-bit images{whose}, such as 12"
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("CENTER", "WIDTH"),
        help=f"pixel values of images{whose} to show, instead of a DICOM file's own",
    )


def refuse_unread(
    args: argparse.Namespace,
    read_by: Mapping[str, Collection[str]],
    usual: Mapping[str, str | None],
) -> None:
    """An option that the format does not read is an error, not ignored.

    ``read_by`` has the formats that read an option, ``usual`` its default if that is not None.
    """
    for name, formats in read_by.items():
        if args.format not in formats and getattr(args, name) != usual.get(name):
            raise OptionError(f"{name.replace('_', '-')} is not for --format {args.format}.")


class AddNames(argparse.Action):
    """``"A, B"`` as names; those of an option that is given again are added."""

    def __call__(
        self, parser: Any, args: argparse.Namespace, text: Any, option: Any = None
    ) -> None:
        """Add them to what is there."""
        names = [name.strip() for name in text.split(",")]
        found = (*(getattr(args, self.dest) or ()), *names)
        if "" in found or len(set(found)) < len(found):
            raise argparse.ArgumentError(self, f"must be names, each once, as A,B; got {text!r}")
        setattr(args, self.dest, found)


def locate_model(name: Path, quiet: bool) -> Path:
    """The folder of a saved model, or of its copy from the hub; says if the hub is asked."""
    from gloria.cli.progress import say
    from gloria.errors import CheckpointError
    from gloria.training.checkpoints import last_step
    from gloria.weights import find_model

    for run in (name, name.parent):
        stands = last_step(run / "checkpoints")
        if stands and not (name / "config.json").exists() and not (run / "model").exists():
            best = f" Its best model so far is {run / 'best'}." if (run / "best").exists() else ""
            raise CheckpointError(
                f"{name} is no saved model yet: the run in {run} stands at step {stands}. The "
                f"command that began it goes on from there, and saves the model at its end.{best}"
            )
    if len(name.parts) == 2 and not name.exists():  # as owner/name, or mistyped
        say(f"{name} is no folder here: looking for it on the Hugging Face hub", quiet)
    return find_model(name.as_posix())


def pick_image_size(given: int | None, models: Mapping[str, GLoRIA]) -> tuple[int, int]:
    """``(height, width)`` to fit images into: as given, as trained, or as encoders need them."""
    from gloria.checks import check_integer
    from gloria.cli.progress import say

    if given is not None:
        check_integer("image-size", given, 1)
        for name, model in models.items():
            trained = model.trained_image_size
            if trained not in (None, (given, given)):
                say(f"{name} was trained on images of {trained[0]} x {trained[1]}")
        return given, given
    sizes = {}
    for name, model in models.items():
        size = model.trained_image_size or model.image_encoder.image_input.size
        if size is None:
            raise OptionError(
                f"image-size must be given: {name} takes any, and does not say on which it was "
                f"trained."
            )
        sizes[name] = size
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
        raise OptionError(
            f"image-size must be given, or models evaluated one by one: theirs differ: {told}."
        )
    return next(iter(sizes.values()))
