"""`gloria import-published`: a checkpoint becomes a saved model that the other commands take."""

import json

import pytest
import torch
from PIL import Image

import gloria
from gloria.cli import main
from gloria.data.phantom import PhantomDataset


def test_the_other_commands_take_what_it_writes(published, tmp_path, capsys):
    out = tmp_path / "deep" / "model"
    assert main(["import-published", str(published.file), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    stored = published.weights["gloria.img_encoder.model.conv1.weight"]
    assert torch.equal(gloria.load_model(out).image_encoder.model.conv1.weight, stored)

    (tmp_path / "films").mkdir()
    for number, item in enumerate(PhantomDataset("test", count=2)):
        Image.fromarray(item.image).save(tmp_path / "films" / f"{number}.png")
    where = ["--model", str(out), "--images", str(tmp_path / "films"), "--device", "cpu"]
    assert main(["search", "pleural effusion", *where, "--json", "--quiet"]) == 0
    assert len(json.loads(capsys.readouterr().out)["found"]) == 2


def test_an_existing_folder_is_left_alone(published, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    arguments = ["import-published", str(published.file), "--out", str(tmp_path / "mine")]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"gloria: error: out must be a new folder; {tmp_path / 'mine'} exists.\n"
    )


@pytest.mark.parametrize("text_encoder", ["nowhere", None])
def test_the_text_encoder_is_the_one_that_is_named(published, tmp_path, capsys, text_encoder):
    (tmp_path / "odd.ckpt").write_bytes(b"nothing")
    named = ["--text-encoder", str(tmp_path / text_encoder)] if text_encoder else []
    file = published.file if text_encoder else tmp_path / "odd.ckpt"
    assert main(["import-published", str(file), "--out", str(tmp_path / "new"), *named]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gloria: error: ")
    assert (text_encoder or "odd.ckpt is damaged") in said
    assert not (tmp_path / "new").exists()
