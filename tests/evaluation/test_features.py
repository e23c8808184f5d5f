"""Features of whole data sets: neither batch, nor block, nor the model's mode shows in them."""

import copy
import os
import sys
import threading

import pytest
import torch
from torch import nn

from gloria.data import ImageReport
from gloria.data.images import normalize
from gloria.data.phantom import PhantomDataset
from gloria.errors import (
    DataError,
    DtypeError,
    EmptyTextError,
    OptionError,
    ShapeError,
    UnknownWordWarning,
)
from gloria.evaluation.features import (
    encode_images,
    encode_items,
    encode_prompts,
    encode_texts,
    evaluating,
    pair_similarity,
    select_images,
    select_texts,
    similarity_by_kind,
)
from gloria.evaluation.phantoms import evaluate_gallery, evaluate_grounding
from gloria.training.randomness import isolated
from gloria.training.small import small_model
from gloria.types import ImageFeatures, TextFeatures, TokenizedText

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

KINDS = ["global", "local", "both"]


@pytest.fixture(scope="module")
def items():
    return list(PhantomDataset("val_5x1"))


@pytest.fixture(scope="module")
def trained():
    """A model in training: dropout, batch statistics, and a part that is frozen in eval mode."""
    reports = [item.report for item in PhantomDataset("test", count=60)]
    with isolated(0):
        model = small_model(reports)
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    return model


def test_a_model_of_another_dtype_takes_films_as_they_are(items, trained):
    images = [torch.from_numpy(item.image)[None].float() / 255 for item in items]
    expected = encode_images(trained, images)
    exact = encode_images(copy.deepcopy(trained).double(), images)
    torch.testing.assert_close(exact.regions.float(), expected.regions, rtol=1e-4, atol=1e-5)
    half = encode_images(copy.deepcopy(trained).bfloat16(), images)
    assert half.regions.dtype == torch.bfloat16
    assert (half.pooled - expected.pooled).norm() < 0.05 * expected.pooled.norm()
    again = encode_images(trained, [image.double() for image in images])
    torch.testing.assert_close(again.pooled, expected.pooled)


