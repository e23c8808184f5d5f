"""The composed model, on two tiny encoders that implement the contract by hand."""

import math
import re

import pytest
import torch
from torch import nn

from gloria import catalog
from gloria.catalog import Catalog
from gloria.distributed import AcrossRanks
from gloria.errors import (
    ContractError,
    DataError,
    DtypeError,
    EmptyTextError,
    OptionError,
    ShapeError,
)
from gloria.functional import global_similarity, local_attention, local_similarity
from gloria.heads import Projection
from gloria.losses import (
    ColBERTLoss,
    FILIPLoss,
    GlobalContrastiveLoss,
    GlobalLocalContrastiveLoss,
    LocalContrastiveLoss,
    MGCALoss,
    PairLoss,
    SPARCLoss,
)
from gloria.model import GLoRIA, create_model
from gloria.types import (
    ImageEncoder,
    ImageFeatures,
    ImageInput,
    RegionGeometry,
    TextEncoder,
    TextFeatures,
    TokenizedText,
)

TEXTS = ["small left effusion", "no effusion", "edema"]


class Patches(nn.Module):
    """Regions are linear projections of 4 x 4 patches."""

    pooled_dim = region_dim = 6
    image_input = ImageInput(1, None, (0.5,), (0.5,))

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 6, 4, stride=4)

    def forward(self, images):
        maps = self.convolution(images)
        return ImageFeatures(maps.mean((2, 3)), maps.flatten(2).mT, tuple(maps.shape[2:]))


class Bag(nn.Module):
    """Words are entries of an embedding table; no transformer, a vocabulary of its own."""

    pooled_dim = word_dim = 6

    def __init__(self, width=6):
        super().__init__()
        self.vocabulary = sorted({word for text in TEXTS for word in text.split()})
        self.pooled_dim = self.word_dim = width
        self.embedding = nn.Embedding(len(self.vocabulary) + 1, width)

    def tokenize(self, texts):
        tokens = [text.split() for text in texts]
        longest = max(map(len, tokens))
        ids = torch.full((len(texts), longest), len(self.vocabulary))
        word_ids = torch.full((len(texts), longest), -1)
        for n, words in enumerate(tokens):
            for i, word in enumerate(words):
                ids[n, i], word_ids[n, i] = self.vocabulary.index(word), i
        return TokenizedText({"input_ids": ids}, word_ids, tokens)

    def forward(self, texts):
        if not isinstance(texts, TokenizedText):
            texts = self.tokenize(texts)
        words, mask = self.embedding(texts.inputs["input_ids"]), texts.word_ids >= 0
        pooled = (words * mask[..., None]).sum(1)
        return TextFeatures(pooled, words, mask, texts.tokens)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GLoRIA(Patches(), Bag())


@pytest.fixture
def images():
    return torch.randn(3, 1, 12, 20, generator=torch.Generator().manual_seed(1))


def test_a_model_may_have_no_parameter(images):
    class Means(Patches):
        def __init__(self):
            nn.Module.__init__(self)

        def forward(self, images):
            maps = images[:, :, ::2, ::2].expand(-1, 6, -1, -1)
            return ImageFeatures(maps.mean((2, 3)), maps.flatten(2).mT, tuple(maps.shape[2:]))

    class Numbers(Bag):
        def __init__(self):
            super().__init__()
            table = self.embedding.weight.detach()
            del self.embedding
            self.embedding = table.__getitem__

    model = GLoRIA(Means(), Numbers())
    assert not list(model.parameters())
    assert model.device == torch.device("cpu")
    assert model(images, TEXTS).loss.isfinite()


class Turned(nn.Module):
    """Compares images, turned by what it learns, with texts; its own way, not by the cosine."""

    def __init__(self, embedding_dim):
        super().__init__()
        self.turn = nn.Linear(embedding_dim, embedding_dim)

    def similarity(self, image_embeddings, text_embeddings):
        return self.turn(image_embeddings) @ text_embeddings.T

    def forward(self, image_embeddings, text_embeddings):
        similarity = self.similarity(image_embeddings, text_embeddings)
        return nn.functional.cross_entropy(similarity, torch.arange(len(similarity)))


