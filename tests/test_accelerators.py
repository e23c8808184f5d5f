"""An accelerator gives what the CPU gives: losses, the model, training, the commands.

It is emulated (tests/support/emulated.py).
"""

import contextlib
import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from emulated import emulated
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_map_only

import gloria
from gloria.aggregators import AttentionPooling, GeM, LastNMean, LastNSum, Weldon
from gloria.catalog import Catalog
from gloria.cli import evaluate, main
from gloria.data import PhantomMasks, PhantomPairs
from gloria.data.phantom import PhantomDataset
from gloria.encoders import TimmImageEncoder
from gloria.evaluation.phantoms import evaluate_grounding
from gloria.functional import local_attention, local_similarity, max_similarity
from gloria.heads import ImageClassifier, segmentation_model
from gloria.losses import GlobalContrastiveLoss, LocalContrastiveLoss, inputs_of
from gloria.training import (
    ClassifierRecipe,
    SegmentationRecipe,
    TrainingRecipe,
    demo,
    train,
    train_classifier,
    train_segmenter,
    transfer,
)
from gloria.training.devices import pick_device
from gloria.training.randomness import isolated
from gloria.training.small import SMALL_IMAGE_OPTIONS, small_model
from gloria.weights import load_model

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

each_kind = pytest.mark.parametrize("kind", ["mps", "cuda"])


def to(device, value):
    return tree_map_only(torch.Tensor, lambda each: each.to(device), value)


def with_gradients(function, inputs):
    """What a function gives, and the gradients for its inputs and its parameters."""
    leaves = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    value = function(**leaves)
    wanted = [x for x in leaves.values() if x.requires_grad]
    wanted += function.parameters() if isinstance(function, nn.Module) else []
    weights = torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape).to(value.device)
    return value, torch.autograd.grad(value, wanted, weights, allow_unused=True)


def assert_same(kind, function, inputs, *, rtol=1e-4, atol=1e-5):
    """A function of tensors, or a module, gives the same on the device, and so do gradients."""
    expected = with_gradients(function, inputs)
    with emulated(kind):
        if isinstance(function, nn.Module):
            function = copy.deepcopy(function).to(kind)
        found = with_gradients(function, to(kind, inputs))
        assert {each.device.type for each in (found[0], *found[1]) if each is not None} == {kind}
        torch.testing.assert_close(to("cpu", found), expected, rtol=rtol, atol=atol)


@pytest.fixture
def inputs(make_pairs):
    """Everything that a loss may be given, by name."""
    regions, words, word_mask, region_mask = make_pairs(
        5, 5, 7, 6, 8, masked_regions=True, dtype=torch.float32, scale=0.5
    )
    return {
        "image_embeddings": regions[:, 0],
        "text_embeddings": words[:, 0],
        "regions": regions,
        "words": words,
        "word_mask": word_mask,
        "region_mask": region_mask,
    }


@each_kind
@pytest.mark.parametrize("name", [entry.name for entry in Catalog().losses.entries()])
def test_every_loss(kind, name, inputs):
    loss = Catalog().create("losses", name, {})
    assert_same(kind, loss, {name: inputs[name] for name in inputs_of(loss)})


@each_kind
@pytest.mark.parametrize("backend", ["einops", "chunked"])
@pytest.mark.parametrize("attention", ["regions", "words_then_regions"])
@pytest.mark.parametrize("aggregation", ["logsumexp", "logmeanexp", "max", "mean"])
def test_local_matching(kind, backend, attention, aggregation, inputs):
    parts = {name: inputs[name] for name in ("regions", "words", "word_mask", "region_mask")}
    options = {"attention": attention, "aggregation": aggregation, "backend": backend}
    for product in ("dot", "cosine"):
        for budget in (None, 4000):
            assert_same(
                kind,
                lambda options=options, product=product, budget=budget, **given: local_similarity(
                    **given, **options, product=product, memory_budget=budget
                ),
                parts,
            )
    assert_same(kind, lambda **given: local_attention(**given, attention=attention), parts)


@each_kind
@pytest.mark.parametrize("backend", ["einops", "chunked"])
@pytest.mark.parametrize("over", ["regions", "words"])
def test_hard_matching(kind, backend, over, inputs):
    parts = {name: inputs[name] for name in ("regions", "words", "word_mask", "region_mask")}
    for budget in (None, 4000):
        assert_same(
            kind,
            lambda budget=budget, **given: max_similarity(
                **given, maximum_over=over, backend=backend, memory_budget=budget
            ),
            parts,
        )


