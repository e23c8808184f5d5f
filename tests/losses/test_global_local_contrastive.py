"""The paper's objective, and that it trains."""

import math

import pytest
import torch
from torch import nn

from gloria.errors import ContractError, OptionError, ShapeError
from gloria.functional import global_local_contrastive_loss
from gloria.losses import (
    FILIPLoss,
    GlobalContrastiveLoss,
    GlobalLocalContrastiveLoss,
    LocalContrastiveLoss,
    SoftTargetContrastiveLoss,
    SPARCLoss,
)

PRESETS = tuple(GlobalLocalContrastiveLoss.presets)
presets = pytest.mark.parametrize("preset", PRESETS)


@pytest.fixture
def batch(make_pairs):
    """Embeddings of another width than the regions and words."""
    return tuple(make_pairs(3, 3, 3, 1, 7, seed=1)[:2][k][:, 0] for k in (0, 1)) + tuple(
        make_pairs(3, 3, 5, 4, 6, masked_regions=True)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_official_preset_is_the_published_objective(
    dtype, published, assert_values, assert_gradients
):
    """Both losses, four cross-entropies, on ragged captions."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 12), (4, 12), (4, 6, 3, 5), (4, 6, 9))
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    ]
    lengths = [3, 8, 1, 5]

    images, texts, feature_map, tokens = leaves
    value = GlobalLocalContrastiveLoss.from_preset("official")(
        images,
        texts,
        feature_map.flatten(2).transpose(1, 2),
        tokens.transpose(1, 2),
        torch.arange(9) < torch.tensor(lengths)[:, None],
    )
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = sum((*published.global_terms(*wide[:2]), *published.local_terms(*wide[2:], lengths)))
    assert_values(value, expected)
    gradients = zip(
        torch.autograd.grad(value, leaves), torch.autograd.grad(expected, wide), strict=True
    )
    for gradient, reference in gradients:
        assert_gradients(gradient, reference)


@presets
def test_the_total_is_the_weighted_sum_of_four_named_terms(preset, batch):
    loss = GlobalLocalContrastiveLoss(
        global_loss=GlobalContrastiveLoss.from_preset(
            preset, image_to_text_weight=0.75, text_to_image_weight=0.25
        ),
        local_loss=LocalContrastiveLoss.from_preset(preset, image_to_text_weight=2.0),
        global_weight=0.5,
        local_weight=3.0,
    )
    whole, parts = loss.global_loss.terms(*batch[:2]), loss.local_loss.terms(*batch[2:])
    terms = loss.terms(*batch)
    assert {name: term.item() for name, term in terms.items()} == {
        "global_image_to_text": whole["image_to_text"].item(),
        "global_text_to_image": whole["text_to_image"].item(),
        "local_image_to_text": parts["image_to_text"].item(),
        "local_text_to_image": parts["text_to_image"].item(),
    }
    expected = (
        0.375 * whole["image_to_text"]
        + 0.125 * whole["text_to_image"]
        + 6.0 * parts["image_to_text"]
        + 3.0 * parts["text_to_image"]
    )
    torch.testing.assert_close(loss(*batch), expected)
    torch.testing.assert_close(loss.total(terms), expected)


@presets
def test_presets_are_the_presets_of_both_parts(preset, batch):
    loss = GlobalLocalContrastiveLoss.from_preset(preset, local_weight=0.5)
    expected = (
        GlobalContrastiveLoss.from_preset(preset)(*batch[:2])
        + LocalContrastiveLoss.from_preset(preset)(*batch[2:]) * 0.5
    )
    torch.testing.assert_close(loss(*batch), expected)


def test_paper_is_the_default_and_is_its_functional_twin(batch):
    value = GlobalLocalContrastiveLoss()(*batch)
    assert torch.equal(value, GlobalLocalContrastiveLoss.from_preset("paper")(*batch))
    torch.testing.assert_close(value, global_local_contrastive_loss(*batch))
    stable = GlobalLocalContrastiveLoss.from_preset("stable", global_weight=2.0, local_weight=0.5)
    options = dict(LocalContrastiveLoss.presets["stable"])
    twin = global_local_contrastive_loss(
        *batch,
        local_temperature=options.pop("temperature"),
        global_weight=2.0,
        local_weight=0.5,
        **options,
    )
    torch.testing.assert_close(stable(*batch), twin)


@presets
@pytest.mark.parametrize("pairs", [1, 8])
def test_zero_features_cost_four_logs_of_the_batch(preset, pairs):
    pooled, words = torch.zeros(pairs, 16), torch.zeros(pairs, 5, 16)
    mask = torch.ones(pairs, 5, dtype=torch.bool)
    value = GlobalLocalContrastiveLoss.from_preset(preset)(pooled, pooled, words, words, mask)
    assert value.item() == pytest.approx(4 * math.log(pairs), abs=1e-5)


class Halved(GlobalContrastiveLoss):
    def forward(self, image_embeddings, text_embeddings):
        return super().forward(image_embeddings, text_embeddings) / 2


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"global_loss": "global"}, "global_loss must be a module: it is no nn.Module, it is str"),
        ({"global_loss": GlobalContrastiveLoss}, "it is no nn.Module, it is type"),
        ({"global_loss": nn.MSELoss()}, "image_embeddings, text_embeddings alone; got a MSELoss"),
        (
            {"global_loss": LocalContrastiveLoss()},
            "alone; got a LocalContrastiveLoss",
        ),
        (
            {"local_loss": SPARCLoss()},
            "word_mask, region_mask alone; got a SPARCLoss",
        ),
        ({"global_loss": Halved()}, "the sum of its terms, .* Halved changes forward alone"),
    ],
)
def test_what_is_no_part_is_refused(parts, message):
    with pytest.raises(ContractError, match=message):
        GlobalLocalContrastiveLoss(**parts)


def test_other_losses_can_be_parts_compiled_ones_too(batch):
    filip = FILIPLoss()
    loss, compiled = (
        GlobalLocalContrastiveLoss(global_loss=SoftTargetContrastiveLoss(), local_loss=part)
        for part in (filip, torch.compile(filip, backend="eager"))
    )
    assert torch.equal(compiled(*batch), loss(*batch))


def test_repr_shows_both_parts_and_weights():
    text = repr(GlobalLocalContrastiveLoss.from_preset("stable", local_weight=0.3))
    for part in (
        "global_weight=1.0",
        "local_weight=0.3",
        "(global_loss): GlobalContrastiveLoss",
        "(local_loss): LocalContrastiveLoss",
        "aggregation='logmeanexp'",
    ):
        assert part in text


def test_bad_input_is_named(batch):
    loss = GlobalLocalContrastiveLoss()
    with pytest.raises(OptionError, match=r"preset must be one of .*; got 'convirt'"):
        GlobalLocalContrastiveLoss.from_preset("convirt")
    images, texts, *local = batch
    with pytest.raises(ShapeError, match="got 3 images and 2 texts"):
        loss(images, texts[:2], *local)
    with pytest.raises(ShapeError, match="regions must be"):
        loss(images, texts, images, *local[1:])


@presets
def test_small_encoders_overfit_a_small_batch(preset):
    """Linear encoders of fixed random inputs, a stranger's training loop: every pair is found."""
    generator = torch.Generator().manual_seed(0)
    pairs, regions, words = 6, 9, 5
    pixels = torch.randn(pairs, regions, 12, generator=generator)
    letters = torch.randn(pairs, words, 10, generator=generator)
    lengths = torch.tensor([5, 1, 3, 2, 5, 4])
    word_mask = torch.arange(words) < lengths[:, None]

    image_encoder, text_encoder = nn.Linear(12, 8), nn.Linear(10, 8)
    with torch.no_grad():
        for parameter in (*image_encoder.parameters(), *text_encoder.parameters()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    loss = GlobalLocalContrastiveLoss.from_preset(preset)
    optimizer = torch.optim.Adam([*image_encoder.parameters(), *text_encoder.parameters()], lr=0.02)

    def features():
        v, t = image_encoder(pixels), text_encoder(letters)
        pooled = (t * word_mask[..., None]).sum(1) / lengths[:, None]
        return v.mean(1), pooled, v, t, word_mask

    def precision():
        """P@1 of both similarities in both directions."""
        images, texts, v, t, mask = features()
        answers = torch.arange(pairs)
        hits = [
            z.argmax(dim).eq(answers).float().mean().item()
            for z in (
                loss.global_loss.similarity(images, texts),
                loss.local_loss.similarity(v, t, mask),
            )
            for dim in (0, 1)
        ]
        return sum(hits) / len(hits)

    assert precision() < 0.9
    start = loss(*features()).item()
    for _ in range(400):
        optimizer.zero_grad()
        loss(*features()).backward()
        optimizer.step()
    assert precision() == 1.0
    assert loss(*features()).item() < start / 4


def test_a_preset_with_options_of_its_parts():
    loss = GlobalLocalContrastiveLoss.from_preset(
        "stable",
        global_options={"learnable": True},
        local_options={"backend": "chunked", "memory_budget": 2**20},
        local_weight=0.5,
    )
    assert loss.local_loss.backend == "chunked"
    assert loss.local_loss.memory_budget == 2**20
    assert loss.local_loss.product == "cosine"  # of the preset
    assert loss.global_loss.temperature.raw is not None
    assert loss.local_weight == 0.5
    assert list(loss.state_dict()) == ["global_loss.temperature.raw"]


def test_the_options_of_a_part_that_is_given_are_refused():
    with pytest.raises(OptionError, match="local_options are those of a local_loss yet to be made"):
        GlobalLocalContrastiveLoss.from_preset(
            "stable", local_loss=FILIPLoss(), local_options={"temperature": 0.5}
        )
    loss = GlobalLocalContrastiveLoss.from_preset("stable", local_loss=FILIPLoss())
    assert isinstance(loss.local_loss, FILIPLoss)