class WholeAndPart(nn.Module):
    def __init__(self):
        super().__init__()
        self.global_loss, self.local_loss = Turned(6), LocalContrastiveLoss()

    def forward(self, image_embeddings, text_embeddings, regions, words, word_mask):
        whole = self.global_loss(image_embeddings, text_embeddings)
        return whole + self.local_loss(regions, words, word_mask)


@pytest.mark.parametrize("wrap", [lambda loss: loss, AcrossRanks])
def test_pooled_vectors_are_compared_as_the_loss_compares_them(images, wrap):
    model = GLoRIA(Patches(), Bag(), loss=wrap(Turned(6))).eval()
    pooled, texts = model.encode_image(images).pooled, model.encode_text(TEXTS).pooled
    expected = model.loss.similarity(pooled, texts)
    assert not torch.allclose(expected, global_similarity(pooled, texts))
    assert torch.equal(model.similarity(images, TEXTS), expected)
    torch.testing.assert_close(model.global_similarity(pooled[:1], texts), expected[:1])


def test_so_are_they_where_that_is_a_part_of_the_loss(images):
    model = GLoRIA(Patches(), Bag(), loss=WholeAndPart()).eval()
    whole = model.loss.global_loss.similarity(
        model.encode_image(images).pooled, model.encode_text(TEXTS).pooled
    )
    local = model.similarity(images, TEXTS, "local")
    assert torch.equal(model.similarity(images, TEXTS, "global"), whole)
    both = model.similarity(images, TEXTS, weights=(2.0, 1.0))
    torch.testing.assert_close(both, 2 * whole + local)


def test_a_similarity_that_is_no_pair_matrix_is_told(images):
    class Odd(Turned):
        def similarity(self, image_embeddings, text_embeddings):
            return super().similarity(image_embeddings, text_embeddings).T[:1]

    model = GLoRIA(Patches(), Bag(), loss=Odd(6))
    told = r"Odd.similarity must return a matrix \(3, 3\) = \(image, text\); got \(1, 3\)"
    with pytest.raises(ContractError, match=told):
        model.similarity(images, TEXTS)


def test_a_loss_is_told_the_width_of_what_it_compares(images, monkeypatch):
    monkeypatch.setattr("gloria.catalog._catalog", Catalog())
    catalog.default_catalog().losses.register("turned", Turned)
    for width, loss_options in ((5, {}), (None, {}), (5, {"embedding_dim": 5})):
        model = create_model(
            Patches(), Bag(), embedding_dim=width, loss="turned", loss_options=loss_options
        )
        assert model.loss.turn.in_features == (width or 6)
        assert model(images, TEXTS).loss.isfinite()


def test_the_tiny_encoders_follow_the_contract():
    assert isinstance(Patches(), ImageEncoder)
    assert isinstance(Bag(), TextEncoder)


