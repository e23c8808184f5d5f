"""Randomness that depends on a seed and a step only, so that resuming is exact.

The global generators are touched inside :func:`isolated` only, and come back as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers; as many other ones give an unrelated seed.

    Of numbers below 2**32, and with zeros at the end left out: ``derive_seed(1)`` is
    ``derive_seed(1, 0)``.
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def isolated(*parts: int) -> Iterator[None]:
    """Run the block under a seed; the global generators come back as they were."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = accelerator.type if accelerator is not None else "cuda"
    devices = range(torch.accelerator.device_count()) if accelerator is not None else ()
    with torch.random.fork_rng(devices, device_type=kind):
        torch.manual_seed(derive_seed(*parts))
        yield


class StepBatches(Sampler[list[int]]):
    """The indices of each step's batch: a new order every epoch, incomplete batches dropped.

    Which of ``length`` items step k sees depends on the seed and k alone, so a run can start at any
    step: ``steps`` are those to give, such as ``range(200, 700)``.
    """

    def __init__(self, length: int, batch_size: int, seed: int, steps: Sequence[int]) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.length // self.batch_size
        known_epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in self.steps:
            epoch, position = divmod(step, per_epoch)
            if epoch != known_epoch:
                known_epoch = epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
            start = position * self.batch_size
            yield order[start : start + self.batch_size].tolist()
