"""The systems as a whole: found by the real entry point, trained by name, saved and loaded."""

import csv
import json

import pytest
import torch
from gloria_baselines.systems import PUBLISHED, SMALL
from torch import nn

import gloria
from gloria.catalog import default_catalog
from gloria.cli import main
from gloria.data.images import normalize
from gloria.data.phantom import PhantomDataset
from gloria.errors import OptionError
from gloria.evaluation.phantoms import evaluate_grounding
from gloria.types import ImageEncoder, TextEncoder

REPORTS = ["Small left effusion. No edema.", "No edema.", "Cardiomegaly without effusion."] * 4
TRUNK = {"trunk": "timm:resnet10t", "channels": [8, 8, 16, 16]}
NAMES = sorted(SMALL)


def build(name, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SMALL[name].create(REPORTS)


def images(count=3):
    return torch.rand(count, 1, 64, 64, generator=torch.Generator().manual_seed(1))


# --- the plugin -----------------------------------------------------------------------------------


def test_the_entry_point_is_found():
    (record,) = [each for each in gloria.plugin_report() if each.name == "baselines"]
    assert (record.distribution, record.status) == ("gloria-baselines", "loaded")
    assert record.registered == {
        "image_encoders": ["baselines:*"],
        "text_encoders": ["baselines:*"],
        "aggregators": ["last"],
        "losses": ["convirt", "dsve", "vse0", "vse_plus_plus"],
    }
    assert gloria.list_image_encoders("baselines:*") == ["baselines:dsve", "baselines:vse"]
    assert gloria.list_text_encoders("baselines:*") == ["baselines:gru", "baselines:sru"]


def test_what_is_made_keeps_the_contracts():
    for name in ("vse", "dsve"):
        encoder = gloria.create_image_encoder(f"baselines:{name}", **TRUNK)
        assert isinstance(encoder, ImageEncoder)
    for name in ("gru", "sru"):
        encoder = gloria.create_text_encoder(
            f"baselines:{name}", reports=REPORTS, embedding_dim=4, width=6
        )
        assert isinstance(encoder, TextEncoder)


# --- the systems ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_to_the_bit(name, tmp_path):
    model = build(name).eval()
    again = gloria.load_model(gloria.save_model(model, tmp_path / "model"))
    batch = normalize(images(), model.image_encoder.image_input)
    before, after = model(batch, REPORTS[:3]), again(batch, REPORTS[:3])
    assert torch.equal(before.loss, after.loss)
    for first, second in zip(before.images[:2], after.images[:2], strict=True):
        assert torch.equal(first, second)
    assert torch.equal(before.texts.words, after.texts.words)
    assert before.texts.tokens == after.texts.tokens


@pytest.mark.parametrize("name", NAMES)
def test_every_part_that_the_loss_reaches_gets_a_gradient(name):
    model = build(name).train()
    for part in model.loss.modules():
        if hasattr(part, "at_step"):
            part.at_step(0)
    model(images(), REPORTS[:3]).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and p.requires_grad]
    # heads of local losses, and the stage behind the one that DSVE pools
    unused = ("region_head.", "word_head.", "image_encoder.trunk.model.layer4.")
    assert all(n.startswith(unused[: 3 if name == "dsve" else 2]) for n in without)


def test_convirts_heads_and_pooling():
    model = build("convirt")
    for head in (model.image_head, model.text_head):
        first, between, second = head.layers
        assert isinstance(between, nn.ReLU)
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        assert first.out_features == second.in_features == second.out_features == 128
    encoder = model.text_encoder.eval()
    features = encoder.model(**encoder.tokenize(["No edema."]).inputs, return_dict=True)
    expected = features.last_hidden_state.amax(1)  # over all tokens; there is no padding
    torch.testing.assert_close(encoder(["No edema."]).pooled, expected)


@pytest.mark.parametrize("name", ["vse_plus_plus", "dsve"])
def test_vses_and_dsves_text_is_not_projected(name):
    model = build(name)
    assert isinstance(model.text_head, nn.Identity)
    assert isinstance(model.image_head.layers, nn.Linear)
    assert model.image_head.layers.out_features == model.text_encoder.pooled_dim


def test_the_published_constants():
    convirt, vse, dsve = (PUBLISHED[name] for name in ("convirt", "vse_plus_plus", "dsve"))
    assert (convirt.model["embedding_dim"], convirt.model["projection"]) == (512, "mlp")
    assert (convirt.recipe.learning_rate, convirt.recipe.batch_size) == (1e-4, 32)
    assert (vse.recipe.learning_rate, vse.recipe.batch_size) == (2e-4, 128)
    assert vse.recipe.clip_norm == 2
    assert (dsve.recipe.learning_rate, dsve.recipe.batch_size) == (1e-3, 160)
    catalog = default_catalog()
    for system in PUBLISHED.values():  # every name and option is one that there is
        options = system.model.get("image_options", {})
        assert catalog.takes("image_encoders", system.model["image_encoder"], "in_chans")
        assert options["pretrained"] is True
        assert system.model["loss"] in gloria.list_losses()