@pytest.mark.parametrize("compose", [GLoRIA, create_model])
def test_what_is_no_part_of_a_model_is_refused_when_it_is_composed(compose):
    class Gray(Patches):
        image_input = ImageInput(1, None, (0.5,) * 3, (0.5,) * 3)

    class Flat(Patches):
        image_input = ImageInput(1, None, (0.5,), (0.0,))

    class Bare(Patches):
        image_input = (1, None, (0.5,), (0.5,))

    class Plain(Patches):
        image_input = ImageInput(1, None, 0.5, 0.5)

    for encoder, fault in (
        (None, "it is no nn.Module, it is NoneType"),
        (Patches, "it is no nn.Module, it is type"),
        (Bag(), "Bag lacks region_dim, image_input"),
        (Gray(), r"its image_input must be an ImageInput with a mean and a std above 0 for each"),
        (Plain(), r"its image_input must be .*; it is ImageInput\(channels=1, .*mean=0.5"),
        (Flat(), r"its image_input must be .*; it is ImageInput\(.* std=\(0\.0,\)\)"),
        (Bare(), r"its image_input must be .*; it is \(1, None, "),
    ):
        with pytest.raises(ContractError, match=f"image_encoder must be an image encoder: {fault}"):
            compose(encoder, Bag())
    for width in (0, 2.0, "6"):
        fault = f"its word_dim must be an integer above 0; it is {width!r}"
        odd = Bag()
        odd.word_dim = width
        with pytest.raises(ContractError, match=f"text_encoder must be a text encoder: {fault}"):
            compose(Patches(), odd)
    with pytest.raises(ContractError, match="loss must be a module: it is no nn"):
        compose(Patches(), Bag(), loss=lambda image_embeddings: image_embeddings.mean())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.inputs, "TokenizedText; got dict"),
        (lambda t: None, "TokenizedText; got NoneType"),
        (
            lambda t: t._replace(tokens=t.tokens[:2]),
            "as many texts as .*; got 3 .* and 2 of tokens",
        ),
        (
            lambda t: TokenizedText(
                {name: value[:2] for name, value in t.inputs.items()}, t.word_ids[:2], t.tokens[:2]
            ),
            "as many texts as it is given, 3; got 2 rows of word_ids and 2 of tokens",
        ),
        (lambda t: t._replace(word_ids=t.word_ids.tolist()), "word_ids as a tensor; got list"),
        (
            lambda t: t._replace(inputs={"input_ids": t.inputs["input_ids"].tolist()}),
            "input_ids as a tensor; got list",
        ),
    ],
)
def test_what_tokenize_must_return(change, message):
    class Odd(Bag):
        def tokenize(self, texts):
            return change(super().tokenize(texts))

    with pytest.raises(ContractError, match=rf"Odd\.tokenize must return {message}"):
        GLoRIA(Patches(), Odd()).encode_text(TEXTS)


@pytest.mark.parametrize(
    "change, got",
    [
        (lambda x: x.mean(1), r"\(3,\)"),
        (lambda x: x.mean()[None], r"\(1,\)"),
        (lambda x: x.mean().item(), "float"),
        (lambda x: {"loss": x.mean()}, "dict"),
        (lambda x: x.long().sum(), "torch.int64"),
    ],
)
def test_a_loss_returns_one_number(images, change, got):
    class Odd(nn.Module):
        def forward(self, image_embeddings):
            return change(image_embeddings)

    class Parts(PairLoss):
        def forward(self, image_embeddings):
            return self.total(self.terms(image_embeddings))

        def terms(self, image_embeddings):
            return {"part": image_embeddings.mean(1)}

    with pytest.raises(ContractError, match=f"Odd must return a scalar .*tensor; got {got}"):
        GLoRIA(Patches(), Bag(), loss=Odd())(images, TEXTS)
    with pytest.raises(ContractError, match=r"Parts must return a scalar .*tensor; got \(3,\)"):
        GLoRIA(Patches(), Bag(), loss=Parts())(images, TEXTS)


def test_a_loss_that_names_nothing_is_not_given_nothing():
    class Open(nn.Module):
        def forward(self, **features):
            return sum(each.mean() for each in features.values())

    with pytest.raises(OptionError, match="loss Open names nothing that it takes in its forward"):
        GLoRIA(Patches(), Bag(), loss=Open())


