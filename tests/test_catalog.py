"""The four registries and their public functions."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from torch import nn

from gloria import catalog
from gloria.aggregators import GeM
from gloria.errors import (
    MissingDependencyError,
    OptionError,
    PluginWarning,
    UnknownNameError,
    UnknownOptionError,
)
from gloria.losses import LocalContrastiveLoss
from gloria.registry import IN_PROCESS, Origin, registering_as
from gloria.types import ImageInput


def run_fresh(code: str) -> None:
    subprocess.run([sys.executable, "-c", dedent(code)], check=True)


def built_ins():
    registries = catalog.Catalog().registries
    return [
        pytest.param(key, entry.name.replace(":", ":x"), id=f"{key}-{entry.listed_name}")
        for key, registry in registries.items()
        for entry in registry.entries()
    ]


@pytest.fixture
def take_back():
    """Register in the process's own catalog, and leave no trace of it."""
    origin = Origin("in-process")
    with registering_as(origin):
        yield
    for registry in catalog.default_catalog().registries.values():
        registry.unregister(origin)


# --- what is there --------------------------------------------------------------------------------


def test_the_built_in_names():
    assert {"timm:*", "open_clip:*"} <= set(catalog.list_image_encoders())
    assert {"hf:*", "open_clip:*"} <= set(catalog.list_text_encoders())
    assert {
        "attention",
        "first",
        "gem",
        "last_n_mean",
        "last_n_sum",
        "logmeanexp",
        "logsumexp",
        "max",
        "mean",
        "sum",
        "weldon",
    } <= set(catalog.list_aggregators())
    assert {
        "global_contrastive",
        "global_local_contrastive",
        "local_contrastive",
        "mgca",
        "sigmoid",
        "soft_target",
        "sparc",
    } <= set(catalog.list_losses())


@pytest.mark.parametrize("key, name", built_ins())
def test_every_built_in_leads_somewhere(key, name):
    assert callable(catalog.Catalog().registries[key].get(name))


def test_listing_and_registering_import_nothing_heavy():
    run_fresh(
        """
        import sys
        from gloria import catalog
        catalog.list_image_encoders(); catalog.list_text_encoders("hf*")
        catalog.list_aggregators("*"); catalog.list_losses("*local*")
        catalog.register_loss("mine", "my_module:Mine")
        assert "mine" in catalog.list_losses()
        heavy = {"torch", "numpy", "timm", "transformers", "open_clip", "my_module"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """
    )


def test_a_pattern_that_names_timm_asks_timm_alone():
    run_fresh(
        """
        import sys
        from gloria.catalog import list_image_encoders
        names = list_image_encoders("timm:*resnet*")
        import timm
        assert names == sorted(f"timm:{name}" for name in timm.list_models("*resnet*"))
        assert "timm:resnet50" in names
        assert "open_clip" not in sys.modules
        """
    )


def test_open_clip_tells_its_names():
    assert catalog.list_text_encoders("open_clip:ViT-B-32") == ["open_clip:ViT-B-32"]