def draw_features(images, texts, *, masked=False, seed=0):
    """Features as encoders return them, with texts of 1 to 9 words in no order."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (texts,), generator=generator)
    longest = int(lengths.max())
    region_mask = torch.rand(images, 12, generator=generator) < 0.7
    region_mask[:, 5] = True
    return (
        ImageFeatures(
            torch.randn(images, 6, generator=generator),
            torch.randn(images, 12, 6, generator=generator),
            (3, 4),
            region_mask if masked else None,
        ),
        TextFeatures(
            torch.randn(texts, 6, generator=generator),
            torch.randn(texts, longest, 6, generator=generator),
            torch.arange(longest) < lengths[:, None],
            [[f"{text}.{word}" for word in range(n)] for text, n in enumerate(lengths.tolist())],
        ),
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("images", "texts"), [(1, 1), (1, 7), (7, 1), (13, 11), (8, 4)])
def test_blocks_give_the_similarity_of_the_whole(trained, images, texts, kind, masked):
    features = draw_features(images, texts, masked=masked)
    with evaluating(trained):
        expected = trained.similarity(*features, kind)
    assert expected.shape == (images, texts)
    for block in (1, 4, 64):
        actual = pair_similarity(trained, *features, kind, block)
        torch.testing.assert_close(actual, expected)
        assert not actual.requires_grad


def test_images_do_not_depend_on_the_batch(trained, items):
    images = list(torch.rand(5, 1, 40, 56, generator=torch.Generator().manual_seed(0)))
    parts = [encode_images(trained, images, batch) for batch in (1, 3, 64)]
    with evaluating(trained):
        expected = trained.encode_image(
            normalize(torch.stack(images), trained.image_encoder.image_input)
        )
    for part in parts:
        torch.testing.assert_close(part.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.regions, expected.regions, rtol=1e-4, atol=1e-5)
        assert part.grid == expected.grid == (5, 7)
        assert part.region_mask is None
        assert not part.regions.requires_grad


def test_texts_do_not_depend_on_the_batch(trained, items):
    texts = ["edema.", *(item.report for item in items), "no pleural effusion."]
    parts = [encode_texts(trained, texts, batch) for batch in (1, 3, 64)]
    with evaluating(trained):
        expected = trained.encode_text(texts)
    for part in parts:
        assert torch.equal(part.word_mask, expected.word_mask)
        assert part.tokens == expected.tokens
        torch.testing.assert_close(part.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
        real = expected.word_mask
        torch.testing.assert_close(part.words[real], expected.words[real], rtol=1e-4, atol=1e-5)
        assert not part.words.requires_grad


def test_a_region_mask_goes_through_batches(trained, monkeypatch):
    masks = torch.rand(5, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    encode = trained.encode_image

    def with_mask(images):
        chosen = images[:, 0, 0, 0].mul(10).round().long()
        return encode(images)._replace(region_mask=masks[chosen])

    monkeypatch.setattr(trained, "encode_image", with_mask)
    monkeypatch.setattr(
        trained.image_encoder,
        "image_input",
        trained.image_encoder.image_input._replace(mean=(0.0,), std=(1.0,)),
    )
    images = [torch.full((1, 40, 32), number / 10) for number in range(5)]
    assert torch.equal(encode_images(trained, images, 2).region_mask, masks)


def test_every_way_in_restores_the_modes_of_the_model(trained, items):
    modes = {name: module.training for name, module in trained.named_modules()}
    assert len(set(modes.values())) == 2
    images, texts = draw_features(2, 2)
    evaluate_gallery(trained, items, ks=(1,))
    evaluate_grounding(trained, list(PhantomDataset("test", count=12)))
    pair_similarity(trained, images, texts)
    assert modes == {name: module.training for name, module in trained.named_modules()}
    with evaluating(trained):
        assert not any(module.training for module in trained.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(OptionError):  # on the way out of an error as well
        pair_similarity(trained, images, texts, "none")
    assert modes == {name: module.training for name, module in trained.named_modules()}
    assert torch.is_grad_enabled()


def test_of_several_threads_the_last_restores_the_modes(trained):
    before = [module.training for module in trained.modules()]
    entered, may_leave = threading.Event(), threading.Event()

    def evaluate():
        with evaluating(trained):
            entered.set()
            assert may_leave.wait(60)

    thread = threading.Thread(target=evaluate)
    with evaluating(trained):
        thread.start()
        assert entered.wait(60)
    assert not any(module.training for module in trained.modules())
    may_leave.set()
    thread.join()
    assert [module.training for module in trained.modules()] == before


def test_evaluation_leaves_the_batch_statistics_alone(trained, items):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    evaluate_gallery(trained, items, ks=(1,))
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(
    "index", [torch.tensor([3, 0, 0]), slice(1, 3), torch.tensor([1, 0, 0, 1]) > 0]
)
def test_selected_images_keep_what_belongs_together(index):
    images, _ = draw_features(4, 1, masked=True)
    chosen = select_images(images, index)
    rows = torch.arange(4)[index].tolist()
    for place, row in enumerate(rows):
        assert torch.equal(chosen.pooled[place], images.pooled[row])
        assert torch.equal(chosen.regions[place], images.regions[row])
        assert torch.equal(chosen.region_mask[place], images.region_mask[row])
    assert len(chosen.pooled) == len(chosen.regions) == len(chosen.region_mask) == len(rows)
    assert chosen.grid == images.grid
    assert select_images(images._replace(region_mask=None), index).region_mask is None


@pytest.mark.parametrize("rows", [[2], [4, 0, 4, 1], range(5), []])
def test_selected_texts_keep_what_belongs_together(rows):
    _, texts = draw_features(1, 5)
    chosen = select_texts(texts, iter(rows))
    assert len(chosen.pooled) == len(chosen.words) == len(chosen.tokens) == len(rows)
    for place, row in enumerate(rows):
        assert torch.equal(chosen.pooled[place], texts.pooled[row])
        assert torch.equal(chosen.words[place], texts.words[row])
        assert torch.equal(chosen.word_mask[place], texts.word_mask[row])
        assert chosen.tokens[place] == texts.tokens[row]
        assert int(chosen.word_mask[place].sum()) == len(chosen.tokens[place])


def test_nothing_to_encode_or_compare_is_an_error(trained):
    images, texts = draw_features(2, 2)
    with pytest.raises(DataError, match="images must hold at least one image"):
        encode_images(trained, [])
    with pytest.raises(DataError, match="texts must hold at least one text"):
        encode_texts(trained, [])
    with pytest.raises(DataError, match="images must hold at least one; there is nothing"):
        pair_similarity(trained, select_images(images, slice(0)), texts)
    with pytest.raises(DataError, match="texts must hold at least one; there is nothing"):
        pair_similarity(trained, images, select_texts(texts, []))


def test_what_is_not_encoded_is_told_how_to_be(trained):
    images, texts = draw_features(2, 2)
    for compare in (pair_similarity, similarity_by_kind):
        with pytest.raises(DtypeError, match=r"images must be ImageF.*encode_images.* got Tensor"):
            compare(trained, torch.rand(2, 1, 32, 32), texts)
        with pytest.raises(
            DtypeError, match=r"texts must be TextFeatures.*encode_texts.* got list"
        ):
            compare(trained, images, ["Edema."])


@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (torch.ones(1, 32, 48), DataError, r"of one size; images\[1\] is \(1, 32, 48\), the first"),
        (
            torch.full((1, 32, 32), 255.0),
            DataError,
            r"images\[1\] must have values in \[0, 1\]; got 255 to 255. Divide",
        ),
        (torch.full((1, 32, 32), -1.0), DataError, r"got -1 to -1.* leave normalising out"),
        (torch.full((1, 32, 32), torch.nan), DataError, r"images\[1\] holds NaN"),
        (torch.ones(1, 32, 32).byte(), DtypeError, r"images\[1\] must be a floating-point tensor"),
        (torch.ones(32, 32), ShapeError, r"images\[1\] must be \(channel, height, width\)"),
        (torch.ones(1, 32, 32).numpy(), DtypeError, r"images\[1\] must be a tensor"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_images_that_an_encoder_would_misread_are_errors(
    trained, batch_size, second, error, message
):
    with pytest.raises(error, match=message):
        encode_images(trained, [torch.ones(1, 32, 32), second], batch_size)


def test_batches_of_nothing_are_an_error(trained):
    images, texts = draw_features(2, 2)
    with pytest.raises(OptionError, match="batch_size must be at least 1; got 0"):
        encode_images(trained, [torch.zeros(1, 64, 64)], 0)
    with pytest.raises(OptionError, match="batch_size must be at least 1; got -1"):
        encode_texts(trained, ["edema"], -1)
    with pytest.raises(OptionError, match="block must be at least 1; got 0"):
        pair_similarity(trained, images, texts, block=0)
    with pytest.raises(OptionError, match="kind"):
        pair_similarity(trained, images, texts, "none")


def test_the_fused_score_is_the_weighted_sum(trained):
    features = draw_features(5, 4)
    parts = [pair_similarity(trained, *features, kind) for kind in ("global", "local")]
    fused = pair_similarity(trained, *features, weights=(0.3, 2.0))
    torch.testing.assert_close(fused, 0.3 * parts[0] + 2 * parts[1])
    assert not torch.allclose(fused, pair_similarity(trained, *features), atol=1e-2)


def test_words_can_be_aggregated_in_another_way(trained):
    """The maximum of words is that of texts of one word, where words attend on their own."""
    assert trained.local_loss.attention == "regions"
    images, texts = draw_features(5, 4)
    maxima = pair_similarity(trained, images, texts, "local", aggregation="max")
    for number, length in enumerate(texts.word_mask.sum(1).tolist()):
        words = texts._replace(
            pooled=texts.pooled[number].expand(length, -1),
            words=texts.words[number, :length, None],
            word_mask=torch.ones(length, 1, dtype=torch.bool),
            tokens=[["word"]] * length,
        )
        alone = pair_similarity(trained, images, words, "local", aggregation="max")
        torch.testing.assert_close(maxima[:, number], alone.amax(1))
    fused = pair_similarity(trained, images, texts, aggregation="max", weights=(0.5, 2.5))
    expected = 0.5 * pair_similarity(trained, images, texts, "global") + 2.5 * maxima
    torch.testing.assert_close(fused, expected)


def test_every_kind_at_once(trained):
    features = draw_features(5, 4, masked=True)
    options = {"aggregation": "max", "weights": (0.2, 1.5)}
    compared = []
    found = similarity_by_kind(trained, *features, **options, progress=compared.append)
    assert list(found) == KINDS
    for kind in KINDS:
        expected = pair_similarity(trained, *features, kind, **options)
        torch.testing.assert_close(found[kind], expected)
    assert compared == [5]


@pytest.mark.parametrize("loss", ["global_contrastive", "local_contrastive"])
def test_a_loss_of_one_kind_gives_that_kind(loss, items):
    with isolated(0):
        model = small_model([item.report for item in items], loss=loss)
    features = draw_features(3, 4)
    compared = []
    found = similarity_by_kind(model, *features, progress=compared.append)
    kind = loss.partition("_")[0]
    assert model.trained_kind == kind
    assert list(found) == [kind]
    assert torch.equal(found[kind], pair_similarity(model, *features, kind))
    assert compared == [3]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, float("nan")), "weights must be a finite number"),
        ((float("inf"), 1.0), "weights must be a finite number"),
        ((1.0,), r"weights must be \(global, local\), two numbers; got \(1.0,\)"),
        ((1.0, 1.0, 1.0), "two numbers"),
        (0.5, "two numbers; got 0.5"),
    ],
)
def test_weights_that_are_not_two_numbers_are_an_error(trained, weights, message):
    for function in (pair_similarity, similarity_by_kind):
        with pytest.raises(OptionError, match=message):
            function(trained, *draw_features(2, 2), weights=weights)


def test_progress_counts_everything(trained):
    done = []
    encode_images(trained, iter(torch.rand(5, 1, 32, 32)), 2, progress=done.append)
    assert done == [2, 2, 1]
    done.clear()
    encode_texts(trained, ["edema"] * 5, 3, progress=done.append)
    assert done == [3, 2]
    done.clear()
    pair_similarity(trained, *draw_features(5, 4), block=4, progress=done.append)
    assert done == [4, 1]


def test_a_text_without_a_word_is_refused_for_an_encoder_that_takes_it(trained, monkeypatch):
    tokenize = trained.text_encoder.tokenize

    def lenient(texts):
        inputs, word_ids, _ = tokenize(["edema"] * len(texts))
        return TokenizedText(inputs, word_ids, [text.split() for text in texts])

    monkeypatch.setattr(trained.text_encoder, "tokenize", lenient)
    with pytest.raises(EmptyTextError, match=r"texts\[1\] has no word"):
        encode_texts(trained, ["edema", " "])
    with pytest.raises(EmptyTextError, match=r"texts\[1\] has .* counts from texts\[4\] on"):
        encode_texts(trained, [*["edema"] * 5, " "], 2)


def test_images_are_taken_a_batch_at_a_time(trained):
    """A generator that reads files holds no more than a batch."""
    taken, encoded = [], []

    def read():
        for number in range(6):
            assert number - sum(encoded) < 2
            taken.append(number)
            yield torch.full((1, 32, 32), number / 6)

    features = encode_images(trained, read(), 2, progress=encoded.append)
    assert len(features.pooled) == len(taken) == 6


def test_a_text_encoder_that_cannot_tell_unknown_words_is_not_asked(trained, monkeypatch):
    with pytest.warns(UnknownWordWarning, match="lacks '☃'") as warned:
        features = encode_prompts(trained, ["effusion ☃"])
    assert warned[0].filename == __file__
    encoder = trained.text_encoder

    class Silent(nn.Module):
        tokenize = encoder.tokenize
        pooled_dim, word_dim = encoder.pooled_dim, encoder.word_dim

        def forward(self, texts):
            return encoder(texts)

    monkeypatch.setattr(trained, "text_encoder", Silent())
    again = encode_prompts(trained, ["effusion ☃"])  # a warning is an error
    assert again.tokens == features.tokens


class Noise:
    """Items that come to be where they are loaded."""

    def __len__(self):
        return 150

    def __getitem__(self, index):
        return ImageReport(torch.rand(1, 32, 32), "")


@pytest.mark.skipif(sys.platform != "linux", reason="counts open files in /proc")
def test_a_batch_from_another_process_keeps_one_file_open(trained):
    resource = pytest.importorskip("resource")
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, usual[1]))
    try:
        features = encode_items(trained, Noise(), batch_size=150, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
    assert features.pooled.shape[0] == 150
