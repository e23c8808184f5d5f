"""The image encoders around a trunk, and DSVE's localisation, against plain loops."""

import pytest
import torch
from gloria_baselines.image import DSVEImageEncoder, VSEImageEncoder
from gloria_baselines.localization import localize

import gloria
from gloria.errors import OptionError, ShapeError, UnknownNameError
from gloria.types import ImageEncoder, RegionGeometry

TRUNK = {"trunk": "timm:resnet10t", "in_chans": 1, "channels": [8, 8, 16, 16], "avg_down": False}
REPORTS = ["Small left effusion.", "No edema.", "Cardiomegaly without effusion."]


def build(make, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(**{**TRUNK, **options}).eval()


def images(count=3, size=96):
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def naive_weldon(values, highest=15, lowest=15):
    values = sorted(values)
    top, bottom = values[-highest:], values[:lowest]
    return sum(top) / len(top) + sum(bottom) / len(bottom)


@pytest.mark.parametrize("size", [96, 224])  # 9 regions, fewer than 15, and 49
def test_dsve_pools_what_the_convolution_gives(size):
    encoder = build(DSVEImageEncoder, width=6)
    with torch.no_grad():
        features = encoder(images(size=size))
        trunk = encoder.trunk(images(size=size))
    weight, bias = encoder.convolution.weight.double(), encoder.convolution.bias.double()
    regions = trunk.regions.double() @ weight.T + bias
    torch.testing.assert_close(features.regions.double(), regions, rtol=1e-5, atol=1e-5)
    assert features.grid == trunk.grid
    for image in range(3):
        for channel in range(6):
            expected = naive_weldon(regions[image, :, channel].tolist())
            assert features.pooled[image, channel].item() == pytest.approx(expected, abs=1e-5)


def test_dsve_takes_the_last_stage_and_the_published_sizes():
    with torch.device("meta"):
        encoder = DSVEImageEncoder("timm:resnet18")
    assert encoder.region_dim == encoder.pooled_dim == 2400
    assert encoder.convolution.in_features == 512
    assert encoder.dropout.p == 0.5
    assert (encoder.pool.highest, encoder.pool.lowest) == (15, 15)
    assert build(DSVEImageEncoder, region_stage=1).convolution.in_features == 8


def test_vse_normalises_the_pooled_vector():
    encoder = build(VSEImageEncoder)
    features, trunk = encoder(images()), encoder.trunk(images())
    expected = trunk.pooled / trunk.pooled.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(features.pooled, expected)
    assert torch.equal(features.regions, trunk.regions)


@pytest.mark.parametrize("make", [VSEImageEncoder, DSVEImageEncoder])
def test_the_contract_and_where_regions_are(make):
    encoder = build(make)
    assert isinstance(encoder, ImageEncoder)
    assert encoder.image_input.channels == 1
    assert isinstance(encoder.region_geometry, RegionGeometry)
    assert encoder.region_geometry == encoder.trunk.region_geometry
    features = encoder(images())
    assert features.regions.shape == (3, features.grid[0] * features.grid[1], encoder.region_dim)
    assert features.pooled.shape == (3, encoder.pooled_dim)


@pytest.mark.parametrize("make", [VSEImageEncoder, DSVEImageEncoder])
def test_made_again_from_its_recipe_to_the_bit(make, tmp_path):
    options = {} if make is VSEImageEncoder else {"width": 5, "pooling": "mean", "dropout": 0.1}
    encoder = build(make, **options)
    name, options, files = encoder.recipe(tmp_path)
    assert not files
    again = gloria.create_image_encoder(name, **options).eval()
    again.load_state_dict(encoder.state_dict())
    before, after = encoder(images()), again(images())
    assert torch.equal(before.pooled, after.pooled)
    assert torch.equal(before.regions, after.regions)


def test_masked_regions_are_not_pooled():
    class Masked(torch.nn.Module):
        pooled_dim = region_dim = 4
        image_input = gloria.create_image_encoder("timm:test_resnet", in_chans=1).image_input

        def forward(self, images):
            regions = images.flatten(2).mT.repeat(1, 1, 4)
            mask = torch.ones(regions.shape[:2], dtype=torch.bool)
            mask[:, 30:] = False
            return gloria.ImageFeatures(regions[:, 0], regions, tuple(images.shape[2:]), mask)

    encoder = DSVEImageEncoder(Masked(), width=3).eval()
    first = images(2, 8)
    second = first.clone()
    second.flatten(2)[:, :, 30:] = 1e4
    torch.testing.assert_close(encoder(first).pooled, encoder(second).pooled)
    with pytest.raises(OptionError, match="Masked, has no recipe"):
        encoder.recipe(None)


def test_bad_names_and_options():
    with pytest.raises(UnknownNameError, match="there are vse, dsve"):
        gloria.create_image_encoder("baselines:devise")
    with pytest.raises(OptionError, match="pretrained go with a name for trunk"):
        VSEImageEncoder(build(VSEImageEncoder), pretrained=True)


# --- localisation ---------------------------------------------------------------------------------


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gloria.create_model(
            build(DSVEImageEncoder, width=9),
            "baselines:gru",
            text_options={"reports": REPORTS, "min_count": 1, "embedding_dim": 4, "width": 12},
            loss="dsve",
        ).eval()


@pytest.mark.parametrize("channels", [1, 5, 12])
def test_localisation_number_by_number(model, channels):
    with torch.no_grad():
        features = model.image_encoder(images(size=128))
        texts = model.encode_text(REPORTS).pooled.tolist()
    weight = model.image_head.layers.weight.tolist()
    maps = localize(model, images(size=128), REPORTS, channels=channels)
    assert maps.shape == (3, *features.grid)
    for pair, text in enumerate(texts):
        length = sum(x * x for x in text) ** 0.5
        unit = [x / length for x in text]
        strongest = sorted(range(len(unit)), key=lambda u: -unit[u])[:channels]
        for region, vector in enumerate(features.regions[pair].tolist()):
            expected = sum(
                abs(unit[u]) * sum(w * v for w, v in zip(weight[u], vector, strict=True))
                for u in strongest
            )
            row, column = divmod(region, features.grid[1])
            assert maps[pair, row, column].item() == pytest.approx(expected, abs=1e-5)


def test_localisation_follows_what_moves(model):
    """Shifted by one region, the image shifts its map."""
    picture = images(1, 160)
    moved = picture.roll(32, dims=-1)
    stride = model.image_encoder.region_geometry.stride
    assert stride == 32
    first = localize(model, picture, REPORTS[:1], channels=6)[0]
    second = localize(model, moved, REPORTS[:1], channels=6)[0]
    correlation = torch.corrcoef(torch.stack([first[:, 1:-2].flatten(), second[:, 2:-1].flatten()]))
    assert correlation[0, 1] > 0.9


def test_localisation_lies_on_the_image(model):
    maps = localize(model, images(), REPORTS, channels=6)
    assert model.lay_over(maps, (96, 96)).shape == (3, 96, 96)


def test_bad_localisation_is_named(model):
    with pytest.raises(ShapeError, match="images and texts must agree in number; got 3 and 1"):
        localize(model, images(), REPORTS[:1])
    with pytest.raises(OptionError, match="channels must be from 1 to 12; got 180"):
        localize(model, images(), REPORTS)
    other = gloria.create_model(
        build(VSEImageEncoder, region_stage=0),
        model.text_encoder,
        projection="mlp",
        embedding_dim=4,
        loss="vse0",
    )
    with pytest.raises(OptionError, match=r"such as 'baselines:dsve'.*got a VSEImageEncoder"):
        localize(other, images(), REPORTS)
