"""The U-Net: against segmentation_models_pytorch's own, and over every kind of encoder."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate

from gloria.encoders import TimmImageEncoder
from gloria.errors import ContractError, OptionError, ShapeError
from gloria.heads import segmentation_model
from gloria.training.randomness import isolated
from gloria.training.small import SMALL_IMAGE_OPTIONS
from gloria.types import ImageFeatures, ImageInput

smp = pytest.importorskip("segmentation_models_pytorch")

VIT = {"image_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}
ENCODERS = {
    "resnet18": {},
    "resnet10t": dict(SMALL_IMAGE_OPTIONS),  # custom widths, strides 2, 4, 8, 8, 8, one channel
    "mobilenetv3_small_050": {"in_chans": 2},
    "convnext_atto": {"depths": (1, 1, 1, 1)},  # begins with patches of 4 pixels
    "vgg11": {"mlp_ratio": 0.01},  # begins with a map of the image's size
    "swin_tiny_patch4_window7_224": {"image_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24},
    "vit_tiny_patch16_224": VIT,
    "vit_base_patch14_reg4_dinov2": {**VIT, "image_size": 56},
}


def make(name, seed=0, **options):
    with isolated(seed):
        return TimmImageEncoder(name, **{**ENCODERS[name], **options})


def build(encoder, classes=1, width=32, seed=1):
    with isolated(seed):
        return segmentation_model(encoder, classes, width=width)


def draw(encoder, *size, images=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, encoder.image_input.channels, *size, generator=generator)


def randomize(module):
    """Batch statistics that differ from their start, so that forgetting one shows."""
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet18", {}),
        ("resnet18", {"in_chans": 1, "output_stride": 16}),
        ("resnet10t", {}),
        ("convnext_atto", {}),
    ],
)
def test_is_the_unet_of_smp_with_our_weights_loaded_strictly(name, options):
    """Which also shows how to bring our weights there: nothing missing, nothing unexpected."""
    encoder = make(name, **options)
    randomize(encoder)
    model = build(encoder, classes=2).eval()
    given = {**ENCODERS[name], **options}
    unet = smp.Unet(
        f"tu-{name}",
        encoder_weights=None,
        in_channels=given.pop("in_chans", 3),
        decoder_channels=(32, 16, 16, 16, 16),
        classes=2,
        **{key: value for key, value in given.items() if key != "region_stage"},
    ).eval()
    weights = {
        # timm's features_only flattens these
        key.replace("stages.", "stages_").replace("stem.", "stem_"): value
        for key, value in encoder.model.state_dict().items()
        if not key.startswith("head.")
    }
    unet.encoder.model.load_state_dict(weights, strict=True)
    unet.decoder.load_state_dict(model.decoder.state_dict(), strict=True)
    unet.segmentation_head[0].load_state_dict(model.head.state_dict(), strict=True)
    images = draw(encoder, 64, 96)
    with torch.no_grad():
        ours, theirs = model.pyramid(model.image_encoder, images), unet.encoder(images)[1:]
        assert len(ours) == len(theirs) == 5
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert torch.equal(model(images), unet(images))


@pytest.mark.parametrize("name", ENCODERS)
def test_any_encoder_gives_logits_of_the_images_size_and_learns(name):
    encoder = make(name)
    model = build(encoder, classes=3)
    side = ENCODERS[name].get("image_size", 64)
    images = draw(encoder, side, side)
    logits = model(images)
    assert logits.shape == (2, 3, side, side)
    logits.square().mean().backward()
    without = {key for key, p in model.named_parameters() if p.grad is None}
    # what only a classifier uses
    assert all(".head." in key or "conv_head" in key or "pre_logits" in key for key in without)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    stem = next(model.image_encoder.parameters())
    assert stem.grad.abs().sum() > 0
    assert model.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "convnext_atto", "vgg11"])
@pytest.mark.parametrize("size", [(65, 97), (50, 33)])
def test_odd_sizes_come_out_as_they_went_in(name, size):
    encoder = make(name)
    with torch.no_grad():
        logits = build(encoder).eval()(draw(encoder, *size))
    assert logits.shape == (2, 1, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("depth, blocks", [(12, (2, 5, 8, 11)), (3, (0, 1, 2, 2)), (1, (0,) * 4)])
def test_a_plain_transformer_hands_over_four_blocks_enlarged(depth, blocks):
    encoder = make("vit_tiny_patch16_224", depth=depth, region_stage=-1).eval()
    model = build(encoder, width=128).eval()
    images = draw(encoder, 64, 64)
    with torch.no_grad():
        *early, last = model.pyramid(model.image_encoder, images)
        every = [
            encoder.model.forward_intermediates(images, indices=[block], norm=True)[1][0]
            for block in blocks
        ]
        torch.testing.assert_close(last, every[-1])
        for map_, block, narrow, size in zip(
            early, every[:-1], model.pyramid.narrow, (32, 16, 8), strict=True
        ):
            # enlarged first, then narrowed, in float64
            large = interpolate(block.double(), (size, size), mode="bilinear")
            weight, bias = narrow.weight.double(), narrow.bias.double()
            torch.testing.assert_close(
                map_.double(), conv2d(large, weight, bias), rtol=0, atol=1e-5
            )
    assert [map_.shape[1] for map_ in early] == [32, 64, 128]


class Regions(nn.Module):
    """An encoder of somebody else: it has regions and nothing more."""

    pooled_dim, region_dim = 5, 6
    image_input = ImageInput(1, None, (0.5,), (0.5,))

    def __init__(self, hide=False):
        super().__init__()
        self.patch = nn.Conv2d(1, 6, 8, stride=8)
        self.hide = hide
        self.stages = nn.ModuleList([self.patch])  # a word with other meanings

    def forward(self, images):
        maps = self.patch(images)
        regions = maps.flatten(2).mT
        mask = None
        if self.hide:
            mask = torch.arange(regions.shape[1]).expand(len(images), -1) >= maps.shape[3]
            regions = regions.masked_fill(~mask[..., None], torch.nan)  # what is masked is anything
        return ImageFeatures(regions.mean(1)[:, :5], regions, tuple(maps.shape[2:]), mask)


@pytest.mark.parametrize("hide", [False, True])
def test_regions_of_any_encoder_serve_four_times(hide):
    with isolated(0):
        encoder = Regions(hide)
    model = build(encoder)
    images = draw(encoder, 24, 40)
    maps = model.pyramid(model.image_encoder, images)
    assert [tuple(map_.shape[2:]) for map_ in maps] == [(24, 40), (12, 20), (6, 10), (3, 5)]
    expected = encoder.patch(images)
    if hide:  # the first row of regions is masked
        expected[:, :, 0] = 0
    torch.testing.assert_close(maps[-1], expected)
    assert model(images).shape == (2, 1, 24, 40)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_exports_for_any_number_of_images(name):
    model = build(make(name)).eval()
    images = draw(model.image_encoder, 64, 64, images=3)
    axes = ({0: torch.export.Dim("image")},)
    exported = torch.export.export(model, (images[:2],), dynamic_shapes=axes).module()
    torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-4)


def test_the_encoder_that_is_given_stays_as_it_is():
    encoder = make("resnet10t")
    before = copy.deepcopy(encoder.state_dict())
    model = build(encoder)
    for key, value in model.image_encoder.state_dict().items():
        assert torch.equal(value, before[key])
    model(draw(encoder, 32, 32)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(p.grad is None for p in encoder.parameters())
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_a_frozen_encoder_stays_frozen():
    model = build(make("resnet10t").freeze())
    before = copy.deepcopy(model.image_encoder.state_dict())
    model.train()
    model(draw(model.image_encoder, 32, 32)).sum().backward()
    assert all(p.grad is None for p in model.image_encoder.parameters())
    after = model.image_encoder.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert model.decoder.training


def test_bad_input():
    encoder = make("resnet10t")
    for options in ({"classes": 0}, {"width": 0}):
        with pytest.raises(OptionError, match="must be at least 1; got 0"):
            segmentation_model(encoder, **options)
    with pytest.raises(
        ContractError, match=r"image encoder: Linear lacks .* Of a GLoRIA model, take"
    ):
        segmentation_model(nn.Linear(2, 2))
    with pytest.raises(ShapeError, match=r"have 1 channel; .*\.mean\(1, keepdim"):
        build(encoder)(torch.zeros(1, 3, 32, 32))
    vit = make("vit_tiny_patch16_224")
    with pytest.raises(ShapeError, match="cannot take images of"):
        build(vit)(draw(vit, 60, 64))
