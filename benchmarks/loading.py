"""Whether loading images or training on them takes longer: images per second of both.

    python benchmarks/loading.py                                     # the small model, 64 px
    python benchmarks/loading.py --size 224 --image-encoder timm:resnet50

PNG files of phantoms, 320 px as those of CheXpert-small, read through the reader of CSV tables as
`gloria train` does, by none and by some loading processes; and the time that steps of training take
with the images in memory. Loading runs beside training, so the bottleneck is the lower figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import torch
from measure import machine

from gloria.data import ImageReportTable
from gloria.data.loading import load_batches, stack_images
from gloria.data.phantom import PhantomDataset, write_phantoms
from gloria.training import TrainingRecipe, train
from gloria.training.small import small_model

BATCH = 32


def loaded_per_second(pairs: Any, batches: int, workers: int) -> float:
    """Images read, resized and stacked per second, the start of the processes left out."""
    order = [[(BATCH * k + j) % len(pairs) for j in range(BATCH)] for k in range(batches + 1)]
    loader = load_batches(pairs, order, stack_images, workers=workers)
    next(loader)
    begin = time.perf_counter()
    images = sum(len(batch) for batch in loader)
    return images / (time.perf_counter() - begin)


def trained_per_second(pairs: Any, steps: int, image_encoder: str | None) -> float:
    """Images per second in steps of training, nothing to load; the first step left out."""
    channels = 1 if image_encoder is None else 3
    model = small_model(
        [pair.report for pair in pairs],
        image_encoder=image_encoder,
        image_options={} if image_encoder is None else {"in_chans": channels},
    )
    times: list[float] = []
    recipe = TrainingRecipe(steps=steps + 1, batch_size=BATCH)
    train(model, pairs, recipe, on_step=lambda _: times.append(time.perf_counter()))
    return BATCH * steps / (times[-1] - times[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=64, help="pixels that training sees")
    parser.add_argument("--image-encoder", help="default: the small one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        films = PhantomDataset("train", size=320, count=args.images)
        table = write_phantoms(folder, [films])
        channels = 1 if args.image_encoder is None else 3
        pairs = ImageReportTable(table, "train", size=(args.size, args.size), channels=channels)
        in_memory = [pairs[k] for k in range(len(pairs))]
        figures = {
            "loaded by no process": loaded_per_second(pairs, args.batches, 0),
            f"loaded by {args.workers}": loaded_per_second(pairs, args.batches, args.workers),
            "trained": trained_per_second(in_memory, args.steps, args.image_encoder),
        }
    facts = {
        **machine("cpu", torch.float32),
        "images per second": {name: round(value, 1) for name, value in figures.items()},
    }
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
