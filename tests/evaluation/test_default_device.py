"""Devices change no figure: neither torch's default, one for new tensors, nor the one they are on.

The default is here one that would lose whatever it got, and whose tensors can't be mixed with
others; the other one is emulated.
"""

import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from emulated import emulated
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_map_only

from gloria import evaluation, functional
from gloria.data import MaskedImage, Radiographs, Record, published_image
from gloria.data.phantom import PhantomDataset
from gloria.data.prompts import PromptSet
from gloria.evaluation import features, phantoms, protocols
from gloria.evaluation.embeddings import store_images
from gloria.evaluation.search import search_images
from gloria.geometry import measure_region_offset
from gloria.heads import multilabel_loss
from gloria.losses.segmentation import dice_bce, focal_log_dice
from gloria.training.randomness import isolated
from gloria.training.small import small_model
from gloria.types import ImageInput

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

CLASSES = ("edema", "mass")
QUERIES = {name: [name] for name in CLASSES}
PROMPTS = {"edema": PromptSet(["edema", "mild edema"], ["no edema"])}


class Sees(nn.Module):
    """A segmentation model whose logits are the pixels."""

    classes, image_input = 2, ImageInput(2, None, (0.5, 0.5), (0.1, 0.1))

    def __init__(self):
        super().__init__()
        self.register_buffer("nothing", torch.zeros(()))

    @property
    def device(self):
        return self.nothing.device

    def forward(self, images):
        return images + self.nothing


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What the functions are given."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(*shape, generator=generator)

    items = list(PhantomDataset("test", count=20))
    folder, records = tmp_path_factory.mktemp("films"), []
    for number, item in enumerate(items[:4]):
        path, labels = folder / f"{number}.png", (number % 2, 1 - number % 2)
        Image.fromarray(item.image).save(path)
        records.append(Record(str(number), path, "", report=item.report, labels=labels))
    films = Radiographs(records, classes=CLASSES, size=(64, 64))
    with isolated(0):
        model = small_model([item.report for item in items]).eval()
    images, masks = draw(4, 2, 8, 8), draw(4, 2, 8, 8) < 0.4
    return SimpleNamespace(
        scores=draw(6, 3),
        labels=torch.arange(18).reshape(6, 3) * 5 % 4 % 3 - 1,
        numbers=torch.arange(6) % 3,
        similarity=draw(6, 6),
        target_similarity=draw(6, 6),
        relevant=torch.eye(6, dtype=torch.bool),
        maps=images,
        masks=masks,
        masked=[MaskedImage(*each) for each in zip(images, masks, strict=True)],
        counts=evaluation.Overlap(*(k * torch.arange(12).reshape(3, 2, 2) for k in (1, 2, 3))),
        sees=Sees(),
        model=model,
        images=features.encode_items(model, films),
        items=items,
        gallery=list(PhantomDataset("val_5x1")),
        films=films,
        queries=films.select(["0", "1"]),
        candidates=films.select(["2", "3"]),
        store=store_images(
            tmp_path_factory.mktemp("stores"), model, films, fingerprint="a", shard_size=3
        ),
        image_embeddings=draw(6, 8),
        text_embeddings=draw(6, 8),
        regions=draw(6, 9, 8),
        words=draw(6, 5, 8),
        word_mask=torch.arange(5) < torch.tensor([[1], [5], [2], [3], [4], [5]]),
    )


def overlap(found):
    return *found, found.dice, found.iou