def test_the_published_vse_has_the_published_widths():
    system = PUBLISHED["vse_plus_plus"]
    options = {**system.model["image_options"], "trunk": "timm:resnet18", "pretrained": False}
    with torch.device("meta"):
        model = system._replace(model={**system.model, "image_options": options}).create(REPORTS)
    assert model.image_head.layers.out_features == 1024
    assert model.text_encoder.embedding.embedding_dim == 300


# --- mixed with gloria's own ----------------------------------------------------------------------


def test_gloria_with_dsves_pooling_and_a_recurrent_text_encoder(tmp_path):
    model = gloria.create_model(
        "baselines:dsve",
        "baselines:gru",
        embedding_dim=12,
        image_options={**TRUNK, "in_chans": 1, "width": 10},
        text_options={"reports": REPORTS, "embedding_dim": 4, "width": 6},
        loss_options={"preset": "stable"},
    )
    model(images(), REPORTS[:3]).loss.backward()
    model.eval()
    attention = model.attention(images()[0], "Small EFFUSION, new")
    assert attention.words == ["Small", "EFFUSION", ",", "new"]
    assert attention.maps.shape == (4, 64, 64)
    items = list(PhantomDataset("val_5x2"))
    assert 0 <= evaluate_grounding(model, items)["matched"]["auroc"] <= 1  # its words are ours
    gloria.save_model(model, tmp_path / "model")
    again = gloria.load_model(tmp_path / "model").attention(images()[0], "Small EFFUSION, new")
    assert torch.equal(attention.maps, again.maps)


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    arguments = ["--train", "12", "--val", "8", "--test", "0", "--per-class", "0"]
    assert main(["phantoms", "--out", str(folder), *arguments, "--size", "32", "--quiet"]) == 0
    return folder / "phantoms.csv"


def train(table, out, *more):
    fixed = ["--image-size", "32", "--workers", "0", "--quiet", "--steps", "4", "--batch-size", "4"]
    return main(["train", "--data", str(table), "--out", str(out), *fixed, *more])


VSE = [
    *("--image-encoder", "baselines:vse", "--text-encoder", "baselines:gru"),
    *("--image-option", "trunk=timm:resnet10t", "--image-option", "channels=[8,8,16,16]"),
    *("--text-option", "width=6", "--embedding-dim", "text", "--loss", "vse_plus_plus"),
    *("--loss-option", "warmup_steps=2"),
]


def test_trained_by_name_with_the_words_of_the_training_reports(table, tmp_path):
    assert train(table, tmp_path, *VSE, "--text-option", "min_count=1") == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    words = {split: " ".join(r["report"] for r in rows if r["split"] == split) for split in
             ("train", "val")}  # fmt: skip
    model = gloria.load_model(tmp_path / "model")
    vocabulary = model.text_encoder.vocabulary
    tokens = {split: model.text_encoder.tokenize([text]) for split, text in words.items()}
    assert (tokens["train"].inputs["numbers"] > 0).all()
    assert (tokens["val"].inputs["numbers"] == 0).any()
    assert "effusion" in vocabulary.words
    history = json.loads((tmp_path / "history.json").read_text())
    assert len(history) == 4
    assert (tmp_path / "best" / "text_encoder" / "vocabulary.txt").is_file()


def test_a_stopped_run_resumes_with_its_warm_up(table, tmp_path):
    """Step 1 of 2 is half sum, half hardest, whether or not the run was stopped before it."""
    options = [*VSE, "--text-option", "min_count=1", "--checkpoint-every", "1"]
    assert train(table, tmp_path / "whole", *options) == 0
    once = tmp_path / "stopped"
    original = gloria.training.loop.save_checkpoint

    def save_and_stop(*args, **kwargs):
        original(*args, **kwargs)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gloria.training.loop.save_checkpoint", save_and_stop)
        assert train(table, once, *options) == 130
    assert train(table, once, *options) == 0
    files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_no_local_part_is_said(table, tmp_path):
    assert train(table, tmp_path, *VSE) == 0
    model = gloria.load_model(tmp_path / "model")
    with pytest.raises(OptionError, match="TripletHingeLoss has no local matching"):
        model.attention(torch.zeros(1, 32, 32), "Effusion.")
