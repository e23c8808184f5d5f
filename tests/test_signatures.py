"""How callables of others are read."""

import sys
from typing import TYPE_CHECKING

import pytest
from torch import nn

from gloria.catalog import Catalog
from gloria.losses import inputs_of

if TYPE_CHECKING:
    from torch import Tensor


@pytest.mark.skipif(sys.version_info < (3, 14), reason="evaluates annotations of a class at once")
def test_annotations_may_name_what_only_type_checkers_import():
    class Hinge(nn.Module):
        def __init__(self, margin: Tensor):
            super().__init__()
            self.margin = margin

        def forward(self, words: Tensor) -> Tensor:
            return words.sum() - self.margin

    catalog = Catalog()
    catalog.losses.register("hinge", Hinge)
    assert catalog.losses.takes("hinge", "margin")
    loss = catalog.create("losses", "hinge", {"margin": 1.0})
    assert inputs_of(loss) == ("words",)
