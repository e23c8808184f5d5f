"""Score every image against every report by the local similarity, as retrieval does.

    python benchmarks/retrieval.py                  # 1,000 x 1,000, as CheXpert 5x200
    python benchmarks/retrieval.py --pairs 50

Through the public pair_similarity, on the "retrieval" workload (7 x 7 regions of 768 numbers,
reports as long as real ones). Prints pairs per second and the peak of memory beside the features
themselves, in a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from measure import machine, status
from workloads import WORKLOADS, Inputs

from gloria.checks import require
from gloria.evaluation.features import pair_similarity, select_images, select_texts
from gloria.model import GLoRIA
from gloria.training.small import small_model
from gloria.types import ImageFeatures, TextFeatures


def features(inputs: Inputs) -> tuple[ImageFeatures, TextFeatures]:
    """What encoders would give; the local similarity reads no pooled vector."""
    pooled = torch.zeros(len(inputs.regions), inputs.regions.shape[2])
    tokens = [["word"] * length for length in inputs.word_mask.sum(1).tolist()]
    images = ImageFeatures(pooled, inputs.regions, (1, inputs.regions.shape[1]))
    return images, TextFeatures(pooled, inputs.words, inputs.word_mask, tokens)


def measure(model: GLoRIA, pairs: int, block: int, quiet: bool = False) -> dict[str, float]:
    """Seconds, pairs per second and bytes of one run, after a small one has warmed up."""
    images, texts = features(WORKLOADS["retrieval"]._replace(pairs=pairs).draw())
    few = slice(min(pairs, 8))
    pair_similarity(
        model, select_images(images, few), select_texts(texts, range(min(pairs, 8))), "local"
    )
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = status("VmRSS")
    bar = require("tqdm", "train").tqdm(total=pairs, desc="images", disable=quiet)
    start = time.perf_counter()
    pair_similarity(model, images, texts, "local", block, progress=bar.update)
    seconds = time.perf_counter() - start
    bar.close()
    return {
        "pairs": pairs**2,
        "seconds": seconds,
        "pairs_per_second": pairs**2 / seconds,
        # the kernel's counters lag by some pages
        "memory": max(0, status("VmHWM") - before),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000, help="images, and reports")
    parser.add_argument("--block", type=int, default=64, help="images at a time")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    facts = {
        **machine("cpu", torch.float32),
        **measure(small_model(["report"]), args.pairs, args.block, args.quiet),
    }
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
