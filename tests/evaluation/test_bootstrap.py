"""Bootstrap intervals against closed forms, scikit-learn and plain numpy."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch

from gloria.errors import DataError, DtypeError, OptionError, ShapeError
from gloria.evaluation.bootstrap import Interval, bootstrap, bootstrap_mean
from gloria.evaluation.classification import multilabel_auroc

NAN = math.nan


def test_mean_of_many_units_has_the_interval_of_the_normal_approximation():
    values = torch.randn(400, generator=torch.Generator().manual_seed(1)).double()
    found = bootstrap_mean({"mean": values}, resamples=4000)["mean"]
    half = 1.959964 * values.std(correction=0).item() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean().item())
    # the ends of 4,000 draws have a standard error of about 2 % of the width
    assert found.low == pytest.approx(found.value - half, abs=0.15 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.15 * half)


def test_three_units_have_the_interval_of_all_27_resamples():
    values = np.array([0.0, 1.0, 5.0])
    means = sorted(float(np.mean(draw)) for draw in product(values, repeat=3))
    found = bootstrap_mean({"mean": values.tolist()}, resamples=20_000, level=0.8)["mean"]
    # between the 10 % and 90 % quantile of the exact distribution; both lie inside an atom
    assert found.low == pytest.approx(means[round(0.1 * 26)])
    assert found.high == pytest.approx(means[round(0.9 * 26)])


def test_coverage_is_near_the_level():
    """Of 200 samples whose true mean is 0, about 90 % of the 90 % intervals hold it."""
    generator = torch.Generator().manual_seed(5)
    held = 0
    for seed in range(200):
        values = torch.randn(40, generator=generator)
        each = bootstrap_mean({"mean": values}, resamples=200, level=0.9, seed=seed)["mean"]
        held += each.low <= 0 <= each.high
    assert 165 <= held <= 195  # 180 expected, sd 4, the percentile method a little short


def test_a_figure_that_is_no_mean_sees_the_drawn_units_only():
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(2, (80,), generator=generator)
    scores = labels + torch.randn(80, generator=generator)

    def auroc(index):
        return {"auroc": float(metrics.roc_auc_score(labels[index], scores[index]))}

    found = bootstrap(auroc, 80, resamples=300, seed=4)["auroc"]
    rng = torch.Generator().manual_seed(4)
    draws = [
        auroc(torch.randint(80, (80,), generator=rng))["auroc"]  # the draws, written out
        for _ in range(300)
    ]
    assert found.value == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_the_seed_decides_and_global_randomness_is_left_alone():
    values = {"mean": torch.arange(10.0)}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (bootstrap_mean(values, resamples=50, seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


def test_figures_of_one_call_share_their_draws():
    values = torch.rand(30, generator=torch.Generator().manual_seed(0)).double()
    found = bootstrap_mean({"a": values, "b": 1 - values}, resamples=100)
    assert found["b"].low == pytest.approx(1 - found["a"].high)


def test_units_without_the_figure_and_resamples_without_it():
    found = bootstrap_mean({"dice": [0.5, math.nan, 0.7]}, resamples=500)["dice"]
    assert found.value == pytest.approx(0.6)
    assert 0 < found.left_out < 100  # (1/3)^3 of 500 draws hold the NaN alone
    assert (found.low, found.high) == (0.5, 0.7)
    with pytest.raises(DataError, match="the units do not define dice"):
        bootstrap_mean({"dice": [math.nan]}, resamples=5)


def test_a_mean_over_classes_is_always_over_the_same_classes():
    """Of three classes the second is rare, and the third has no positive image at all."""
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(2, (60, 3), generator=generator)
    labels[:, 1:] = 0
    labels[:2, 1] = 1
    scores = (labels + torch.randn(60, 3, generator=generator)).double()

    def auroc(index):
        return {"auroc": multilabel_auroc(scores[index], labels[index])["per_class"]}

    found = bootstrap(auroc, 60, resamples=200, seed=6)["auroc"]
    rng = torch.Generator().manual_seed(6)
    draws = []
    for _ in range(200):
        index = torch.randint(60, (60,), generator=rng)
        if labels[index, 1].any():  # else the mean would be that of the first class alone
            of_class = [metrics.roc_auc_score(labels[index, c], scores[index, c]) for c in (0, 1)]
            draws.append(sum(of_class) / 2)
    assert found.left_out == 200 - len(draws) > 10
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert found.value == pytest.approx(multilabel_auroc(scores, labels)["mean"])


def test_a_figure_that_no_resample_defines_has_no_interval():
    """It takes every one of ten units to define it."""

    def figures(index):
        whole = len(index.unique()) == 10
        return {"of_class": [0.5, 0.75 if whole else None, None], "number": 0.5 if whole else NAN}

    found = bootstrap(figures, 10, resamples=20)
    assert found["of_class"] == Interval(0.625, None, None, 20)
    assert found["number"] == Interval(0.5, None, None, 20)


def test_a_resample_in_which_a_ratio_is_infinite_is_left_out():
    odds = torch.tensor([1.0, 0.0, 1.0, 0.0])  # 1 in 16 resamples has nothing to divide by

    def figures(index):
        return {"odds": float(odds[index].sum() / (1 - odds[index]).sum())}

    found = bootstrap(figures, 4, resamples=100)["odds"]
    assert found.left_out > 0
    assert (found.value, found.low, found.high) == (1.0, 0.0, 3.0)


@pytest.mark.parametrize("undefined", [[None, None], NAN, math.inf])
def test_an_undefined_figure_is_an_error_before_anything_is_resampled(undefined):
    asked = []
    with pytest.raises(DataError, match="not define x: it is no number, or no class has it"):
        bootstrap(lambda index: asked.append(index) or {"y": 1.0, "x": undefined}, 3)
    assert len(asked) == 1


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_figures_of_classes_are_a_list(kind):
    with pytest.raises(
        DtypeError, match=r"figure 'auroc' must be a number, or a list .*not a tensor"
    ):
        bootstrap(lambda index: {"auroc": kind([0.5, 0.75])}, 3)
    found = bootstrap(lambda index: {"auroc": np.float32(0.5)}, 3, resamples=5)["auroc"]
    assert json.loads(json.dumps(found)) == [0.5, 0.5, 0.5, 0]


def test_progress_counts_the_resamples():
    done = []
    bootstrap(lambda index: {"x": 1.0}, 3, resamples=7, progress=done.append)
    assert sum(done) == 7


def test_one_unit_has_an_interval_of_no_width():
    assert bootstrap_mean({"x": [0.25]}, resamples=5)["x"] == Interval(0.25, 0.25, 0.25, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resamples": 0}, OptionError, "resamples must be at least 1"),
        ({"level": 1}, OptionError, "level must be above 0 and below 1; got 1"),
        ({"level": 1.5}, OptionError, "level must be a number from 0 to 1"),
        ({"seed": -1}, OptionError, "seed must be at least 0"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        bootstrap_mean({"x": [1.0, 2.0]}, **options)


def test_wrong_units():
    with pytest.raises(DataError, match="units must be at least 1"):
        bootstrap_mean({"x": []})
    with pytest.raises(DataError, match=r"same units; got \[1, 2\] units"):
        bootstrap_mean({"x": [1.0], "y": [1.0, 2.0]})
    with pytest.raises(ShapeError, match=r"x must be \(unit\); got \(\)"):
        bootstrap_mean({"x": 0.5})


def test_figures_within_figures_are_named():
    with pytest.raises(DtypeError, match=r"figure 'image_to_text' must be .* got {'precision@5'"):
        bootstrap(lambda index: {"image_to_text": {"precision@5": 0.5, "recall@5": 0.5}}, 3)


def test_a_column_is_read_by_place_whatever_its_own_labels():
    class Column(dict):
        """A column of pandas in small: indexed by labels of its own, iterated by place."""

        def __iter__(self):
            return iter(self.values())

    values = [0.5, 0.7, 0.9]
    column = Column(zip([7, 1, 4], values, strict=True))
    assert bootstrap_mean({"dice": column}) == bootstrap_mean({"dice": values})
