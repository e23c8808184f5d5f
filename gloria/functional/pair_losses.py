"""Losses on the pair matrix: every image against every text."""

from __future__ import annotations

from typing import NamedTuple, Unpack

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy, logsigmoid

from gloria.aggregators.reductions import widen
from gloria.checks import (
    check_finite,
    check_mask,
    check_positive,
    check_same_device,
    check_share,
    check_temperature,
    check_tensor,
    check_weight,
)
from gloria.contrastive import cosine_logsumexp
from gloria.errors import ShapeError
from gloria.functional.inputs import check_global, check_matched, check_square, widen_together
from gloria.functional.similarity import LocalMatching, global_similarity, local_similarity
from gloria.matching.problem import cosine_divisor, full_precision, transformed

LEAN_FROM = 2**20
"""Pairs from which the global loss keeps no pair matrix: where that is also faster, on a CPU."""


class ContrastiveTerms(NamedTuple):
    """The two directions of a contrastive loss, each a scalar."""

    image_to_text: Tensor
    text_to_image: Tensor


def contrastive_cross_entropy(
    similarity: Tensor, temperature: float | Tensor = 0.1, positives: Tensor | None = None
) -> ContrastiveTerms:
    """Cross-entropy of a pair matrix in both directions; the diagonal holds the pairs.

    ``image_to_text = -mean_k log softmax_n(similarity[k, n] / temperature)[k]``, and
    ``text_to_image`` the same over columns. With ``positives``, of each row and column the mean
    over its own, and the mean over those that have any.

    Args:
        similarity: ``(image, text)``, square; text k belongs to image k.
        temperature: divides the similarity; above 0 (a tensor is taken as it is).
        positives: ``(image, text)`` boolean, True = text n is one of image k's, for several texts
            of an image, several images of a study, or a queue of negatives, which are nobody's; the
            numbers of images and texts may differ then. None = the diagonal.

    Returns:
        Two scalars. A batch of one gives two zeros (with zero gradient), and ``positives`` that are
        all False NaN.

    Raises:
        ShapeError: empty; not square, without ``positives``; ``positives`` of another shape.
        DtypeError, DeviceError: ``positives`` is not boolean, or on another device.
        OptionError: the temperature is not above 0.

    Source: GLoRIA, section 3, both losses; van den Oord et al., CPC (2018), eq. 4. Several
    positives: Khosla et al., Supervised Contrastive Learning (NeurIPS 2020), eq. 2.

    Example:
        >>> import torch
        >>> contrastive_cross_entropy(torch.zeros(4, 4)).image_to_text  # ln 4
        tensor(1.3863)
        >>> study = torch.tensor([0, 0, 1])  # of which each image is, and each text
        >>> contrastive_cross_entropy(torch.eye(3), 0.1, study[:, None] == study).image_to_text
        tensor(3.3334)
    """
    check_temperature("temperature", temperature)
    if positives is None:
        check_square(similarity)
    else:
        check_tensor("similarity", similarity, ("image", "text"))
        check_mask("positives", positives, tuple(similarity.shape), ("image", "text"))
        check_same_device("positives", positives, "similarity", similarity)
        if 0 in similarity.shape:
            raise ShapeError(
                f"similarity must have an image and a text; got {tuple(similarity.shape)}."
            )
    with full_precision(similarity):
        logits = widen(similarity) / temperature
        if positives is not None:
            return ContrastiveTerms(
                _mean_over_positives(logits, positives), _mean_over_positives(logits.T, positives.T)
            )
        target = torch.arange(logits.shape[0], device=logits.device)
        return ContrastiveTerms(cross_entropy(logits, target), cross_entropy(logits.T, target))


def _mean_over_positives(logits: Tensor, positives: Tensor) -> Tensor:
    """Mean over the rows that have any, of each the mean over its own."""
    counts = positives.sum(1)
    logits = logits.masked_fill((counts == 0)[:, None], 0.0)  # whose may all be -inf
    own = logits.log_softmax(1).masked_fill(~positives, 0.0).sum(1)
    return -(own / counts.clamp_min(1)).sum() / (counts > 0).sum()


