"""Retrieval: how many relevant candidates a query's ranking brings first.

Every function takes ``similarity (query, candidate)`` and ``relevant (query, candidate)``; for the
other direction, transpose both. Candidates are ranked by falling similarity; **among equals the
lower index comes first**, so a figure does not depend on the device or on how ties are sorted.

Unlike torchmetrics, similarities may have any sign: a relevant candidate counts by its rank only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from gloria.checks import check_integer, check_mask, check_same_device, check_tensor
from gloria.errors import DataError, DtypeError, OptionError, ShapeError


def evaluate_retrieval(
    similarity: Tensor, relevant: Tensor, ks: Sequence[int] = (5, 10, 100)
) -> dict[str, dict[str, float]]:
    """Every figure of retrieval, images asking for texts and texts for images.

    Args:
        similarity: ``(image, text)``.
        relevant: ``(image, text)`` boolean, True = they belong together.
        ks: the K, each at most the number of images and of texts.

    Returns:
        ``image_to_text`` and ``text_to_image``, each as :func:`evaluate_queries` gives it.

    Raises what :func:`recall_at_k` raises.

    Example:
        >>> similarity = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        >>> figures = evaluate_retrieval(similarity, torch.eye(2, dtype=torch.bool), ks=[1])
        >>> figures["image_to_text"]["recall@1"], figures["text_to_image"]["recall@1"]
        (0.5, 1.0)
    """
    return {
        "image_to_text": evaluate_queries(similarity, relevant, ks),
        "text_to_image": evaluate_queries(similarity.T, relevant.T, ks),
    }


def evaluate_queries(
    similarity: Tensor, relevant: Tensor, ks: Sequence[int] = (5, 10, 100)
) -> dict[str, float]:
    """Every figure of one direction of retrieval.

    Args:
        similarity: ``(query, candidate)``.
        relevant: ``(query, candidate)`` boolean, True = a right answer.
        ks: the K, each at most the number of candidates.

    Returns:
        ``precision@K`` and ``recall@K`` of each K, ``median_rank`` and ``mean_average_precision``.

    Raises what :func:`recall_at_k` raises.

    Example:
        >>> evaluate_queries(torch.tensor([[0.9, 0.5]]), torch.tensor([[False, True]]), ks=[2])
        {'precision@2': 0.5, 'recall@2': 1.0, 'median_rank': 2.0, 'mean_average_precision': 0.5}
    """
    found = _found(similarity, relevant)  # once for all: ranking is most of the work
    check_ks(ks, found.shape[1])
    total = _count(relevant)
    precision, recall = _precision(found, ks), _recall(found, total, ks)
    return {
        **{f"precision@{k}": precision[k] for k in ks},
        **{f"recall@{k}": recall[k] for k in ks},
        "median_rank": _median_rank(found),
        "mean_average_precision": _mean_average_precision(found, total),
    }


def precision_at_k(similarity: Tensor, relevant: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """The share of relevant candidates among a query's first K, averaged over the queries.

    ``P@K = mean over queries of |relevant and among the first K| / K``. A query that has fewer
    than K relevant candidates cannot reach 1.

    Args:
        similarity: ``(query, candidate)``.
        relevant: ``(query, candidate)`` boolean, True = a right answer.
        ks: the K, each at most the number of candidates.

    Returns:
        K to its precision, in [0, 1].

    Raises:
        ShapeError: the shapes do not fit, or there is no query.
        DtypeError: ``relevant`` is not boolean, or a K is no integer.
        OptionError: a K is below 1 or above the number of candidates.
        DataError: ``similarity`` holds NaN.

    Example:
        >>> similarity = torch.tensor([[-0.1, -0.3, -0.2]])
        >>> precision_at_k(similarity, torch.tensor([[True, False, True]]), [1, 2, 3])
        {1: 1.0, 2: 1.0, 3: 0.6666666666666666}
    """
    return _precision(_found(similarity, relevant, ks), ks)


def recall_at_k(similarity: Tensor, relevant: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """The share of a query's relevant candidates that are among its first K, averaged over queries.

    ``R@K = mean over queries of |relevant and among the first K| / |relevant|``. With one relevant
    candidate per query this is the usual recall@K, the share of queries answered within K.

    Args and errors as in :func:`precision_at_k`; besides, a query without any relevant candidate
    is a :class:`~gloria.errors.DataError`.

    Example:
        >>> similarity = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        >>> recall_at_k(similarity, torch.eye(2, dtype=torch.bool), [1, 2])
        {1: 0.5, 2: 1.0}
    """
    return _recall(_found(similarity, relevant, ks), _count(relevant), ks)


def median_rank(similarity: Tensor, relevant: Tensor) -> float:
    """The median over queries of the rank, from 1, of the first relevant candidate.

    With an even number of queries, the mean of the middle two.

    Args and errors as in :func:`recall_at_k`.

    Example:
        >>> similarity = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
        >>> median_rank(similarity, torch.eye(2, dtype=torch.bool))
        1.5
    """
    found = _found(similarity, relevant)
    _count(relevant)
    return _median_rank(found)


def mean_average_precision(similarity: Tensor, relevant: Tensor) -> float:
    """Mean over queries of the average precision: of P@K at the rank K of each relevant candidate.

    ``AP = (1 / |relevant|) * sum over ranks K that are relevant of P@K``.

    Args and errors as in :func:`recall_at_k`.

    Example:
        >>> similarity = torch.tensor([[0.9, 0.5, 0.1]])
        >>> mean_average_precision(similarity, torch.tensor([[True, False, True]]))
        0.8333333333333333
    """
    return _mean_average_precision(_found(similarity, relevant), _count(relevant))


def class_relevance(query_labels: Tensor, candidate_labels: Tensor) -> Tensor:
    """Which candidates are of a query's class.

    Args:
        query_labels: ``(query,)`` integers.
        candidate_labels: ``(candidate,)`` integers.

    Returns:
        ``(query, candidate)`` boolean.

    Raises:
        ShapeError, DtypeError: labels are no vector, or no integers.

    Example:
        >>> class_relevance(torch.tensor([0, 1]), torch.tensor([1, 0, 1]))
        tensor([[False,  True, False],
                [ True, False,  True]])
    """
    check_labels("query_labels", query_labels, "query")
    check_labels("candidate_labels", candidate_labels, "candidate")
    return query_labels[:, None] == candidate_labels


def check_labels(name: str, labels: Tensor, axis: str) -> None:
    """Require a vector of integers."""
    check_integers(name, labels)
    if labels.dim() != 1:
        raise ShapeError(f"{name} must be ({axis},); got {tuple(labels.shape)}.")


def check_integers(name: str, labels: Tensor) -> None:
    """Require a tensor of integers."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise DtypeError(f"{name} must be a tensor of integers; got {given}.")


