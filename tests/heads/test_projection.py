"""Projections against their matrices."""

import pytest
import torch
from torch import nn

from gloria.errors import DtypeError, OptionError, ShapeError
from gloria.heads import Projection


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_linear_is_a_matrix_and_a_bias():
    head, features = Projection(5, 3), random(4, 5)
    expected = features @ head.layers.weight.T + head.layers.bias
    torch.testing.assert_close(head(features), expected)


class EightBits(nn.Module):
    """A linear layer as quantisers leave it: whole numbers in buffers, and no parameter."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.detach().abs().amax() / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (layer.weight / scale).round().to(torch.int8))
        self.register_buffer("bias", layer.bias.detach())

    def forward(self, features):
        return features @ (self.weight * self.scale).T + self.bias


def test_quantised_layers_have_no_parameter_to_ask():
    head, features = Projection(5, 3), random(4, 5)
    expected = head(features)
    head.layers = EightBits(head.layers)
    torch.testing.assert_close(head(features), expected, rtol=0, atol=0.02)


def test_mlp_is_linear_relu_linear():
    head, features = Projection(5, 3, kind="mlp", hidden_dim=7), random(4, 5)
    first, _, second = head.layers
    hidden = (features @ first.weight.T + first.bias).clamp_min(0)
    torch.testing.assert_close(head(features), hidden @ second.weight.T + second.bias)
    assert first.weight.shape == (7, 5)


def test_hidden_width_is_the_output_width_by_default():
    assert Projection(5, 3, kind="mlp").layers[0].out_features == 3


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_regions_are_projected_one_by_one(kind):
    """A linear map of every position is a 1 × 1 convolution."""
    head, regions = Projection(5, 3, kind=kind), random(2, 6, 5)
    projected = head(regions)
    assert projected.shape == (2, 6, 3)
    for image in range(2):
        for region in range(6):
            torch.testing.assert_close(projected[image, region], head(regions[image, region]))
    assert head(random(2, 0, 5)).shape == (2, 0, 3)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_without_bias_zero_stays_zero(kind):
    head = Projection(5, 3, kind=kind, bias=False)
    assert head(torch.zeros(2, 5)).eq(0).all()
    assert not any(name.endswith("bias") for name, _ in head.named_parameters())


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_every_parameter_and_the_input_get_a_gradient(kind):
    head, features = Projection(5, 3, kind=kind), random(4, 5).requires_grad_()
    head(features).square().sum().backward()
    assert all(p.grad.ne(0).any() for p in (features, *head.parameters()))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"in_dim": 0}, OptionError, "in_dim must be at least 1; got 0"),
        ({"out_dim": -3}, OptionError, "out_dim must be at least 1; got -3"),
        ({"in_dim": 5.0}, DtypeError, "in_dim must be an integer; got 5.0"),
        ({"kind": "conv"}, OptionError, "kind must be one of 'linear', 'mlp'; got 'conv'"),
        ({"kind": "mlp", "hidden_dim": 0}, OptionError, "hidden_dim must be at least 1; got 0"),
        ({"hidden_dim": 4}, OptionError, "hidden_dim goes with kind='mlp'; got 4"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        Projection(**{"in_dim": 5, "out_dim": 3, **options})


def test_a_wrong_width_is_named():
    with pytest.raises(
        ShapeError, match=r"features must be 5 wide on the last axis; got \(2, 5, 4\)"
    ):
        Projection(5, 3)(torch.zeros(2, 5, 4))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_another_dtype_is_named_unless_autocast_sees_to_it(kind):
    project = Projection(5, 3, kind=kind)
    with pytest.raises(DtypeError, match=r"must be torch\.float32 as .*; got torch\.float16"):
        project(torch.zeros(2, 5, dtype=torch.float16))
    with torch.autocast("cpu", torch.bfloat16):
        assert project(torch.zeros(2, 5, dtype=torch.float16)).dtype == torch.bfloat16
    assert project.half()(torch.zeros(2, 5, dtype=torch.float16)).dtype == torch.float16
