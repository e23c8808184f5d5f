"""One step of the optimizer, beside the same step written out."""

import pytest
import torch
from torch import nn

from gloria.errors import ContractError, NonFiniteLossError
from gloria.training.steps import AdamWRecipe, parameter_groups, to_channels_last, update


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(seed)
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def inputs():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(9))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_loss_without_a_gradient_is_told(model):
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0))
    with pytest.raises(ContractError, match="the loss must have a gradient; it has none"):
        update(optimizer, torch.tensor(1.0), AdamWRecipe(), step=0)


def test_only_convolutions_of_images_change_their_memory_format():
    layers = nn.Sequential(nn.Conv3d(2, 3, 2), nn.Conv2d(2, 3, 2), nn.Linear(2, 3))
    to_channels_last(layers)
    assert layers[0].weight.is_contiguous()
    assert layers[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_vectors_and_frozen_parameters_do_not_decay(model):
    model[2].requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.1)
    assert decayed == {"params": [model[0].weight], "weight_decay": 0.1}
    assert kept == {"params": [model[0].bias, *model[1].parameters()], "weight_decay": 0.0}


def test_a_step_is_the_gradient_clipped_at_this_steps_rate(model):
    """By SGD, whose step is the rate times the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=7.0)
    model(inputs()).sum().backward()  # a gradient left behind by someone else
    before = weights(model)
    loss = model(inputs()).square().mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    loss = model(inputs()).square().mean()
    term = torch.tensor(3.0)
    halfway = AdamWRecipe(steps=8, learning_rate=1.0, clip_norm=0.1)
    record = update(optimizer, loss, halfway, step=4, terms={"term": term})
    assert gradient.norm() > 0.1
    expected = before - 0.5 * gradient * 0.1 / gradient.norm()
    torch.testing.assert_close(weights(model), expected)
    assert record == {
        "step": 5,
        "learning_rate": 0.5,
        "loss": pytest.approx(loss.item()),
        "term": 3.0,
        "gradient_norm": pytest.approx(float(gradient.norm())),
    }


@pytest.mark.parametrize("name", ["loss", "term", "gradient_norm"])
def test_nothing_is_updated_where_a_number_is_not_finite(model, name):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = weights(model)
    loss, term = model(inputs()).mean(), torch.tensor(1.0)
    if name == "loss":
        loss = loss + torch.inf
    elif name == "term":
        term = term * torch.nan
    else:
        model[0].weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteLossError, match=f"step 1: .*'{name}': (inf|nan).*not finite"):
        update(optimizer, loss, AdamWRecipe(), step=0, terms={"term": term})
    assert torch.equal(weights(model), before)
