"""The headline figures, on an oracle that knows the masks: its figures are known beforehand."""

import pytest
import torch
from torch import nn

from gloria.data.phantom import (
    FINDINGS,
    RETRIEVAL_CLASSES,
    PhantomDataset,
    phantom_prompts,
    split_words,
)
from gloria.errors import DataError
from gloria.evaluation.features import encode_images, encode_texts, select_texts
from gloria.evaluation.phantoms import (
    evaluate_gallery,
    evaluate_grounding,
    grounding_examples,
    mention_maps,
    pictures,
)
from gloria.model import GLoRIA
from gloria.training.randomness import isolated
from gloria.training.small import small_model
from gloria.types import ImageFeatures, ImageInput, TextFeatures, TokenizedText

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

HEIGHT, WIDTH = GRID = 16, 8  # not square, so that rows can't pass for columns
LURE, BACKGROUND = len(FINDINGS), len(FINDINGS) + 1  # channels beside those of the findings
DIM = len(FINDINGS) + 2
SHARPNESS = 6.0


class OracleImages(nn.Module):
    """A region carries the one-hot vectors of the findings whose masks cover it.

    The picture is looked up by its bytes. No finding covers the lower left corner: the lure, which
    all words attend to that name no finding. With ``masked_rows``, the uppermost regions are no
    real ones, and whoever attends to them nevertheless finds every finding there.
    """

    pooled_dim = region_dim = DIM
    image_input = ImageInput(1, None, (0.0,), (1.0,))

    def __init__(self, items, masked_rows=0):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))  # says where the model is
        self.items = {item.image.tobytes(): item for item in items}
        self.masked_rows = masked_rows

    def forward(self, images):
        found = [
            self.items[(image[0] * 255).round().to(torch.uint8).numpy().tobytes()]
            for image in images
        ]
        pooled, maps = torch.zeros(len(found), DIM), torch.zeros(len(found), *GRID, DIM)
        for row, item in enumerate(found):
            masks = torch.from_numpy(item.masks).float()
            covered = nn.functional.adaptive_avg_pool2d(masks, GRID)
            maps[row, ..., : len(FINDINGS)] = covered.permute(1, 2, 0)
            pooled[row, : len(FINDINGS)] = torch.from_numpy(item.labels).float()
        maps[..., BACKGROUND] = 1 - maps[..., : len(FINDINGS)].amax(-1)
        maps[:, -1, 0] = torch.eye(DIM)[LURE]
        mask = None
        if self.masked_rows:
            maps[:, : self.masked_rows] = 3.0
            mask = torch.ones(len(found), *GRID, dtype=torch.bool)
            mask[:, : self.masked_rows] = False
            mask = mask.flatten(1)
        return ImageFeatures(pooled, maps.flatten(1, 2), GRID, mask)


class OracleTexts(nn.Module):
    """Words that name a finding, by the mention's span, carry its one-hot vector."""

    pooled_dim = word_dim = DIM

    def __init__(self, items):
        super().__init__()
        self.spans = {
            item.report: [
                (FINDINGS.index(each.finding), slice(each.start, each.stop))
                for each in item.mentions
                if each.polarity == "positive"
            ]
            for item in items
        }
        for name, prompts in phantom_prompts().items():
            self.spans |= {prompt: [(FINDINGS.index(name), slice(None))] for prompt in prompts}

    def tokenize(self, texts):
        tokens = [split_words(text) for text in texts]
        longest = max(map(len, tokens))
        word_ids = torch.tensor(
            [[*range(len(words)), *[-1] * (longest - len(words))] for words in tokens]
        )
        words = torch.zeros(*word_ids.shape, DIM)
        words[..., LURE] = SHARPNESS
        for row, text in enumerate(texts):
            for finding, span in self.spans[text]:
                words[row, span] = SHARPNESS * torch.eye(DIM)[finding]
        return TokenizedText({"words": words}, word_ids, tokens)

    def forward(self, texts):
        words, mask = texts.inputs["words"], texts.word_ids >= 0
        pooled = words.amax(1).clone()
        pooled[:, LURE] = 0
        return TextFeatures(pooled, words, mask, texts.tokens)


def oracle(items, masked_rows=0):
    return GLoRIA(OracleImages(items, masked_rows), OracleTexts(items))