def global_contrastive_terms(
    image_embeddings: Tensor, text_embeddings: Tensor, temperature: float | Tensor = 0.1
) -> ContrastiveTerms:
    """The two directions of :func:`global_contrastive_loss`.

    As :func:`contrastive_cross_entropy` of :func:`global_similarity`, value and gradient, but from
    2**20 pairs on nothing of the size of the pair matrix is kept, forward or backward.

    Args:
        image_embeddings: ``(image, dim)``.
        text_embeddings: ``(text, dim)``, text k belonging to image k.
        temperature: divides the cosine; above 0 (a tensor of one element is taken as it is).

    Returns:
        Two scalars.

    Raises what the two functions raise.

    Example:
        >>> import torch
        >>> embeddings = torch.eye(1024)
        >>> global_contrastive_terms(embeddings, embeddings).image_to_text  # ln(1 + 1023 e^-10)
        tensor(0.0454)
    """
    check_global(image_embeddings, text_embeddings)
    images, texts = image_embeddings.shape[0], text_embeddings.shape[0]
    # an exported graph serves any batch, so it cannot ask how large one is
    if torch.compiler.is_exporting() or transformed() or images * texts < LEAN_FROM:
        similarity = global_similarity(image_embeddings, text_embeddings)
        return contrastive_cross_entropy(similarity, temperature)
    check_temperature("temperature", temperature)
    check_matched(images, texts)
    with full_precision(image_embeddings):
        v, t = widen_together(image_embeddings, text_embeddings)
        if not isinstance(temperature, Tensor):
            temperature = v.new_full((), temperature)
        tau = temperature.to(v).reshape(())
        over_texts, over_images = cosine_logsumexp(v, t, tau)
        norms = vector_norm(v, dim=1) * vector_norm(t, dim=1)
        pairs = (v * t).sum(1) / cosine_divisor(norms) / tau
        return ContrastiveTerms((over_texts - pairs).mean(), (over_images - pairs).mean())


def global_contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    image_to_text_weight: float = 1.0,
    text_to_image_weight: float = 1.0,
) -> Tensor:
    """Symmetric InfoNCE on the cosine of pooled embeddings.

    See :class:`~gloria.losses.GlobalContrastiveLoss`.

    Example:
        >>> import torch
        >>> embeddings = torch.randn(8, 128)
        >>> global_contrastive_loss(embeddings, embeddings) < 0.1
        tensor(True)
    """
    terms = global_contrastive_terms(image_embeddings, text_embeddings, temperature)
    return _weighted(terms, image_to_text_weight, text_to_image_weight)


def local_contrastive_loss(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    image_to_text_weight: float = 1.0,
    text_to_image_weight: float = 1.0,
    **matching: Unpack[LocalMatching],
) -> Tensor:
    """Symmetric InfoNCE on the local similarity; ``matching`` goes to :func:`local_similarity`.

    See :class:`~gloria.losses.LocalContrastiveLoss`.

    Example:
        >>> import torch
        >>> regions, words = torch.randn(4, 49, 64), torch.randn(4, 7, 64)
        >>> local_contrastive_loss(regions, words, torch.ones(4, 7, dtype=torch.bool)).shape
        torch.Size([])
    """
    similarity = local_similarity(regions, words, word_mask, region_mask, **matching)
    terms = contrastive_cross_entropy(similarity, temperature)
    return _weighted(terms, image_to_text_weight, text_to_image_weight)


def _weighted(
    terms: ContrastiveTerms, image_to_text_weight: float, text_to_image_weight: float
) -> Tensor:
    check_weight("image_to_text_weight", image_to_text_weight)
    check_weight("text_to_image_weight", text_to_image_weight)
    return image_to_text_weight * terms.image_to_text + text_to_image_weight * terms.text_to_image


def global_local_contrastive_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None = None,
    *,
    global_temperature: float | Tensor = 0.1,
    local_temperature: float | Tensor = 0.1,
    global_weight: float = 1.0,
    local_weight: float = 1.0,
    **matching: Unpack[LocalMatching],
) -> Tensor:
    """The paper's objective: global plus local contrastive loss, four cross-entropies.

    ``global_weight · L_global + local_weight · L_local``; see
    :class:`~gloria.losses.GlobalLocalContrastiveLoss`, which can also weight the directions.

    Args:
        image_embeddings: ``(image, dim)``.
        text_embeddings: ``(text, dim)``, text k belonging to image k.
        regions: ``(image, region, dim)``; this dim may differ from the embeddings'.
        words: ``(text, word, dim)``.
        word_mask: ``(text, word)`` boolean, True = a real word.
        region_mask: ``(image, region)`` boolean, or None.
        global_temperature, local_temperature: divide the cosine, and the local similarity.
        global_weight, local_weight: of the two losses.
        **matching: goes to :func:`local_similarity`.

    Returns:
        A scalar.

    Raises what :func:`global_contrastive_loss` and :func:`local_contrastive_loss` raise.

    Example:
        >>> import torch
        >>> pooled, words = torch.zeros(8, 16), torch.zeros(8, 5, 16)
        >>> mask = torch.ones(8, 5, dtype=torch.bool)
        >>> global_local_contrastive_loss(pooled, pooled, words, words, mask)  # 4 ln 8
        tensor(8.3178)
    """
    check_weight("global_weight", global_weight)
    check_weight("local_weight", local_weight)
    whole = global_contrastive_loss(
        image_embeddings, text_embeddings, temperature=global_temperature
    )
    parts = local_contrastive_loss(
        regions, words, word_mask, region_mask, temperature=local_temperature, **matching
    )
    return global_weight * whole + local_weight * parts


