"""What a batch of one image raises; the loop is tested with what it trains."""

import pytest
import torch
from torch import nn

from gloria.errors import OptionError
from gloria.training.supervised import naming_batch


def test_only_batchnorms_error_is_said_otherwise():
    norm = nn.BatchNorm1d(3)
    with pytest.raises(OptionError, match="got batch_size 8 and 1 to train on"), naming_batch(8, 1):
        norm(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"^expected 2D or 3D input"), naming_batch(8, 9):
        norm(torch.zeros(3))
