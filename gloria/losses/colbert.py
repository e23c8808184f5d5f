"""ColBERT's late interaction, a text as the query and an image as the document."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from gloria.functional import max_similarity
from gloria.losses.base import LateInteractionLoss


class ColBERTLoss(LateInteractionLoss):
    """InfoNCE on the sum, over the words of a text, of each word's best region.

    On L2-normalised regions ``v_j`` and words ``t_i`` of one image and one text::

        S = Σ_i max over j of <v_j, t_i>

    and over a batch, text k belonging to image k,
    ``L = w_it · CE(S / τ, rows) + w_ti · CE(S / τ, columns)``.

    Args:
        temperature: τ, divides S. Paper: none, 1.
        learnable, minimum_temperature: learn τ, starting from ``temperature``, above this bound.
        image_to_text_weight: w_it. Paper: 0, the query alone chooses; a sum over words would give
            long texts the better of short ones along a row.
        text_to_image_weight: w_ti. Paper: 1.
        backend, memory_budget: as in :func:`~gloria.functional.max_similarity`.

    Presets: ``"paper"`` (the defaults).

    Departures: the negatives are the other images of the batch, where the paper has one negative
    document per query; texts are not filled with [MASK] words (count them in ``word_mask`` if
    yours are).

    Source: Khattab & Zaharia, ColBERT (SIGIR 2020), eq. 3, and the softmax cross-entropy over the
    scores of documents in section 3.

    Example:
        >>> import torch
        >>> loss = ColBERTLoss(temperature=0.1)
        >>> regions, words = torch.randn(4, 49, 64), torch.randn(4, 20, 64)
        >>> word_mask = torch.arange(20) < torch.tensor([[20], [12], [5], [1]])
        >>> loss.similarity(regions, words, word_mask).shape
        torch.Size([4, 4])
    """

    presets: ClassVar = {"paper": {}}

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        learnable: bool = False,
        minimum_temperature: float = 0.01,
        image_to_text_weight: float = 0.0,
        text_to_image_weight: float = 1.0,
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

    def similarity(
        self, regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
    ) -> Tensor:
        """S of every image with every text, ``(image, text)``; their numbers may differ."""
        return max_similarity(
            regions,
            words,
            word_mask,
            region_mask,
            reduction="sum",
            backend=self.backend,
            memory_budget=self.memory_budget,
        )
