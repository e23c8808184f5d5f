"""Retrieval figures against plain loops, torchmetrics and scikit-learn."""

import json
import random

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from gloria.errors import DataError, DeviceError, DtypeError, OptionError, ShapeError
from gloria.evaluation.retrieval import (
    class_relevance,
    evaluate_queries,
    evaluate_retrieval,
    mean_average_precision,
    median_rank,
    precision_at_k,
    recall_at_k,
)

EVERY = (precision_at_k, recall_at_k, median_rank, mean_average_precision)


def draw(queries, candidates, seed=0, levels=None):
    """Negative and positive similarities; ``levels`` makes ties."""
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randn(queries, candidates, generator=generator)
    if levels:
        similarity = (similarity * levels).round() / levels
    relevant = torch.rand(queries, candidates, generator=generator) < 0.3
    relevant[:, seed % candidates] = True
    return similarity, relevant


def ranked(similarity, relevant):
    """For each query, the relevance of its candidates, best first, lower index first in a tie."""
    for scores, truth in zip(similarity.tolist(), relevant.tolist(), strict=True):
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        yield [truth[i] for i in order]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def call(function, similarity, relevant, ks=(1,)):
    if function in (precision_at_k, recall_at_k):
        return function(similarity, relevant, ks)
    return function(similarity, relevant)


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (20, 5), (13, 40)])
def test_equals_plain_loops_with_and_without_ties(shape, levels):
    similarity, relevant = draw(*shape, seed=shape[1], levels=levels)
    rows = list(ranked(similarity, relevant))
    ks = sorted({1, 2, 5, shape[1]} & set(range(1, shape[1] + 1)))
    precision, recall = (
        precision_at_k(similarity, relevant, ks),
        recall_at_k(similarity, relevant, ks),
    )
    assert list(precision) == ks
    for k in ks:
        assert precision[k] == pytest.approx(mean(sum(row[:k]) / k for row in rows))
        assert recall[k] == pytest.approx(mean(sum(row[:k]) / sum(row) for row in rows))
    firsts = [row.index(True) + 1 for row in rows]
    assert median_rank(similarity, relevant) == np.median(firsts)
    expected = mean(
        mean(sum(row[: i + 1]) / (i + 1) for i, hit in enumerate(row) if hit) for row in rows
    )
    assert mean_average_precision(similarity, relevant) == pytest.approx(expected)


def test_average_precision_equals_scikit_learn():
    similarity, relevant = draw(10, 30)
    expected = np.mean(
        [average_precision_score(r, s) for r, s in zip(relevant, similarity, strict=True)]
    )
    assert mean_average_precision(similarity, relevant) == pytest.approx(expected)


@pytest.mark.parametrize("function", EVERY)
def test_only_the_order_of_scores_counts(function):
    similarity, relevant = draw(9, 30)
    before = call(function, similarity, relevant, (1, 5))
    assert call(function, similarity - 100, relevant, (1, 5)) == before
    assert call(function, similarity.double().exp(), relevant, (1, 5)) == before


@pytest.mark.parametrize("function", EVERY)
def test_infinities_are_ranked(function):
    similarity, relevant = draw(4, 9)
    similarity[:, 3], similarity[:, 5:7] = float("inf"), float("-inf")
    extreme = similarity.nan_to_num(posinf=1e6, neginf=-1e6)
    assert call(function, similarity, relevant, (1, 9)) == call(function, extreme, relevant, (1, 9))


def test_equal_candidates_come_in_order_of_their_index():
    similarity = torch.zeros(1, 1000)  # topk alone would bring others
    relevant = torch.zeros(1, 1000, dtype=torch.bool)
    relevant[0, :7] = True
    assert precision_at_k(similarity, relevant, [5, 10]) == {5: 1.0, 10: 0.7}
    assert precision_at_k(similarity, relevant.flip(1), [5, 10]) == {5: 0.0, 10: 0.0}
    assert median_rank(similarity, relevant.flip(1)) == 994


def test_chance_is_the_share_of_relevant_candidates():
    labels = torch.arange(500) % 5
    similarity = torch.randn(500, 500, generator=torch.Generator().manual_seed(0))
    found = precision_at_k(similarity, class_relevance(labels, labels), [5, 100])
    assert found[5] == pytest.approx(0.2, abs=0.03)
    assert found[100] == pytest.approx(0.2, abs=0.01)


def test_a_query_without_answers_scores_zero_and_has_no_recall():
    relevant = torch.tensor([[True, False], [False, False]])
    similarity = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert precision_at_k(similarity, relevant, [1]) == {1: 0.5}
    for function in EVERY[1:]:
        with pytest.raises(DataError, match=r"relevant .* 1 have none, the first is query 1"):
            call(function, similarity, relevant)


