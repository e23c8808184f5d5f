"""A batch encoded some pairs at a time: its loss and gradient are those of the whole."""

import copy

import pytest
import torch
from torch import nn

from gloria.errors import OptionError
from gloria.mini_batches import join_images, join_texts, split_texts
from gloria.model import GLoRIA
from gloria.types import ImageFeatures, ImageInput, TextFeatures, TokenizedText

TEXTS = ["small left effusion", "edema", "no effusion", "left edema", "small"]
VOCABULARY = sorted({word for text in TEXTS for word in text.split()})


class Regions(nn.Module):
    """Two convolutions with what is random, and what remembers, between them; a masked region."""

    pooled_dim = region_dim = 6
    image_input = ImageInput(1, None, (0.5,), (0.5,))

    def __init__(self, momentum=0.1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8, momentum=momentum),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 6, 4, stride=4),
        )
        self.seen = []

    def forward(self, images):
        self.seen.append(len(images))
        maps = self.layers(images)
        regions = maps.flatten(2).mT
        mask = torch.ones(regions.shape[:2], dtype=torch.bool)
        mask[:, -1] = False
        return ImageFeatures(maps.mean((2, 3)), regions, tuple(maps.shape[2:]), mask)


class Words(nn.Module):
    """Gives no more positions than the texts that it is given need."""

    pooled_dim = word_dim = 6

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(VOCABULARY), 6)
        self.dropout = nn.Dropout(0.5)
        self.seen = []

    def tokenize(self, texts):
        tokens = [text.split() for text in texts]
        ids = torch.zeros(len(texts), 4, dtype=torch.long)
        word_ids = torch.full((len(texts), 4), -1)
        for n, words in enumerate(tokens):
            ids[n, : len(words)] = torch.tensor([VOCABULARY.index(word) for word in words])
            word_ids[n, : len(words)] = torch.arange(len(words))
        return TokenizedText({"input_ids": ids}, word_ids, tokens)

    def forward(self, texts):
        self.seen.append(len(texts.tokens))
        mask = texts.word_ids >= 0
        longest = int(mask.sum(1).max())
        words = self.dropout(self.embedding(texts.inputs["input_ids"][:, :longest]))
        mask = mask[:, :longest]
        pooled = (words * mask[..., None]).sum(1)
        return TextFeatures(pooled, words, mask, texts.tokens)


def build(momentum=0.1, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GLoRIA(Regions(momentum), Words(), region_head=nn.Linear(6, 6)).to(dtype)


@pytest.fixture
def images():
    return torch.randn(5, 1, 8, 12, generator=torch.Generator().manual_seed(1)).double()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def by_hand(model, images, size):
    """The loss of all, of mini-batches whose graphs are kept."""
    texts = split_texts(model.tokenize(TEXTS), size)
    some_images = [model.encode_image(some) for some in images.split(size)]
    some_texts = [model.encode_text(some) for some in texts]
    return model.compute_loss(join_images(some_images), join_texts(some_texts))[0]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("tokenized", [False, True])
def test_loss_terms_and_gradient_are_those_of_the_whole_batch(size, tokenized, images):
    whole, some = build().eval(), build().eval()
    expected = whole(images, TEXTS)
    expected.loss.backward()
    texts = some.tokenize(TEXTS) if tokenized else TEXTS
    output = some(images.requires_grad_(), texts, mini_batch_size=size)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.terms, expected.terms)
    torch.testing.assert_close(output.images._asdict(), expected.images._asdict())
    assert output.texts.tokens == expected.texts.tokens
    mask = expected.texts.word_mask
    assert torch.equal(output.texts.word_mask, mask)
    torch.testing.assert_close(output.texts.words[mask], expected.texts.words[mask])
    torch.testing.assert_close(output.texts.pooled, expected.texts.pooled)
    torch.testing.assert_close(gradients(some), gradients(whole))
    assert images.grad.abs().amax((1, 2, 3)).min() > 0  # each image's own


@pytest.mark.parametrize("synchronised", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("size", [2, 5])
def test_in_training_dropout_is_the_same_and_statistics_count_once(
    synchronised, momentum, size, images
):
    kept, again = build(momentum), build(momentum)
    if synchronised:
        kept, again = map(nn.SyncBatchNorm.convert_sync_batchnorm, (kept, again))
    for model in (kept, again):
        torch.manual_seed(2)
        if model is kept:
            loss = by_hand(model, images, size)
        else:
            loss = model(images, TEXTS, mini_batch_size=size).loss
        state = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), state)
    assert again.image_encoder.seen[0] == size
    # to the bit: the same operations in the same order
    assert all(torch.equal(a, b) for a, b in zip(kept.buffers(), again.buffers(), strict=True))
    torch.testing.assert_close(gradients(again), gradients(kept), rtol=0, atol=0)
    norm = again.image_encoder.layers[1]
    assert norm.momentum == momentum
    assert norm.num_batches_tracked == len(images.split(size))


