"""Classification figures against scikit-learn and plain loops."""

import math
import sys

import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch.nn.functional import one_hot

from gloria.errors import (
    DataError,
    DtypeError,
    MissingDependencyError,
    OptionError,
    ShapeError,
)
from gloria.evaluation.classification import (
    Thresholds,
    accuracy,
    auroc_of_some,
    choose_thresholds,
    multiclass_metrics,
    multilabel_auroc,
    multilabel_metrics,
)

NAN = float("nan")


def draw(images, classes=4, seed=0):
    """Scores that know something, as any real number, with ties; labels, one in six uncertain."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (images, classes), generator=generator)
    scores = torch.randn(images, classes, generator=generator) + 0.8 * labels
    scores = (scores * 8).round() / 8  # ties
    labels[torch.rand(images, classes, generator=generator) < 1 / 6] = -1
    return scores, labels


def test_auroc_equals_scikit_learn():
    scores, labels = draw(300)
    figure = multilabel_auroc(scores, labels)
    expected = [
        roc_auc_score(truth[truth >= 0], score[truth >= 0])
        for score, truth in zip(scores.T, labels.T, strict=True)
    ]
    assert figure["per_class"] == pytest.approx(expected, rel=0, abs=1e-12)
    assert figure["mean"] == pytest.approx(sum(expected) / 4, rel=0, abs=1e-12)
    assert figure["undefined"] == []


def test_auroc_of_some_is_that_of_these_images():
    scores, labels = draw(40)
    of_some = auroc_of_some(scores, labels)
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 5, 40, 40, 90):  # the few lack positive or negative ones in some class
        index = torch.randint(40, (size,), generator=generator)
        assert of_some(index) == multilabel_auroc(scores[index], labels[index])["per_class"]
        expected = [
            roc_auc_score(truth[truth >= 0], score[truth >= 0])
            if {0, 1} <= set(truth.tolist())
            else None
            for score, truth in zip(scores[index].T, labels[index].T, strict=True)
        ]
        assert of_some(index) == [
            value if value is None else pytest.approx(value, rel=0, abs=1e-12) for value in expected
        ]


@pytest.mark.parametrize("transform", [lambda s: 1000 * s, lambda s: s / 1e6 - 50.0, torch.sigmoid])
def test_auroc_depends_on_the_order_alone(transform):
    """A sigmoid of such scores would saturate, and make different ones equal."""
    scores, labels = draw(300)
    scores = scores.double()
    assert multilabel_auroc(transform(scores), labels) == multilabel_auroc(scores, labels)


@pytest.mark.parametrize("only", [0, 1, -1])
def test_a_class_without_both_kinds_is_left_out_of_the_mean_and_named(only):
    scores, labels = draw(300)
    whole = multilabel_auroc(scores, labels)
    labels[:, 2] = only
    figure = multilabel_auroc(scores, labels)
    assert figure["undefined"] == [2]
    assert figure["per_class"][2] is None
    rest = [value for number, value in enumerate(whole["per_class"]) if number != 2]
    assert figure["mean"] == pytest.approx(sum(rest) / 3)


def test_no_class_with_both_kinds_has_no_mean():
    figure = multilabel_auroc(torch.rand(1, 2), torch.tensor([[1, 0]]))
    assert figure == {"per_class": [None, None], "mean": None, "undefined": [0, 1]}


def test_equal_scores_are_chance():
    figure = multilabel_auroc(torch.full((6, 1), -3.0), torch.tensor([[0, 1, 0, 1, 1, -1]]).T)
    assert figure["mean"] == 0.5


def test_scores_and_labels_may_be_of_any_width():
    scores, labels = draw(50)
    expected = multilabel_auroc(scores, labels)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):  # eighths are exact in all
        assert multilabel_auroc(scores.to(dtype).requires_grad_(), labels) == expected
    assert multilabel_auroc(scores, labels.to(torch.int8)) == expected
    known = labels == 1
    assert multilabel_auroc(scores, known) == multilabel_auroc(scores, known.long())


def test_bad_input_is_named():
    scores, labels = draw(5)
    with pytest.raises(ShapeError, match=r"labels must be of the shape of scores, \(5, 4\)"):
        multilabel_auroc(scores, labels[:, :3])
    with pytest.raises(ShapeError, match=r"scores must be \(image, class\)"):
        multilabel_auroc(scores[:, 0], labels[:, 0])
    with pytest.raises(DtypeError, match=r"integers; got torch\.float32"):
        multilabel_auroc(scores, labels.float())
    with pytest.raises(DtypeError, match="labels must be a tensor of integers; got list"):
        multilabel_auroc(scores, labels.tolist())
    labels[3, 1] = 2
    with pytest.raises(OptionError, match="got 2 at image 3, class 1"):
        multilabel_auroc(scores, labels)
    with pytest.raises(DataError, match=r"at least one image and one class; got \(0, 4\)"):
        multilabel_auroc(scores[:0], labels[:0])
    scores[4, 0] = float("nan")
    with pytest.raises(DataError, match="scores holds NaN, first at image 4"):
        multilabel_auroc(scores, draw(5)[1])


def by_scikit_learn(decided, truth):
    """The figures of one class's decisions; NaN where undefined."""
    options = {"zero_division": NAN}
    return {
        "accuracy": accuracy_score(truth, decided),
        "sensitivity": recall_score(truth, decided, **options),
        "specificity": recall_score(1 - truth, 1 - decided, **options),
        "ppv": precision_score(truth, decided, **options),
        "npv": precision_score(1 - truth, 1 - decided, **options),
        "f1": f1_score(truth, decided, **options),
    }


