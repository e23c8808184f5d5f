"""A saved model comes back to the bit, and a damaged one does not come back at all."""

import copy
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import gloria
from gloria.aggregators import GeM
from gloria.catalog import default_catalog
from gloria.distributed import AcrossRanks
from gloria.encoders import HFTextEncoder, TimmImageEncoder
from gloria.errors import (
    CheckpointError,
    ContractError,
    DtypeError,
    OptionError,
    PluginWarning,
    UnknownNameError,
)
from gloria.losses import GlobalLocalContrastiveLoss
from gloria.model import GLoRIA
from gloria.registry import Origin, registering_as
from gloria.training.small import small_model
from gloria.types import Recipe, TextFeatures, TokenizedText
from gloria.weights import (
    hash_model,
    load_model,
    load_weights,
    save_model,
    why_not_loadable,
)

REPORTS = ["Small left pleural effusion.", "No pneumothorax.", "Mild edema, stable."]


def build(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return small_model(REPORTS, embedding_dim=16, **options).eval()


@pytest.fixture
def model():
    return build()


@pytest.fixture
def images():
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def test_save_and_load_to_the_bit(model, images, tmp_path):
    folder = save_model(model, tmp_path / "deep" / "model")
    again = load_model(folder)
    assert not again.training
    before, after = model(images, REPORTS), again(images, REPORTS)
    assert torch.equal(before.loss, after.loss)
    assert torch.equal(before.images.regions, after.images.regions)
    assert torch.equal(before.texts.words, after.texts.words)
    assert before.texts.tokens == after.texts.tokens
    assert again.local_loss.product == "cosine"  # the preset came along


def test_another_dtype_is_kept_in_the_file_and_comes_back_as_the_default(model, tmp_path):
    folder = save_model(model.bfloat16(), tmp_path / "model")
    assert load_file(folder / "model.safetensors")["image_head.layers.bias"].dtype == torch.bfloat16
    loaded = load_model(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.image_head.layers.bias, model.image_head.layers.bias.float())
    try:
        torch.set_default_dtype(torch.float64)
        loaded = load_model(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}


def test_the_size_of_training_comes_along(model, tmp_path):
    assert load_model(save_model(model, tmp_path / "untrained")).trained_image_size is None
    model.trained_image_size = (224, 192)
    folder = save_model(model, tmp_path / "trained")
    assert load_model(folder).trained_image_size == (224, 192)
    config = json.loads((folder / "config.json").read_text())
    assert config["trained_image_size"] == [224, 192]
    for wrong in ([224], [224, 0], [0, 224], ["224", "224"], [224.0, 224.0]):
        (folder / "config.json").write_text(json.dumps({**config, "trained_image_size": wrong}))
        damaged = r"config.json is damaged: trained_image_size must be .* or \(height, width\)"
        with pytest.raises(CheckpointError, match=damaged):
            load_model(folder)


@pytest.mark.parametrize("size", [224, np.int64(224), (224, np.int64(224)), [224, 224]])
def test_a_size_of_training_that_would_not_come_along_is_never_set(size, model, tmp_path):
    model.trained_image_size = size
    assert model.trained_image_size == (224, 224)
    assert load_model(save_model(model, tmp_path / "model")).trained_image_size == (224, 224)
    with pytest.raises(OptionError, match=r"trained_image_size must be .*; got \(224.5, 224\)"):
        model.trained_image_size = (224.5, 224)


def test_everyone_may_read_what_everyone_may_read_beside_it(model, tmp_path):
    folder = save_model(model, tmp_path / "model")
    modes = {(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_a_moved_folder_still_loads(model, images, tmp_path):
    save_model(model, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(
        load_model(tmp_path / "there").encode_image(images).pooled,
        model.encode_image(images).pooled,
    )


def test_saving_again_replaces(model, images, tmp_path):
    save_model(build(seed=5), tmp_path / "model")
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded.encode_image(images).pooled, model.encode_image(images).pooled)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_saved_model_is_not_replaced(model, tmp_path):
    for name in ("films", ".git"):
        folder = tmp_path / f"mine {name}"
        (folder / name).mkdir(parents=True)
        with pytest.raises(CheckpointError, match=rf"holds {name}, which would be lost"):
            save_model(model, folder)
        assert (folder / name).is_dir()
    (tmp_path / "thesis").write_text("all of it")
    with pytest.raises(CheckpointError, match="thesis must be a folder; it is a file"):
        save_model(model, tmp_path / "thesis")
    assert (tmp_path / "thesis").read_text() == "all of it"
    (tmp_path / "empty").mkdir()
    assert load_model(save_model(model, tmp_path / "empty"))


def test_where_nothing_can_be_written(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"folder must have a name of its own; got '\.'"):
        save_model(model, "")
    Path("file").touch()
    with pytest.raises(CheckpointError, match=r"file/model can't be written: Not a directory"):
        save_model(model, "file/model")

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(CheckpointError, match=r"model can't be written: Permission denied\.$"):
        save_model(model, "model")
    assert os.listdir() == ["file"]


def test_what_a_link_leads_to_is_replaced_and_the_link_stays(model, tmp_path):
    save_model(build(seed=5), tmp_path / "scratch" / "model")
    for name in ("model", "new"):
        link = tmp_path / name
        link.symlink_to(tmp_path / "scratch" / name)
        assert hash_model(save_model(model, link)) == hash_model(tmp_path / "scratch" / name)
        assert link.is_symlink()
    assert sorted(os.listdir(tmp_path / "scratch")) == ["model", "new"]


@pytest.mark.parametrize("error", [OSError("disk full"), SafetensorError("disk full")])
def test_a_failed_save_is_named_and_leaves_the_old_one(model, tmp_path, monkeypatch, error):
    first = hash_model(save_model(model, tmp_path / "model"))

    def fail(weights, file):
        raise error

    monkeypatch.setattr(gloria.weights, "save_file", fail)
    with pytest.raises(CheckpointError, match=r"model can't be written: disk full\.$"):
        save_model(build(seed=5), tmp_path / "model")
    assert hash_model(tmp_path / "model") == first
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_channels_last_weights_are_saved(model, images, tmp_path):
    save_model(model.to(memory_format=torch.channels_last), tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    torch.testing.assert_close(
        loaded.encode_image(images).pooled, model.encode_image(images).pooled
    )


def test_weights_that_share_memory_come_back_each_for_itself(model, tmp_path):
    class Queue(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("texts", torch.zeros(4, 3))
            self.register_buffer("first", torch.zeros(3))
            self.scale = nn.Linear(3, 3)
            self.twin = self.scale  # one module, two names

        def forward(self, image_embeddings):
            return image_embeddings.sum()

    model.loss = Queue()
    model.loss.texts = torch.arange(18.0).view(6, 3)[1:5]  # a part of something larger
    model.loss.first = model.loss.texts[0]
    folder = save_model(model, tmp_path / "model")
    other = build(seed=5)
    other.loss = Queue()
    load_weights(other, folder)
    assert torch.equal(other.loss.texts, model.loss.texts)
    assert other.loss.first.tolist() == [3, 4, 5]
    assert torch.equal(other.loss.twin.weight, model.loss.scale.weight)


def test_weights_that_were_tied_later_come_back_untied(model, tmp_path):
    model.text_head.layers.weight = model.word_head.layers.weight
    assert why_not_loadable(model) == ""
    loaded = load_model(save_model(model, tmp_path / "model"))
    for head in (loaded.text_head, loaded.word_head):
        assert torch.equal(head.layers.weight, model.word_head.layers.weight)


def test_a_model_without_memory_is_neither_saved_nor_filled(model, tmp_path):
    folder = save_model(model, tmp_path / "model")
    model.image_head.to("meta")
    with pytest.raises(OptionError, match=r"memory for its weights; image_head\.layers\.weight is"):
        save_model(model, tmp_path / "empty")
    with pytest.raises(OptionError, match="memory for its weights"):
        load_weights(model, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_compiled_or_spread_over_ranks_is_saved_as_if_it_were_not(tmp_path):
    learned = {"global_options": {"learnable": True}, "local_options": {"learnable": True}}
    model = build(loss_options=learned)
    plain = save_model(model, tmp_path / "plain")
    names = set(load_file(plain / "model.safetensors"))
    assert "loss.global_loss.temperature.raw" in names

    model.loss = torch.compile(AcrossRanks(model.loss), backend="eager")
    model.text_encoder.model = torch.compile(model.text_encoder.model, backend="eager")
    model.image_encoder.model = torch.compile(model.image_encoder.model, backend="eager")
    model.image_encoder = torch.compile(model.image_encoder, backend="eager")
    model.image_head = torch.compile(model.image_head, backend="eager")
    gloria.export_image_encoder(model, tmp_path / "backbone.safetensors")
    backbone = load_file(tmp_path / "backbone.safetensors")
    assert {f"image_encoder.model.{name}" for name in backbone} < names
    whole = torch.compile(model, backend="eager")
    folder = save_model(whole, tmp_path / "wrapped")
    assert set(load_file(folder / "model.safetensors")) == names
    assert (folder / "config.json").read_text() == (plain / "config.json").read_text()
    other = build(seed=3, loss_options=learned)
    other.loss = AcrossRanks(other.loss)
    load_weights(torch.compile(other, backend="eager"), folder)
    expected = load_file(plain / "model.safetensors")
    for loaded in (load_model(folder), other):
        state = loaded.state_dict()
        assert torch.equal(state["image_head.layers.weight"], expected["image_head.layers.weight"])
        raw = loaded.loss.global_loss.temperature.raw.detach()
        assert torch.equal(raw, expected["loss.global_loss.temperature.raw"])


def test_a_loss_or_head_put_in_the_place_of_another_is_not_taken_for_it(model, images, tmp_path):
    same = model.loss
    model.loss = AcrossRanks(same)
    model.loss = model.loss.loss
    assert type(load_model(save_model(model, tmp_path / "same")).loss) is type(same)
    model.loss = gloria.create_loss("filip", learnable=False)  # as few weights as the other
    assert set(model(images, REPORTS).terms) == {"image_to_text", "text_to_image"}
    with pytest.raises(CheckpointError, match="its loss or a head was replaced"):
        load_model(save_model(model, tmp_path / "filip"))
    other = build()
    other.image_head = nn.Sequential(other.image_head, nn.Identity())
    assert "or a head was replaced" in why_not_loadable(other)


@pytest.mark.parametrize("wrap", [AveragedModel, nn.DataParallel, nn.Sequential])
def test_a_wrapper_is_no_model(wrap, model, tmp_path):
    with pytest.raises(DtypeError, match=f"must be a GLoRIA; got {wrap.__name__}. .*model.module"):
        save_model(wrap(model), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_is_no_tensor_cannot_be_saved(model, tmp_path):
    class Counts(nn.Identity):
        def get_extra_state(self):
            return {"seen": 3}

    model.text_head = Counts()
    with pytest.raises(
        ContractError, match=r"text_head\._extra_state in .* must be a tensor; it is a dict"
    ):
        save_model(model, tmp_path / "model")


def test_weights_that_are_spread_over_processes_are_not_saved_in_part(model, tmp_path):
    class Part(torch.Tensor):
        full_tensor = None  # FSDP's have a method

    model.register_buffer("part", torch.zeros(1).as_subclass(Part))
    with pytest.raises(OptionError, match="part is spread over several"):
        save_model(model, tmp_path / "model")


def test_a_model_composed_by_hand_keeps_its_weights(images, tmp_path):
    def compose(seed):
        parts = build(seed)
        return GLoRIA(
            parts.image_encoder,
            parts.text_encoder,
            image_head=parts.image_head,
            region_head=parts.region_head,
            text_head=parts.text_head,
            word_head=parts.word_head,
            loss=GlobalLocalContrastiveLoss(),
        ).eval()

    source, target = compose(1), compose(2)
    save_model(source, tmp_path / "model")
    with pytest.raises(CheckpointError, match="composed by hand"):
        load_model(tmp_path / "model")
    load_weights(target, tmp_path / "model")
    assert torch.equal(target.encode_image(images).pooled, source.encode_image(images).pooled)


def test_weights_that_do_not_fit_are_all_named_and_none_is_loaded(model, tmp_path):
    save_model(model, tmp_path / "model")
    other = build(seed=3)
    other.image_head = nn.Linear(7, 16)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"missing image_head\.weight.*unexpected image_head"):
        load_weights(other, tmp_path / "model")
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())


def test_a_shape_that_differs_is_named(model, tmp_path):
    save_model(model, tmp_path / "model")
    other = build()
    other.region_head.layers = nn.Linear(48, 17, bias=False)
    with pytest.raises(CheckpointError, match=r"region_head\.layers\.weight is \(16, 48\)"):
        load_weights(other, tmp_path / "model")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_quantised_numbers_are_not_taken_for_weights(model, tmp_path, dtype):
    """As of a quantised model, whose scales are elsewhere."""
    folder = save_model(model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "region_head.layers.weight"
    save_file(weights | {name: weights[name].to(dtype)}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=rf"layers\.weight is {dtype}, the model's is torch\.f"
    ):
        load_model(folder)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="is no saved model"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 99, "model": null}', "{broken", "[" * 100_000]
)
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(tmp_path)


def test_a_config_that_lacks_an_entry(model, tmp_path):
    folder = save_model(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["model"]["projection"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model that can't be made: KeyError: 'projection'"):
        load_model(folder)


def test_a_name_that_only_a_plugin_brings(model, tmp_path):
    """Saved where it was installed, loaded where it is not."""
    folder = save_model(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["image_encoder"]["name"] = "mine_patches"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnknownNameError, match="no image encoder is named 'mine_patches'") as error:
        load_model(folder)
    (note,) = error.value.__notes__
    assert note == f"{folder} was saved where this name was known: is a plugin missing here?"


@pytest.mark.parametrize(
    "recipe, message",
    [
        (None, "its recipe must be a Recipe; it is a NoneType"),
        (("mine", {}), "its recipe must be a Recipe; it is a tuple"),
        (
            Recipe("mine", {"width": Path("x")}),
            "options in its recipe must be JSON values; 'width' is",
        ),
        (
            Recipe("mine", {"rate": float("nan")}),
            "options in its recipe must be JSON values; 'rate' is nan",
        ),
        (
            Recipe("mine", {}, {"words": "words.txt"}),
            "files in its recipe must be in the folder .*; 'words.txt' is not",
        ),
    ],
)
def test_a_recipe_that_does_not_keep_its_contract(model, tmp_path, monkeypatch, recipe, message):
    monkeypatch.setattr(model.image_encoder, "recipe", lambda folder: recipe)
    why = why_not_loadable(model)
    assert re.match(f"its image_encoder, a TimmImageEncoder, can't be described: {message}", why)
    folder = save_model(model, tmp_path / "model")  # the weights are worth saving all the same
    with pytest.raises(CheckpointError, match=re.escape(why)):
        load_model(folder)
    load_weights(model, folder)


@pytest.mark.parametrize(
    "error, said",
    [
        (OptionError("option 'norm_layer' is a class."), "option 'norm_layer' is a class."),
        (IndexError("none left"), "IndexError: none left."),
    ],
)
def test_a_recipe_that_raises_costs_no_weights(model, tmp_path, monkeypatch, error, said):
    def refuse(folder):
        raise error

    monkeypatch.setattr(model.image_encoder, "recipe", refuse)
    why = f"its image_encoder, a TimmImageEncoder, can't be described: {said}"
    assert why_not_loadable(model) == why
    with pytest.raises(CheckpointError, match=re.escape(why)):
        load_model(save_model(model, tmp_path / "model"))


def test_an_option_of_timm_that_is_no_json_is_named(model):
    model.image_encoder.options["act_layer"] = nn.SiLU
    assert re.search("options in its recipe .* JSON values; 'act_layer'", why_not_loadable(model))


def test_a_head_of_the_users_own_that_comes_and_goes_changes_nothing(model):
    for value in (nn.Linear(2, 2), nn.Linear(3, 3), None):
        model.probe_head = value
    assert why_not_loadable(model) == ""


class Doubled(TimmImageEncoder):
    """What it changes, the recipe that it inherits does not say."""

    def forward(self, images):
        features = super().forward(images)
        return features._replace(pooled=2 * features.pooled)


class DoubledByName(Doubled):
    def recipe(self, folder):
        recipe = super().recipe(folder)
        return recipe._replace(name=recipe.name.replace("timm:", "test-doubled:"))


def test_a_subclass_of_an_encoder_is_not_taken_for_the_class_above(images, tmp_path):
    def compose(kind):
        encoder = kind("resnet10t", pretrained=False, in_chans=1)
        return gloria.create_model(encoder, build().text_encoder, embedding_dim=16).eval()

    model, origin = compose(Doubled), Origin("in-process")
    said = "image_encoder is a Doubled, and by its description a TimmImageEncoder would be made"
    assert said in why_not_loadable(model)
    with pytest.raises(CheckpointError, match=said):
        load_model(save_model(model, tmp_path / "weights"))
    try:
        with registering_as(origin):
            gloria.register_image_encoder("test-doubled:", DoubledByName)
            gloria.register_image_encoder(
                "test-base:", lambda *a, **options: Doubled(*a, **options)
            )
        model = compose(DoubledByName)
        assert why_not_loadable(model) == ""
        again = load_model(save_model(model, tmp_path / "named"))
        assert type(again.image_encoder) is DoubledByName
        assert torch.equal(again(images, REPORTS).loss, model(images, REPORTS).loss)
        # a function's class is known only once it has made one
        model.image_encoder.recipe = lambda folder: Recipe("test-base:resnet10t", {"in_chans": 1})
        assert "is a DoubledByName, and by its description a Doubled" in why_not_loadable(model)
    finally:
        default_catalog().image_encoders.unregister(origin)


def test_a_registered_aggregator_of_an_encoder_comes_along(images, tmp_path):
    model = build(text_options={"pooling": {"name": "gem", "p": 4.0}})
    assert why_not_loadable(model) == ""
    again = load_model(save_model(model, tmp_path / "model"))
    assert again.text_encoder.pooling.p.item() == 4
    assert torch.equal(again(images, REPORTS).loss, model(images, REPORTS).loss)
    assert why_not_loadable(copy.deepcopy(model)) == ""
    model.text_encoder.pooling = GeM(p=2.0)  # of which nobody knows how it was made
    assert "pooling is a GeM object, which a recipe cannot hold" in why_not_loadable(model)


def test_a_class_that_torch_makes_of_an_encoder_is_that_of_the_encoder(model):
    encoder = model.image_encoder
    made = type("Sharded", (type(encoder),), {"__module__": "torch.distributed.fsdp"})
    encoder.__class__ = made
    assert why_not_loadable(model) == ""


def test_whether_it_will_load_can_be_asked_beforehand(model):
    state = torch.random.get_rng_state()
    assert why_not_loadable(model) == ""
    assert torch.equal(torch.random.get_rng_state(), state)
    model.composition = None
    assert why_not_loadable(model).startswith("it was composed by hand")
    with pytest.raises(DtypeError, match="must be a GLoRIA; got Sequential"):
        why_not_loadable(nn.Sequential(build()))


@pytest.mark.parametrize(
    "recipe, said",
    [
        (Recipe("mine", {}), "can't be described: no image encoder is named 'mine'"),
        (Recipe("timm:test_resnet", {"colour": 1}), "from its description fails: .*colour"),
        (Recipe("timm:test_resnet", {}), "it is another one: .* differences: missing "),
    ],
)
def test_a_recipe_that_makes_something_else_is_told_beforehand(model, monkeypatch, recipe, said):
    monkeypatch.setattr(model.image_encoder, "recipe", lambda folder: recipe)
    assert re.search(said, why_not_loadable(model))


def test_a_layer_without_its_shape_is_told_beforehand(model, monkeypatch):
    make = gloria.weights.create_model

    def make_lazily(*args, **options):
        made = make(*args, **options)
        made.image_head.layers = nn.LazyLinear(24)  # knows its input after a forward
        return made

    monkeypatch.setattr("gloria.weights.create_model", make_lazily)
    assert re.match("making it from its description fails: .*uninit", why_not_loadable(model))


def test_a_model_that_was_changed_after_it_was_made_is_told_beforehand(model, tmp_path):
    model.text_encoder.adapter = nn.Linear(2, 2, bias=False)  # as peft puts them in
    assert re.search(r"another one: 1 .* unexpected text_encoder\.adapter", why_not_loadable(model))
    with pytest.raises(CheckpointError, match=r"does not fit the model: 1 .*encoder\.adapter"):
        load_model(save_model(model, tmp_path / "model"))


def test_what_a_description_raises_is_one_error(model, tmp_path):
    file = save_model(model, tmp_path / "model") / "config.json"
    config = json.loads(file.read_text())
    parts = config["model"]
    for damaged in (
        {**parts, "loss_options": 3},
        {**parts, "image_encoder": {**parts["image_encoder"], "name": 3}},
        {**parts, "text_encoder": {**parts["text_encoder"], "files": "x"}},
        3,
    ):
        file.write_text(json.dumps({**config, "model": damaged}))
        with pytest.raises(CheckpointError, match="describes a model that can't be made: "):
            load_model(tmp_path / "model")


def test_a_saved_model_says_which_plugins_it_takes(model, tmp_path):
    catalog = default_catalog()
    origin = Origin("plugin", "mine", "gloria-mine", "0.3")
    try:
        with registering_as(origin):
            catalog.image_encoders.register("mine_resnet", TimmImageEncoder)
            catalog.aggregators.register("mine_mean", "gloria.aggregators:Mean")
        of_mine = build(
            image_encoder="mine_resnet",
            image_options={"model_name": "test_resnet", "in_chans": 1},
            loss_options={"local_options": {"aggregation": "mine_mean"}},
        )
        folder = save_model(of_mine, tmp_path / "model")
    finally:
        for registry in (catalog.image_encoders, catalog.aggregators):
            registry.unregister(origin)
    config = json.loads((folder / "config.json").read_text())
    assert config["plugins"] == {"gloria-mine": "0.3"}
    note = f"{folder} was saved with plugins that are not loaded here: gloria-mine 0.3."
    with pytest.raises(UnknownNameError, match="no aggregator is named 'mine_mean'") as error:
        load_model(folder)
    assert error.value.__notes__[-1] == note
    # another plugin of the same name makes something else of it
    config["model"]["image_encoder"]["name"] = "timm:test_resnet"
    del config["model"]["image_encoder"]["options"]["in_chans"]
    config["model"]["loss_options"] = {}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit the model") as error:
        load_model(folder)
    assert error.value.__notes__ == [note]
    own = json.loads((save_model(model, tmp_path / "own") / "config.json").read_text())
    assert own["plugins"] == {}
    for wrong in (["gloria-mine 0.3"], "gloria-mine", 3):
        (tmp_path / "own" / "config.json").write_text(json.dumps({**own, "plugins": wrong}))
        with pytest.raises(CheckpointError, match="is damaged: plugins must be versions by pack"):
            load_model(tmp_path / "own")


def test_what_another_plugin_makes_of_the_same_name_is_told(tmp_path):
    registry = default_catalog().losses

    def as_plugin(distribution, version, do, *args, **options):
        origin = Origin("plugin", "mine", distribution, version)
        try:
            with registering_as(origin):
                registry.register("mine_loss", "gloria.losses:GlobalContrastiveLoss")
            return do(*args, **options)
        finally:
            registry.unregister(origin)

    folder = tmp_path / "model"
    as_plugin("gloria-mine", "0.3", lambda: save_model(build(loss="mine_loss"), folder))
    with warnings.catch_warnings(action="error", category=PluginWarning):
        as_plugin("gloria-mine", "0.4", load_model, folder)  # a later version is no other plugin
    told = (
        f"{folder} was saved with plugins of gloria-mine 0.3; what has the same names here may "
        f"compute something else: plugins of gloria-mine-too 0.3."
    )
    with pytest.warns(PluginWarning, match=re.escape(told)):
        as_plugin("gloria-mine-too", "0.3", load_model, folder)


def test_missing_and_damaged_weights(model, tmp_path):
    folder = save_model(model, tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (b"", whole[:1000], b"\x00" * 64, whole[:-1]):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_model(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(folder)


def test_an_encoder_gets_back_the_files_it_wrote(images, tmp_path):
    """By name, in the option that its recipe says."""

    class Letters(nn.Module):
        pooled_dim = word_dim = 4

        def __init__(self, *, letters, width=4):
            super().__init__()
            self.letters = letters.read_text() if isinstance(letters, Path) else letters
            self.embedding = nn.Embedding(len(self.letters), width)

        def tokenize(self, texts):
            numbers = torch.tensor([[self.letters.index(letter) for letter in t] for t in texts])
            ids = torch.arange(numbers.shape[1]).expand_as(numbers)
            return TokenizedText({"numbers": numbers}, ids, [list(text) for text in texts])

        def forward(self, texts):
            words = self.embedding(texts.inputs["numbers"])
            return TextFeatures(words.mean(1), words, texts.word_ids >= 0, texts.tokens)

        def recipe(self, folder):
            (folder / "letters.txt").write_text(self.letters)
            return Recipe("letters", {"width": 4}, {"letters": "letters.txt"})

    origin = Origin("in-process")
    try:
        with registering_as(origin):
            gloria.register_text_encoder("letters", Letters)
        model = gloria.create_model(
            "timm:test_resnet",
            "letters",
            image_options={"in_chans": 1},
            text_options={"letters": "abc"},
        ).eval()
        save_model(model, tmp_path / "model")
        (tmp_path / "model").rename(tmp_path / "moved")
        again = load_model(tmp_path / "moved")
        assert torch.equal(model.encode_text(["cab"]).words, again.encode_text(["cab"]).words)
        (tmp_path / "moved" / "text_encoder" / "letters.txt").unlink()
        with pytest.raises(CheckpointError, match=r"letters\.txt does not exist"):
            load_model(tmp_path / "moved")
        config = tmp_path / "moved" / "config.json"
        (tmp_path / "letters.txt").write_text("abc")
        for outside in (tmp_path / "letters.txt", "../../letters.txt"):
            recipe = json.loads(config.read_text())
            recipe["model"]["text_encoder"]["files"] = {"letters": str(outside)}
            config.write_text(json.dumps(recipe))
            with pytest.raises(CheckpointError, match="is outside the saved model's folder"):
                load_model(tmp_path / "moved")
    finally:
        default_catalog().text_encoders.unregister(origin)


def test_the_hash_of_a_model_is_that_of_its_content(model, tmp_path):
    first = hash_model(save_model(model, tmp_path / "a"))
    assert hash_model(save_model(model, tmp_path / "b")) == first
    (tmp_path / "b" / "README.md").write_text("a model card, which changes no figure")
    assert hash_model(tmp_path / "b") == first
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    assert hash_model(save_model(model, tmp_path / "a")) != first
    config = tmp_path / "b" / "config.json"
    config.write_text(config.read_text().replace("-3", "-2"))  # another stage gives the regions
    assert hash_model(tmp_path / "b") != first
    with pytest.raises(CheckpointError, match="is no saved model"):
        hash_model(tmp_path)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", torch.device("cuda:99")])
def test_a_device_that_is_not_here_is_told_before_anything_is_read(device, tmp_path):
    with pytest.raises(OptionError, match=f"^device '{device}' can't be used here: .+$"):
        load_model(tmp_path / "none", device=device)


def test_what_stands_beside_a_saved_model_is_told_from_it(model, tmp_path):
    save_model(model, tmp_path / "run" / "model")
    with pytest.raises(CheckpointError, match=r"is no saved model\. Did you mean .*run/model\?"):
        load_model(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"config\.json is a file; a saved model is a folder"):
        load_model(tmp_path / "run" / "model" / "config.json")


# --- from the hub ---------------------------------------------------------------------------------


def test_a_model_of_the_hub_comes_from_its_cache_without_network(hub, model, images, tmp_path):
    other = build(seed=3)
    hub("someone/films", save_model(model, tmp_path / "a"), "1" * 40)
    hub("someone/films", save_model(other, tmp_path / "b"), "2" * 40, branch="next")
    for revision, source in {None: model, "main": model, "next": other, "2" * 40: other}.items():
        loaded = gloria.load_model("someone/films", revision=revision)
        assert torch.equal(loaded.encode_image(images).pooled, source.encode_image(images).pooled)
        assert torch.equal(loaded.encode_text(REPORTS).words, source.encode_text(REPORTS).words)


def test_a_model_of_the_hub_has_the_hash_of_its_folder(hub, model, tmp_path):
    folders = save_model(model, tmp_path / "a"), save_model(build(seed=3), tmp_path / "b")
    hub("someone/films", folders[0], "1" * 40)
    hub("someone/films", folders[1], "2" * 40, branch="next")
    assert hash_model("someone/films") == hash_model(folders[0])
    assert hash_model("someone/films", revision="next") == hash_model(folders[1])


def test_a_folder_goes_before_the_hub(hub, model, images, tmp_path):
    hub("someone/films", save_model(build(seed=3), tmp_path / "other"), "1" * 40)
    save_model(model, tmp_path / "someone" / "films")
    loaded = load_model("someone/films")
    assert torch.equal(loaded.encode_image(images).pooled, model.encode_image(images).pooled)
    with pytest.raises(OptionError, match="someone/films names a folder"):
        load_model("someone/films", revision="main")


def test_what_is_asked_of_the_hub(hub, model, tmp_path, monkeypatch):
    import huggingface_hub

    folder = save_model(model, tmp_path / "model")
    (folder / "model.bin").write_bytes(b"a pickle, say")
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")]
        wanted = set(
            huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns)
        )
        assert set(files) - wanted == {"model.bin"}
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    load_model("some-one/films_v1.0", revision="v2")
    assert asked == [("some-one/films_v1.0", "v2")]
    for no_repository in ("films", "a/b/c", "./films", "../films", "a/", Path("someone/films")):
        with pytest.raises(CheckpointError, match="is no saved model"):
            load_model(no_repository)
    assert len(asked) == 1


def test_a_model_of_the_hub_that_cannot_be_had(hub):
    with pytest.raises(CheckpointError, match=r"runs/model is no folder here, and .*Hugging Face"):
        load_model("runs/model")


def test_a_damaged_model_of_the_hub_is_refused(hub, model, tmp_path):
    folder = save_model(model, tmp_path / "a")
    (folder / "model.safetensors").unlink()
    (folder / "model.bin").write_bytes(b"")
    hub("someone/films", folder, "1" * 40)
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not exist"):
        load_model("someone/films")


# --- export ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = gloria.create_model(
            "timm:resnet18", small_model(REPORTS).text_encoder, embedding_dim=16
        )
        model(torch.rand(4, 3, 64, 64), REPORTS[:1] * 4)  # moves the running statistics
    return model.eval()


@torch.no_grad()
def test_an_exported_image_encoder_is_timms(resnet, tmp_path):
    import timm

    path = tmp_path / "resnet18.safetensors"
    path.write_bytes(b"old")
    gloria.export_image_encoder(resnet, path)
    gloria.export_image_encoder(resnet, tmp_path / "new" / "folder" / "b.safetensors")
    assert (tmp_path / "new" / "folder" / "b.safetensors").read_bytes() == path.read_bytes()
    shutil.rmtree(tmp_path / "new")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = resnet.image_encoder(images)

    backbone = timm.create_model("resnet18", pretrained=False, num_classes=0).eval()
    backbone.load_state_dict(load_file(path))
    assert torch.equal(backbone(images), expected.pooled)

    encoder = TimmImageEncoder("resnet18", pretrained=path).eval()
    assert torch.equal(encoder(images).pooled, expected.pooled)
    assert torch.equal(encoder(images).regions, expected.regions)


@torch.no_grad()
def test_an_exported_image_encoder_is_a_u_nets(resnet, tmp_path):
    import segmentation_models_pytorch as smp

    gloria.export_image_encoder(resnet, tmp_path / "resnet18.safetensors")
    weights = load_file(tmp_path / "resnet18.safetensors")
    unet = smp.Unet("tu-resnet18", encoder_weights=None).eval()
    unet.encoder.load_state_dict({f"model.{name}": each for name, each in weights.items()})
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    deepest = unet.encoder(images)[-1]
    assert torch.equal(deepest, resnet.image_encoder.feature_maps(images, [-1])[0])


@torch.no_grad()
def test_a_text_encoder_is_exported_by_transformers(resnet, tmp_path):
    encoder = resnet.text_encoder
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    again = HFTextEncoder(tmp_path).eval()
    assert torch.equal(again(REPORTS).pooled, encoder(REPORTS).pooled)


def test_a_folder_without_a_part_is_not_looked_for_on_the_hub(model, tmp_path):
    shutil.rmtree(save_model(model, tmp_path / "model") / "text_encoder")
    fault = r"model/text_encoder does not exist\. It belongs to the saved model\.$"
    with pytest.raises(CheckpointError, match=fault):
        load_model(tmp_path / "model")


def test_what_cannot_be_exported(resnet, tmp_path):
    with pytest.raises(OptionError, match=r"must end in \.safetensors; got .*resnet18\.pth"):
        gloria.export_image_encoder(resnet, tmp_path / "resnet18.pth")
    other = copy.copy(resnet)
    other._modules = {**resnet._modules, "image_encoder": nn.Identity()}
    with pytest.raises(OptionError, match=r"TimmImageEncoder.*is a Identity"):
        gloria.export_image_encoder(other, tmp_path / "none.safetensors")
    with pytest.raises(DtypeError, match="must be a GLoRIA; got TimmImageEncoder"):
        gloria.export_image_encoder(resnet.image_encoder, tmp_path / "none.safetensors")
    assert not list(tmp_path.iterdir())
