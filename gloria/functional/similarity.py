"""Similarities of every image with every text, and where words attend."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from einops import einsum
from torch import Tensor
from torch.linalg import vector_norm

from gloria.checks import check_choice, check_integer, check_same_size
from gloria.functional.inputs import (
    PRODUCTS,
    Product,
    check_global,
    check_local,
    multiplied_vectors,
    widen_together,
)
from gloria.matching import (
    BACKENDS,
    AggregatorFunction,
    AttentionVariant,
    MatchingInputs,
    MatchingOptions,
    Problem,
    WordAggregation,
    choose_backend,
)
from gloria.matching.aggregation import aggregate_words
from gloria.matching.dispatch import choose
from gloria.matching.einops import attend
from gloria.matching.maxsim import (
    MAXIMA_OVER,
    MAXIMUM_REDUCTIONS,
    MAXSIM_BACKENDS,
    MaximumOver,
    MaximumReduction,
    MaxSimBackend,
    MaxSimInputs,
    MaxSimProblem,
)
from gloria.matching.problem import cosine_divisor, full_precision, memory_budget_on


class MaxSimilarities(NamedTuple):
    """What :func:`max_similarities` gives."""

    over_regions: Tensor
    """(image, text): each word's best region"""
    over_words: Tensor
    """(image, text): each region's best word"""


class LocalMatching(TypedDict, total=False):
    """The keyword arguments of :func:`local_similarity`."""

    attention: AttentionVariant
    product: Product
    attention_temperature: float
    aggregation: WordAggregation | AggregatorFunction
    match_temperature: float | Tensor
    backend: str
    memory_budget: int | None


