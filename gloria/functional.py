"""The numerics as stateless functions: similarities, attention and losses.

Axes are always ``image, text, region, word, dim``, in this order; a pair matrix is
``(image, text)``; a **temperature divides**. Half-precision inputs are widened: everything here is
computed and returned in float32 (float64 for float64 inputs), under autocast too; vectors may be up
to 1e15 long. NaN or infinity
in an image or text makes that row or column non-finite and no other; in a padded position it
changes nothing. (Under autocast call ``backward`` outside the block, as torch advises, or it runs
in half precision.)

Unless a function names another source, the defaults are the printed formulas of Huang et al.,
*GLoRIA: A Multimodal Global-Local Representation Learning Framework for Label-efficient Medical
Image Recognition*, ICCV 2021. The constants of the published code, and the ones that learned best
from scratch on the phantoms, are presets of the losses in :mod:`gloria.losses`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict, Unpack, get_args

import torch
from einops import einsum
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy, logsigmoid

from gloria.aggregators.reductions import (
    count,
    keep,
    masked_logsumexp,
    masked_max,
    masked_mean,
    widen,
)
from gloria.checks import (
    check_choice,
    check_finite,
    check_integer,
    check_mask,
    check_positive,
    check_same_device,
    check_same_size,
    check_share,
    check_temperature,
    check_tensor,
)
from gloria.contrastive import cosine_logsumexp
from gloria.errors import EmptyImageError, EmptyTextError, ShapeError
from gloria.matching import (
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
    MaxSimInputs,
    MaxSimProblem,
)
from gloria.matching.problem import EPS, full_precision, memory_budget_on, transformed
from gloria.matching.triton_support import capturing

Product = Literal["dot", "scaled_dot", "cosine"]
PRODUCTS: tuple[str, ...] = get_args(Product)

LEAN_FROM = 2**20
"""Pairs from which the global loss keeps no pair matrix: where that is also faster, on a CPU."""


class LocalMatching(TypedDict, total=False):
    """The keyword arguments of :func:`local_similarity`."""

    attention: AttentionVariant
    product: Product
    attention_temperature: float
    aggregation: WordAggregation | AggregatorFunction
    match_temperature: float | Tensor
    backend: str
    memory_budget: int | None


class ContrastiveTerms(NamedTuple):
    """The two directions of a contrastive loss, each a scalar."""

    image_to_text: Tensor
    text_to_image: Tensor


def global_similarity(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """Cosine of every image with every text, ``(image, text)``.

    ``cos(v, t) = <v, t> / max(‖v‖·‖t‖, 1e-8)``

    Args:
        image_embeddings: one vector per image, ``(image, dim)``.
        text_embeddings: one vector per text, ``(text, dim)``.

    Returns:
        Cosines in [-1, 1], ``(image, text)``.

    Raises:
        ShapeError: wrong rank, or dims that differ.
        DtypeError: not floating-point tensors.
        DeviceError: they are on different devices.

    Source: GLoRIA, section 3, the similarity inside the global contrastive loss.

    Example:
        >>> import torch
        >>> global_similarity(torch.eye(2), torch.tensor([[2.0, 0.0]]))
        tensor([[1.],
                [0.]])
    """
    _check_global(image_embeddings, text_embeddings)
    with full_precision(image_embeddings):
        images, texts = _widen_together(image_embeddings, text_embeddings)
        norms = vector_norm(images, dim=1)[:, None] * vector_norm(texts, dim=1)[None, :]
        cosine: Tensor = images @ texts.T / norms.clamp_min(EPS)
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
        backend: ``"auto"`` or the name of one (:mod:`gloria.matching.dispatch`).
        memory_budget: bytes of working memory, forward and backward together, beside inputs,
            result, gradients and a few numbers per image and word; None: 128 MiB on a CPU, 512 MiB
            elsewhere. What fits is kept for the backward, the rest is computed again. The least
            that works is one image and one text at a time (``"triton"``: one image); ``"einops"``
            knows no bound.

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
    word_counts = _check_local(regions, words, word_mask, region_mask)
    budget = memory_budget_on(regions.device.type, memory_budget)
    options = MatchingOptions(
        attention, attention_temperature, match_temperature, aggregation, budget
    )
    engine = choose_backend(Problem.of(regions, words, options), backend)
    with full_precision(regions):
        vectors = _multiplied_vectors(
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
        attention: as in :func:`local_similarity`.
        product: as in :func:`local_similarity`.
        attention_temperature: as in :func:`local_similarity`.

    Returns:
        Attention weights, ``(pair, word, region)``.

    Raises:
        ShapeError, DtypeError, OptionError, EmptyTextError, EmptyImageError: as
            :func:`local_similarity`; also when the number of images and texts differ.

    Source: GLoRIA, section 3, the attention weights.

    Example:
        >>> import torch
        >>> word_mask = torch.ones(2, 5, dtype=torch.bool)
        >>> maps = local_attention(torch.randn(2, 49, 8), torch.randn(2, 5, 8), word_mask)
        >>> maps.unflatten(-1, (7, 7)).shape
        torch.Size([2, 5, 7, 7])
    """
    options = MatchingOptions(attention, attention_temperature, 1.0, "mean")
    check_choice("product", product, PRODUCTS)
    _check_local(regions, words, word_mask, region_mask)
    check_same_size("number of pairs", "regions", regions.shape[0], "words", words.shape[0])
    with full_precision(regions):
        regions, words = _multiplied_vectors(regions, words, word_mask, region_mask, product)
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
        memory_budget: bytes of working memory beside inputs, result and gradients; default as in
            :func:`local_similarity`.

    Returns:
        ``(image, text)``. The number of images and of texts may differ, and may be 0. The gradient
        of a maximum goes to the token that has it; of equal ones, to the first.

    Raises:
        ShapeError, DtypeError, OptionError, EmptyTextError, EmptyImageError, BackendError: as
            :func:`local_similarity`.

    Departures: FILIP selects a quarter of the tokens of each sample before this, to save time; here
    all real tokens count. ColBERT fills its queries with [MASK] tokens; here the caller may, by
    counting them as real.

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
    check_choice("reduction", reduction, MAXIMUM_REDUCTIONS)
    check_choice("product", product, PRODUCTS)
    _check_local(regions, words, word_mask, region_mask, needs_word_mask=False)
    memory_budget = memory_budget_on(regions.device.type, memory_budget)
    check_integer("memory_budget", memory_budget, 1)
    by_word = maximum_over == "regions"
    queries, keys = (words, regions) if by_word else (regions, words)
    engine = choose(MAXSIM_BACKENDS, MaxSimProblem.of(queries, keys), backend)
    with full_precision(regions):
        regions, words = _multiplied_vectors(
            regions, words, word_mask, region_mask, product,
            engine.TAKES_HALF_PRECISION, engine.READS_MASKED_TOKENS, engine.READS_MASKED_TOKENS,
        )  # fmt: skip
        inputs = (
            MaxSimInputs(words, regions, word_mask, region_mask)
            if by_word
            else MaxSimInputs(regions, words, region_mask, word_mask)
        )
        maxima = engine.summed_maxima(inputs, memory_budget)
        if reduction == "mean" and inputs.query_mask is not None:
            maxima = maxima / inputs.query_mask.sum(1, keepdim=True).clamp_min(1)
        elif reduction == "mean":
            maxima = maxima / max(inputs.queries.shape[1], 1)
        return maxima.T if by_word else maxima


