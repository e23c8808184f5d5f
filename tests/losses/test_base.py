"""What every loss shares: terms, weights, presets, and which inputs it asks for."""

import re
from typing import ClassVar

import pytest
import torch
from torch import nn

from gloria.distributed import AcrossRanks
from gloria.errors import ContractError, OptionError, UnknownOptionError
from gloria.losses import (
    LOSS_INPUTS,
    GlobalContrastiveLoss,
    GlobalLocalContrastiveLoss,
    LocalContrastiveLoss,
    PairLoss,
    inputs_of,
)
from gloria.losses.base import is_sum_of_terms


class Three(PairLoss):
    presets: ClassVar = {"double": {"factor": 2.0}}

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def terms(self, regions):
        return {"a": regions.sum(), "b": regions.mean(), "c": regions.max()}

    def weights(self):
        return {"b": self.factor}


def test_the_total_weighs_the_terms_and_one_is_the_default():
    regions = torch.tensor([1.0, 2.0, 6.0])
    loss = Three.from_preset("double")
    assert loss.total(loss.terms(regions)).item() == 9 + 2 * 3 + 6
    assert Three.from_preset("double", factor=0.0).total(loss.terms(regions)).item() == 15
    with pytest.raises(OptionError, match="preset must be one of 'double'; got 'paper'"):
        Three.from_preset("paper")


@pytest.mark.parametrize("terms", [{}, None, [torch.ones(())], torch.ones(())])
def test_terms_without_names_are_told(terms):
    class Odd(Distance):
        def terms(self, image_embeddings, text_embeddings):
            return terms

    kind = type(terms).__name__
    with pytest.raises(ContractError, match=rf"terms of Odd must be scalars by name.*got {kind}"):
        Odd()(torch.ones(3, 2), torch.ones(3, 2))


def test_a_loss_without_terms_is_told():
    with pytest.raises(NotImplementedError, match=r"PairLoss must define terms\(\.\.\.\)"):
        PairLoss().terms()


class Distance(PairLoss):
    """No forward of its own."""

    def terms(self, image_embeddings, text_embeddings):
        return {"distance": (image_embeddings - text_embeddings).square().sum()}


def test_terms_are_enough():
    images, texts = torch.ones(3, 2), torch.zeros(3, 2)
    assert Distance()(images, text_embeddings=texts).item() == 6
    assert inputs_of(Distance()) == ("image_embeddings", "text_embeddings")
    assert inputs_of(AcrossRanks(Distance())) == ("image_embeddings", "text_embeddings")


def test_a_term_need_not_be_there_every_time():
    assert Three(3.0).total({"a": torch.ones(())}) == 1


def test_a_loss_is_the_sum_of_its_terms_unless_forward_alone_was_changed():
    class Renamed(Three):
        def forward(self, regions):
            return self.total(self.terms(regions)) ** 2

    class Again(Renamed):
        def terms(self, regions):
            return {"a": regions.sum(), "b": regions.sum()}

    class Mixed(Renamed, GlobalContrastiveLoss):
        pass

    assert not is_sum_of_terms(Mixed())
    assert is_sum_of_terms(Three())
    assert not is_sum_of_terms(Renamed())
    assert is_sum_of_terms(Again())
    assert is_sum_of_terms(GlobalContrastiveLoss())
    assert is_sum_of_terms(LocalContrastiveLoss())
    assert not is_sum_of_terms(nn.MSELoss())


def test_an_option_that_a_loss_does_not_have_is_named_with_those_it_has():
    with pytest.raises(UnknownOptionError, match=r"Three has no option 'fator'\. Did you mean 'fa"):
        Three.from_preset("double", fator=1.0)
    known = "'learnable'. It has preset, global_options, local_options, global_loss, local_loss, gl"
    with pytest.raises(UnknownOptionError, match=re.escape(known)):
        GlobalLocalContrastiveLoss.from_preset("stable", learnable=True)
    with pytest.raises(UnknownOptionError, match="mean 'match_temperature'"):
        LocalContrastiveLoss.from_preset("stable", match_temp=0.1)
    options = {"global_options": {"temperatur": 0.1}}
    with pytest.raises(UnknownOptionError, match="GlobalContrastiveLoss has no option 'temper"):
        GlobalLocalContrastiveLoss.from_preset("stable", **options)
    with pytest.raises(OptionError, match=r"local_options must be a mapping, such as .*; got"):
        GlobalLocalContrastiveLoss.from_preset("stable", local_options="{backend: chunked}")


def test_a_loss_that_takes_any_options_is_asked_itself():
    class Open(Three):
        def __init__(self, **options):
            super().__init__(**options)

    assert Open.from_preset("double", factor=3.0).factor == 3.0


def test_a_loss_names_its_inputs_by_its_arguments():
    assert inputs_of(GlobalContrastiveLoss()) == ("image_embeddings", "text_embeddings")
    assert inputs_of(LocalContrastiveLoss()) == ("regions", "words", "word_mask", "region_mask")
    assert inputs_of(GlobalLocalContrastiveLoss()) == LOSS_INPUTS


def test_optional_and_variable_arguments_are_not_asked_for():
    class Other(nn.Module):
        def forward(self, words, *rest, margin=0.2, region_mask=None, **more):
            return words.sum()

    assert inputs_of(Other()) == ("words", "region_mask")


def test_a_compiled_loss_asks_for_what_the_loss_asks_for():
    compiled = torch.compile(GlobalContrastiveLoss(), backend="eager")
    assert inputs_of(compiled) == ("image_embeddings", "text_embeddings")


def test_an_argument_that_nobody_can_give_is_named():
    class Labelled(nn.Module):
        def forward(self, image_embeddings, labels):
            return image_embeddings.sum()

    with pytest.raises(
        OptionError,
        match="loss Labelled asks for 'labels'; what a loss can ask for is image_embeddings, text_",
    ):
        inputs_of(Labelled())
