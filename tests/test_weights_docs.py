"""docs/weights.md: its code and its command run, on a checkpoint of random weights."""

import shlex
from pathlib import Path

import pytest
import torch
from pages import blocks, read, run
from PIL import Image
from transformers import AutoModel

from gloria.cli import main
from gloria.data.phantom import PhantomDataset

PAGE = read("docs/weights.md")


@pytest.fixture
def disk(published, tmp_path, monkeypatch):
    """What the page has on disk."""
    monkeypatch.chdir(tmp_path)
    Path("chexpert_resnet50.ckpt").symlink_to(published.file)
    Path("films").mkdir()
    for number, item in enumerate(PhantomDataset("test", count=2), start=1):
        Image.fromarray(item.image).save(f"films/{number}.png")


def test_the_code_runs(disk):
    names = run(PAGE)
    assert names["scores"].shape == (2, 1)
    exported, kept = names["backbone"].state_dict(), names["model"].image_encoder.model.state_dict()
    assert exported.keys() == kept.keys()
    assert all(torch.equal(exported[name], kept[name]) for name in kept)
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    small, same = names["small"].image_encoder, names["small_backbone"].eval()
    assert torch.equal(same(images), small(images).pooled)
    AutoModel.from_pretrained("bert")


def test_the_command_runs(disk):
    (command,) = blocks(PAGE, "bash")
    assert main(shlex.split(command)[1:]) == 0
    assert Path("gloria-resnet50/model.safetensors").is_file()