def check_ks(ks: Sequence[int], candidates: int) -> None:
    """Require every K to be an integer from 1 to the number of candidates."""
    if not isinstance(ks, Collection):
        raise DtypeError(f"ks must be a list of integers; got {ks!r}.")
    for k in ks:
        check_integer("each of ks", k)
        if not 1 <= k <= candidates:
            raise OptionError(
                f"ks must be from 1 to the number of candidates, {candidates}; got {k}."
            )


def _found(similarity: Tensor, relevant: Tensor, ks: Sequence[int] | None = None) -> Tensor:
    """How many relevant candidates stand among the first 1, 2, ... K, ``(query, K)``, int32.

    K is the largest of ``ks``; None = all candidates.
    """
    _check(similarity, relevant)
    # where the order of equals is told and float64 is, which not every device has
    similarity, relevant = similarity.cpu(), relevant.cpu()
    k = similarity.shape[1]
    if ks is not None:
        check_ks(ks, k)
        k = max(ks, default=0)
    if ks is None:
        order = similarity.argsort(dim=1, descending=True, stable=True)
    else:
        # One more than k shows whether the last place is contested by an equal.
        values, order = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
        tied = (values[:, 1:] == values[:, :-1]).any(1)
        if tied.any():  # topk leaves the order of equals open
            ranking = similarity[tied].argsort(dim=1, descending=True, stable=True)
            order[tied] = ranking[:, : order.shape[1]]
    return relevant.gather(1, order[:, :k]).cumsum(1, dtype=torch.int32)


def _precision(found: Tensor, ks: Sequence[int]) -> dict[int, float]:
    return {k: float(found[:, k - 1].double().mean()) / k for k in ks}


def _recall(found: Tensor, total: Tensor, ks: Sequence[int]) -> dict[int, float]:
    return {k: float((found[:, k - 1].double() / total).mean()) for k in ks}


def _median_rank(found: Tensor) -> float:
    ranks = (found == 0).sum(1) + 1
    return float(ranks.double().quantile(0.5))


def _mean_average_precision(found: Tensor, total: Tensor) -> float:
    ranks = torch.arange(1, found.shape[1] + 1, device="cpu", dtype=torch.float64)
    is_relevant = found.diff(dim=1, prepend=torch.zeros_like(found[:, :1]))
    return float((is_relevant * found / ranks).sum(1).div(total).mean())


def _check(similarity: Tensor, relevant: Tensor) -> None:
    check_tensor("similarity", similarity, ("query", "candidate"))
    check_mask("relevant", relevant, tuple(similarity.shape), ("query", "candidate"))
    check_same_device("relevant", relevant, "similarity", similarity)
    if 0 in similarity.shape:
        raise ShapeError(
            f"similarity must hold at least one query and one candidate; "
            f"got {tuple(similarity.shape)}."
        )
    if similarity.isnan().any():
        query, candidate = similarity.isnan().nonzero()[0].tolist()
        raise DataError(f"similarity holds NaN, first at query {query}, candidate {candidate}.")


def _count(relevant: Tensor) -> Tensor:
    """How many candidates are relevant for each query, ``(query,)``; at least one."""
    total = relevant.sum(1).cpu()
    without = (total == 0).nonzero().flatten().tolist()
    if without:
        raise DataError(
            f"relevant must hold a relevant candidate for every query; {len(without)} have none, "
            f"the first is query {without[0]}."
        )
    return total
