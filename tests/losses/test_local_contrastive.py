"""The local loss: its presets against the published code, nested loops and closed forms."""

import math

import pytest
import torch
from tensors import random

from gloria.aggregators import GeM, LogSumExp
from gloria.errors import DtypeError, GloriaError, OptionError
from gloria.functional import local_attention, local_contrastive_loss, local_similarity
from gloria.losses import LocalContrastiveLoss, Temperature

PRESETS = tuple(LocalContrastiveLoss.presets)
presets = pytest.mark.parametrize("preset", PRESETS)


def ones(*shape):
    return torch.ones(shape, dtype=torch.bool)


# The published code.

PUBLISHED_SIZES = [
    # pairs, grid, tokens, dim, lengths
    (1, (1, 1), 4, 1, [1]),
    (2, (3, 2), 6, 8, [2, 4]),
    (4, (4, 5), 9, 16, [7, 2, 5, 3]),
    (3, (19, 19), 25, 24, [23, 1, 12]),
]


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


def as_ours(feature_map, tokens, lengths):
    regions, words = feature_map.flatten(2).transpose(1, 2), tokens.transpose(1, 2)
    return regions, words, torch.arange(words.shape[1]) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("pairs, grid, tokens, dim, lengths", PUBLISHED_SIZES)
def test_official_preset_is_the_published_code(
    pairs, grid, tokens, dim, lengths, dtype, published, assert_values, assert_gradients
):
    """Values of each term, and the gradients of their sum, [SEP] and padding included."""
    feature_map = random(pairs, dim, *grid, dtype=dtype).requires_grad_()
    captions = random(pairs, dim, tokens, seed=1, dtype=dtype).requires_grad_()
    loss = LocalContrastiveLoss.from_preset("official")
    terms = loss.terms(*as_ours(feature_map, captions, lengths))
    total = loss(*as_ours(feature_map, captions, lengths))
    gradients = torch.autograd.grad(total, (feature_map, captions))

    wide = [x.detach().double().requires_grad_() for x in (feature_map, captions)]
    expected = published.local_terms(*wide, lengths)
    expected_gradients = torch.autograd.grad(sum(expected), wide)
    assert_values(terms["image_to_text"], expected[0])
    assert_values(terms["text_to_image"], expected[1])
    assert_values(total, sum(expected))
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        assert_gradients(gradient, reference)


def test_official_preset_with_logmeanexp_is_the_published_mean(published, assert_values):
    feature_map, captions, lengths = random(3, 5, 2, 3), random(3, 5, 7, seed=1), [6, 2, 4]
    loss = LocalContrastiveLoss.from_preset("official", aggregation="logmeanexp")
    expected = published.local_terms(feature_map, captions, lengths, mean=True)
    assert_values(loss(*as_ours(feature_map, captions, lengths)), sum(expected))


def test_official_attention_maps_are_the_published_ones(published, assert_values):
    feature_map, captions, lengths = random(3, 5, 4, 3), random(3, 5, 7, seed=1), [6, 1, 4]
    loss = LocalContrastiveLoss.from_preset("official")
    maps = loss.attention_maps(*as_ours(feature_map, captions, lengths)).unflatten(-1, (4, 3))
    expected = published.attention_maps(feature_map, captions, lengths)
    for ours, theirs, length in zip(maps, expected, lengths, strict=True):
        assert_values(ours[:length], theirs)
        assert ours[length:].eq(0).all()


# The printed formulas, and the closed forms.


