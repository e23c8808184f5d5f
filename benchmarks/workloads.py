"""Workloads named after real settings."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gloria.matching import ATTENTION_VARIANTS, MatchingOptions, Problem
from gloria.matching.problem import memory_budget_on


class Inputs(NamedTuple):
    """What a peer is given."""

    regions: Tensor
    words: Tensor
    word_mask: Tensor

    def first(self, pairs: int) -> Inputs:
        """The same of fewer images and texts."""
        return Inputs(*(each[:pairs] for each in self))


class Workload(NamedTuple):
    """Sizes of a batch, as many texts as images."""

    pairs: int
    regions: int
    dim: int = 768
    words: int = 97
    full: bool = False
    """every text as long as there are positions, so that there is no padding to skip"""
    modes: tuple[str, ...] = ("fwd", "fwdbwd")
    attentions: tuple[str, ...] = ATTENTION_VARIANTS

    def draw(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Inputs:
        """Regions, words and word mask; lengths as in radiology reports (median 18 words)."""
        generator = torch.Generator().manual_seed(0)
        regions = torch.randn(self.pairs, self.regions, self.dim, generator=generator)
        words = torch.randn(self.pairs, self.words, self.dim, generator=generator)
        spread = torch.randn(self.pairs, generator=generator).mul(0.5).exp()
        lengths = (18 * spread).round().clamp(1, self.words)
        if self.full:
            lengths = torch.full_like(lengths, self.words)
        word_mask = torch.arange(self.words) < lengths[:, None]
        scale = self.dim**0.25
        return Inputs(
            regions.div(scale).to(device, dtype),
            words.div(scale).to(device, dtype),
            word_mask.to(device),
        )

    def problem(
        self, attention: str, device: str, dtype: torch.dtype, budget: int | None = None
    ) -> Problem:
        """The same for :mod:`gloria.matching.cost`, within the usual memory budget or another."""
        budget = memory_budget_on(device, budget)
        options = MatchingOptions(attention, 1 / 4, 1 / 5, "logsumexp", budget)
        return Problem(
            images=self.pairs,
            regions=self.regions,
            texts=self.pairs,
            words=self.words,
            dim=self.dim,
            dtype=dtype,
            device=device,
            options=options,
        )


ONE_SWEEP = {"modes": ("fwdbwd",), "attentions": ("words_then_regions",)}

WORKLOADS = {
    "small": Workload(pairs=4, regions=9, dim=16, words=12),  # for CI, which times nothing
    "paper": Workload(pairs=48, regions=361),  # 19 x 19 regions of a ResNet-50 at 299 px
    "paper-24": Workload(pairs=24, regions=361),
    "vit-b16": Workload(pairs=32, regions=196),  # 14 x 14 patches at 224 px
    "resnet-7x7": Workload(pairs=48, regions=49),
    "full-361": Workload(pairs=16, regions=361, full=True),
    "full-196": Workload(pairs=16, regions=196, full=True),
    "large": Workload(pairs=256, regions=196),
    "retrieval": Workload(pairs=1000, regions=49, modes=("fwd",)),
} | {f"batch-{pairs}": Workload(pairs, regions=196, **ONE_SWEEP) for pairs in (4, 8, 16, 32, 64)}

GLOBAL_WORKLOADS = {"global-1024": 1024, "global-8192": 8192}
"""Pairs of the global loss, of 512 numbers each."""