def test_an_encoder_that_returns_something_else_is_named(images):
    class Maps(Patches):
        def forward(self, images):
            return tuple(super().forward(images))

    class Vectors(Bag):
        def forward(self, texts):
            return super().forward(texts).pooled

    with pytest.raises(ContractError, match="Maps must return ImageFeatures; got tuple"):
        GLoRIA(Maps(), Bag()).encode_image(images)
    with pytest.raises(ContractError, match="Vectors must return TextFeatures; got Tensor"):
        GLoRIA(Patches(), Vectors()).encode_text(TEXTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # NHWC maps as they are, flattened the wrong way round, and with a grid that is not theirs
        (
            lambda f: f._replace(regions=f.regions.unflatten(1, f.grid)),
            r"regions of shape \(3, 15, 6\) = \(image, height \* width of grid, region_dim\); "
            r"got \(3, 3, 5, 6\)",
        ),
        (lambda f: f._replace(regions=f.regions.mT), r"regions .*; got \(3, 6, 15\)"),
        (lambda f: f._replace(grid=(5, 5)), r"regions of shape \(3, 25, 6\) .*; got \(3, 15, 6\)"),
        (
            lambda f: f._replace(pooled=f.pooled[:, :4]),
            r"pooled of shape \(3, 6\) .*; got \(3, 4\)",
        ),
        (
            lambda f: f._replace(region_mask=torch.ones(3, 5)),
            r"region_mask of shape \(3, 15\) = .*; got \(3, 5\)",
        ),
        (lambda f: f._replace(grid=15), r"grid = \(height, width\), two integers; got 15"),
        (lambda f: f._replace(grid=(3, 5, 1)), r"grid = .*; got \(3, 5, 1\)"),
        (lambda f: f._replace(grid=(3.0, 5.0)), r"grid = .*; got \(3\.0, 5\.0\)"),
        (lambda f: f._replace(grid=torch.tensor(f.grid)), r"grid = .*; got tensor\(\[3, 5\]\)"),
        (
            lambda f: f._replace(region_mask=torch.ones(3, 15)),
            r"a boolean region_mask, True = real; got torch\.float32",
        ),
        (
            lambda f: f._replace(pooled=f.pooled.long()),
            r"pooled as floating-point numbers; got torch\.int64",
        ),
        (
            lambda f: f._replace(regions=f.regions.to("meta")),
            r"regions on the device of pooled, cpu; got meta",
        ),
    ],
)
def test_image_features_of_other_shapes_are_refused_by_name(images, change, message):
    class Odd(Patches):
        def forward(self, images):
            return change(super().forward(images))

    with pytest.raises(ContractError, match=f"Odd must return {message}"):
        GLoRIA(Odd(), Bag()).encode_image(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f._replace(word_mask=None),
            r"word_mask of shape \(3, 3\) = \(text, word\); got NoneType",
        ),
        (lambda f: f._replace(words=f.words[:2]), r"words of shape \(3, 3, 6\) .* \(2, 3, 6\)"),
        (lambda f: f._replace(words=f.words[0, 0]), r"words of shape \(3, any, 6\) .*; got \(6,\)"),
        (lambda f: f._replace(words=[f.words]), r"words of shape \(3, any, 6\) .*; got list"),
        (lambda f: f._replace(pooled=f.words), r"pooled of shape \(3, 6\) .*; got \(3, 3, 6\)"),
        (
            lambda f: f._replace(word_mask=f.word_mask.float()),
            r"a boolean word_mask, True = real; got torch\.float32",
        ),
        (lambda f: f._replace(words=f.words.long()), r"words as floating-point .*; got torch.int"),
        (
            lambda f: f._replace(word_mask=f.word_mask.to("meta")),
            r"word_mask on the device of pooled, cpu; got meta",
        ),
        (
            lambda f: f._replace(tokens=f.tokens[:1]),
            r"tokens, a list of words of each of the 3 texts; got 1 lists",
        ),
        (lambda f: f._replace(tokens=None), r"tokens, .*; got None"),
        (lambda f: f._replace(tokens=["two words"] * 3), r"tokens, .*; got \['two words', "),
        (lambda f: f._replace(tokens=["long " * 99] * 3), r"tokens, .{,200}$"),
    ],
)
def test_text_features_of_other_shapes_are_refused_by_name(change, message):
    class Odd(Bag):
        def forward(self, texts):
            return change(super().forward(texts))

    with pytest.raises(ContractError, match=f"Odd must return {message}"):
        GLoRIA(Patches(), Odd()).encode_text(TEXTS)