class SigmoidTerms(NamedTuple):
    """The two parts of the sigmoid loss, each a scalar; their sum is the loss."""

    positives: Tensor
    negatives: Tensor


def sigmoid_cross_entropy(
    similarity: Tensor, temperature: float | Tensor = 0.1, bias: float | Tensor = -10.0
) -> SigmoidTerms:
    """Every entry of a square pair matrix as a yes-no question; the diagonal holds the pairs.

    With ``l = similarity / temperature + bias`` and σ the logistic function,
    ``positives = -1/B Σ_k log σ(l[k, k])``, ``negatives = -1/B Σ_{k≠n} log σ(-l[k, n])``.

    Args:
        similarity: ``(image, text)``, square; text k belongs to image k.
        temperature: divides the similarity; above 0 (a tensor is taken as it is).
        bias: added to every logit.

    Returns:
        Two scalars. A batch of one has no negatives: 0.

    Raises:
        ShapeError: not square, or empty.
        OptionError: the temperature is not above 0, or the bias not finite.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training (ICCV 2023), Algorithm 1.

    Example:
        >>> import torch
        >>> sigmoid_cross_entropy(torch.zeros(4, 4), bias=0.0)  # ln 2 and 3 ln 2
        SigmoidTerms(positives=tensor(0.6931), negatives=tensor(2.0794))
    """
    check_square(similarity)
    check_temperature("temperature", temperature)
    check_finite("bias", bias)
    with full_precision(similarity):
        logits = widen(similarity) / temperature + bias
        pairs = logits.shape[0]  # len() would fix it in an exported graph
        matching = torch.eye(pairs, dtype=torch.bool, device=logits.device)
        negatives = -logsigmoid(-logits).masked_fill(matching, 0.0).sum() / pairs
        return SigmoidTerms(-logsigmoid(logits.diagonal()).mean(), negatives)


def soft_target_cross_entropy(
    similarity: Tensor,
    target_similarity: Tensor,
    temperature: float | Tensor = 0.07,
    target_temperature: float = 1.0,
    pair_weight: float = 0.0,
) -> ContrastiveTerms:
    """Cross-entropy of a pair matrix against soft targets, in both directions.

    ``image_to_text = -mean_k Σ_n y[k, n] log softmax_n(similarity[k, n] / temperature)`` with
    ``y = pair_weight · 1[k = n] + (1 - pair_weight) · softmax_n(target_similarity[k, n] /
    target_temperature)``; ``text_to_image`` the same over columns.

    Args:
        similarity: ``(image, text)``; with ``pair_weight = 0`` the numbers may differ.
        target_similarity: ``(image, text)``: how much image k and text n have in common. Nothing
            is learned through it.
        temperature: divides the similarity; above 0 (a tensor is taken as it is).
        target_temperature: divides the target similarity; above 0.
        pair_weight: from 0 to 1, the share of the targets that stays on the diagonal; above 0,
            text k must belong to image k.

    Returns:
        Two scalars, none below the mean entropy of its targets.

    Raises:
        ShapeError: shapes that differ, or empty ones; not square with a ``pair_weight``.
        DeviceError: they are on different devices.
        OptionError: a temperature is not above 0, or ``pair_weight`` not from 0 to 1.

    Source: Wang et al., MedCLIP (EMNLP 2022), the semantic matching loss.

    Example:
        >>> import torch
        >>> soft_target_cross_entropy(torch.zeros(4, 2), torch.eye(4, 2))  # ln 2 and ln 4
        ContrastiveTerms(image_to_text=tensor(0.6931), text_to_image=tensor(1.3863))
    """
    check_tensor("similarity", similarity, ("image", "text"))
    check_tensor("target_similarity", target_similarity, ("image", "text"))
    check_same_device("target_similarity", target_similarity, "similarity", similarity)
    check_temperature("temperature", temperature)
    check_positive("target_temperature", target_temperature)
    check_share("pair_weight", pair_weight)
    if pair_weight > 0:
        check_square(similarity)
    if similarity.shape != target_similarity.shape or similarity.numel() == 0:
        raise ShapeError(
            f"similarity and target_similarity must have one shape with at least one image and "
            f"text; got {tuple(similarity.shape)} and {tuple(target_similarity.shape)}."
        )
    with full_precision(similarity):
        logits = widen(similarity) / temperature
        shared = widen(target_similarity).detach().to(logits.dtype) / target_temperature

        def direction(logits: Tensor, shared: Tensor) -> Tensor:
            # by hand: torch 2.11 exports cross_entropy with such targets for one size only
            surprise = -logits.log_softmax(1)
            soft = (shared.softmax(1) * surprise).sum(1).mean()
            if not pair_weight:
                return soft
            return (1 - pair_weight) * soft + pair_weight * surprise.diagonal().mean()

        return ContrastiveTerms(direction(logits, shared), direction(logits.T, shared.T))
