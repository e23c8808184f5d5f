"""The classifier's head and loss, against loops and scikit-learn; frozen is frozen."""

import copy
import math

import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn

from gloria.encoders import TimmImageEncoder
from gloria.errors import ContractError, DtypeError, OptionError, ShapeError
from gloria.heads import ImageClassifier, LinearHead, multilabel_loss


@pytest.fixture(scope="module")
def encoder():
    return TimmImageEncoder("resnet10t", in_chans=1, channels=(8, 8, 8, 16))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([[1, 0, -1], [0, 0, -1], [-1, 1, 1], [1, 1, 0]])


def naive_loss(logits, labels, class_weight, pos_weight):
    losses = []
    for image, row in enumerate(labels.tolist()):
        for column, label in enumerate(row):
            if label != -1:
                chance = 1 / (1 + math.exp(-logits[image][column]))
                told = pos_weight[column] * math.log(chance) if label else math.log(1 - chance)
                losses.append(-class_weight[column] * told)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("class_weight", [[1.0, 1.0, 1.0], [2.0, 0.0, 0.5]])
@pytest.mark.parametrize("pos_weight", [[1.0, 1.0, 1.0], [3.0, 0.25, 7.0]])
def test_the_loss_is_that_of_a_loop_over_known_labels(class_weight, pos_weight):
    logits = draw(4, 3).double()
    expected = naive_loss(logits.tolist(), LABELS, class_weight, pos_weight)
    actual = multilabel_loss(
        logits,
        LABELS,
        class_weight=torch.tensor(class_weight).double(),
        pos_weight=torch.tensor(pos_weight).double(),
    )
    assert float(actual) == pytest.approx(expected, abs=1e-12)
    if class_weight == pos_weight:
        assert float(multilabel_loss(logits, LABELS)) == pytest.approx(expected, abs=1e-12)