@each_kind
def test_losses_that_keep_no_matrix_or_learn_a_temperature(kind, make_pairs):
    regions, words, word_mask, _ = make_pairs(5, 5, 7, 6, 8, dtype=torch.float32)
    assert_same(
        kind,
        LocalContrastiveLoss(learnable=True),
        {"regions": regions, "words": words, "word_mask": word_mask},
    )
    images, texts = make_pairs(1030, 1030, 1, 1, 4, dtype=torch.float32)[:2]
    many = {"image_embeddings": images[:, 0], "text_embeddings": texts[:, 0]}
    assert_same(kind, GlobalContrastiveLoss(), many)


@each_kind
@pytest.mark.parametrize(
    "make", [lambda: AttentionPooling(8), GeM, lambda: Weldon(2, 2), LastNMean, LastNSum]
)
def test_aggregators(kind, make, inputs):
    with isolated(0):
        aggregator = make()

    class Over(nn.Module):
        def __init__(self):
            super().__init__()
            self.aggregator = aggregator

        def forward(self, regions, region_mask):
            return self.aggregator(regions, region_mask[..., None], 1)

    assert_same(kind, Over(), {name: inputs[name] for name in ("regions", "region_mask")})


# Training


@pytest.fixture(scope="module")
def phantoms():
    """Phantoms of 32 pixels."""
    return list(PhantomDataset("train", count=16, size=32))


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("mps", {}),
        ("mps", {"precision": "bfloat16", "mini_batch_size": 4}),
        ("cuda", {"mini_batch_size": 4}),
    ],
)
def test_training_resumes_there_and_waits_as_often_for_any_batch(kind, how, phantoms, tmp_path):
    pairs = PhantomPairs(phantoms)
    recipe = TrainingRecipe(steps=3, batch_size=4, validate_every=2, checkpoint_every=1, **how)

    def run(device, folder=None, recipe=recipe, validation=pairs, stop_at=None):
        with isolated(0):
            model = small_model(pairs.reports, embedding_dim=16).to(device)

        def stop(record):
            if record["step"] == stop_at:
                raise KeyboardInterrupt

        options = {"validation": validation, "folder": folder, "on_step": stop}
        return model, train(model, pairs, recipe, **options)

    _, expected = run("cpu", tmp_path / "here")
    with emulated(kind) as device:
        with pytest.raises(KeyboardInterrupt):
            run(kind, tmp_path / "there", stop_at=2)
        model, history = run(kind, tmp_path / "there")
        assert model.device.type == kind
        assert load_model(tmp_path / "there/best", device=kind).device.type == kind
        waits = []
        for batch_size in (4, 16):
            before = device.waits
            run(kind, recipe=replace(recipe, batch_size=batch_size), validation=None)
            waits.append(device.waits - before)
    # transformers waits for a mask whenever texts are encoded: four mini-batches, twice each
    more = 3 * 2 * recipe.steps if recipe.mini_batch_size else 0
    assert waits[0] == waits[1] - more <= 6 * recipe.steps
    first, later = (3e-2, 0.3) if recipe.precision == "bfloat16" else (1e-5, 1e-2)
    assert history[0]["loss"] == pytest.approx(expected[0]["loss"], rel=first)
    for key in ("loss", "gradient_norm"):
        found = [record[key] for record in history]
        assert found == pytest.approx([record[key] for record in expected], rel=later)


@each_kind
@pytest.mark.parametrize("frozen", [True, False])
def test_training_of_a_classifier(kind, frozen, phantoms):
    data = PhantomPairs(phantoms)
    recipe = ClassifierRecipe(steps=2, batch_size=8, validate_every=1)
    weights = torch.linspace(1, 2, len(data.classes)).double().numpy()  # as numpy counts them

    def run(device):
        with isolated(0):
            encoder = TimmImageEncoder("resnet10t", **SMALL_IMAGE_OPTIONS)
            classifier = ImageClassifier(encoder, len(data.classes), frozen=frozen).to(device)
        done = train_classifier(classifier, data, data, recipe, pos_weight=weights)
        return [record["loss"] for record in done.history], done.validation_auroc

    expected = run("cpu")
    with emulated(kind):
        found = run(kind)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1] == pytest.approx(expected[1], abs=0.05)