CALLS = {
    evaluation.Thresholds.decide: lambda f, g: f(evaluation.Thresholds(g.scores[0]), g.scores),
    evaluation.accuracy: lambda f, g: f(g.scores, g.numbers),
    evaluation.attention_auroc: lambda f, g: f(g.maps, g.masks),
    evaluation.bootstrap: lambda f, g: f(lambda index: {"x": float(g.scores[index].mean())}, 6),
    evaluation.bootstrap_mean: lambda f, g: f({"x": g.scores[:2, 0], "y": [0.5, 0.25]}),
    evaluation.choose_mask_thresholds: lambda f, g: f(g.counts, (0.2, 0.6)),
    evaluation.choose_thresholds: lambda f, g: f(g.scores, g.labels).values,
    evaluation.class_relevance: lambda f, g: f(g.numbers, g.numbers),
    evaluation.class_scores: lambda f, g: f(g.similarity, g.numbers),
    evaluation.contrast_to_noise: lambda f, g: f(g.maps, g.masks),
    evaluation.correct_side: lambda f, g: f(g.maps, g.masks.tril()),
    evaluation.count_overlap: lambda f, g: overlap(f(g.maps > 0.5, g.masks)),
    evaluation.ensemble_embeddings: lambda f, g: f(g.similarity, g.numbers),
    evaluation.evaluate_queries: lambda f, g: f(g.similarity, g.relevant, (1, 5)),
    evaluation.evaluate_retrieval: lambda f, g: f(g.similarity, g.relevant, (1, 5)),
    evaluation.evaluate_segmentation: lambda f, g: f(g.sees, g.masked, (0.3, 0.6)),
    evaluation.left_share: lambda f, g: f(g.maps),
    evaluation.mean_average_precision: lambda f, g: f(g.similarity, g.relevant),
    evaluation.measure_overlap: lambda f, g: overlap(f(g.sees, g.masked, workers=1)),
    evaluation.median_rank: lambda f, g: f(g.similarity, g.relevant),
    evaluation.multiclass_metrics: lambda f, g: f(g.scores, g.numbers),
    evaluation.multilabel_auroc: lambda f, g: f(g.scores, g.labels),
    evaluation.multilabel_metrics: lambda f, g: f(g.scores, g.labels, 0.5),
    evaluation.pair_probability: lambda f, g: f(g.scores, 1 - g.scores),
    evaluation.pointing_hit: lambda f, g: f(g.maps, g.masks, 1.5),
    evaluation.precision_at_k: lambda f, g: f(g.similarity, g.relevant, (1, 5)),
    evaluation.recall_at_k: lambda f, g: f(g.similarity, g.relevant, (1, 5)),
    evaluation.summarize_overlap: lambda f, g: f(g.counts.at((0, 1))),
    evaluation.upsample_attention: lambda f, g: f(g.maps, (9, 9)),
    evaluation.zero_shot_probabilities: lambda f, g: f(g.model, g.images, PROMPTS),
    evaluation.zero_shot_scores: lambda f, g: f(g.model, g.images, PROMPTS, reduction="ensemble"),
    protocols.evaluate_pairs: lambda f, g: f(g.model, g.films, CLASSES, ks=(1,)),
    protocols.evaluate_image_queries: lambda f, g: f(
        g.model, g.queries, g.candidates, CLASSES, ks=(1,)
    ),
    protocols.evaluate_text_queries: lambda f, g: f(g.model, QUERIES, g.films, ks=(1,)),
    phantoms.evaluate_gallery: lambda f, g: f(g.model, g.gallery),
    phantoms.evaluate_grounding: lambda f, g: f(g.model, g.items),
    features.encode_items: lambda f, g: f(g.model, g.films, workers=1),
    search_images: lambda f, g: [found.score for found in f(g.model, g.store, "edema")],
    measure_region_offset: lambda f, g: f(
        g.model.image_encoder, g.films[0].image[None].to(g.model.device)
    ),
    Radiographs.__getitem__: lambda f, g: (f(g.films, 0).image, *f(g.films, 0)[2:]),
    Radiographs.boxes: lambda f, g: f(g.films, 0),
    published_image: lambda f, g: f(g.films[0].image, size=32, crop=28),
    multilabel_loss: lambda f, g: f(g.scores, g.labels),
    dice_bce: lambda f, g: f(g.maps, g.masks),
    focal_log_dice: lambda f, g: f(g.maps, g.masks),
}


def functions(module):
    return [each for each in vars(module).values() if inspect.isfunction(each)]


def call(function, given):
    if function in CALLS:
        return CALLS[function](function, given)
    parameters = inspect.signature(function).parameters.values()  # named as what is given
    needed = [each.name for each in parameters if each.default is each.empty]
    return function(*(getattr(given, name) for name in needed if name != "matching"))


every_function = pytest.mark.parametrize(
    "function",
    dict.fromkeys([*CALLS, *functions(evaluation), *functions(functional)]),
    ids=lambda function: function.__name__,
)


@every_function
def test_the_default_device_changes_nothing(given, function):
    expected = call(function, given)
    with torch.device("meta"):
        actual = call(function, given)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def move(given, device):
    """What is given, tensors and models on the device; data sets remain where they are."""
    moved = {
        name: copy.deepcopy(value).to(device)
        if isinstance(value, nn.Module)
        else tree_map_only(torch.Tensor, lambda each: each.to(device), value)
        for name, value in vars(given).items()
        if name != "masked"
    }
    return SimpleNamespace(masked=given.masked, **moved)


@pytest.mark.parametrize("kind", ["mps", "cuda"])
@every_function
def test_the_device_that_tensors_are_on_changes_nothing(given, function, kind):
    expected = call(function, given)
    with emulated(kind):
        actual = call(function, move(given, kind))
        actual = tree_map_only(torch.Tensor, lambda each: each.cpu(), actual)
    # tiles are of another size there
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)