def assert_figures(figures, expected_by_class):
    """Per class, the mean over what is defined, and the names of what is not."""
    for name in expected_by_class[0]:
        expected = [expected[name] for expected in expected_by_class]
        defined = [value for value in expected if not math.isnan(value)]
        figure = figures[name]
        assert figure["per_class"] == [
            None if math.isnan(value) else pytest.approx(value) for value in expected
        ]
        assert figure["undefined"] == [k for k, value in enumerate(expected) if math.isnan(value)]
        assert figure["mean"] == pytest.approx(sum(defined) / len(defined))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_decisions_equal_scikit_learn(classes):
    scores, labels = draw(200, classes)
    thresholds = Thresholds(torch.linspace(-0.5, 1, classes))
    figures = multilabel_metrics(scores, labels, thresholds)
    expected = []
    for score, truth, threshold in zip(scores.T, labels.T, thresholds.values, strict=True):
        known = truth >= 0
        expected.append(by_scikit_learn((score[known] >= threshold).int(), truth[known]))
    assert_figures(figures, expected)
    assert figures["auroc"] == multilabel_auroc(scores, labels)


def test_what_has_no_denominator_is_none_and_named():
    """Class 0: no positive image; 1: none called positive; 2: none called negative; 3: unknown."""
    labels = torch.tensor([[0, 1, 1, -1], [0, 0, 1, -1], [0, 0, 0, -1]])
    scores = torch.tensor([[1.0, -1, 1, 1], [-1.0, -1, 1, 1], [-1.0, -1, 1, 1]])
    figures = multilabel_metrics(scores, labels, 0)
    assert {name: figure["undefined"] for name, figure in figures.items()} == {
        "accuracy": [3],
        "sensitivity": [0, 3],
        "specificity": [3],
        "ppv": [1, 3],
        "npv": [2, 3],
        "f1": [3],
        "auroc": [0, 3],
    }
    assert figures["ppv"]["per_class"] == [0, None, pytest.approx(2 / 3), None]
    assert figures["ppv"]["mean"] == pytest.approx(1 / 3)
    assert figures["f1"]["per_class"] == [0, 0, pytest.approx(0.8), None]


def test_a_class_of_exclusive_ones_stands_against_all_others():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 5, (200,), generator=generator)
    scores = torch.randn(200, 6, generator=generator)  # nobody has class 5
    scores[:, :5] += one_hot(labels, 5)
    scores[:, 4] = -9  # never called
    figures = multiclass_metrics(scores, labels)
    truth, decided = one_hot(labels, 6), one_hot(scores.argmax(1), 6)
    expected = [by_scikit_learn(decided[:, k], truth[:, k]) for k in range(6)]
    assert figures["accuracy"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    for each in expected:
        del each["accuracy"]
    assert_figures(figures, expected)
    assert figures["ppv"]["undefined"] == [4]
    assert figures["sensitivity"]["undefined"] == figures["auroc"]["undefined"] == [5]
    present = [0, 1, 2, 3, 4]
    aurocs = [roc_auc_score(truth[:, k], scores[:, k]) for k in present]
    assert figures["auroc"]["per_class"][:5] == pytest.approx(aurocs, abs=1e-6)


def criterion(decided, truth, maximize):
    if maximize == "f1":
        return f1_score(truth, decided)
    return recall_score(truth, decided) + recall_score(1 - truth, 1 - decided) - 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("maximize", ["f1", "youden"])
def test_no_threshold_decides_better_on_validation_images(maximize, seed):
    scores, labels = draw(40, seed=seed)
    thresholds = choose_thresholds(scores, labels, maximize=maximize)
    assert thresholds.undefined == []
    decided = thresholds.decide(scores)
    for k in range(4):
        known = labels[:, k] >= 0
        truth, score = labels[known, k], scores[known, k]
        reached = criterion(decided[known, k].int(), truth, maximize)
        candidates = score.unique().tolist()
        possible = {each: criterion((score >= each).int(), truth, maximize) for each in candidates}
        best = max(possible.values())
        assert reached == pytest.approx(best, abs=1e-12)
        # the highest of equals, in the middle of its gap
        highest = max(each for each, value in possible.items() if value > best - 1e-12)
        below = [each for each in candidates if each < highest]
        expected = (highest + max(below)) / 2 if below else highest
        assert thresholds.values[k].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("maximize", "truth"),
    [
        ("f1", [1, 0, 0, 1]),  # 2/3, 1/2, 2/5, 2/3 with one, two, three, four called positive
        ("youden", [1, 0, 1, 0]),  # 1/2, 0, 1/2, 0
    ],
)
def test_the_highest_of_equally_good_thresholds_is_taken(maximize, truth):
    scores = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    thresholds = choose_thresholds(scores, torch.tensor([truth]).T, maximize=maximize)
    assert thresholds.values.tolist() == [3.5]