def test_one_class_is_scikit_learns_log_loss():
    logits, labels = draw(50, 1).double(), (draw(50, 1, seed=1) > 0).to(torch.int8)
    expected = log_loss(labels[:, 0].numpy(), logits[:, 0].sigmoid().numpy())
    assert float(multilabel_loss(logits, labels)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("wrong", [2, 255, torch.nan])
def test_what_is_no_label_shows_in_the_loss(wrong):
    dtype = torch.uint8 if wrong == 255 else torch.float32  # -1, wrapped around
    labels = torch.tensor([[1], [wrong]], dtype=dtype)
    assert multilabel_loss(torch.zeros(2, 1), labels).isnan()


def test_an_uncertain_label_has_no_influence_and_no_gradient():
    logits = draw(4, 3).requires_grad_()
    loss = multilabel_loss(logits, LABELS)
    loss.backward()
    assert torch.equal(logits.grad == 0, LABELS == -1)
    wild = logits.detach().clone()
    wild[LABELS == -1] = torch.inf
    wild.requires_grad_()
    again = multilabel_loss(wild, LABELS)
    again.backward()
    assert again == loss
    assert torch.equal(wild.grad, logits.grad)


def test_where_all_is_uncertain_the_loss_is_zero():
    logits = draw(2, 3).requires_grad_()
    loss = multilabel_loss(logits, torch.full((2, 3), -1))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (torch.zeros(4), {}, r"labels must be \(4, 3\) = \(image, class\)"),
        (torch.zeros(4, 2), {}, r"got \(4, 2\)"),
        (LABELS, {"pos_weight": torch.ones(1)}, r"pos_weight must be \(3,\) = \(class,\)"),
        (LABELS, {"class_weight": torch.ones(4, 3)}, r"class_weight must be \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit(labels, weights, message):
    with pytest.raises(ShapeError, match=message):
        multilabel_loss(draw(4, 3), labels, **weights)


@pytest.mark.parametrize("name", ["labels", "class_weight", "pos_weight"])
def test_labels_and_weights_are_tensors(name):
    given = {"labels": torch.zeros(2, 1), name: [[0], [1]]}
    with pytest.raises(DtypeError, match=f"{name} must be a tensor; got list"):
        multilabel_loss(torch.zeros(2, 1), **given)


def test_the_classifier_is_linear_in_the_pooled_vector(encoder):
    classifier = ImageClassifier(encoder, 3).eval()
    images = draw(2, 1, 64, 64)
    pooled = encoder(images).pooled
    assert pooled.shape == (2, 16)
    expected = pooled @ classifier.head.weight.T + classifier.head.bias
    torch.testing.assert_close(classifier(images), expected)
    assert classifier.image_input == encoder.image_input


def test_a_standardised_head_is_that_of_standardised_features():
    features = 5 + draw(40, 6) * torch.tensor([1.0, 10.0, 0.1, 1e-9, 2.0, 0.0])
    head = LinearHead(6, 2)
    plain = nn.Linear(6, 2)
    plain.load_state_dict({"weight": head.weight, "bias": head.bias})
    assert torch.equal(head(features), plain(features))
    head.standardize(features)
    columns = []
    for column in features.double().T:
        spread = math.sqrt(sum((x - column.mean()) ** 2 for x in column) / len(column))
        columns.append((column - column.mean()) / max(spread, 1e-3 * features[:, 1].std().item()))
    expected = plain(torch.stack(columns, 1).float())
    # of the most varying feature's deviation, to be sure about the least
    torch.testing.assert_close(head(features), expected, rtol=1e-3, atol=1e-3)
    assert head(features[:1]).isfinite().all()


def test_a_head_that_starts_anew_standardises_nothing():
    """Not by what stood in the memory that a head of the meta device was given."""
    with torch.device("meta"):
        head = LinearHead(3, 2)
    head.to_empty(device="cpu")
    head.mean.fill_(torch.nan)
    head.std.fill_(torch.nan)
    head.reset_parameters()
    features = draw(4, 3)
    torch.testing.assert_close(head(features), features @ head.weight.T + head.bias)


def test_features_of_one_image_and_constant_ones_standardise():
    head = LinearHead(3, 2)
    head.standardize(torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(head(torch.tensor([[1.0, 2.0, 3.0]]))[0], head.bias)
    with pytest.raises(ShapeError, match=r"features must be of an image at least; got \(0, 3\)"):
        head.standardize(torch.zeros(0, 3))


@pytest.mark.parametrize("copied", [lambda module: module, copy.deepcopy])
def test_frozen_nothing_of_the_encoder_changes_in_anybodys_loop(encoder, copied):
    classifier = copied(ImageClassifier(copy.deepcopy(encoder), 2, frozen=True))
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1, weight_decay=0.1)
    loop = nn.Sequential(classifier)  # as a training framework wraps it
    for step in range(2):
        loop.train()
        loss = multilabel_loss(loop(draw(4, 1, 32, 32, seed=step)), torch.ones(4, 2))
        loss.backward()
        optimizer.step()
    after = classifier.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    assert classifier.frozen
    assert classifier.head.training
    assert not any(module.training for module in classifier.image_encoder.modules())
    assert all(parameter.grad is None for parameter in classifier.image_encoder.parameters())


def test_unfrozen_weights_and_statistics_of_the_encoder_change(encoder):
    """The control of the test above."""
    classifier = ImageClassifier(copy.deepcopy(encoder), 2).train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
    multilabel_loss(classifier(draw(4, 1, 32, 32)), torch.ones(4, 2)).backward()
    optimizer.step()
    after = classifier.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"image_encoder.model.conv1.0.weight", "image_encoder.model.bn1.running_mean"} <= changed
    assert not classifier.frozen


def test_a_map_of_what_the_classifier_saw_can_be_had_while_frozen(encoder):
    """Frozen weights do not stop the gradient of the image."""
    images = draw(1, 1, 32, 32).requires_grad_()
    ImageClassifier(copy.deepcopy(encoder), 1, frozen=True)(images).sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("classes", "error"), [(0, OptionError), (2.0, DtypeError), (True, DtypeError)]
)
def test_the_number_of_classes(encoder, classes, error):
    with pytest.raises(error, match="classes must be"):
        ImageClassifier(encoder, classes)


@pytest.mark.parametrize(
    "given, fault",
    [("resnet50", "it is no nn.Module, it is str"), (nn.Linear(2, 2), "Linear lacks pooled_dim")],
)
def test_an_encoder_is_an_image_encoder(given, fault):
    with pytest.raises(ContractError, match=f"image_encoder must be an image encoder: {fault}"):
        ImageClassifier(given, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_up_any_number_of_labels(dtype):
    logits = draw(70_000, 1).to(dtype)  # more than float16 can count
    labels = torch.arange(70_000)[:, None] % 2
    expected = multilabel_loss(logits.double(), labels).item()
    assert multilabel_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
