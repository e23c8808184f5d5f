"""`gloria import-published`: a checkpoint becomes a saved model that the other commands take."""

import json

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

    rows = ["image,report,split", *(f"films/{n}.png,Pleural effusion.,train" for n in (0, 1))]
    (tmp_path / "films.csv").write_text("\n".join(rows))
    start = ["--data", str(tmp_path / "films.csv"), "--model", str(out), "--image-size", "64"]
    tuned = ["train", *start, "--out", str(tmp_path / "run"), "--steps", "1", "--batch-size", "2"]
    assert main([*tuned, "--workers", "0", "--device", "cpu", "--quiet"]) == 0
    again = gloria.load_model(tmp_path / "run" / "model")
    assert repr(again.loss) == repr(gloria.load_model(out).loss)


def test_an_existing_folder_is_left_alone(published, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    arguments = ["import-published", str(published.file), "--out", str(tmp_path / "mine")]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"gloria: error: out must be a new folder; {tmp_path / 'mine'} exists.\n"
    )


def refuse(capsys, out, file, *options):
    """The one line that says why, and no folder."""
    assert main(["import-published", str(file), "--out", str(out), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gloria: error: ")
    assert not out.exists()
    return said


def test_the_text_encoder_is_the_one_that_is_named(published, tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    assert nowhere in refuse(capsys, tmp_path / "new", published.file, "--text-encoder", nowhere)


def test_a_damaged_file_is_refused(tmp_path, capsys):
    (tmp_path / "odd.ckpt").write_bytes(b"nothing")
    said = refuse(capsys, tmp_path / "new", tmp_path / "odd.ckpt")
    assert "odd.ckpt is damaged" in said


def test_the_folder_is_tried_before_the_checkpoint_is_read(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    said = refuse(capsys, tmp_path / "taken" / "new", tmp_path / "none.ckpt")
    assert "out must be a folder that can be written into" in said
