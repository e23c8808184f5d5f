"""What is inside of compiled modules and of losses across ranks."""

import inspect

import pytest
import torch
from torch import nn

from gloria import types
from gloria.distributed import AcrossRanks
from gloria.errors import UnknownWordWarning
from gloria.evaluation.features import encode_prompts
from gloria.heads import ImageClassifier, segmentation_model
from gloria.heads.segmentation import StagePyramid
from gloria.losses import GlobalContrastiveLoss
from gloria.training.small import small_model
from gloria.weights import why_not_loadable
from gloria.wrapping import unwrapped, wrapped_in


def test_what_wraps_a_loss_without_changing_it():
    loss = GlobalContrastiveLoss()
    across = AcrossRanks(loss)
    compiled = torch.compile(across, backend="eager")
    assert unwrapped(compiled) is unwrapped(across) is unwrapped(loss) is loss
    assert wrapped_in(compiled) is across
    assert wrapped_in(loss) is wrapped_in(nn.Sequential(loss)) is None


@pytest.fixture
def as_of_python_312(monkeypatch):
    """There isinstance with a protocol does not see what ``__getattr__`` gives."""
    protocols = [types.HasStages, types.ImageEncoder, types.SavesRecipe, types.TellsUnknownWords]
    members = {each: [name for name in dir(each) if name[0] != "_"] for each in protocols}
    members |= {each: [*members[each], *each.__annotations__] for each in protocols}

    usual = type(types.SavesRecipe).__instancecheck__

    def check(protocol, instance):
        if protocol not in members:
            return usual(protocol, instance)
        missing = object()
        found = (inspect.getattr_static(instance, name, missing) for name in members[protocol])
        return missing not in found

    monkeypatch.setattr(type(types.SavesRecipe), "__instancecheck__", check)


def test_a_compiled_encoder_is_the_kind_that_it_wraps(as_of_python_312):
    model = small_model(["No effusion.", "Cardiomegaly."], embedding_dim=8)
    model.image_encoder = torch.compile(model.image_encoder, backend="eager")
    model.text_encoder = torch.compile(model.text_encoder, backend="eager")
    assert why_not_loadable(model) == ""
    assert ImageClassifier(model.image_encoder, 2)
    assert isinstance(segmentation_model(model.image_encoder, 1).pyramid, StagePyramid)
    with pytest.warns(UnknownWordWarning, match="lacks 'Ω'"):
        encode_prompts(model, ["Ω effusion."])