def test_neighbouring_and_infinite_scores_have_thresholds_between_them():
    just_above = math.nextafter(1.0, 2.0)
    for low, high in [(1.0, just_above), (-math.inf, 0.0), (0.0, math.inf), (-math.inf, math.inf)]:
        scores = torch.tensor([[low], [high]], dtype=torch.float64)
        thresholds = choose_thresholds(scores, torch.tensor([[0], [1]]))
        assert thresholds.decide(scores).tolist() == [[False], [True]]


def test_a_class_without_both_kinds_has_no_threshold_and_no_decisions():
    scores, labels = draw(60)
    labels[:, 1] = 0
    labels[:, 3] = -1
    thresholds = choose_thresholds(scores, labels)
    assert thresholds.undefined == [1, 3]
    test_scores, test_labels = draw(60, seed=1)
    figures = multilabel_metrics(test_scores, test_labels, thresholds)
    for name in ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1"):
        assert figures[name]["undefined"] == [1, 3]
        assert figures[name]["mean"] is not None
    assert figures["auroc"]["undefined"] == []


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_the_images_that_thresholds_were_chosen_on_are_refused(scale):
    """In any order, and scored once more in other batches, which rounds differently."""
    scores, labels = draw(60)
    scores *= scale
    thresholds = choose_thresholds(scores, labels)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    rounded = scores + 1e-7 * scale * torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    for again in (scores, scores.double(), rounded):
        for rows in (slice(None), order):
            with pytest.raises(DataError, match="chosen on these very images"):
                multilabel_metrics(again[rows], labels[rows].to(torch.int8), thresholds)
    others, other_labels = draw(60, seed=1)
    assert multilabel_metrics(scale * others, other_labels, thresholds)
    assert multilabel_metrics(scale * others, labels, thresholds)
    assert multilabel_metrics(scores, other_labels, thresholds)
    assert multilabel_metrics(scores, labels, Thresholds(thresholds.values))  # on purpose


def test_thresholds_are_chosen_or_one_number():
    scores, labels = draw(10)
    with pytest.raises(ShapeError, match=r"thresholds must be a single number; .* \(4,\)"):
        multilabel_metrics(scores, labels, torch.zeros(4))
    with pytest.raises(DtypeError, match="thresholds must be a number; got None"):
        multilabel_metrics(scores, labels, None)
    with pytest.raises(OptionError, match="thresholds must be a finite number"):
        multilabel_metrics(scores, labels, NAN)
    with pytest.raises(ShapeError, match="scores and thresholds must agree in classes; got 4 and"):
        multilabel_metrics(scores, labels, Thresholds(torch.zeros(3)))
    with pytest.raises(
        DtypeError, match=r"values of Thresholds must be a tensor \(class\); got list"
    ):
        Thresholds([0.5, 0.5, 0.5, 0.5])
    with pytest.raises(OptionError, match="maximize must be one of 'f1', 'youden'"):
        choose_thresholds(scores, labels, maximize="accuracy")
    with pytest.raises(DataError, match="at least one image"):
        choose_thresholds(scores[:0], labels[:0])


def test_accuracy_equals_scikit_learn():
    scores = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 5
    expected = accuracy_score(labels, scores.argmax(1))
    assert accuracy(scores, labels) == pytest.approx(expected)


def test_the_lower_class_wins_a_tie():
    scores = torch.tensor([[0.0, 1.0, 1.0]]).expand(3, 3)
    assert accuracy(scores, torch.tensor([1, 1, 1])) == 1
    assert accuracy(scores, torch.tensor([2, 2, 2])) == 0


def test_bad_classes_are_named():
    scores = torch.eye(3, 2)
    with pytest.raises(OptionError, match="labels must be from 0 to 1; got 2"):
        accuracy(scores, torch.tensor([0, 1, 2]))
    with pytest.raises(OptionError, match="labels must be from 0 to 1; got -1"):
        accuracy(scores, torch.tensor([0, 1, -1]))
    with pytest.raises(ShapeError, match="scores and labels must agree in images"):
        accuracy(scores, torch.tensor([0, 1]))
    with pytest.raises(DataError, match="at least one image"):
        accuracy(scores[:0], torch.zeros(0, dtype=torch.long))
    with pytest.raises(DataError, match="scores holds NaN, first at image 0"):
        accuracy(scores * NAN, torch.tensor([0, 1, 1]))


def test_auroc_and_accuracy_do_without_torchmetrics(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    assert accuracy(torch.eye(2), torch.tensor([0, 1])) == 1
    assert multilabel_auroc(torch.eye(2), torch.eye(2).long())["mean"] == 1
    with pytest.raises(MissingDependencyError, match=r"torchmetrics .*gloria-torch\[tasks\]"):
        multilabel_metrics(*draw(10), 0.5)