@pytest.mark.parametrize("source, package", [("timm:", "timm"), ("open_clip:", "open_clip")])
def test_names_of_a_missing_package_say_how_to_install_it(monkeypatch, source, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gloria-torch\[encoders\]'"):
        catalog.list_image_encoders(source + "*resnet*")
    with pytest.warns(PluginWarning, match=rf"'{source}\*' .* are not listed: .*{package}"):
        catalog.list_image_encoders(f"*{source}nothing")


# --- create ---------------------------------------------------------------------------------------


def test_create_loss_passes_the_options():
    loss = catalog.create_loss("local_contrastive", attention_temperature=0.5)
    assert isinstance(loss, LocalContrastiveLoss)
    regions, words = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    mask = torch.ones(2, 3, dtype=torch.bool)
    same = LocalContrastiveLoss(attention_temperature=0.5)
    assert torch.equal(loss(regions, words, mask), same(regions, words, mask))
    assert not torch.equal(loss(regions, words, mask), LocalContrastiveLoss()(regions, words, mask))


def test_create_loss_with_a_preset_and_an_override():
    regions, words = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    mask = torch.ones(2, 3, dtype=torch.bool)

    def value(loss: nn.Module) -> torch.Tensor:
        return loss(regions, words, mask)

    made = value(catalog.create_loss("local_contrastive", preset="official", temperature=0.3))
    assert torch.equal(made, value(LocalContrastiveLoss.from_preset("official", temperature=0.3)))
    for other in (
        LocalContrastiveLoss(temperature=0.3),
        LocalContrastiveLoss.from_preset("official"),
    ):
        assert not torch.equal(made, value(other))


@pytest.mark.parametrize("name", ["gem", "sum"])
def test_the_aggregation_of_a_loss_may_be_a_registered_aggregator(name):
    # the two are none of the loss's own aggregations
    made = catalog.create_loss("local_contrastive", preset="stable", aggregation=name)
    aggregator = catalog.create_aggregator(name)
    same = LocalContrastiveLoss.from_preset("stable", aggregation=aggregator)
    regions, words = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert type(made.aggregation) is type(aggregator)
    assert torch.equal(made(regions, words, mask), same(regions, words, mask))


def test_the_aggregation_of_the_objective_s_local_part_too():
    given = {"aggregation": "gem"}
    made = catalog.create_loss("global_local_contrastive", preset="stable", local_options=given)
    assert isinstance(made.local_loss.aggregation, GeM)
    assert made.local_loss.product == "cosine"
    assert set(made.local_loss.parameters()) == set(made.local_loss.aggregation.parameters())
    assert given == {"aggregation": "gem"}
    with pytest.raises(UnknownNameError, match=r"aggregator is named 'gm'\. Did you mean 'gem'"):
        catalog.create_loss(
            "global_local_contrastive", preset="stable", local_options={"aggregation": "gm"}
        )


def test_an_aggregator_may_be_named_with_options():
    loss = catalog.create_loss("local_contrastive", aggregation={"name": "gem", "p": 4.0})
    assert loss.aggregation.p.item() == 4
    with pytest.raises(OptionError, match=r"aggregation must have a name, as in .*; got {'p': 4}"):
        catalog.create_loss("local_contrastive", aggregation={"p": 4})
    with pytest.raises(OptionError, match=r"aggregation must have a name, .*; got {'name': 5}"):
        catalog.create_loss("local_contrastive", aggregation={"name": 5})
    with pytest.raises(UnknownOptionError, match="has no option 'embedding_dim'"):
        catalog.create_loss("local_contrastive", embedding_dim=5)
    with pytest.raises(UnknownOptionError, match=r"aggregator 'gem' .* has no option 'q'"):
        catalog.create_loss("local_contrastive", aggregation={"name": "gem", "q": 4.0})


def test_a_subclass_takes_a_registered_aggregator_by_name_too(take_back):
    class Narrow(LocalContrastiveLoss):
        pass

    class Own(nn.Module):
        def __init__(self, aggregation):
            super().__init__()
            self.aggregation = aggregation

    catalog.register_loss("test-narrow", Narrow)
    catalog.register_loss("test-own", Own)
    assert isinstance(catalog.create_loss("test-narrow", aggregation="gem").aggregation, GeM)
    assert catalog.create_loss("test-own", aggregation="gem").aggregation == "gem"  # its own affair
    encoder = catalog.create_text_encoder("small_bert", reports=["No edema."], pooling="gem")
    assert isinstance(encoder.pooling, GeM)


def test_options_of_a_part_need_no_preset():
    parts = {"global_options": {"learnable": True}, "local_options": {"aggregation": "mean"}}
    made = catalog.create_loss("global_local_contrastive", local_weight=0.5, **parts)
    assert len(list(made.global_loss.parameters())) == 1
    assert (made.local_weight, made.local_loss.aggregation) == (0.5, "mean")
    paper = catalog.create_loss("local_contrastive")
    assert made.local_loss.temperature() == paper.temperature()


def test_without_a_preset_too_the_options_of_a_part_are_named():
    with pytest.raises(UnknownOptionError, match=r"no option 'learnable'\. It has .*local_options"):
        catalog.create_loss("global_local_contrastive", learnable=True)


def test_a_losss_own_aggregations_stay_names():
    assert catalog.create_loss("local_contrastive", aggregation="max").aggregation == "max"


def test_the_aggregation_of_a_loss_may_be_of_a_source(take_back):
    catalog.register_aggregator("test-powers:", lambda power: GeM(p=float(power)))
    loss = catalog.create_loss("local_contrastive", aggregation="test-powers:2")
    assert loss.aggregation.p.item() == 2


def test_the_pooling_of_a_text_encoder_may_be_a_registered_aggregator(tmp_path, take_back):
    pytest.importorskip("transformers")
    from gloria.encoders import HFTextEncoder
    from gloria.encoders.small_text import build_word_tokenizer, small_bert

    class Halves(nn.Module):
        def forward(self, values, mask, dim):
            return (values * mask).sum(dim) / 2

    catalog.register_aggregator("test-halves", Halves)
    texts = ["no effusion", "mild cardiomegaly"]
    tokenizer = build_word_tokenizer(texts)
    bert = small_bert(tokenizer, width=8, heads=2)
    HFTextEncoder(bert, tokenizer=tokenizer).recipe(tmp_path)
    four = {"name": "gem", "p": 4.0}
    for pooling, kind in (("gem", GeM), ("test-halves", Halves), (four, GeM)):
        encoder = catalog.create_text_encoder(f"hf:{tmp_path}", pretrained=False, pooling=pooling)
        assert type(encoder.pooling) is kind
        assert encoder(texts).pooled.shape == (2, 8)
        again = tmp_path / "again"
        again.mkdir(exist_ok=True)
        assert encoder.recipe(again).options["pooling"] == pooling
    assert encoder.pooling.p.item() == 4
    own = catalog.create_text_encoder(f"hf:{tmp_path}", pretrained=False, pooling="mean")
    assert own.pooling == "mean"
    with pytest.raises(
        UnknownNameError, match=r"aggregator is named 'gm'\. Did you mean"
    ) as caught:
        catalog.create_text_encoder(f"hf:{tmp_path}", pretrained=False, pooling="gm")
    own_and_others = "pooling takes 'mean', 'max', 'cls' and registered aggregators."
    assert caught.value.__notes__[-1] == own_and_others


def test_an_encoder_may_have_a_preset_of_its_own(take_back):
    class Encoder(nn.Module):
        pooled_dim, region_dim = 4, 5
        image_input = ImageInput(1, None, (0.5,), (0.5,))

        def __init__(self, preset):
            super().__init__()
            self.preset = preset

    catalog.register_image_encoder("test-preset", Encoder)
    assert catalog.create_image_encoder("test-preset", preset="bone").preset == "bone"


def test_create_loss_with_an_unknown_preset():
    with pytest.raises(OptionError, match="oficial"):
        catalog.create_loss("local_contrastive", preset="oficial")


def test_a_misspelt_option_gives_the_nearest_with_a_preset_or_without():
    said = (
        r"%s has no option 'temprature'\. Did you mean 'temperature'\? "
        r"It has (preset, )?attention, .*"
    )
    made = r"loss 'local_contrastive' \(built-in, gloria\.losses:LocalContrastiveLoss\)"
    with pytest.raises(UnknownOptionError, match=said % made) as caught:
        catalog.create_loss("local_contrastive", temprature=0.1)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(UnknownOptionError, match=said % "LocalContrastiveLoss"):
        catalog.create_loss("local_contrastive", preset="stable", temprature=0.1)


def test_a_misspelt_preset_gives_the_nearest():
    with pytest.raises(UnknownOptionError, match=r"no option 'presett'\. Did you mean 'preset'\?"):
        catalog.create_loss("global_local_contrastive", presett="stable")


def test_an_option_that_is_missing_is_named():
    with pytest.raises(
        OptionError, match=r"text encoder 'small_bert' .* must be given 'reports'\.$"
    ):
        catalog.create_text_encoder("small_bert")


@pytest.mark.parametrize("name", ["max", "logsumexp", "mean", "sum"])
def test_create_aggregator_reduces_the_masked_axis(name):
    values = torch.tensor([[1.0, 2.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    kept = values[:, :2]
    expected = {
        "max": kept.amax(1),
        "mean": kept.mean(1),
        "sum": kept.sum(1),
        "logsumexp": kept.logsumexp(1),
    }
    torch.testing.assert_close(catalog.create_aggregator(name)(values, mask, 1), expected[name])


@pytest.mark.parametrize(
    "create, name, nearest",
    [
        (catalog.create_image_encoder, "tim:resnet50", "timm:resnet50"),
        (catalog.create_text_encoder, "openclip:RN50", "open_clip:RN50"),
        (catalog.create_aggregator, "logsumxp", "logsumexp"),
        (catalog.create_loss, "local_contrast", "local_contrastive"),
        (catalog.create_image_encoder, "resnet18", "timm:resnet18"),
        (catalog.create_image_encoder, "resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        (catalog.create_image_encoder, "ViT-B-32", "open_clip:ViT-B-32"),
        (catalog.create_text_encoder, "bert-base-uncased", "hf:bert-base-uncased"),
    ],
)
def test_an_unknown_name_gives_the_nearest(create, name, nearest):
    with pytest.raises(UnknownNameError, match=f"Did you mean '{nearest}'"):
        create(name)


# --- register in this process ---------------------------------------------------------------------


def test_register_as_a_decorator_and_as_a_call(take_back):
    @catalog.register_loss("test-loss")
    class Mine(nn.Module):
        def __init__(self, margin):
            super().__init__()
            self.margin = margin

    catalog.register_aggregator("test-aggregator", lambda: torch.amax)
    assert isinstance(catalog.create_loss("test-loss", margin=2), Mine)
    assert catalog.create_loss("test-loss", margin=2).margin == 2
    assert catalog.create_aggregator("test-aggregator") is torch.amax
    assert catalog.list_losses("test*") == ["test-loss"]


def test_register_encoders(take_back):
    class Encoder(nn.Module):
        pooled_dim, region_dim, word_dim = 4, 5, 6
        image_input = ImageInput(1, None, (0.5,), (0.5,))

        def tokenize(self, texts):
            return texts

    catalog.register_image_encoder("test-encoder")(Encoder)
    catalog.register_text_encoder("test-encoder", Encoder)
    assert catalog.create_image_encoder("test-encoder").region_dim == 5
    assert catalog.create_text_encoder("test-encoder").word_dim == 6


def test_another_catalog_sees_nothing_of_it(take_back):
    catalog.register_loss("test-loss", nn.Identity)
    assert "test-loss" not in catalog.Catalog().list("losses")


def test_what_this_process_registers_is_said_to_be_in_process():
    own = catalog.Catalog()
    own.losses.register("test-loss", nn.Identity)
    entry = next(entry for entry in own.losses.entries() if entry.name == "test-loss")
    assert entry.origin == IN_PROCESS
    assert str(entry) == "'test-loss' (in-process, torch.nn.modules.linear:Identity)"


# --- a vocabulary of its own ----------------------------------------------------------------------


def test_reports_go_to_the_encoder_that_takes_them(take_back):
    class Counts(nn.Module):
        pooled_dim = word_dim = 1

        def __init__(self, reports=None, size=1):
            super().__init__()
            self.reports = reports

        def tokenize(self, texts):
            raise NotImplementedError

    class Knows(Counts):
        def __init__(self, size=1):
            super().__init__(["its own"])

    catalog.register_text_encoder("counts", Counts)
    catalog.register_text_encoder("knows", Knows)
    assert catalog.create_text_encoder("counts", reports=["a", "b"], size=2).reports == ["a", "b"]
    assert catalog.create_text_encoder("counts").reports is None
    assert catalog.create_text_encoder("knows", reports=["a", "b"]).reports == ["its own"]


def test_the_small_bert_reads_its_words_in_the_reports():
    encoder = catalog.create_text_encoder("small_bert", reports=["No edema."], pooling="max")
    assert "edema" in encoder.tokenizer.get_vocab()
    assert encoder.pooling == "max"