def test_class_relevance_is_equality():
    random_labels = random.Random(0)
    queries = [random_labels.randrange(4) for _ in range(6)]
    candidates = [random_labels.randrange(4) for _ in range(9)]
    expected = torch.tensor([[q == c for c in candidates] for q in queries])
    assert torch.equal(class_relevance(torch.tensor(queries), torch.tensor(candidates)), expected)


def test_class_relevance_wants_vectors_of_integers():
    labels = torch.zeros(3, dtype=torch.long)
    with pytest.raises(DtypeError, match=r"query_labels must be .* integers; got torch.float32"):
        class_relevance(labels.float(), labels)
    with pytest.raises(ShapeError, match=r"candidate_labels must be \(candidate,\); got \(1, 3\)"):
        class_relevance(labels, labels[None])


@pytest.mark.parametrize("function", EVERY)
def test_nan_is_refused_with_its_place(function):
    similarity, relevant = draw(3, 4)
    similarity[1, 2] = float("nan")
    with pytest.raises(DataError, match="NaN, first at query 1, candidate 2"):
        call(function, similarity, relevant)


@pytest.mark.parametrize("function", EVERY)
def test_shapes_and_dtypes_are_checked(function):
    similarity, relevant = draw(3, 4)
    with pytest.raises(ShapeError, match=r"relevant must be \(3, 4\) .* got \(4, 3\)"):
        call(function, similarity, relevant.T)
    with pytest.raises(DtypeError, match="relevant must be boolean"):
        call(function, similarity, relevant.long())
    with pytest.raises(DeviceError, match="relevant must be on the device of similarity, cpu"):
        call(function, similarity, relevant.to("meta"))
    with pytest.raises(DtypeError, match="similarity must be a floating-point"):
        call(function, similarity.long(), relevant)
    with pytest.raises(ShapeError, match="at least one query"):
        call(function, similarity[:0], relevant[:0])


@pytest.mark.parametrize("function", [precision_at_k, recall_at_k])
def test_k_beyond_the_gallery_is_an_error(function):
    similarity, relevant = draw(3, 4)
    for k in (5, 0, -1):
        with pytest.raises(OptionError, match=f"ks must be from 1 to .*, 4; got {k}"):
            function(similarity, relevant, [1, k])
    with pytest.raises(DtypeError, match="ks must be a list of integers; got 2"):
        function(similarity, relevant, 2)
    with pytest.raises(DtypeError, match=r"each of ks must be an integer; got 2\.0"):
        function(similarity, relevant, [2.0])
    assert function(similarity, relevant, []) == {}
    assert function(similarity, relevant, np.arange(1, 3)) == function(similarity, relevant, [1, 2])


def test_the_whole_row_of_both_directions():
    """Against torchmetrics (on scores that it takes) and NumPy, each direction on its own."""
    retrieval = pytest.importorskip("torchmetrics.functional.retrieval")
    similarity, relevant = draw(14, 11)
    relevant[torch.arange(14), torch.arange(14) % 11] = True
    found = evaluate_retrieval(similarity, relevant, ks=(1, 5, 10))
    assert list(found) == ["image_to_text", "text_to_image"]
    for name, scores, truth in (
        ("image_to_text", similarity, relevant),
        ("text_to_image", similarity.T, relevant.T),
    ):
        shifted = scores - similarity.min() + 1  # torchmetrics counts scores <= 0 as misses
        expected = {}
        for figure, function in (
            ("precision", retrieval.retrieval_precision),
            ("recall", retrieval.retrieval_recall),
        ):
            for k in (1, 5, 10):
                each = [function(s, t, k).item() for s, t in zip(shifted, truth, strict=True)]
                expected[f"{figure}@{k}"] = mean(each)
        firsts = [row.index(True) + 1 for row in ranked(scores, truth)]
        expected["median_rank"] = np.median(firsts)
        expected["mean_average_precision"] = mean(
            retrieval.retrieval_average_precision(s, t).item()
            for s, t in zip(shifted, truth, strict=True)
        )
        assert found[name] == pytest.approx(expected, abs=1e-6)
        assert list(found[name]) == list(expected)
    assert json.loads(json.dumps(found)) == found


def test_all_figures_of_a_direction_are_of_one_ranking(monkeypatch):
    """Of thousands of queries and candidates, ranking is most of the work."""
    ranked = []
    for name in ("argsort", "topk", "sort"):
        rank = getattr(torch.Tensor, name)

        def count(similarity, *args, rank=rank, **options):
            ranked.append(tuple(similarity.shape))
            return rank(similarity, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, count)
    evaluate_queries(torch.rand(6, 9), torch.ones(6, 9, dtype=torch.bool), [1, 5])
    assert ranked == [(6, 9)]


def test_directions_of_unequal_galleries_are_evaluated_one_by_one():
    similarity, relevant = draw(3, 200)
    assert evaluate_queries(similarity, relevant)["precision@100"] > 0
    with pytest.raises(OptionError, match=r"ks must be from 1 to .*, 3; got 5"):
        evaluate_retrieval(similarity, relevant)  # only 3 images to find
