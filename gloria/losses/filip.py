"""FILIP: every region finds its best word, every word its best region."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gloria.functional import max_similarities
from gloria.losses.base import LateInteractionLoss


class FILIPLoss(LateInteractionLoss):
    """InfoNCE whose two directions have each their own pair matrix.

    On L2-normalised regions ``v_j`` and words ``t_i`` of one image and one text::

        S_it = mean over regions j of max over words i of <v_j, t_i>
        S_ti = mean over words i of max over regions j of <v_j, t_i>

    and over a batch, text k belonging to image k,
    ``L = w_it · CE(S_it / τ, rows) + w_ti · CE(S_ti / τ, columns)``.

    Args:
        temperature: τ, divides both matrices. Paper: learned, from 0.07.
        learnable, minimum_temperature: learn τ, starting from ``temperature``, above this bound;
            CLIP's is 0.01.
        image_to_text_weight, text_to_image_weight: w_it and w_ti. Paper: 1/2 each.
        backend, memory_budget: as in :func:`~gloria.functional.max_similarity`.

    Presets: ``"paper"`` (the defaults).

    At random initialisation the loss is about ``ln(batch)``.

    Departures: all real tokens count, where the paper keeps a quarter of them to save time. As
    there, padding has no part in the means.

    Source: Yao et al., FILIP: Fine-grained Interactive Language-Image Pre-Training (ICLR 2022),
    eq. 3-6.

    Example:
        >>> import torch
        >>> loss = FILIPLoss()
        >>> regions, words = torch.randn(4, 49, 64), torch.randn(4, 20, 64)
        >>> word_mask = torch.arange(20) < torch.tensor([[20], [12], [5], [1]])
        >>> loss(regions, words, word_mask).backward()
    """

    presets: ClassVar = {"paper": {}}

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        learnable: bool = True,
        minimum_temperature: float = 0.01,
        image_to_text_weight: float = 0.5,
        text_to_image_weight: float = 0.5,
        backend: str = "auto",
        memory_budget: int | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            learnable=learnable,
            minimum_temperature=minimum_temperature,
            image_to_text_weight=image_to_text_weight,
            text_to_image_weight=text_to_image_weight,
            backend=backend,
            memory_budget=memory_budget,
        )

    def terms(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``image_to_text`` and ``text_to_image``, each an unweighted scalar."""
        matrices = self.similarities(regions, words, word_mask, region_mask)
        return {name: self.terms_of(matrix)[name] for name, matrix in matrices.items()}

    def similarities(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The matrix of each direction, both ``(image, text)``; their numbers may differ."""
        matrices = max_similarities(
            regions,
            words,
            word_mask,
            region_mask,
            backend=self.backend,
            memory_budget=self.memory_budget,
        )
        return {"image_to_text": matrices.over_words, "text_to_image": matrices.over_regions}

    def similarity(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> Tensor:
        """The mean of S_it and S_ti, ``(image, text)``: one score, to rank by."""
        matrices = self.similarities(regions, words, word_mask, region_mask)
        return (matrices["image_to_text"] + matrices["text_to_image"]) / 2
