import math
from itertools import combinations

import pytest
import torch
from gloria_plugin_template.loss import AlignmentLoss

from gloria.errors import ShapeError


def distance(x, y):
    """Squared distance of two vectors, made unit ones, in plain Python."""
    x, y = ([each / math.hypot(*vector) for each in vector] for vector in (x, y))
    return math.fsum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def test_the_terms_are_the_papers():
    images, texts = torch.randn(2, 5, 3, dtype=torch.float64)
    terms = AlignmentLoss().terms(images, texts)
    x, y = images.tolist(), texts.tolist()
    aligned = math.fsum(map(distance, x, y)) / 5
    spread = [
        math.log(math.fsum(math.exp(-2 * distance(*pair)) for pair in combinations(z, 2)) / 10)
        for z in (x, y)
    ]
    assert terms["alignment"].item() == pytest.approx(aligned, abs=1e-12)
    assert terms["uniformity"].item() == pytest.approx(sum(spread) / 2, abs=1e-12)


def test_the_loss_is_their_weighted_sum():
    features = torch.randn(2, 4, 3)
    loss = AlignmentLoss.from_preset("paper", uniformity_weight=0.25)
    terms = loss.terms(*features)
    torch.testing.assert_close(loss(*features), terms["alignment"] + 0.25 * terms["uniformity"])


def test_gradients():
    images, texts = torch.randn(2, 4, 3, dtype=torch.float64)
    arguments = (images.requires_grad_(), texts.requires_grad_())
    assert torch.autograd.gradcheck(AlignmentLoss(), arguments)


def test_one_pair_has_nothing_to_lie_apart_from():
    with pytest.raises(ShapeError, match="two or more; got 1"):
        AlignmentLoss()(torch.randn(1, 3), torch.randn(1, 3))
