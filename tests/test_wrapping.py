"""What is inside of compiled modules and of losses across ranks."""

import torch
from torch import nn

from gloria.distributed import AcrossRanks
from gloria.losses import GlobalContrastiveLoss
from gloria.wrapping import unwrapped, wrapped_in


def test_what_wraps_a_loss_without_changing_it():
    loss = GlobalContrastiveLoss()
    across = AcrossRanks(loss)
    compiled = torch.compile(across, backend="eager")
    assert unwrapped(compiled) is unwrapped(across) is unwrapped(loss) is loss
    assert wrapped_in(compiled) is across
    assert wrapped_in(loss) is wrapped_in(nn.Sequential(loss)) is None
