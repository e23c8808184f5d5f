"""The plugin as gloria's users meet it: found by name, trained with, saved and loaded."""

import pytest
import torch

import gloria
from gloria.cli import main


def test_gloria_finds_what_it_registers():
    records = {record.name: record for record in gloria.plugin_report()}
    assert records["template"].status == "loaded"
    assert records["template"].registered == {
        "image_encoders": ["template_patches"],
        "text_encoders": [],
        "aggregators": ["template_midrange"],
        "losses": ["template_alignment"],
    }


def test_the_aggregator_serves_the_local_loss():
    loss = gloria.create_loss("local_contrastive", aggregation="template_midrange")
    mask = torch.ones(3, 4, dtype=torch.bool)
    value = loss(torch.randn(3, 6, 5), torch.randn(3, 4, 5, requires_grad=True), mask)
    value.backward()
    assert value.isfinite()


# the vocabulary of eight reports spells most other words letter by letter
@pytest.mark.filterwarnings("ignore::gloria.errors.TruncatedTextWarning")
def test_it_is_trained_saved_and_loaded_by_name(tmp_path):
    def run(command):
        assert main([*command.format(tmp_path).split(), "--quiet"]) == 0

    run("phantoms --out {0} --train 8 --val 0 --test 0 --per-class 0 --size 32")
    run(
        "train --data {0}/phantoms.csv --out {0}/run --steps 2 --batch-size 4 --workers 0"
        " --image-encoder template_patches --image-option width=16 --loss template_alignment"
        " --image-size 32"
    )
    model = gloria.load_model(tmp_path / "run" / "model")
    assert model.image_encoder.region_dim == 16
    output = model(torch.rand(2, 1, 32, 32), ["No effusion.", "Cardiomegaly."])
    assert output.images.grid == (4, 4)
    assert set(output.terms) == {"alignment", "uniformity"}
