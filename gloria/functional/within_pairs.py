"""Losses inside a pair: the words of a text against the regions of its own image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import einsum
from torch import Tensor

from gloria.aggregators.reductions import count, keep, masked_logsumexp, masked_max, masked_mean
from gloria.checks import check_positive, check_temperature
from gloria.functional.inputs import check_pairs, real_vectors, to_unit
from gloria.functional.pair_losses import ContrastiveTerms
from gloria.matching import MatchingOptions
from gloria.matching.einops import attend
from gloria.matching.problem import full_precision


def sparse_attention(
    regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None = None
) -> Tensor:
    """Which regions of image k each word of text k gathers, ``(pair, word, region)``.

    For a word ``t_i`` and the P real regions ``v_j`` of its image::

        s_ij = <t_i, v_j>
        n_ij = (s_ij - min_j s_ij) / (max_j s_ij - min_j s_ij)
        a_ij = m_ij / Σ_j m_ij,   m_ij = n_ij if n_ij >= 1/P else 0

    Each row of a real word sums to 1 over the real regions; rows of masked words are 0. A word to
    which all regions are alike gathers them all equally (there ``n`` would be 0/0).

    Args:
        regions: ``(image, region, dim)``.
        words: ``(text, word, dim)``, as many texts as images.
        word_mask: ``(text, word)`` boolean, True = a real word.
        region_mask: ``(image, region)`` boolean, or None.

    Returns:
        Weights, ``(pair, word, region)``.

    Raises what :func:`local_attention` raises.

    Source: Bica et al., SPARC (2024), the alignment weights.

    Example:
        >>> import torch
        >>> regions = torch.tensor([[[0.0], [1.0], [0.2], [4.0]]])
        >>> sparse_attention(regions, torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
        tensor([[[0.0000, 0.2000, 0.0000, 0.8000]]])
    """
    check_pairs(regions, words, word_mask, region_mask)
    with full_precision(regions):
        regions, words = real_vectors(regions, words, word_mask, region_mask)
        real = None if region_mask is None else region_mask[:, None, :]
        scores = einsum(words, regions, "pair word dim, pair region dim -> pair word region")
        highest = masked_max(scores, real, -1)[..., None]
        lowest = -masked_max(-scores, real, -1)[..., None]
        spread = highest - lowest
        alike = spread <= torch.finfo(scores.dtype).eps * (highest.abs() + lowest.abs())
        share = (scores - lowest) / spread.masked_fill(alike, 1.0)
        share = keep(share.masked_fill(alike, 1.0), real, 0.0)
        few = share < 1 / count(scores, real, -1)[..., None]
        share = share.masked_fill(few, 0.0)
        # the highest share is 1: only an image without any region sums to less
        weights = share / share.sum(-1, keepdim=True).clamp_min(1.0)
        return keep(weights, word_mask[..., None], 0.0)


def sparc_cross_entropy(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
) -> ContrastiveTerms:
    """SPARC's fine-grained loss: each word against the regions it gathers, inside its own pair.

    With the weights ``a`` of :func:`sparse_attention`, ``c_i = Σ_j a_ij v_j`` and
    ``l_ij = cos(c_i, t_j) / temperature``, over the words of one text::

        image_to_text = -mean_i log softmax_j(l_ij)[i]
        text_to_image = -mean_i log softmax_j(l_ji)[i]

    and the mean over the pairs. Other pairs play no part: memory is ``(pair, word, region)``.

    Args:
        regions, words, word_mask, region_mask: as in :func:`sparse_attention`.
        temperature: divides the cosines; above 0 (a tensor is taken as it is).

    Returns:
        Two scalars. A text of one word adds 0.

    Raises what :func:`local_attention` raises.

    Source: Bica et al., SPARC (2024), the fine-grained loss.

    Example:
        >>> import torch
        >>> words, mask = torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
        >>> sparc_cross_entropy(torch.randn(2, 49, 8), words, mask).image_to_text  # ln 5
        tensor(1.6094)
    """
    check_temperature("temperature", temperature)
    weights = sparse_attention(regions, words, word_mask, region_mask)
    with full_precision(regions):
        regions, words = real_vectors(regions, words, word_mask, region_mask)
        return ContrastiveTerms(
            *_token_cross_entropies(words, regions, weights, word_mask, temperature)
        )


class TokenTerms(NamedTuple):
    """The two sides of MGCA's token-wise alignment, each a scalar."""

    words: Tensor
    regions: Tensor


def mgca_cross_entropy(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None = None,
    *,
    attention_temperature: float = 0.1,
    temperature: float | Tensor = 0.1,
) -> TokenTerms:
    """MGCA's token-wise alignment: each token against what it attends to, inside its own pair.

    On L2-normalised vectors, for the words ``t_i`` and regions ``v_j`` of one pair::

        a_ij = softmax over j of (<t_i, v_j> / attention_temperature)
        c_i  = Σ_j a_ij v_j
        l_ij = cos(c_i, t_j) / temperature
        words = -½ mean_i (log softmax_j(l_ij)[i] + log softmax_j(l_ji)[i])

    and the mean over the pairs; ``regions`` is the same with the two exchanged. Other pairs play
    no part: memory is ``(pair, word, region)`` and ``(pair, region, region)``.

    Args:
        regions, words, word_mask, region_mask: as in :func:`sparse_attention`.
        attention_temperature: divides the cosines of the attention; above 0.
        temperature: divides the cosines of the contrast; above 0 (a tensor is taken as it is).

    Returns:
        Two scalars. A text of one word, or an image of one region, adds 0 to its side.

    Raises what :func:`local_attention` raises.

    Departures: see :class:`~gloria.losses.MGCALoss`.

    Source: Wang et al., MGCA (NeurIPS 2022), token-wise cross-modal alignment.

    Example:
        >>> import torch
        >>> words, mask = torch.zeros(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
        >>> mgca_cross_entropy(torch.zeros(2, 49, 8), words, mask)  # ln 5 and ln 49
        TokenTerms(words=tensor(1.6094), regions=tensor(3.8918))
    """
    check_positive("attention_temperature", attention_temperature)
    check_temperature("temperature", temperature)
    check_pairs(regions, words, word_mask, region_mask)
    if region_mask is None:
        region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    with full_precision(regions):
        filled = real_vectors(regions, words, word_mask, region_mask)
        regions, words = (to_unit(vectors) for vectors in filled)

        options = MatchingOptions.of_attention("regions", attention_temperature)
        cosines = einsum(words, regions, "pair word dim, pair region dim -> pair word region")

        def side(
            tokens: Tensor, others: Tensor, cosines: Tensor, mask: Tensor, other_mask: Tensor
        ) -> Tensor:
            weights = attend(cosines, mask, other_mask, options)
            terms = _token_cross_entropies(tokens, others, weights, mask, temperature)
            return (terms[0] + terms[1]) / 2

        return TokenTerms(
            side(words, regions, cosines, word_mask, region_mask),
            side(regions, words, cosines.mT, region_mask, word_mask),
        )


def _token_cross_entropies(
    tokens: Tensor, others: Tensor, weights: Tensor, mask: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """What token i attends to against the tokens of its pair, and token i against what they do.

    ``tokens (pair, token, dim)``, ``others (pair, other, dim)``, ``weights (pair, token, other)``;
    the mean over a pair's real tokens, then over pairs.
    """
    contexts = einsum(weights, others, "pair token other, pair other dim -> pair token dim")
    cosines = einsum(
        to_unit(contexts), to_unit(tokens), "pair context dim, pair token dim -> pair context token"
    )
    logits = cosines / temperature
    matching = logits.diagonal(dim1=1, dim2=2)

    def direction(candidates: Tensor, dim: int) -> Tensor:
        surprise = masked_logsumexp(logits, candidates, dim) - matching
        return masked_mean(surprise, mask, 1).mean()

    return direction(mask[:, None, :], 2), direction(mask[:, :, None], 1)