def test_under_autocast_both_times_are_in_half_precision(images):
    kept, again = build(dtype=torch.float32), build(dtype=torch.float32)
    for model in (kept, again):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16):
            if model is kept:
                loss = by_hand(model, images.float(), 2)
            else:
                loss = model(images.float(), TEXTS, mini_batch_size=2).loss
        loss.backward()
    torch.testing.assert_close(gradients(again), gradients(kept), rtol=0, atol=0)


def test_a_graph_keeps_nothing_of_the_encoders(images):
    """Nothing in it is as large as what a convolution makes of one image."""

    def kept(**how):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda each: sizes.append(each.untyped_storage().nbytes()) or each, lambda each: each
        ):
            model(images, TEXTS, **how)
        return sizes

    model = build()
    of_one = 8 * 8 * 12 * 8  # bytes
    assert max(kept()) >= 5 * of_one
    assert max(kept(mini_batch_size=1)) < of_one


def test_the_backward_encodes_a_mini_batch_once_more(images):
    model = build()
    loss = model(images, TEXTS, mini_batch_size=2).loss
    assert model.image_encoder.seen == model.text_encoder.seen == [2, 2, 1]
    loss.backward()
    assert sorted(model.image_encoder.seen) == sorted(model.text_encoder.seen) == [1, 1, 2, 2, 2, 2]
    with torch.no_grad():
        output = model.eval()(images, TEXTS, mini_batch_size=4)
        torch.testing.assert_close(output.loss, model(images, TEXTS).loss)
    assert not output.loss.requires_grad
    model.text_encoder.requires_grad_(False)
    del model.text_encoder.seen[:]
    model(images, TEXTS, mini_batch_size=3).loss.backward()
    assert model.text_encoder.seen == [3, 2]  # frozen: no second time


def test_a_graph_that_is_kept_has_any_number_of_backwards(images):
    kept, again = build(), build()
    for model in (kept, again):
        torch.manual_seed(2)
        if model is kept:
            loss = by_hand(model, images, 2)
        else:
            loss = model(images, TEXTS, mini_batch_size=2).loss
        loss.backward(retain_graph=True)
        weights = list(model.image_encoder.parameters())
        norm = sum(
            each.square().sum() for each in torch.autograd.grad(loss, weights, create_graph=True)
        )
        norm.backward()
    torch.testing.assert_close(gradients(again), gradients(kept))
    assert all(torch.equal(a, b) for a, b in zip(kept.buffers(), again.buffers(), strict=True))


def test_regions_of_mini_batches_without_a_mask_are_real():
    masked, whole = (ImageFeatures(torch.ones(n, 2), torch.ones(n, 6, 2), (2, 3)) for n in (1, 2))
    mask = torch.tensor([[True, False, True, True, False, True]])
    every = torch.ones(2, 6, dtype=torch.bool)
    for parts, expected in (
        ([masked._replace(region_mask=mask), whole], torch.cat([mask, every])),
        ([whole, masked._replace(region_mask=mask)], torch.cat([every, mask])),
    ):
        assert torch.equal(join_images(parts).region_mask, expected)
    assert join_images([whole, masked]).region_mask is None


def test_an_error_in_the_backward_leaves_the_norms_as_they_were(images):
    model = build()
    loss = model(images, TEXTS, mini_batch_size=2).loss
    model.image_encoder.layers[-1].register_forward_pre_hook(lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    assert model.image_encoder.layers[1].momentum == 0.1
    assert model.image_encoder.layers[1].num_batches_tracked == 3


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_it_is_the_same(images):
    model = build().eval()
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    for each in (model, compiled):
        each(images, TEXTS, mini_batch_size=2).loss.backward()
    found = {name.removeprefix("_orig_mod."): p for name, p in gradients(compiled).items()}
    torch.testing.assert_close(found, gradients(model))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_what_is_no_number_of_pairs(size, images):
    with pytest.raises((OptionError, TypeError), match="mini_batch_size must be"):
        build()(images, TEXTS, mini_batch_size=size)


def test_as_many_images_as_texts(images):
    with pytest.raises(ValueError, match="4"):
        build()(images[:4], TEXTS, mini_batch_size=2)