@pytest.mark.parametrize("masked_regions", [False, True])
@pytest.mark.parametrize(
    "preset, options, temperature",
    [
        ("paper", {}, 1 / 10),
        ("official", {"attention": "words_then_regions"}, 1 / 50),
        (
            "stable",
            {
                "product": "cosine",
                "attention_temperature": 1 / 12,
                "aggregation": "logmeanexp",
            },
            1 / 50,
        ),
    ],
)
def test_presets_equal_the_nested_loop(
    preset, options, temperature, masked_regions, make_pairs, naive, assert_values
):
    pairs = make_pairs(3, 3, 7, 5, 4, masked_regions=masked_regions)
    loss = LocalContrastiveLoss.from_preset(preset)
    z = naive.local_similarity(*pairs, **options)
    rows, columns = naive.contrastive_terms(z, temperature)
    assert_values(loss.similarity(*pairs), z)
    terms = loss.terms(*pairs)
    assert list(terms) == ["image_to_text", "text_to_image"]
    assert_values(terms["image_to_text"], rows)
    assert_values(terms["text_to_image"], columns)
    assert_values(loss(*pairs), rows + columns)


def test_paper_is_the_default(make_pairs):
    pairs = make_pairs(3, 3, 5, 4, 6)
    assert torch.equal(
        LocalContrastiveLoss()(*pairs), LocalContrastiveLoss.from_preset("paper")(*pairs)
    )
    assert torch.equal(LocalContrastiveLoss()(*pairs), local_contrastive_loss(*pairs))


@presets
@pytest.mark.parametrize("pairs", [1, 2, 5, 33])
def test_zero_features_cost_two_logs_of_the_batch(preset, pairs):
    loss = LocalContrastiveLoss.from_preset(preset)
    value = loss(torch.zeros(pairs, 3, 4), torch.zeros(pairs, 6, 4), ones(pairs, 6))
    assert value.item() == pytest.approx(2 * math.log(pairs), abs=1e-5)


@presets
def test_identical_pairs_cannot_be_told_apart(preset):
    loss = LocalContrastiveLoss.from_preset(preset)
    regions, words = random(1, 5, 4).expand(6, 5, 4), random(1, 3, 4, seed=1).expand(6, 3, 4)
    terms = loss.terms(regions, words, ones(6, 3))
    assert [term.item() for term in terms.values()] == pytest.approx([math.log(6)] * 2)


@presets
def test_a_batch_of_one_costs_nothing_and_teaches_nothing(preset):
    regions, words = random(1, 5, 4).requires_grad_(), random(1, 3, 4).requires_grad_()
    loss = LocalContrastiveLoss.from_preset(preset, learnable=True).double()
    value = loss(regions, words, torch.tensor([[True, True, False]]))
    value.backward()
    assert value.item() == 0
    assert all(x.grad.eq(0).all() for x in (regions, words, *loss.parameters()))


@presets
def test_perfect_pairs_cost_nearly_nothing(preset):
    """Image k is one vector of an orthogonal basis everywhere, and so is every word of text k."""
    basis = 5 * torch.eye(4)[:, None]
    loss = LocalContrastiveLoss.from_preset(preset)
    value = loss(basis.expand(4, 6, 4), basis.expand(4, 3, 4), ones(4, 3))
    assert value.item() < 2.1 * 3 * math.exp(-10)  # cosines 1 and 0, temperature at most 1/10


@presets
def test_random_features_cost_about_two_logs_of_the_batch(preset):
    """The smoke check of the docstring."""
    loss = LocalContrastiveLoss.from_preset(preset)
    value = loss(0.05 * random(32, 49, 256), 0.05 * random(32, 12, 256, seed=1), ones(32, 12))
    assert value.item() == pytest.approx(2 * math.log(32), rel=0.3)


# What a loss in a training loop must survive.


def test_a_learnable_aggregator_is_part_of_the_loss(make_pairs):
    pooling = GeM(2.0)
    loss = LocalContrastiveLoss(aggregation=pooling)
    assert list(loss.state_dict()) == ["aggregation.p"]
    loss(*make_pairs(3, 3, 4, 5, 6, dtype=torch.float32)).backward()
    assert pooling.p.grad.ne(0)


def test_the_match_temperature_is_learned_above_its_minimum(make_pairs):
    pairs = make_pairs(3, 3, 4, 5, 6)
    loss = LocalContrastiveLoss(match_temperature=Temperature(0.2, learnable=True)).double()
    fixed = LocalContrastiveLoss()
    torch.testing.assert_close(loss(*pairs), fixed(*pairs))
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e3)  # far too high
    for _ in range(3):
        optimizer.zero_grad()
        loss(*pairs).backward()
        optimizer.step()
    assert loss.match_temperature().item() != pytest.approx(0.2)
    assert loss.match_temperature().item() > 0.01
    assert loss(*pairs).isfinite()


