"""Workloads named after real settings, and the peers they are timed against."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


class Workload(NamedTuple):
    """Sizes of a batch: as many texts as images."""

    pairs: int
    regions: int
    dim: int = 768
    words: int = 97

    def draw(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Regions, words and word mask; lengths as in radiology reports (median 18 words)."""
        generator = torch.Generator().manual_seed(seed)
        regions = torch.randn(self.pairs, self.regions, self.dim, generator=generator)
        words = torch.randn(self.pairs, self.words, self.dim, generator=generator)
        spread = torch.randn(self.pairs, generator=generator).mul(0.5).exp()
        lengths = (18 * spread).round().clamp(1, self.words)
        word_mask = torch.arange(self.words) < lengths[:, None]
        return regions.div(self.dim**0.25), words.div(self.dim**0.25), word_mask


WORKLOADS = {
    "small": Workload(pairs=4, regions=9, dim=16, words=12),  # for CI, which times nothing
    "paper": Workload(pairs=48, regions=361),  # 19 x 19 regions of a ResNet-50 at 299 px
    "vit-b16": Workload(pairs=32, regions=196),  # 14 x 14 patches at 224 px
    "resnet-7x7": Workload(pairs=48, regions=49),
}


def published_loop(regions: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """Local similarity as the published code computes it: one caption after the other.

    Each caption is repeated for every image; two softmaxes; log of the sum of exp(5 cosine). Our
    own writing of its formulas.
    """
    columns = []
    for text, mask in zip(words, word_mask, strict=True):
        caption = text[mask].expand(len(regions), -1, -1)
        over_words = torch.bmm(regions, caption.mT).softmax(2)
        attention = (4 * over_words.mT).softmax(2)
        attended = torch.bmm(attention, regions)
        columns.append((5 * cosine_similarity(caption, attended, dim=2)).exp().sum(1).log())
    return torch.stack(columns, dim=1)