@pytest.fixture(scope="module")
def items():
    return list(PhantomDataset("test", count=80))


@pytest.fixture(scope="module")
def gallery():
    """Twelve images of each class, with reports that mention the finding: 3 % do not."""
    drawn = [
        item
        for item in PhantomDataset("test_5x16")
        if any(mention.polarity == "positive" for mention in item.mentions)
    ]
    return [
        item
        for name in RETRIEVAL_CLASSES
        for item in [each for each in drawn if each.case[0].name == name][:12]
    ]


@pytest.fixture(scope="module")
def grounding(items):
    return evaluate_grounding(oracle(items), items)


def test_words_that_attend_to_the_mask_score_almost_everything(grounding, items):
    matched = grounding["matched"]
    assert matched["auroc"] > 0.97
    assert matched["peak_near_mask"] == 1
    assert matched["correct_side"] == 1
    for name, figures in matched["per_finding"].items():
        assert figures["auroc"] > 0.93, name
        assert figures["peak_near_mask"] == 1, name


def test_another_image_scores_clearly_less(grounding):
    """What it reaches is the usual place: much for the heart, little for what may be anywhere."""
    matched, other = grounding["matched"], grounding["other_image"]
    assert other["auroc"] < matched["auroc"] - 0.1
    assert other["peak_near_mask"] < 0.8
    assert other["correct_side"] < 0.75
    assert other["per_finding"]["cardiomegaly"]["peak_near_mask"] > 0.9
    for name in ("atelectasis", "consolidation", "pneumothorax"):
        assert other["per_finding"][name]["auroc"] < matched["per_finding"][name]["auroc"] - 0.15


def test_every_mention_counts_once_and_sides_only_of_one_sided_findings(grounding, items):
    mentioned = [
        (item, mention.finding)
        for item in items
        for mention in item.mentions
        if mention.polarity == "positive"
    ]
    one_sided = [item.sides[name] in ("left", "right") for item, name in mentioned]
    assert grounding["mentions"] == len(mentioned)
    for which in ("matched", "other_image"):
        assert grounding[which]["auroc_count"] == len(mentioned)
        assert grounding[which]["peak_near_mask_count"] == len(mentioned)
        assert grounding[which]["correct_side_count"] == sum(one_sided)
        per_finding = grounding[which]["per_finding"]
        assert set(per_finding) == set(FINDINGS)
        assert sum(figures["auroc_count"] for figures in per_finding.values()) == len(mentioned)
        assert "correct_side" not in per_finding["cardiomegaly"]
        mean = sum(each["auroc"] * each["auroc_count"] for each in per_finding.values())
        assert grounding[which]["auroc"] == pytest.approx(mean / len(mentioned))


def test_regions_that_are_not_real_get_no_attention(grounding, items):
    masked = evaluate_grounding(oracle(items, masked_rows=2), items)["matched"]
    assert masked["peak_near_mask"] == 1
    assert masked["auroc"] > 0.95


@pytest.mark.parametrize("other_image", [False, True])
def test_maps_do_not_depend_on_the_block(items, other_image):
    model, examples = oracle(items), grounding_examples(items)[:21]
    images = encode_images(model, pictures(items))
    texts = encode_texts(model, [item.report for item in items])
    whole, parts = (
        mention_maps(model, images, texts, items, examples, other_image=other_image, block=block)
        for block in (64, 5)
    )
    assert whole.shape == (21, 64, 64)
    torch.testing.assert_close(whole, parts)


def test_a_map_is_the_attention_of_the_words_of_the_mention(items):
    """Each by itself through the model's own attention: not the batched, selected path."""
    model, examples = oracle(items), grounding_examples(items)[::17]
    images = encode_images(model, pictures(items))
    texts = encode_texts(model, [item.report for item in items])
    for other_image in (False, True):
        maps = mention_maps(model, images, texts, items, examples, other_image=other_image)
        for actual, each in zip(maps, examples, strict=True):
            picture = pictures(items)[each.other if other_image else each.item]
            attention = model.attention(picture, items[each.item].report)
            expected = attention.maps[each.mention.start : each.mention.stop].mean(0)
            torch.testing.assert_close(actual, expected)