def test_an_aggregator_object_equals_its_name(make_pairs):
    pairs = make_pairs(3, 3, 4, 5, 6)
    named = LocalContrastiveLoss(aggregation="logsumexp", match_temperature=0.3)
    assert torch.equal(LocalContrastiveLoss(aggregation=LogSumExp(0.3))(*pairs), named(*pairs))


# A module like any other.


def test_only_a_learned_temperature_is_state():
    assert LocalContrastiveLoss().state_dict() == {}
    source = LocalContrastiveLoss(temperature=0.3, learnable=True)
    target = LocalContrastiveLoss(learnable=True)
    target.load_state_dict(source.state_dict())
    assert target.temperature().item() == pytest.approx(0.3)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        LocalContrastiveLoss().load_state_dict(source.state_dict())


def test_repr_shows_every_hyper_parameter():
    text = repr(LocalContrastiveLoss.from_preset("official", image_to_text_weight=0.75))
    for part in (
        "attention='words_then_regions'",
        "product='dot'",
        "attention_temperature=0.25",
        "aggregation='logsumexp'",
        "match_temperature=0.2",
        "Temperature(0.02)",
        "image_to_text_weight=0.75",
        "text_to_image_weight=1.0",
        "backend='auto'",
    ):
        assert part in text
    module = repr(LocalContrastiveLoss(aggregation=LogSumExp(0.7)))
    assert module.count("LogSumExp(temperature=0.7)") == 1


def test_weights_scale_their_direction(make_pairs):
    pairs = make_pairs(3, 3, 5, 4, 6)
    loss = LocalContrastiveLoss(image_to_text_weight=0.75, text_to_image_weight=0.25)
    terms = loss.terms(*pairs)
    expected = 0.75 * terms["image_to_text"] + 0.25 * terms["text_to_image"]
    torch.testing.assert_close(loss(*pairs), expected)


@presets
def test_is_its_functional_twin(preset, make_pairs):
    pairs = make_pairs(3, 3, 5, 4, 6, masked_regions=True)
    options = dict(LocalContrastiveLoss.presets[preset])
    loss = LocalContrastiveLoss(**options)
    assert torch.equal(loss(*pairs), local_contrastive_loss(*pairs, **options))
    options.pop("temperature", None)
    assert torch.equal(loss.similarity(*pairs), local_similarity(*pairs, **options))
    options.pop("aggregation", None)
    assert torch.equal(loss.attention_maps(*pairs), local_attention(*pairs, **options))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"attention": "word"}, OptionError, "attention must be one of .*; got 'word'"),
        ({"product": "l2"}, OptionError, "product must be one of .*; got 'l2'"),
        ({"aggregation": "sum"}, OptionError, "aggregation must be one of .*; got 'sum'"),
        ({"backend": "cuda"}, OptionError, "backend must be one of 'auto', .*; got 'cuda'"),
        ({"attention_temperature": 0}, OptionError, "attention_temperature must be .*; got 0"),
        ({"match_temperature": -1.0}, OptionError, "match_temperature must be .*; got -1.0"),
        ({"temperature": math.inf}, OptionError, "temperature must be a finite .*; got inf"),
        ({"temperature": True}, DtypeError, "temperature must be a number above 0; got True"),
        ({"temperature": "0.1"}, DtypeError, "temperature must be a number above 0; got '0.1'"),
        ({"minimum_temperature": 0}, OptionError, "minimum_temperature must be .*; got 0"),
    ],
)
def test_bad_options_fail_when_the_loss_is_made(options, error, message):
    with pytest.raises(error, match=message) as raised:
        LocalContrastiveLoss(**options)
    assert isinstance(raised.value, GloriaError)