@pytest.mark.parametrize("named", [1, 5])
def test_words_without_a_map_of_their_own_are_refused(images, named):
    class Odd(Bag):
        def forward(self, texts):
            features = super().forward(texts)
            return features._replace(tokens=[["word"] * named for _ in features.tokens])

    message = rf"Odd must return as many tokens .* last real word, 3; got {named}: \['word'"
    with pytest.raises(ContractError, match=message):
        GLoRIA(Patches(), Odd()).attention(images[0], TEXTS[0])


@pytest.mark.parametrize("loss", [FILIPLoss, ColBERTLoss])
def test_a_hard_maximum_attends_to_nothing(loss, images):
    model = GLoRIA(Patches(), Bag(), loss=loss()).eval()
    with pytest.raises(OptionError, match=f"loss {loss.__name__} attends to nothing"):
        model.attention(images[0], TEXTS[0])


def test_attention_that_is_not_finite_is_no_answer(model, images):
    images[0, 0, 2, 2] = math.nan
    with pytest.raises(DataError, match="the attention is not finite"):
        model.attention(images[0], TEXTS[0])


def test_a_loss_that_says_nothing_of_similarity_is_not_ranked_by_untrained_vectors(images):
    class Spread(nn.Module):
        def forward(self, regions, words, word_mask):
            return regions.var() - words[word_mask].var()

    class Whole(nn.Module):
        def forward(self, image_embeddings, text_embeddings):
            return (image_embeddings - text_embeddings).square().sum()

    model = GLoRIA(Patches(), Bag(), loss=Spread())
    with pytest.raises(OptionError, match="Spread takes regions, words, word_mask and has no meth"):
        model.similarity(images, TEXTS)
    assert model.similarity(images, TEXTS, "global").shape == (3, 3)
    assert GLoRIA(Patches(), Bag(), loss=Whole()).trained_kind == "global"


def test_forward_gives_the_loss_of_its_features(model, images):
    output = model(images, TEXTS)
    expected = model.loss(
        output.images.pooled,
        output.texts.pooled,
        output.images.regions,
        output.texts.words,
        output.texts.word_mask,
    )
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.loss, sum(output.terms.values()))
    assert len(output.terms) == 4
    assert output[0] is output.loss  # frameworks that take a tuple take its first entry as loss


def test_every_parameter_gets_a_gradient(model, images):
    model(images, TEXTS).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_strings_and_tokenized_texts_are_the_same(model, images):
    tokenized = model.text_encoder.tokenize(TEXTS)
    torch.testing.assert_close(
        model(images, TEXTS).loss, model(images, tokenized).loss, rtol=0, atol=0
    )


def test_a_batch_of_one_has_loss_zero(model, images):
    output = model(images[:1], TEXTS[:1])
    output.loss.backward()
    assert output.loss == 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_similarity_is_what_the_functions_say(model, images):
    images, texts = model.encode_image(images[:2]), model.encode_text(TEXTS)
    whole = global_similarity(images.pooled, texts.pooled)
    parts = local_similarity(images.regions, texts.words, texts.word_mask)
    torch.testing.assert_close(model.similarity(images, texts, "global"), whole)
    torch.testing.assert_close(model.similarity(images, texts, "local"), parts)
    torch.testing.assert_close(model.similarity(images, texts), (whole + parts) / 2)
    assert whole.shape == (2, 3)


def test_the_published_score_is_reachable(model, images):
    images, texts = model.encode_image(images[:2]), model.encode_text(TEXTS)
    whole = global_similarity(images.pooled, texts.pooled)
    highest = local_similarity(images.regions, texts.words, texts.word_mask, aggregation="max")
    score = model.similarity(images, texts, aggregation="max", weights=(0.5, 2.5))
    torch.testing.assert_close(score, (whole + 5 * highest) / 2)


