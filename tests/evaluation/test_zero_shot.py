"""Zero-shot scores against loops, and in every batch the same."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from gloria.data.chest_prompts import CHEST_PROMPTS
from gloria.data.phantom import PhantomDataset, phantom_prompts
from gloria.data.prompts import PromptSet
from gloria.errors import DataError, DtypeError, OptionError, ShapeError, UnknownWordWarning
from gloria.evaluation.features import encode_images, encode_texts, select_images
from gloria.evaluation.phantoms import pictures
from gloria.evaluation.zero_shot import (
    class_scores,
    ensemble_embeddings,
    pair_probability,
    zero_shot_probabilities,
    zero_shot_scores,
)
from gloria.training.randomness import isolated
from gloria.training.small import small_model

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

PROMPT_CLASS = torch.tensor([2, 0, 1, 0, 2, 2, 1])


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("images", [0, 1, 11])
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_scores_equal_a_plain_loop(images, reduction):
    similarity = draw(images, 7)
    scores = class_scores(similarity, PROMPT_CLASS, reduction)
    assert scores.shape == (images, 3)
    for row, expected_row in zip(scores.tolist(), similarity.tolist(), strict=True):
        for c, score in enumerate(row):
            own = [s for s, k in zip(expected_row, PROMPT_CLASS.tolist(), strict=True) if k == c]
            expected = max(own) if reduction == "max" else sum(own) / len(own)
            assert score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("numbers", [[0, 2, 2], [1, 1, 2], [-1, 0, 1]])
def test_classes_are_numbered_without_a_gap(numbers):
    with pytest.raises(OptionError, match=r"prompt_class must number .* from 0 without a gap"):
        class_scores(draw(2, 3), torch.tensor(numbers))


def test_bad_input_is_named():
    with pytest.raises(ShapeError, match="similarity and prompt_class must agree in prompts"):
        class_scores(draw(2, 5), PROMPT_CLASS)
    with pytest.raises(OptionError, match="reduction must be one of 'mean', 'max'"):
        class_scores(draw(2, 7), PROMPT_CLASS, "sum")
    with pytest.raises(DtypeError, match="prompt_class must be a tensor of integers"):
        class_scores(draw(2, 7), PROMPT_CLASS.float())
    similarity = draw(2, 7)
    similarity[1, 0] = float("nan")
    with pytest.raises(DataError, match="similarity holds NaN, first at image 1"):
        class_scores(similarity, PROMPT_CLASS)
    with pytest.raises(OptionError, match="prompt_class must number"):
        class_scores(draw(2, 0), torch.zeros(0, dtype=torch.long))


def test_ensembles_equal_a_plain_loop():
    embeddings = draw(7, 5)
    ensembles = ensemble_embeddings(embeddings, PROMPT_CLASS)
    for c, ensemble in enumerate(ensembles.tolist()):
        own = [
            [x / sum(y * y for y in row) ** 0.5 for x in row]
            for row, k in zip(embeddings.tolist(), PROMPT_CLASS.tolist(), strict=True)
            if k == c
        ]
        expected = [sum(column) / len(own) for column in zip(*own, strict=True)]
        assert ensemble == pytest.approx(expected, abs=1e-6)
    longer = embeddings * torch.arange(1, 8)[:, None]
    torch.testing.assert_close(ensemble_embeddings(longer, PROMPT_CLASS), ensembles)
    with pytest.raises(ShapeError, match="text_embeddings and prompt_class must agree in prompts"):
        ensemble_embeddings(embeddings[:3], PROMPT_CLASS)
    with pytest.raises(OptionError, match="without a gap"):
        ensemble_embeddings(embeddings, PROMPT_CLASS + 1)


def test_pairs_of_scores_are_a_softmax_of_two():
    positive, negative = draw(4, 3), draw(3, 4).T
    expected = torch.stack([positive, negative], -1).div(0.25).softmax(-1)[..., 0]
    torch.testing.assert_close(pair_probability(positive, negative, 0.25), expected)
    with pytest.raises(ShapeError, match=r"of one shape; got \(4, 3\) and \(3, 4\)"):
        pair_probability(positive, negative.T)
    with pytest.raises(OptionError, match="temperature must be a finite number above 0"):
        pair_probability(positive, negative, 0)
    with pytest.raises(DtypeError, match="negative must be a floating-point tensor"):
        pair_probability(positive, negative.long())
    with pytest.raises(DataError, match="positive holds NaN"):
        pair_probability(positive * float("nan"), negative)
    with pytest.raises(DataError, match="positive holds NaN or infinity"):
        pair_probability(positive + float("inf"), negative + float("inf"))


PROMPTS = {
    "edema": PromptSet(phantom_prompts()["edema"], ["no edema", "the lungs are clear"]),
    "effusion": PromptSet(["small pleural effusion on the left", "effusion"], ["no effusion"]),
    "cardiomegaly": PromptSet(["cardiomegaly"], ["no cardiomegaly", "normal heart size", "clear"]),
}
WAYS = [
    ("global", "mean"),
    ("local", "mean"),
    ("both", "mean"),
    ("global", "max"),
    ("local", "max"),
    ("global", "ensemble"),
]


@pytest.fixture(scope="module")
def model():
    """In training mode, with batch statistics and dropout: no evaluation may see that."""
    with isolated(0):
        model = small_model([item.report for item in PhantomDataset("test", count=60)])
    return model.train()


@pytest.fixture(scope="module")
def films():
    return pictures(list(PhantomDataset("val_5x5")))


SHUFFLED = torch.randperm(25, generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def companies(model, films):
    """The features of the films: all at once, shuffled, by four, and five of them alone."""
    return (
        encode_images(model, films),
        encode_images(model, [films[index] for index in SHUFFLED]),
        encode_images(model, films, 4),
        [encode_images(model, [film]) for film in films[:5]],
    )


@pytest.mark.parametrize("score", [zero_shot_scores, zero_shot_probabilities])
@pytest.mark.parametrize(("kind", "reduction"), WAYS)
def test_a_film_scores_the_same_whatever_films_are_beside_it(
    model, companies, score, kind, reduction
):
    def scores(images):
        return score(model, images, PROMPTS, kind=kind, reduction=reduction)

    together, shuffled, by_four, alone = companies
    whole = scores(together)
    assert whole.shape == (25, 3)
    assert whole.std(0).min() > 1e-4  # films differ
    torch.testing.assert_close(scores(shuffled), whole[SHUFFLED], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores(by_four), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([*map(scores, alone)]), whole[:5], rtol=0, atol=1e-5)
    assert model.training
    assert not whole.requires_grad


@pytest.mark.parametrize("kind", ["global", "local", "both", None])
def test_scores_are_means_of_the_models_similarities(model, films, kind):
    images = encode_images(model, films)
    scores = zero_shot_scores(model, images, PROMPTS, kind=kind)
    model.eval()
    for column, each in enumerate(PROMPTS.values()):
        with torch.no_grad():
            alone = [model.similarity(images, [prompt], kind)[:, 0] for prompt in each.prompts]
        expected = torch.stack(alone).mean(0)
        torch.testing.assert_close(scores[:, column], expected, rtol=0, atol=1e-5)
    model.train()


def test_an_ensemble_of_one_prompt_is_that_prompt_for_any_similarity(model, films, monkeypatch):
    loss = model.loss.global_loss
    monkeypatch.setattr(
        loss,
        "similarity",
        lambda image_embeddings, text_embeddings: -torch.cdist(image_embeddings, text_embeddings),
    )
    images, prompts = encode_images(model, films), {"a": ["edema"], "b": ["no pleural effusion"]}
    plain, ensemble = (
        zero_shot_scores(model, images, prompts, kind="global", reduction=reduction)
        for reduction in ("mean", "ensemble")
    )
    torch.testing.assert_close(ensemble, plain)


def test_an_ensemble_is_the_cosine_with_the_mean_of_the_prompts(model, films):
    images = encode_images(model, films)
    scores = zero_shot_scores(model, images, PROMPTS, reduction="ensemble")
    means = zero_shot_scores(model, images, PROMPTS, kind="global")
    for column, each in enumerate(PROMPTS.values()):
        texts = nn.functional.normalize(encode_texts(model, each.prompts).pooled, dim=1)
        expected = cosine_similarity(images.pooled, texts.mean(0)[None])
        torch.testing.assert_close(scores[:, column], expected)
        # each class's films in the same order as by the mean of cosines
        factor = scores[:, column] / means[:, column]
        torch.testing.assert_close(factor, factor[:1].expand(25), rtol=1e-3, atol=0)
        assert factor[0] >= 1 - 1e-6


def test_an_ensemble_of_what_was_not_trained_must_be_asked_for(films):
    with isolated(0):
        model = small_model(["edema"], loss="local_contrastive")
    images = encode_images(model, films[:2])
    prompts = {"edema": ["edema"]}
    with pytest.raises(OptionError, match="pooled embeddings, which the model's loss does not"):
        zero_shot_scores(model, images, prompts, reduction="ensemble")
    assert zero_shot_scores(model, images, prompts, reduction="ensemble", kind="global").any()


def test_probabilities_are_of_each_class_by_itself(model, films):
    images = encode_images(model, films)
    options = {"kind": "both", "reduction": "max"}
    probabilities = zero_shot_probabilities(model, images, PROMPTS, temperature=0.5, **options)
    denials = {name: each.negative_prompts for name, each in PROMPTS.items()}
    positive = zero_shot_scores(model, images, PROMPTS, **options)
    negative = zero_shot_scores(model, images, denials, **options)
    torch.testing.assert_close(probabilities, pair_probability(positive, negative, 0.5))
    one = zero_shot_probabilities(
        model, images, {"effusion": PROMPTS["effusion"]}, temperature=0.5, **options
    )
    torch.testing.assert_close(probabilities[:, 1:2], one)


def test_words_of_prompts_that_the_model_cannot_read_are_told(model, films):
    images = encode_images(model, films[:2])
    prompts = {"a": ["effusion ☃"], "b": [f"edema {chr(number)}" for number in range(945, 957)]}
    lacks = "lacks '☃', 'α', .*, 'ι' and 3 more: any such"
    with pytest.warns(UnknownWordWarning, match=lacks) as w:
        zero_shot_scores(model, images, prompts)
    assert w[0].filename == __file__  # who gave the words
    pairs = {"a": PromptSet(["effusion ☃"], ["no effusion"])}
    with pytest.warns(UnknownWordWarning, match="lacks '☃'") as w:
        zero_shot_probabilities(model, images, pairs)
    assert [each.filename for each in w] == [__file__]


def test_prompts_are_tokenized_once(model, films, monkeypatch):
    images = encode_images(model, films[:2])
    tokenize, seen = model.text_encoder.tokenize, []

    def spy(texts):
        seen.extend(texts)
        return tokenize(texts)

    monkeypatch.setattr(model.text_encoder, "tokenize", spy)
    zero_shot_scores(model, images, {"a": ["effusion"], "b": ["edema", "no edema"]})
    assert seen == ["effusion", "edema", "no edema"]


def test_columns_follow_the_order_of_the_prompts(model, films):
    images = select_images(encode_images(model, films[:3]), slice(0, 3))
    scores = zero_shot_scores(model, images, CHEST_PROMPTS)
    backwards = dict(reversed(CHEST_PROMPTS.items()))
    assert scores.shape == (3, 7)
    torch.testing.assert_close(zero_shot_scores(model, images, backwards), scores.flip(1))


def test_bad_prompts_and_options_are_named(model, films):
    images = encode_images(model, films[:2])
    with pytest.raises(DataError, match="prompts must hold at least one class"):
        zero_shot_scores(model, images, {})
    for function in (zero_shot_scores, zero_shot_probabilities):
        with pytest.raises(DtypeError, match="prompts must be by class, in a dict; got list"):
            function(model, images, ["edema"])
        with pytest.raises(DtypeError, match=r"images must be ImageFeatures, .* got Tensor"):
            function(model, torch.rand(2, 1, 64, 64), PROMPTS)
    for reduction in ("mean", "ensemble"):
        with pytest.raises(DataError, match="images must hold at least one"):
            zero_shot_scores(model, select_images(images, slice(0)), PROMPTS, reduction=reduction)
    with pytest.raises(DtypeError, match="positive must be a list of prompts; got 'edema'"):
        zero_shot_scores(model, images, {"edema": "edema"})
    with pytest.raises(OptionError, match="positive must hold at least one prompt"):
        zero_shot_scores(model, images, {"edema": []})
    with pytest.raises(OptionError, match="reduction must be one of 'mean', 'max', 'ensemble'"):
        zero_shot_scores(model, images, PROMPTS, reduction="median")
    with pytest.raises(OptionError, match="'ensemble' needs kind='global'; got 'both'"):
        zero_shot_scores(model, images, PROMPTS, reduction="ensemble", kind="both")
    for without in (PromptSet(["edema"]), ["edema"]):
        with pytest.raises(OptionError, match="'edema' has none"):
            zero_shot_probabilities(model, images, {**PROMPTS, "edema": without})
    broken = images._replace(pooled=images.pooled * float("nan"))
    for reduction in ("mean", "ensemble"):
        with pytest.raises(DataError, match="similarity holds NaN, first at image 0"):
            zero_shot_scores(model, broken, PROMPTS, reduction=reduction)