def global_similarity(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """Cosine of every image with every text, ``(image, text)``.

    ``cos(v, t) = <v, t> / max(‖v‖·‖t‖, 1e-8)``; of a zero vector it is 0, without a gradient.

    Args:
        image_embeddings: one vector per image, ``(image, dim)``.
        text_embeddings: one vector per text, ``(text, dim)``.

    Returns:
        Cosines in [-1, 1], ``(image, text)``.

    Raises:
        ShapeError, DtypeError, DeviceError: they are no such vectors, or do not fit together.

    Source: GLoRIA, section 3, the similarity inside the global contrastive loss.

    Example:
        >>> import torch
        >>> global_similarity(torch.eye(2), torch.tensor([[2.0, 0.0]]))
        tensor([[1.],
                [0.]])
    """
    check_global(image_embeddings, text_embeddings)
    with full_precision(image_embeddings):
        images, texts = widen_together(image_embeddings, text_embeddings)
        norms = vector_norm(images, dim=1)[:, None] * vector_norm(texts, dim=1)[None, :]
        cosine: Tensor = images @ texts.T / cosine_divisor(norms)
        return cosine


def local_similarity(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None = None,
    *,
    attention: AttentionVariant = "regions",
    product: Product = "dot",
    attention_temperature: float = 1 / 4,
    aggregation: WordAggregation | AggregatorFunction = "logsumexp",
    match_temperature: float | Tensor = 1 / 5,
    backend: str = "auto",
    memory_budget: int | None = None,
) -> Tensor:
    """Local similarity of every image with every text, ``(image, text)``.

    For one image with regions ``v_j`` and one text with words ``t_i``::

        s_ji = <v_j, t_i>
        a_ij = softmax over j of (s_ji / attention_temperature)            "regions"
        a_ij = softmax over j of (p_ji / attention_temperature),
               p_ji = softmax over i of s_ji                               "words_then_regions"
        c_i  = Σ_j a_ij v_j
        r_i  = <c_i, t_i> / max(‖c_i‖·‖t_i‖, 1e-8)
        Z    = match_temperature · log Σ_i exp(r_i / match_temperature)    "logsumexp"

    The cosine r of a zero vector, of a word or of all regions, is 0, without a gradient.

    Args:
        regions: ``(image, region, dim)``.
        words: ``(text, word, dim)``; what stands in masked positions has no influence at all.
        word_mask: ``(text, word)`` boolean, True = a real word; every text needs at least one.
        region_mask: ``(image, region)`` boolean, True = a real region; None = all are real.
        attention: ``"regions"``, the formula printed in the paper, or ``"words_then_regions"``,
            what the published code computes (and its weights were trained with).
        product: ``"dot"``, the raw product of both publications; ``"scaled_dot"``, divided by
            √dim; ``"cosine"``, everything on L2-normalised vectors.
        attention_temperature: divides the attention's scores; published: 1/4.
        aggregation: words → one number: ``"logsumexp"`` (training, as printed), ``"logmeanexp"``
            (the same with the mean for the sum: no bias of ``match_temperature · log words``
            towards long texts), ``"max"``, ``"mean"`` (of the cosines), or a callable with the
            contract of :mod:`gloria.aggregators`.
        match_temperature: τ of logsumexp and logmeanexp; published: 1/5 (a tensor may be learned).
            In float32 both are rounded by about 1e-6 · τ: for hundreds take ``"mean"``.
        backend: ``"auto"`` or the name of one (:mod:`gloria.matching.dispatch`).
        memory_budget: bytes of working memory, forward and backward together, beside inputs,
            result, gradients and a few numbers per image and word; None: 256 MiB on a CPU, 512 MiB
            elsewhere. What fits is kept for the backward, the rest is computed again. The least
            that works is one image and one text at a time (``"triton"``: one image), beside the
            words without their padding and the gradient of these; ``"einops"`` knows no bound. On
            top come copies of the inputs in float32, and their gradients: of half precision (but
            for ``"triton"``), and for another ``product`` than ``"dot"``.

    Returns:
        ``(image, text)``. The number of images and of texts may differ, and may be 0.

    Raises:
        ShapeError, DtypeError, DeviceError, OptionError: an argument does not fit; the message
            says which.
        EmptyTextError: a text has no real word. (Inside ``torch.compile``, where values cannot be
            read, such a text scores 0, and an image without a region has cosines of 0; both with
            zero gradient.)
        EmptyImageError: an image has no real region.
        BackendError: the backend named cannot run this; the message has its reasons.

    Departures: the published code scales by 5 inside the log and drops the outer 1/5, which
    :class:`~gloria.losses.LocalContrastiveLoss` covers by the temperature of its ``"official"``
    preset.

    Source: GLoRIA, section 3, the attention-weighted image representation and the matching
    function Z; the double softmax is AttnGAN's (Xu et al., CVPR 2018, eq. 7-10).

    Example:
        >>> import torch
        >>> regions, words = torch.randn(2, 49, 64), torch.randn(3, 7, 64)
        >>> word_mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
        >>> local_similarity(regions, words, word_mask).shape
        torch.Size([2, 3])
    """
    check_choice("product", product, PRODUCTS)
    word_counts = check_local(regions, words, word_mask, region_mask)
    budget = memory_budget_on(regions.device.type, memory_budget)
    options = MatchingOptions(
        attention, attention_temperature, match_temperature, aggregation, budget
    )
    engine = BACKENDS[choose_backend(Problem.of(regions, words, options), backend)]
    with full_precision(regions):
        vectors = multiplied_vectors(
            regions, words, word_mask, region_mask, product,
            engine.TAKES_HALF_PRECISION, engine.READS_MASKED_WORDS,
        )  # fmt: skip
        inputs = MatchingInputs(*vectors, word_mask, region_mask, word_counts)
        cosine = engine.word_cosines(inputs, options)
        return aggregate_words(cosine, word_mask, options, engine.RUNS_KERNELS)


def local_attention(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor,
    region_mask: Tensor | None = None,
    *,
    attention: AttentionVariant = "regions",
    product: Product = "dot",
    attention_temperature: float = 1 / 4,
) -> Tensor:
    """Where each word of text k looks in image k, ``(pair, word, region)``.

    The ``a_ij`` of :func:`local_similarity`, for matching pairs only. Each row of a real word sums
    to 1 over the real regions; rows of masked words are 0. ``.unflatten(-1, grid)`` makes maps.

    Args:
        regions: ``(image, region, dim)``.
        words: ``(text, word, dim)``, as many texts as images (expand one image to ask it several
            texts).
        word_mask: ``(text, word)`` boolean, True = a real word.
        region_mask: ``(image, region)`` boolean, or None.
        attention, product, attention_temperature: as in :func:`local_similarity`.

    Returns:
        Attention weights, ``(pair, word, region)``.

    Raises what :func:`local_similarity` raises; also ShapeError for other texts than images.

    Source: GLoRIA, section 3, the attention weights.

    Example:
        >>> import torch
        >>> word_mask = torch.ones(2, 5, dtype=torch.bool)
        >>> maps = local_attention(torch.randn(2, 49, 8), torch.randn(2, 5, 8), word_mask)
        >>> maps.unflatten(-1, (7, 7)).shape
        torch.Size([2, 5, 7, 7])
    """
    options = MatchingOptions.of_attention(attention, attention_temperature)
    check_choice("product", product, PRODUCTS)
    check_local(regions, words, word_mask, region_mask)
    check_same_size("number of pairs", "regions", regions.shape[0], "words", words.shape[0])
    with full_precision(regions):
        regions, words = multiplied_vectors(regions, words, word_mask, region_mask, product)
        scores = einsum(regions, words, "pair region dim, pair word dim -> pair word region")
        weights = attend(scores, word_mask, region_mask, options)
        return weights.masked_fill(~word_mask[..., None], 0.0)


def max_similarity(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    region_mask: Tensor | None = None,
    *,
    maximum_over: MaximumOver = "regions",
    reduction: MaximumReduction = "mean",
    product: Product = "cosine",
    backend: str = "auto",
    memory_budget: int | None = None,
) -> Tensor:
    """Hard-maximum similarity (MaxSim) of every image with every text, ``(image, text)``.

    For one image with regions ``v_j`` and one text with words ``t_i``, all of them real::

        S = mean or sum over i of max over j of <v_j, t_i>       maximum_over="regions"
        S = mean or sum over j of max over i of <v_j, t_i>       maximum_over="words"

    Late interaction of two texts is the same: pass the documents as ``regions``, the queries as
    ``words``; the result is ``(document, query)``.

    Args:
        regions: ``(image, region, dim)``.
        words: ``(text, word, dim)``; what stands in masked positions has no influence at all.
        word_mask: ``(text, word)`` boolean, True = a real word; every text needs at least one.
            None = all are real.
        region_mask: ``(image, region)`` boolean, True = a real region; None = all are real.
        maximum_over: the side that is searched for the best match of each token of the other.
        reduction: of the maxima: ``"mean"`` (FILIP) or ``"sum"`` (ColBERT).
        product: ``"cosine"``, everything on L2-normalised vectors, as in both papers; ``"dot"``,
            the raw product; ``"scaled_dot"``, divided by √dim.
        backend: ``"auto"`` or the name of one (:mod:`gloria.matching.maxsim`).
        memory_budget: bytes of working memory beside inputs, result and gradients; default, and
            what comes on top, as in :func:`local_similarity`. The least that works is one text (for
            ``maximum_over="words"``: image) at a time against all words of the others.

    Returns:
        ``(image, text)``. The number of images and of texts may differ, and may be 0. The gradient
        of a maximum goes to the token that has it; of equal ones, to the first.

    Raises what :func:`local_similarity` raises.

    Departures: see :class:`~gloria.losses.FILIPLoss` and :class:`~gloria.losses.ColBERTLoss`.

    Source: Khattab & Zaharia, ColBERT (SIGIR 2020), eq. 3; Yao et al., FILIP (ICLR 2022), eq. 3-6.

    Example:
        >>> import torch
        >>> regions = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
        >>> words = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> max_similarity(regions, words, mask)  # each word has its region
        tensor([[1.]])
        >>> max_similarity(regions, words, mask, maximum_over="words")  # (1 + 1 + 0) / 3
        tensor([[0.6667]])
    """
    check_choice("maximum_over", maximum_over, MAXIMA_OVER)
    engine, inputs, budget = prepare_maxima(
        regions, words, word_mask, region_mask, reduction, product, backend, memory_budget
    )
    by_word = maximum_over == "regions"
    inputs = inputs if by_word else inputs.exchanged()
    with full_precision(regions):
        maxima = reduce_maxima(engine.summed_maxima(inputs, budget), inputs, reduction)
    return maxima.T if by_word else maxima


def max_similarities(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    region_mask: Tensor | None = None,
    *,
    reduction: MaximumReduction = "mean",
    product: Product = "cosine",
    backend: str = "auto",
    memory_budget: int | None = None,
) -> MaxSimilarities:
    """:func:`max_similarity` over the regions and over the words at once.

    Inputs are checked and normalised once, and ``chunked`` multiplies once for both. Arguments and
    errors are those of :func:`max_similarity`.

    Returns:
        Both matrices, each ``(image, text)``.

    Source: Yao et al., FILIP (ICLR 2022), eq. 3-6.

    Example:
        >>> import torch
        >>> regions = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
        >>> words = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
        >>> max_similarities(regions, words, None)
        MaxSimilarities(over_regions=tensor([[1.]]), over_words=tensor([[0.6667]]))
    """
    engine, inputs, budget = prepare_maxima(
        regions, words, word_mask, region_mask, reduction, product, backend, memory_budget
    )
    with full_precision(regions):
        of_words, of_regions = engine.both_summed_maxima(inputs, budget)
        return MaxSimilarities(
            reduce_maxima(of_words, inputs, reduction).T,
            reduce_maxima(of_regions, inputs.exchanged(), reduction),
        )


def prepare_maxima(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    region_mask: Tensor | None,
    reduction: MaximumReduction,
    product: Product,
    backend: str,
    memory_budget: int | None,
) -> tuple[MaxSimBackend, MaxSimInputs, int]:
    """What is checked and read once: the backend, its inputs with words as queries, its budget."""
    check_choice("reduction", reduction, MAXIMUM_REDUCTIONS)
    check_choice("product", product, PRODUCTS)
    check_local(regions, words, word_mask, region_mask, needs_word_mask=False)
    memory_budget = memory_budget_on(regions.device.type, memory_budget)
    check_integer("memory_budget", memory_budget, 1)
    problem = MaxSimProblem.of(words, regions)
    engine = MAXSIM_BACKENDS[choose(MAXSIM_BACKENDS, problem, backend)]
    with full_precision(regions):
        regions, words = multiplied_vectors(
            regions, words, word_mask, region_mask, product,
            engine.TAKES_HALF_PRECISION, engine.READS_MASKED_TOKENS, engine.READS_MASKED_TOKENS,
        )  # fmt: skip
    return engine, MaxSimInputs(words, regions, word_mask, region_mask), memory_budget


def reduce_maxima(sums: Tensor, inputs: MaxSimInputs, reduction: MaximumReduction) -> Tensor:
    """The sums ``(query, key)``, or what they are for each real token of the query."""
    if reduction == "sum":
        return sums
    if inputs.query_mask is None:
        return sums / max(inputs.queries.shape[1], 1)
    return sums / inputs.query_mask.sum(1, keepdim=True).clamp_min(1)