def test_similarity_takes_raw_inputs_too(model, images):
    encoded = model.similarity(model.encode_image(images), model.encode_text(TEXTS))
    torch.testing.assert_close(model.similarity(images, TEXTS), encoded)


def test_similarity_uses_the_matcher_that_was_trained(images):
    loss = GlobalLocalContrastiveLoss.from_preset("official")
    model = GLoRIA(Patches(), Bag(), loss=loss)
    features = model.encode_image(images), model.encode_text(TEXTS)
    expected = local_similarity(
        features[0].regions,
        features[1].words,
        features[1].word_mask,
        attention="words_then_regions",
    )
    torch.testing.assert_close(model.similarity(*features, "local"), expected)


def test_an_encoder_of_volumes_trains_and_has_maps():
    class Blocks(Patches):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv3d(1, 6, (2, 4, 4), stride=(2, 4, 4))

        def forward(self, images):
            maps = self.convolution(images)
            depth, height, width = maps.shape[2:]
            regions = maps.flatten(2).mT
            return ImageFeatures(regions.mean(1), regions, (depth * height, width))

    model, volumes = GLoRIA(Blocks(), Bag()), torch.randn(3, 1, 4, 12, 20)
    model(volumes, TEXTS).loss.backward()
    assert model.image_encoder.convolution.weight.grad.any()
    assert model.similarity(volumes, TEXTS[:2]).shape == (3, 2)
    features = model.encode_image(volumes)
    maps = model.attention_maps(features, model.encode_text(TEXTS))
    torch.testing.assert_close(maps.unflatten(2, (2, 3, 5)).sum((2, 3, 4))[:, 0], torch.ones(3))


def test_attention_gives_one_map_per_word(model, images):
    attention = model.attention(images[0], "small left effusion")
    assert attention.words == ["small", "left", "effusion"]
    assert attention.grid_maps.shape == (3, 3, 5)
    assert attention.maps.shape == (3, 12, 20)
    features, texts = model.encode_image(images[:1]), model.encode_text(["small left effusion"])
    expected = local_attention(features.regions, texts.words, texts.word_mask)
    torch.testing.assert_close(attention.grid_maps.flatten(1), expected[0])
    torch.testing.assert_close(attention.grid_maps.sum((1, 2)), torch.ones(3))


def test_a_loss_that_takes_only_what_it_names(images):
    for loss, terms in ((GlobalContrastiveLoss(), 2), (LocalContrastiveLoss(), 2)):
        output = GLoRIA(Patches(), Bag(), loss=loss)(images, TEXTS)
        assert len(output.terms) == terms
        assert 0 < output.loss < 20 * math.log(3)


def test_a_loss_that_changes_what_is_made_of_its_terms(images):
    class Scaled(GlobalContrastiveLoss):
        def forward(self, image_embeddings, text_embeddings, regions):
            return 100 * super().forward(image_embeddings, text_embeddings) + regions.numel()

    model = GLoRIA(Patches(), Bag(), loss=GlobalContrastiveLoss())
    expected = model(images, TEXTS)
    output = GLoRIA(model.image_encoder, model.text_encoder, loss=Scaled())(images, TEXTS)
    assert output.terms == {"loss": output.loss}
    added = output.images.regions.numel()
    torch.testing.assert_close(output.loss, 100 * expected.loss + added)


def test_a_loss_without_terms(images):
    class Spread(nn.Module):
        def forward(self, words, image_embeddings):
            return words.var() + image_embeddings.var()

    output = GLoRIA(Patches(), Bag(), loss=Spread())(images, TEXTS)
    assert output.terms == {"loss": output.loss}


