r"""Draw where each word of a text looks in an image.

  gloria attention films/0.png "Small left pleural effusion." \
      --model runs/mine/model --out attention.png

One panel a word, all on one scale of colour, over the image as the model gets it; its number is the
highest attention in it. A map shows where the model looks, and not that the finding is there: asked
of a healthy film, a word looks somewhere, too. Give the --bits and --window of the model's
training, as for search.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gloria.cli.arguments import add_model_arguments, locate_model, pick_image_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a picture or a DICOM file")
    parser.add_argument("text", metavar="TEXT", help="whose words look")
    add_model_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="picture to write: .png, .pdf, .svg"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; auto: the fastest")


def run(args: argparse.Namespace) -> int:
    """Load, look, draw."""
    from gloria.data.images import fit, load_image, normalize
    from gloria.errors import OptionError
    from gloria.evaluation.features import encode_prompts, evaluating
    from gloria.training.devices import pick_device
    from gloria.visualize import plot_attention, save_figure
    from gloria.weights import load_model

    if args.image.exists() and args.out.exists() and args.out.samefile(args.image):
        raise OptionError(f"out must be another file: {args.image}, the image, would be replaced.")
    device = pick_device(args.device)
    model = load_model(locate_model(args.model, quiet=False), device=device)
    size = pick_image_size(args.image_size, {str(args.model): model})
    takes = model.image_encoder.image_input
    film = fit(load_image(args.image, takes.channels, bits=args.bits, window=args.window), size)
    encode_prompts(model, [args.text])  # which tells the words that it can't read
    with evaluating(model):
        looks = model.attention(normalize(film, takes).to(device), args.text)
    print(save_figure(plot_attention(film, looks.words, looks.maps, title=args.text), args.out))
    return 0
