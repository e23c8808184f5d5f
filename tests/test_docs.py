"""The documentation's promises: its code runs, and every loss has its section."""

import re

import pytest
from pages import blocks, read, run

from gloria.catalog import Catalog

LOSSES = read("docs/losses.md")
INTRODUCTION, *_SECTIONS = LOSSES.split("\n## ")
# a section's heading ends with the registered name: "SPARC: `sparc`"
SECTIONS = {re.search(r"`(\w+)`$", text, re.MULTILINE).group(1): text for text in _SECTIONS}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_examples_of_a_loss_run(name):
    """After the features that they share, in the introduction."""
    assert f'create_loss("{name}"' in "".join(blocks(SECTIONS[name]))
    run(INTRODUCTION + SECTIONS[name])


@pytest.mark.parametrize("entry", Catalog().losses.entries(), ids=lambda entry: entry.name)
def test_every_loss_has_a_section_with_its_presets(entry):
    loss = Catalog().create("losses", entry.name, {})
    section = SECTIONS[entry.name]
    assert all(f"`{preset}`" in section for preset in type(loss).presets)
    assert f"| `{entry.name}` | `{type(loss).__name__}` |" in LOSSES