def test_a_model_without_local_matching_says_so(images):
    model = GLoRIA(Patches(), Bag(), loss=GlobalContrastiveLoss())
    assert model.similarity(images, TEXTS, "global").shape == (3, 3)
    with pytest.raises(OptionError, match="GlobalContrastiveLoss has no local matching"):
        model.similarity(images, TEXTS, "local")
    with pytest.raises(OptionError, match="no local matching"):
        model.attention(images[0], "edema")


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_create_model_projects_everything_to_one_width(images, projection):
    model = create_model(Patches(), Bag(10), embedding_dim=7, projection=projection)
    output = model(images, TEXTS)
    assert output.images.pooled.shape == (3, 7)
    assert output.images.regions.shape == (3, 15, 7)
    assert output.texts.pooled.shape == (3, 7)
    assert output.texts.words.shape == (3, 3, 7)
    with pytest.raises(DtypeError, match="embedding_dim must be an integer; got 'text'"):
        create_model(Patches(), Bag(10), embedding_dim="text", projection=projection)


def test_create_model_without_a_width_projects_the_image_only(images):
    model = create_model(Patches(), Bag(10))
    assert isinstance(model.text_head, nn.Identity)
    assert isinstance(model.word_head, nn.Identity)
    assert isinstance(model.region_head, Projection)
    assert model(images, TEXTS).images.regions.shape == (3, 15, 10)


def test_bad_input_is_named(model, images):
    with pytest.raises(OptionError, match="kind must be one of 'global', 'local', 'both'"):
        model.similarity(images, TEXTS, "fused")
    with pytest.raises(ShapeError, match=re.escape("image must be (channel, height, width)")):
        model.attention(images, "edema")
    with pytest.raises(DtypeError, match=r"image must be a tensor .*; got list"):
        model.attention(images[0].tolist(), "edema")
    with pytest.raises(ShapeError, match="3 images and 2 texts"):
        model(images, TEXTS[:2])
    with pytest.raises(EmptyTextError, match=r"texts\[1\] has no word"):
        model(images, ["edema", "", "effusion"])
    with pytest.raises(DtypeError, match="got one string"):
        model.encode_text("edema")
    with pytest.raises(OptionError, match="image_options go with a name; got them with a Patches"):
        create_model(Patches(), Bag(), image_options={"pretrained": True})
    with pytest.raises(ShapeError, match="features must be 6 wide"):
        create_model(Patches(), Bag()).region_head(torch.zeros(1, 5))


@pytest.mark.parametrize("loss", [SPARCLoss(), MGCALoss()], ids=["sparc", "mgca"])
def test_a_loss_with_maps_of_its_own_shows_them(loss, images):
    model = create_model(Patches(), Bag(), loss=loss).eval()
    attention = model.attention(images[0], "small left effusion")
    features, texts = model.encode_image(images[:1]), model.encode_text(["small left effusion"])
    expected = loss.attention_maps(features.regions, texts.words, texts.word_mask)
    torch.testing.assert_close(attention.grid_maps.flatten(1), expected[0])
    torch.testing.assert_close(attention.grid_maps.sum((1, 2)), torch.ones(3))


def test_attention_is_laid_where_the_encoder_says_its_regions_are(model, images):
    tiles = model.attention(images[0], "edema")
    model.image_encoder.region_geometry = RegionGeometry(4.0, 0.0)
    odd = model.attention(images[0], "edema")
    assert torch.equal(tiles.grid_maps, odd.grid_maps)
    # a region's own value stands on its centre: pixel 4i of odd kernels
    torch.testing.assert_close(odd.maps[0, ::4, ::4], odd.grid_maps[0])
    assert not torch.allclose(tiles.maps, odd.maps)


def test_an_encoder_s_regions_may_be_further_apart_one_way_than_the_other(images):
    class Oblong(Patches):
        """Kernels of 3 x 5, padded to stay centred, every 2 rows and 4 columns."""

        region_geometry = RegionGeometry((2.0, 4.0), 0.0)

        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(1, 6, (3, 5), stride=(2, 4), padding=(1, 2))

    attention = GLoRIA(Oblong(), Bag()).eval().attention(images[0], "edema")
    assert attention.grid_maps.shape == (1, 6, 5)
    assert attention.maps.shape == (1, 12, 20)
    torch.testing.assert_close(attention.maps[0, ::2, ::4], attention.grid_maps[0])


