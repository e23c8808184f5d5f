"""The losses against plain loops over floats."""

import math
import warnings

import pytest
import torch
from gloria_baselines.losses import PlateauWarning, TripletHingeLoss, convirt, vse0, vse_plus_plus
from torch.autograd import gradcheck

import gloria
from gloria.errors import OptionError, ShapeError
from gloria.types import ScheduledLoss


def draw(count, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, dim, generator=generator, dtype=torch.float64).unbind()


def cosine(a, b):
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def naive(images, texts, margin, negatives):
    """(image to text, text to image), hinge by hinge."""
    similarity = [[cosine(v, t) for t in texts.tolist()] for v in images.tolist()]
    reduce = max if negatives == "hardest" else math.fsum
    count = len(similarity)
    rows = columns = 0.0
    for k in range(count):
        own = similarity[k][k]
        wrong = [n for n in range(count) if n != k]
        rows += reduce([max(0.0, margin + similarity[k][n] - own) for n in wrong])
        columns += reduce([max(0.0, margin + similarity[n][k] - own) for n in wrong])
    return rows, columns


@pytest.mark.parametrize("make", [vse0, vse_plus_plus])
@pytest.mark.parametrize(("count", "dim"), [(2, 1), (3, 5), (7, 2), (16, 33)])
@pytest.mark.parametrize("margin", [0.2, 1.5])
def test_hinges(make, count, dim, margin):
    images, texts = draw(count, dim)
    loss = make(margin=margin)
    rows, columns = naive(images, texts, margin, loss.negatives)
    terms = loss.terms(images, texts)
    assert terms["image_to_text"].item() == pytest.approx(rows, rel=1e-12, abs=1e-12)
    assert terms["text_to_image"].item() == pytest.approx(columns, rel=1e-12, abs=1e-12)
    assert loss(images, texts).item() == pytest.approx(rows + columns, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("make", [vse0, vse_plus_plus, convirt])
def test_gradients(make):
    images, texts = (x.requires_grad_() for x in draw(5, 4, seed=3))
    assert gradcheck(make(), (images, texts))


def test_an_own_pair_of_negative_similarity_is_no_negative():
    """Where ``s - 2 diag(s)`` would take it for the hardest one."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    texts = torch.tensor([[-1.0, 0.1], [0.1, -1.0]], dtype=torch.float64)
    similarity = TripletHingeLoss().similarity(images, texts)
    assert (similarity.diagonal() < 0).all()
    trick = similarity - 2 * similarity.diagonal().diag()
    assert trick.argmax(1).tolist() == [0, 1]
    rows, columns = naive(images, texts, 0.2, "hardest")
    assert TripletHingeLoss()(images, texts).item() == pytest.approx(rows + columns)
    wrong = float((0.2 + trick.amax(1) - similarity.diagonal()).sum())
    assert wrong > rows + 0.1


@pytest.mark.parametrize("make", [vse0, vse_plus_plus])
def test_a_batch_of_one_is_zero_with_zero_gradients(make):
    images, texts = (x.requires_grad_() for x in draw(1, 4))
    loss = make()(images, texts)
    loss.backward()
    assert loss.item() == 0
    assert not images.grad.any()
    assert not texts.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_widened(dtype):
    images, texts = (x.to(dtype) for x in draw(6, 8))
    expected = sum(naive(images.double(), texts.double(), 0.2, "hardest"))
    loss = vse_plus_plus()(images, texts)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_nan_is_not_swallowed():
    images, texts = draw(3, 4)
    images[1, 2] = math.nan
    assert vse_plus_plus()(images, texts).isnan()
    assert vse0()(images, texts).isnan()


def test_the_warm_up_goes_from_the_sum_to_the_hardest():
    images, texts = draw(6, 4)
    loss = vse_plus_plus(warmup_steps=10).train()
    assert isinstance(loss, ScheduledLoss)
    first, last = vse0()(images, texts), vse_plus_plus()(images, texts)
    for step, share in [(0, 0.0), (3, 0.3), (10, 1.0), (99, 1.0)]:
        loss.at_step(step)
        expected = share * last + (1 - share) * first
        torch.testing.assert_close(loss(images, texts), expected)
    loss.at_step(0)
    # in eval mode no step matters, so that validation losses can be compared
    torch.testing.assert_close(loss.eval()(images, texts), last)


def test_a_warm_up_that_is_told_no_step_says_so():
    images, texts = draw(3, 4)
    with pytest.raises(OptionError, match=r"call loss\.at_step\(step\)"):
        vse_plus_plus(warmup_steps=5)(images, texts)


def test_the_plateau_is_told_once():
    loss = vse_plus_plus(patience=5).train()
    alike = torch.ones(8, 3, dtype=torch.float64)
    assert loss(alike, alike).item() == pytest.approx(2 * 8 * 0.2)
    for _ in range(3):
        loss(alike, alike)
    with pytest.warns(PlateauWarning, match=r"at 3\.2 = 2 · batch · margin for 5 steps"):
        loss(alike, alike)
    for _ in range(20):
        loss(alike, alike)  # a second warning would be an error


@pytest.mark.parametrize("mode", ["interrupted", "elsewhere", "eval"])
def test_no_plateau_no_warning(mode):
    alike = torch.ones(8, 3, dtype=torch.float64)
    apart = torch.eye(8, dtype=torch.float64)
    loss = vse_plus_plus(patience=5).train(mode != "eval")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(30):
            interrupted = mode == "interrupted" and step % 5 == 2
            batch = apart if mode == "elsewhere" or interrupted else alike
            loss(batch, batch)


def test_convirts_weights():
    images, texts = draw(5, 4)
    rows = [[cosine(v, t) / 0.1 for t in texts.tolist()] for v in images.tolist()]

    def cross_entropy(rows):
        parts = [math.log(math.fsum(map(math.exp, row))) - row[k] for k, row in enumerate(rows)]
        return math.fsum(parts) / len(parts)

    columns = [list(column) for column in zip(*rows, strict=True)]
    expected = 0.75 * cross_entropy(rows) + 0.25 * cross_entropy(columns)
    assert convirt()(images, texts).item() == pytest.approx(expected, rel=1e-12)


def test_bad_input_is_named():
    images, texts = draw(3, 4)
    with pytest.raises(ShapeError, match="images and texts must agree in number; got 3 and 2"):
        vse0()(images, texts[:2])
    with pytest.raises(OptionError, match="negatives must be one of"):
        TripletHingeLoss(negatives="some")
    with pytest.raises(OptionError, match="margin must be"):
        vse0(margin=0.0)
    with pytest.raises(OptionError, match="warmup_steps goes with negatives='hardest'"):
        vse0(warmup_steps=3)


def test_registered_names():
    assert gloria.create_loss("vse0").negatives == "sum"
    assert gloria.create_loss("vse_plus_plus", warmup_steps=7).warmup_steps == 7
    assert gloria.create_loss("dsve", margin=0.1).margin == 0.1
    assert gloria.create_loss("convirt").image_to_text_weight == 0.75
