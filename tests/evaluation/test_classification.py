"""Classification figures against scikit-learn and plain loops."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from gloria.errors import DataError, DtypeError, OptionError, ShapeError
from gloria.evaluation.classification import multilabel_auroc


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
    assert figure["per_class"] == pytest.approx(expected, abs=1e-6)
    assert figure["mean"] == pytest.approx(sum(expected) / 4, abs=1e-6)
    assert figure["undefined"] == []


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


def test_labels_may_be_of_any_integers_or_booleans():
    scores, labels = draw(50)
    expected = multilabel_auroc(scores, labels)
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