def test_without_a_kind_it_is_all_that_the_loss_compares(images):
    both = GLoRIA(Patches(), Bag())
    whole = GLoRIA(Patches(), Bag(), loss=GlobalContrastiveLoss())
    torch.testing.assert_close(
        both.similarity(images, TEXTS), both.similarity(images, TEXTS, "both")
    )
    torch.testing.assert_close(
        whole.similarity(images, TEXTS), whole.similarity(images, TEXTS, "global")
    )


@pytest.mark.parametrize("loss", [LocalContrastiveLoss(), FILIPLoss(), ColBERTLoss()])
def test_a_loss_that_trains_no_pooled_features_does_not_score_by_them(loss, images):
    """Their projections are as they were made: the cosine of them would be chance."""
    local = GLoRIA(Patches(), Bag(), loss=loss)
    features = local.encode_image(images), local.encode_text(TEXTS)
    expected = loss.similarity(features[0].regions, features[1].words, features[1].word_mask)
    torch.testing.assert_close(local.similarity(*features), expected)
    torch.testing.assert_close(local.similarity(*features, "local"), expected)


def test_only_our_local_loss_can_be_told_another_aggregation(images):
    model = GLoRIA(Patches(), Bag(), loss=ColBERTLoss())
    with pytest.raises(OptionError, match="aggregation is for LocalContrastiveLoss; the model's"):
        model.similarity(images, TEXTS, aggregation="max")


def test_a_wrapped_local_loss_can_be_told_too(images):
    loss = LocalContrastiveLoss()
    plain, wrapped = GLoRIA(Patches(), Bag(), loss=loss), GLoRIA(Patches(), Bag(), loss=loss)
    wrapped.load_state_dict(plain.state_dict())
    wrapped.loss = torch.compile(AcrossRanks(loss), backend="eager")
    for aggregation in ("max", None):
        expected = plain.similarity(images, TEXTS, aggregation=aggregation)
        torch.testing.assert_close(
            wrapped.similarity(images, TEXTS, aggregation=aggregation), expected
        )


@torch.no_grad()
def test_compiled_parts_are_composed(images):
    parts = {"loss": LocalContrastiveLoss(), "region_head": nn.Linear(6, 6), "word_head": nn.Tanh()}
    plain = GLoRIA(Patches(), Bag(), **parts)
    compiled = {name: torch.compile(part, backend="eager") for name, part in parts.items()}
    composed = GLoRIA(plain.image_encoder, plain.text_encoder, **compiled)
    torch.testing.assert_close(composed(images, TEXTS).loss, plain(images, TEXTS).loss)


@pytest.mark.parametrize("tokenized", [False, True])
def test_compiled_it_is_not_compiled_anew_for_other_words(tokenized):
    model = GLoRIA(Patches(), Bag())
    encode = torch.compile(model.encode_text, backend="eager")
    batches = [["small edema", "no effusion"], ["left effusion", "no edema"]]
    for texts in batches:
        given = model.text_encoder.tokenize(texts) if tokenized else texts
        with torch._dynamo.config.patch(error_on_recompile=texts is batches[1]):
            features = encode(given)
        assert features.tokens == [text.split() for text in texts]
        assert torch.equal(features.words, model.encode_text(texts).words)


class Scores(nn.Module):
    """What is deployed: images against texts that are encoded already."""

    def __init__(self, model, texts):
        super().__init__()
        self.model = model
        self.texts = model.encode_text(texts)

    def forward(self, images):
        return self.model.similarity(images, self.texts)


@torch.no_grad()
def test_scores_export_for_any_number_of_images(model, images):
    scores = Scores(model, TEXTS)
    axes = ({0: torch.export.Dim("image")},)
    exported = torch.export.export(scores, (images[:2],), dynamic_shapes=axes).module()
    torch.testing.assert_close(exported(images), model.similarity(images, TEXTS))
