"""The plugin as gloria's users meet it: listed by name, trained with, saved and loaded."""

import subprocess
import sys
from textwrap import dedent

import pytest
import torch

import gloria
from gloria.cli import main


def test_gloria_finds_what_it_registers():
    records = {record.name: record for record in gloria.plugin_report()}
    assert records["torchxrayvision"].status == "loaded"
    assert records["torchxrayvision"].registered["image_encoders"] == ["xrv:*"]


def in_a_fresh_process(code):
    subprocess.run([sys.executable, "-W", "error", "-c", dedent(code)], check=True)


def test_names_are_listed_without_importing_torchxrayvision():
    in_a_fresh_process(
        """
        import sys, gloria
        names = gloria.list_image_encoders("xrv:*res224*")
        assert len(names) == 7 and "xrv:densenet121-res224-all" in names, names
        assert not {"torch", "torchxrayvision"} & set(sys.modules)
        """
    )


def test_warnings_stay_on_when_it_is_imported():
    in_a_fresh_process(
        """
        import warnings
        import gloria_torchxrayvision.encoder
        try:
            warnings.warn("heard", UserWarning)
        except UserWarning:
            raise SystemExit(0)
        raise SystemExit("a warning was not heard")
        """
    )


# the vocabulary of eight reports spells most other words letter by letter
@pytest.mark.filterwarnings("ignore::gloria.errors.TruncatedTextWarning")
def test_it_is_trained_saved_and_loaded_by_name(tmp_path):
    def run(command):
        assert main([*command.format(tmp_path).split(), "--quiet"]) == 0

    run("phantoms --out {0} --train 8 --val 0 --test 0 --per-class 0 --size 64")
    run(
        "train --data {0}/phantoms.csv --out {0}/run --steps 2 --batch-size 4 --workers 0"
        " --image-encoder xrv:densenet121-res224-all --image-size 64"
    )
    model = gloria.load_model(tmp_path / "run" / "model")
    images = torch.rand(2, 1, 64, 64)
    features = model.image_encoder(images)
    assert features.grid == (2, 2)

    gloria.save_model(model, tmp_path / "again")
    again = gloria.load_model(tmp_path / "again").image_encoder(images)
    assert torch.equal(again.regions, features.regions)
    assert model.attention(images[0], "No effusion.").maps.shape == (3, 64, 64)