def test_the_control_is_another_image_of_the_same_finding(items):
    examples = grounding_examples(items)
    for each in examples:
        assert each.other != each.item
        assert each.mention in items[each.item].mentions
        assert each.mention.polarity == "positive"
        assert items[each.other].labels[FINDINGS.index(each.mention.finding)] == 1
    for name in FINDINGS:  # every image serves as control equally often
        some = [each for each in examples if each.mention.finding == name]
        assert sorted(each.item for each in some) == sorted(each.other for each in some)


def test_grounding_without_a_pair_of_mentions_is_an_error(items):
    model = oracle(items)
    for few in ([], items[:1]):
        with pytest.raises(DataError, match="items must hold two with the same finding"):
            evaluate_grounding(model, few)
    images, texts = (
        encode_images(model, pictures(items[:1])),
        encode_texts(model, ["pulmonary edema"]),
    )
    with pytest.raises(DataError, match="examples must hold at least one"):
        mention_maps(model, images, texts, items, [])


def test_words_that_are_not_the_reports_are_an_error(items):
    model = oracle(items)
    tokenize = model.text_encoder.tokenize

    def without_the_first_word(texts):
        whole = tokenize(texts)
        return whole._replace(tokens=[words[1:] for words in whole.tokens])

    model.text_encoder.tokenize = without_the_first_word
    with pytest.raises(DataError, match=r"words .* are not those of the report"):
        evaluate_grounding(model, items)


def test_what_fits_is_found(gallery):
    figures = evaluate_gallery(oracle(gallery), gallery, ks=(1, 5, 12, 100))
    everything = {1: 1.0, 5: 1.0, 12: 1.0}  # and none of more items than there are
    assert figures == {
        "image_to_text": everything,
        "text_to_image": everything,
        "zero_shot_accuracy": 1.0,
    }


def test_each_direction_ranks_its_own_candidates(gallery):
    """Reports of atelectasis that speak of edema: wrong as queries, in the way as candidates."""
    model = oracle(gallery)
    tokenize, edema = model.text_encoder.tokenize, FINDINGS.index("edema")

    def mistaken(texts):
        whole = tokenize(texts)
        for row, text in enumerate(texts):
            if any(finding == 0 for finding, _ in model.text_encoder.spans[text]):
                whole.inputs["words"][row] = SHARPNESS * torch.eye(DIM)[edema]
        return whole

    model.text_encoder.tokenize = mistaken
    figures = evaluate_gallery(model, gallery, ks=(12,))
    # four classes of reports find their own 12 images, the fifth finds those of edema
    assert figures["text_to_image"][12] == pytest.approx(0.8)
    # three classes of images find theirs; those of edema find these reports too
    assert 0.6 <= figures["image_to_text"][12] < 0.75


def test_shuffled_features_are_at_chance(gallery):
    model = oracle(gallery)
    encode, order = model.text_encoder.forward, torch.Generator().manual_seed(0)

    def shuffled(texts):
        features = encode(texts)
        index = torch.randperm(len(features.pooled), generator=order)
        return select_texts(features, index.tolist())

    model.text_encoder.forward = shuffled
    figures = evaluate_gallery(model, gallery, ks=(12,))
    assert figures["image_to_text"][12] == pytest.approx(0.2, abs=0.1)
    assert figures["text_to_image"][12] == pytest.approx(0.2, abs=0.1)


def test_a_gallery_needs_exactly_one_finding_each(gallery, items):
    model = oracle(gallery)
    several = next(item for item in items if len(item.case) > 1)
    healthy = next(item for item in items if not item.case)
    for wrong in (several, healthy):
        with pytest.raises(DataError, match=r"items must each show exactly one of .* item 2 shows"):
            evaluate_gallery(model, [*gallery[:2], wrong])
    with pytest.raises(DataError, match="images must hold at least one"):
        evaluate_gallery(model, [])


def test_pictures_are_the_films_in_unit_range(items):
    first = pictures(items)[0]
    assert first.shape == (1, 64, 64)
    assert first.dtype == torch.float32
    assert torch.equal((first[0] * 255).round().to(torch.uint8), torch.from_numpy(items[0].image))


def test_a_gallery_takes_a_model_without_local_matching():
    items = list(PhantomDataset("val_5x2"))
    with isolated(0):
        model = small_model([item.report for item in items], loss="global_contrastive")
    metrics = evaluate_gallery(model, items, (5,))
    assert 0 <= metrics["image_to_text"][5] <= 1
