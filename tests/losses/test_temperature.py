"""Temperatures, fixed and learned."""

import math

import pytest
import torch

from gloria.aggregators import GeM
from gloria.errors import DtypeError, OptionError
from gloria.losses import SigmoidContrastiveLoss, Temperature


def test_a_fixed_temperature_is_a_number_without_state():
    temperature = Temperature(0.1)
    assert temperature() == 0.1
    assert isinstance(temperature(), float)
    assert not list(temperature.parameters())
    assert repr(temperature) == "Temperature(0.1)"


@pytest.mark.parametrize("initial", [0.0101, 0.02, 0.1, 1.0, 50.0])
def test_a_learned_temperature_starts_where_asked(initial):
    temperature = Temperature(initial, learnable=True)
    assert temperature().item() == pytest.approx(initial, rel=1e-5)
    assert temperature().requires_grad
    assert temperature().shape == ()
    assert temperature.raw.shape == (1,)  # fully_shard refuses parameters without an axis
    assert repr(temperature) == f"Temperature(learnable from {initial}, minimum=0.01)"


def test_a_learned_temperature_has_the_gradient_of_softplus():
    temperature = Temperature(0.1, learnable=True).double()
    assert torch.autograd.gradcheck(lambda _: temperature(), (temperature.raw,))


def test_pushed_down_it_stays_above_its_minimum_and_comes_back():
    """A clamp would have lost its gradient at the bound."""
    temperature = Temperature(0.1, learnable=True, minimum=0.05)
    optimizer = torch.optim.Adam(temperature.parameters(), lr=0.1)

    def push(sign, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (sign * temperature()).backward()
            optimizer.step()

    push(+1, 200)
    assert 0.05 < temperature().item() < 0.051
    (gradient,) = torch.autograd.grad(temperature(), temperature.raw)
    assert gradient > 0
    push(-1, 600)
    assert temperature().item() > 0.2


def test_it_starts_anew_after_the_meta_device():
    with torch.device("meta"):
        parts = [Temperature(0.07, learnable=True), SigmoidContrastiveLoss(bias=-3.0), GeM(p=4.0)]
    for part in parts:
        part.to_empty(device="cpu")
        for module in part.modules():
            for parameter in module.parameters(recurse=False):
                torch.nn.init.constant_(parameter, 1e10)  # whatever stood in that memory
            module.reset_parameters()
    temperature, sigmoid, gem = parts
    assert temperature().item() == pytest.approx(0.07)
    assert sigmoid.temperature().item() == pytest.approx(0.1)
    assert (sigmoid.bias.item(), gem.p.item()) == (-3, 4)


def test_bad_values_are_named():
    with pytest.raises(
        OptionError,
        match=r"^sharp must start above its minimum_temperature 0\.01 to be learnable; got 0\.01",
    ):
        Temperature(0.01, learnable=True, name="sharp")
    with pytest.raises(OptionError, match=r"minimum_temperature must be .* above 0; got -1"):
        Temperature(0.1, learnable=True, minimum=-1)
    with pytest.raises(OptionError, match="temperature must be a finite number above 0; got nan"):
        Temperature(math.nan)
    with pytest.raises(DtypeError, match="learnable must be True or False; got 'no'"):
        Temperature(0.1, learnable="no")
    assert Temperature(0.001)() == 0.001  # a fixed one has no bound