def contrastive_cross_entropy(
    similarity: Tensor, temperature: float | Tensor = 0.1
) -> ContrastiveTerms:
    """Cross-entropy of a square pair matrix in both directions; the diagonal holds the pairs.

    ``image_to_text = -mean_k log softmax_n(similarity[k, n] / temperature)[k]``, and
    ``text_to_image`` the same over columns.

    Args:
        similarity: ``(image, text)``, square; text k belongs to image k.
        temperature: divides the similarity; above 0 (a tensor is taken as it is).

    Returns:
        Two scalars. A batch of one gives two zeros (with zero gradient).

    Raises:
        ShapeError: not square, or empty.
        OptionError: the temperature is not above 0.

    Source: GLoRIA, section 3, both losses; van den Oord et al., CPC (2018), eq. 4.

    Example:
        >>> import torch
        >>> contrastive_cross_entropy(torch.zeros(4, 4)).image_to_text  # ln 4
        tensor(1.3863)
    """
    _check_square(similarity)
    check_temperature("temperature", temperature)
    with full_precision(similarity):
        logits = widen(similarity) / temperature
        target = torch.arange(logits.shape[0], device=logits.device)
        return ContrastiveTerms(cross_entropy(logits, target), cross_entropy(logits.T, target))


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

    Raises:
        ShapeError, DtypeError, OptionError: as the two functions it is made of.

    Example:
        >>> import torch
        >>> embeddings = torch.eye(1024)
        >>> global_contrastive_terms(embeddings, embeddings).image_to_text  # ln(1 + 1023 e^-10)
        tensor(0.0454)
    """
    _check_global(image_embeddings, text_embeddings)
    images, texts = image_embeddings.shape[0], text_embeddings.shape[0]
    # an exported graph serves any batch, so it cannot ask how large one is
    if torch.compiler.is_exporting() or transformed() or images * texts < LEAN_FROM:
        similarity = global_similarity(image_embeddings, text_embeddings)
        return contrastive_cross_entropy(similarity, temperature)
    check_temperature("temperature", temperature)
    _check_matched(images, texts)
    with full_precision(image_embeddings):
        v, t = _widen_together(image_embeddings, text_embeddings)
        if not isinstance(temperature, Tensor):
            temperature = v.new_full((), temperature)
        tau = temperature.to(v).reshape(())
        over_texts, over_images = cosine_logsumexp(v, t, tau)
        norms = vector_norm(v, dim=1) * vector_norm(t, dim=1)
        pairs = (v * t).sum(1) / norms.clamp_min(EPS) / tau
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
    return image_to_text_weight * terms.image_to_text + text_to_image_weight * terms.text_to_image


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
        global_temperature: divides the cosine.
        local_temperature: divides the local similarity.
        global_weight: of the global loss.
        local_weight: of the local loss.
        **matching: goes to :func:`local_similarity`.

    Returns:
        A scalar.

    Raises:
        ShapeError, DtypeError, OptionError, EmptyTextError, EmptyImageError: as the functions it
            is made of.

    Example:
        >>> import torch
        >>> pooled, words = torch.zeros(8, 16), torch.zeros(8, 5, 16)
        >>> mask = torch.ones(8, 5, dtype=torch.bool)
        >>> global_local_contrastive_loss(pooled, pooled, words, words, mask)  # 4 ln 8
        tensor(8.3178)
    """
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
    _check_square(similarity)
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
        _check_square(similarity)
    if similarity.shape != target_similarity.shape or similarity.numel() == 0:
        raise ShapeError(
            f"similarity and target_similarity must have one shape with at least one image and "
            f"text; got {tuple(similarity.shape)} and {tuple(target_similarity.shape)}."
        )
    with full_precision(similarity):
        logits = widen(similarity) / temperature
        shared = widen(target_similarity).detach().to(logits.dtype) / target_temperature

        def direction(logits: Tensor, shared: Tensor) -> Tensor:
            targets = (1 - pair_weight) * shared.softmax(1)
            targets.diagonal().add_(pair_weight)
            return cross_entropy(logits, targets)

        return ContrastiveTerms(direction(logits, shared), direction(logits.T, shared.T))


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

    Raises:
        ShapeError, DtypeError, EmptyTextError, EmptyImageError: as :func:`local_attention`.

    Source: Bica et al., SPARC (2024), the alignment weights.

    Example:
        >>> import torch
        >>> regions = torch.tensor([[[0.0], [1.0], [0.2], [4.0]]])
        >>> sparse_attention(regions, torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
        tensor([[[0.0000, 0.2000, 0.0000, 0.8000]]])
    """
    _check_pairs(regions, words, word_mask, region_mask)
    with full_precision(regions):
        regions, words = _real_vectors(regions, words, word_mask, region_mask)
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
        regions: ``(image, region, dim)``.
        words: ``(text, word, dim)``, text k belonging to image k.
        word_mask: ``(text, word)`` boolean, True = a real word.
        region_mask: ``(image, region)`` boolean, or None.
        temperature: divides the cosines; above 0 (a tensor is taken as it is).

    Returns:
        Two scalars. A text of one word adds 0.

    Raises:
        ShapeError, DtypeError, OptionError, EmptyTextError, EmptyImageError: as
            :func:`local_attention`.

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
        regions, words = _real_vectors(regions, words, word_mask, region_mask)
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
        regions: ``(image, region, dim)``.
        words: ``(text, word, dim)``, text k belonging to image k.
        word_mask: ``(text, word)`` boolean, True = a real word.
        region_mask: ``(image, region)`` boolean, or None.
        attention_temperature: divides the cosines of the attention; above 0.
        temperature: divides the cosines of the contrast; above 0 (a tensor is taken as it is).

    Returns:
        Two scalars. A text of one word, or an image of one region, adds 0 to its side.

    Raises:
        ShapeError, DtypeError, OptionError, EmptyTextError, EmptyImageError: as
            :func:`local_attention`.

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
    _check_pairs(regions, words, word_mask, region_mask)
    if region_mask is None:
        region_mask = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    with full_precision(regions):
        filled = _real_vectors(regions, words, word_mask, region_mask)
        regions, words = (_unit(vectors) for vectors in filled)

        options = MatchingOptions("regions", attention_temperature, 1.0, "mean")
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
        _unit(contexts), _unit(tokens), "pair context dim, pair token dim -> pair context token"
    )
    logits = cosines / temperature
    matching = logits.diagonal(dim1=1, dim2=2)

    def direction(candidates: Tensor, dim: int) -> Tensor:
        surprise = masked_logsumexp(logits, candidates, dim) - matching
        return masked_mean(surprise, mask, 1).mean()

    return direction(mask[:, None, :], 2), direction(mask[:, :, None], 1)


def _check_global(image_embeddings: Tensor, text_embeddings: Tensor) -> None:
    check_tensor("image_embeddings", image_embeddings, ("image", "dim"))
    check_tensor("text_embeddings", text_embeddings, ("text", "dim"))
    check_same_size(
        "dim",
        "image_embeddings",
        image_embeddings.shape[1],
        "text_embeddings",
        text_embeddings.shape[1],
        "Project both to one width first (gloria.heads).",
    )
    check_same_device("text_embeddings", text_embeddings, "image_embeddings", image_embeddings)


def _check_local(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    region_mask: Tensor | None,
    needs_word_mask: bool = True,
) -> list[int] | None:
    """Also counts the real words of each text, where there is a mask that can be read."""
    flatten = "Flatten a feature map first: rearrange(x, 'b d h w -> b (h w) d')."
    check_tensor("regions", regions, ("image", "region", "dim"), flatten)
    check_tensor("words", words, ("text", "word", "dim"))
    check_same_size(
        "dim",
        "regions",
        regions.shape[2],
        "words",
        words.shape[2],
        "Project both to one width first (gloria.heads).",
    )
    check_same_device("words", words, "regions", regions)
    if word_mask is not None or needs_word_mask:
        check_mask("word_mask", word_mask, tuple(words.shape[:2]), ("text", "word"))
    if word_mask is not None:
        check_same_device("word_mask", word_mask, "words", words)
    if region_mask is not None:
        check_mask("region_mask", region_mask, tuple(regions.shape[:2]), ("image", "region"))
        check_same_device("region_mask", region_mask, "regions", regions)
    word_counts = None
    if word_mask is not None:
        word_counts = _check_not_empty(word_mask, "text", "word", EmptyTextError)
    elif words.shape[0] and not words.shape[1]:
        raise EmptyTextError(f"words must hold at least one word; got {tuple(words.shape)}.")
    if region_mask is not None:
        _check_not_empty(region_mask, "image", "region", EmptyImageError)
    elif regions.shape[0] and not regions.shape[1]:
        raise EmptyImageError(f"regions must hold at least one region; got {tuple(regions.shape)}.")
    return word_counts


def _check_pairs(
    regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None
) -> None:
    """As :func:`_check_local`, and there are pairs: text k belongs to image k."""
    _check_local(regions, words, word_mask, region_mask)
    images, texts = regions.shape[0], words.shape[0]
    if images != texts or images == 0:
        raise ShapeError(
            f"regions and words must hold at least one pair, text k belonging to image k; got "
            f"{images} images and {texts} texts."
        )


def _check_square(similarity: Tensor) -> None:
    check_tensor("similarity", similarity, ("image", "text"))
    _check_matched(*similarity.shape)


def _check_matched(images: int, texts: int) -> None:
    if images != texts or images == 0:
        raise ShapeError(
            f"similarity must be square with at least one pair, text k belonging to image k; got "
            f"{images} images and {texts} texts."
        )


def _check_not_empty(
    mask: Tensor, row: str, column: str, error: type[EmptyTextError] | type[EmptyImageError]
) -> list[int] | None:
    """Also counts what is real in each row, and reads a device once for both."""
    # a compiler's trace has no values, a meta tensor never has any, and a CUDA graph can't wait
    if torch.compiler.is_compiling() or mask.device.type == "meta" or capturing(mask):
        return None
    counts: list[int] = mask.sum(1).tolist()
    if 0 in counts:
        index = counts.index(0)
        raise error(
            f"every {row} needs at least one real {column}; {row} {index} has none in "
            f"{column}_mask. Drop such {row}s, or give them a {column}, before matching."
        )
    return counts


def _multiplied_vectors(
    regions: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    region_mask: Tensor | None,
    product: Product,
    keep_half_precision: bool = False,
    masked_words_are_read: bool = True,
    masked_regions_are_read: bool = True,
) -> tuple[Tensor, Tensor]:
    """With zeros under the masks, widened, and such that every product left is a plain dot."""
    dtype = torch.promote_types(regions.dtype, words.dtype)
    if not keep_half_precision:
        dtype = torch.promote_types(dtype, torch.float32)
    if product != "dot":
        masked_words_are_read = masked_regions_are_read = True
    regions, words = _zero_masked(
        regions,
        words,
        word_mask if masked_words_are_read else None,
        region_mask if masked_regions_are_read else None,
    )
    if product != "dot":
        regions, words = _widen_together(regions, words)
    if product == "cosine":
        regions, words = _unit(regions), _unit(words)
    elif product == "scaled_dot":
        # the cosine r does not see the length of a word vector, only the attention does
        words = words / words.shape[-1] ** 0.5
    return regions.to(dtype), words.to(dtype)


def _real_vectors(
    regions: Tensor, words: Tensor, word_mask: Tensor, region_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Widened, with zeros under the masks."""
    return _zero_masked(*_widen_together(regions, words), word_mask, region_mask)


def _zero_masked(
    regions: Tensor, words: Tensor, word_mask: Tensor | None, region_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if word_mask is not None:
        words = words.masked_fill(~word_mask[..., None], 0.0)
    if region_mask is not None:
        regions = regions.masked_fill(~region_mask[..., None], 0.0)
    return regions, words


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector (a region that a ReLU silenced) keeps a zero gradient."""
    zero = vector_norm(vectors.detach(), dim=-1, keepdim=True) <= EPS
    # a norm has no second derivative at 0: there, that of something else is taken and left out
    length = vector_norm(vectors.masked_fill(zero, 1.0), dim=-1, keepdim=True)
    unit: Tensor = vectors * length.reciprocal().masked_fill(zero, 0.0)
    return unit


def _widen_together(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first, second = widen(first), widen(second)
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


__all__ = [
    "PRODUCTS",
    "ContrastiveTerms",
    "LocalMatching",
    "Product",
    "SigmoidTerms",
    "TokenTerms",
    "contrastive_cross_entropy",
    "global_contrastive_loss",
    "global_contrastive_terms",
    "global_local_contrastive_loss",
    "global_similarity",
    "local_attention",
    "local_contrastive_loss",
    "local_similarity",
    "max_similarity",
    "mgca_cross_entropy",
    "sigmoid_cross_entropy",
    "soft_target_cross_entropy",
    "sparc_cross_entropy",
    "sparse_attention",
]
