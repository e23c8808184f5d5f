"""What a batch costs that is encoded some pairs at a time: peak memory and seconds of a step.

    python benchmarks/mini_batches.py
    python benchmarks/mini_batches.py --batch 256 --sizes 256 64 16 --device cuda

Forward and backward of the published architecture, a ResNet-50 on images of 224 x 224 pixels and
BERT-base on reports of 97 tokens, in float32, weights drawn. Each size has a process of its own;
memory is beside the model and its gradients. (On the CPU, needs Linux.)
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import time
from pathlib import Path

import torch
from measure import machine, status, synchronize

import gloria
from gloria.data.phantom import PhantomDataset
from gloria.encoders import HFTextEncoder
from gloria.encoders.small_text import build_word_tokenizer

TOKENS = 97


def build(reports: list[str]) -> gloria.GLoRIA:
    """The published architecture, with words of these reports."""
    from transformers import BertConfig, BertModel

    tokenizer = build_word_tokenizer(reports)
    bert = BertModel(BertConfig(vocab_size=len(tokenizer)), add_pooling_layer=False)
    encoder = HFTextEncoder(bert, tokenizer=tokenizer, last_n_layers=4, max_length=TOKENS)
    return gloria.create_model("timm:resnet50", encoder, loss_options={"preset": "official"})


def step(batch: int, size: int, device: str) -> tuple[int, float]:
    """Bytes at the peak and seconds of a step; to be called in a fresh process."""
    # several in one, so that each fills all tokens
    each = [item.report for item in PhantomDataset("train", count=64)]
    reports = [" ".join(each[k % 64 :] + each[: k % 64]) for k in range(batch)]
    model = build(each).to(device)
    images = torch.randn(batch, 3, 224, 224, device=device)
    model(images[:2], reports[:2]).loss.backward()  # makes the gradients
    synchronize(device)
    if device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = status("VmRSS")
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    model(images, reports, mini_batch_size=None if size == batch else size).loss.backward()
    synchronize(device)
    seconds = time.perf_counter() - start
    peak = status("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
    return peak - before, seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 16, 8, 4])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        print(*step(args.batch, args.sizes[0], args.device))
        return
    print(machine(args.device, torch.float32))
    print("| encoded at a time | peak memory | a step |\n|---|---|---|")
    for size in args.sizes:
        command = [sys.executable, __file__, "--alone", "--batch", str(args.batch)]
        command += ["--sizes", str(size), "--device", args.device]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"| {size} | {done.stderr.strip().splitlines()[-1]} | |")
            continue
        peak, seconds = map(float, done.stdout.split())
        print(f"| {size} | {peak / 2**20:,.0f} MiB | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