@each_kind
def test_training_of_a_segmenter(kind, phantoms):
    data = PhantomMasks(phantoms, ["edema", "cardiomegaly"])
    recipe = SegmentationRecipe(steps=2, batch_size=4, validate_every=2)

    def run(device):
        with isolated(0):
            encoder = TimmImageEncoder("resnet10t", **SMALL_IMAGE_OPTIONS)
            model = segmentation_model(encoder, len(data.classes), width=16).to(device)
        done = train_segmenter(model, data, data, recipe)
        return [record["loss"] for record in done.history], done.validation_dice

    expected = run("cpu")
    with emulated(kind):
        found = run(kind)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    assert found[1] == pytest.approx(expected[1], abs=0.02)


def test_where_words_look_is_measured_without_waiting_for_each_map(saved):
    with emulated("mps") as device:
        model = load_model(saved / "model", device="mps")
        waits, mentions = [], []
        for count in (6, 8):
            before = device.waits
            found = evaluate_grounding(model, list(PhantomDataset("train", count=count)))
            waits.append(device.waits - before)
            mentions.append(found["mentions"])
    assert waits[0] == waits[1]
    assert mentions[0] < mentions[1]


# Commands; on MPS, which refuses most


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model of 64 px, and a folder of images."""
    folder = tmp_path_factory.mktemp("saved")
    items = list(PhantomDataset("train", count=8))
    with isolated(0):
        model = small_model([item.report for item in items])
    model.trained_image_size = (64, 64)
    gloria.save_model(model, folder / "model")
    (folder / "films").mkdir()
    for number, item in enumerate(items):
        Image.fromarray(item.image).save(folder / "films" / f"{number}.png")
    return folder


def run(*command):
    """What a command printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([str(each) for each in command]) == 0
    return printed.getvalue()


def numbers(value):
    """The numbers in what JSON holds, in order; seconds and names left out."""
    if isinstance(value, dict):
        return [x for name, each in value.items() if "second" not in name for x in numbers(each)]
    if isinstance(value, list):
        return [x for each in value for x in numbers(each)]
    return [value] if isinstance(value, float) else []


def test_the_demo_takes_what_is_there(tmp_path, monkeypatch):
    tiny = demo.DemoSettings(
        train_items=32, validation_items=16, per_class=2, grounding_items=16, steps=2
    )
    monkeypatch.setitem(demo.PRESETS, "quick", tiny)
    seen = {}
    for device in ("cpu", "auto"):
        with emulated("mps") if device == "auto" else contextlib.nullcontext():
            assert pick_device(device).type == ("mps" if device == "auto" else "cpu")
            run("demo", "--out", tmp_path / device, "--quiet", "--device", device)
        seen[device] = json.loads((tmp_path / device / "metrics.json").read_text())
    untrained = [numbers(each["untrained"]) for each in seen.values()]
    assert untrained[1] == pytest.approx(untrained[0], abs=1e-3)


def test_search_and_attention(saved, tmp_path):
    def go(device, out):
        model = ("--model", saved / "model", "--device", device)
        films = ("--images", saved / "films", "--workers", "0", "--cache", out / "cache")
        search = ("search", "Mild edema.", *model, *films, "--json", "--quiet")
        out.mkdir()
        run("attention", saved / "films/0.png", "Mild edema.", *model, "--out", out / "a.png")
        pixels = np.asarray(Image.open(out / "a.png").convert("L"), float)
        return [numbers(json.loads(run(*search))) for _ in range(2)], pixels

    expected = go("cpu", tmp_path / "here")
    with emulated("mps"):
        found = go("mps", tmp_path / "there")
    for actual, wanted in zip(found[0], expected[0], strict=True):
        assert actual == pytest.approx(wanted, rel=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=2)


def test_the_four_tasks(saved, tmp_path, monkeypatch):
    usual = evaluate._settings
    monkeypatch.setattr(evaluate, "_settings", lambda args: replace(usual(args), resamples=20))
    monkeypatch.setattr(evaluate, "PHANTOMS", {"train": 16, "val": 16, "test": 24, "per_class": 2})
    short = {
        "classification": ClassifierRecipe(steps=2, validate_every=1),
        "segmentation": SegmentationRecipe(steps=1, batch_size=4),
        "width": 16,
    }
    monkeypatch.setattr(transfer, "PHANTOM_UNET", short)

    def go(device, out):
        command = ("evaluate", "--model", saved / "model", "--out", out, "--device", device)
        shares = ("--fractions", "100", "--seeds", "1")
        return numbers(json.loads(run(*command, *shares, "--quiet", "--json"))["models"])

    expected = go("cpu", tmp_path / "here")
    with emulated("mps"):
        found = go("mps", tmp_path / "there")
    assert found == pytest.approx(expected, abs=0.02)
