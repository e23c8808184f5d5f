"""Frozen means frozen: no gradient, no statistics, whatever ``train()`` is called from above."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gloria.encoders.freezing import Freezable
from gloria.errors import DtypeError, OptionError


class Encoder(Freezable):
    """Two blocks with everything that differs between training and eval mode."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, features):
        return self.head(self.stem(features))


def features():
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def train_a_step(encoder):
    head = nn.Linear(4, 1)
    model = nn.Sequential(encoder, head)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(features()).square().mean().backward()
    optimizer.step()


def changed(before, after, prefix=""):
    return {
        name
        for name in before
        if name.startswith(prefix) and not torch.equal(before[name], after[name])
    }


def test_unfrozen_it_trains():
    """The control: without freezing, the step below changes weights and statistics."""
    encoder = Encoder()
    before = state(encoder)
    train_a_step(encoder)
    assert {"stem.0.weight", "stem.1.running_mean"} <= changed(before, state(encoder))
    assert encoder.training
    assert encoder.stem[2].training


def test_frozen_whole_nothing_changes_in_a_training_step():
    encoder = Encoder().freeze()
    before = state(encoder)
    train_a_step(encoder)
    assert changed(before, state(encoder)) == set()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(encoder(features()), encoder(features()))  # no dropout


def test_frozen_in_part_the_rest_trains():
    encoder = Encoder().freeze("stem")
    before = state(encoder)
    train_a_step(encoder)
    after = state(encoder)
    assert changed(before, after, "stem") == set()
    assert {"head.0.weight", "head.1.running_mean"} <= changed(before, after)
    assert encoder.training
    assert encoder.head.training
    assert not any(module.training for module in encoder.stem.modules())


def test_dotted_names_and_several_parts():
    encoder = Encoder().freeze("stem.1", "head.1").freeze("stem.0")
    encoder.eval().train()
    assert encoder.stem[2].training
    assert not encoder.stem[1].training
    assert not encoder.head[1].training
    trainable = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trainable == {"head.0.weight", "head.0.bias"}


def test_freezing_keeps_the_mode_of_the_rest():
    assert Encoder().freeze("stem").head.training
    assert not Encoder().eval().freeze("stem").head.training
    assert not Encoder().freeze("stem").eval().training


def test_freezing_twice_is_freezing_once():
    encoder = Encoder().freeze().freeze("stem").freeze()
    encoder.train()
    assert not any(module.training for module in encoder.modules())


def test_a_frozen_encoder_inside_another_freezable_one():
    class Outer(Freezable):
        def __init__(self):
            super().__init__()
            self.inner = Encoder().freeze("stem")

    outer = Outer().train()
    assert outer.inner.head.training
    assert not outer.inner.stem.training
    outer.freeze("inner").train()
    assert not any(module.training for module in outer.inner.modules())
    assert outer.training


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_a_copy_stays_frozen(copied):
    twin = copied(Encoder().freeze("stem")).train()
    assert not twin.stem.training
    assert twin.head.training


@pytest.mark.parametrize("frozen", [True, False, ["stem"], ["stem.0.weight", "head.1"]])
def test_what_is_frozen_can_be_said_and_done_again(frozen):
    encoder = Encoder().freeze_as(frozen).freeze_as(frozen)
    assert encoder.frozen_as() == frozen
    again = Encoder().freeze_as(encoder.frozen_as()).train()
    for ours, theirs in zip(again.parameters(), encoder.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad
    assert [m.training for m in again.modules()] == [m.training for m in encoder.modules()]


def test_the_whole_outdoes_its_parts():
    assert Encoder().freeze("stem").freeze().frozen_as() is True


def test_a_parameter_can_be_frozen_alone():
    encoder = Encoder().freeze("stem.0.weight")
    before = state(encoder)
    train_a_step(encoder)
    after = state(encoder)
    assert changed(before, after, "stem.0") == {"stem.0.bias"}
    assert encoder.stem.training


@pytest.mark.parametrize("frozen", ["stem", 1, ["stem", 2], None])
def test_frozen_is_a_bool_or_names(frozen):
    with pytest.raises(DtypeError, match="frozen must be True, False or a list of names; got"):
        Encoder().freeze_as(frozen)


def test_only_modules_and_parameters_can_be_frozen():
    with pytest.raises(OptionError, match=r"'stem\.forward' is no submodule or parameter"):
        Encoder().freeze("stem.forward")


def test_freezing_adds_nothing_to_the_state():
    assert Encoder().freeze().state_dict().keys() == Encoder().state_dict().keys()


def test_an_unknown_part_is_named():
    encoder = Encoder()
    with pytest.raises(OptionError, match="trunk"):
        encoder.freeze("trunk")
    assert encoder.train().stem.training
