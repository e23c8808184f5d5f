"""TimmImageEncoder against timm's own models, over a matrix of architectures."""

import copy
import json
import os
import pathlib
import re
from functools import cache

import pytest
import safetensors.torch
import torch
from torch import nn

from gloria.encoders import TimmImageEncoder
from gloria.errors import (
    CheckpointError,
    DeviceError,
    DtypeError,
    OptionError,
    ShapeError,
    UnknownNameError,
)
from gloria.geometry import measure_region_offset
from gloria.types import ImageEncoder, RegionGeometry, SavesRecipe

timm = pytest.importorskip("timm")

# name -> (pixels, options); the sizes are small but leave at least 2 x 2 regions
MATRIX = {
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "resnet10t": (64, {"channels": (24, 48, 96, 192), "output_stride": 8, "in_chans": 1}),
    "resnetv2_18": (64, {}),
    "densenet121": (64, {}),
    "convnext_atto": (64, {}),
    "efficientnet_b0": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "regnetx_002": (64, {}),
    "vgg11": (64, {"mlp_ratio": 0.01}),
    "ghostnet_050": (64, {}),
    "mambaout_femto": (64, {}),
    "inception_next_atto": (64, {}),
    "swin_tiny_patch4_window7_224": (64, {}),
    "swinv2_cr_tiny_224": (64, {"depths": (1, 1, 1, 1)}),
    "swinv2_tiny_window8_256": (64, {"depths": (1, 1, 1, 1)}),
    "vit_tiny_patch16_224": (64, {"depth": 3}),
    "vit_base_patch14_reg4_dinov2": (56, {"depth": 2, "embed_dim": 96, "num_heads": 3}),
    "vit_base_patch16_siglip_224": (64, {"depth": 2, "embed_dim": 96, "num_heads": 3}),
    "deit_tiny_patch16_224": (64, {"depth": 3}),
    "deit_tiny_distilled_patch16_224": (64, {"depth": 3}),
    "deit3_small_patch16_224": (64, {"depth": 3}),
    "eva02_tiny_patch14_224": (56, {"depth": 3}),
    "cait_xxs24_224": (64, {"depth": 2}),
    "xcit_nano_12_p16_224": (64, {"depth": 2}),
    "maxvit_pico_rw_256": (64, {}),
    "coatnet_nano_rw_224": (64, {}),
    "pvt_v2_b0": (64, {}),
    "mobilevit_xxs": (64, {}),
    "hiera_tiny_224": (224, {"stages": (1, 1, 1, 1)}),
}
CONVOLUTIONAL = ("resnet18", "densenet121", "convnext_atto", "efficientnet_b0", "vgg11")


def make(name: str, **overrides) -> TimmImageEncoder:
    """A random encoder, no weight of which is left at a constant that hides gradients."""
    pixels, options = MATRIX[name]
    arguments = {"image_size": pixels, **options, **overrides}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TimmImageEncoder(name, **arguments)
        with torch.no_grad():
            for parameter in encoder.parameters():
                if (parameter == parameter.flatten()[0]).all():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


cached = cache(make)


def images(encoder: TimmImageEncoder, count: int = 2, size: tuple[int, int] | None = None):
    height, width = size or encoder.image_input.size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, encoder.image_input.channels, height, width, generator=generator)


def plain_timm(encoder: TimmImageEncoder) -> nn.Module:
    """The same weights in a model made as timm's manual says, without our arguments."""
    arguments = dict(encoder.options, in_chans=encoder.image_input.channels, num_classes=0)
    with torch.random.fork_rng(devices=[]):
        try:
            model = timm.create_model(encoder.model_name, img_size=encoder.image_size, **arguments)
        except TypeError:
            model = timm.create_model(encoder.model_name, **arguments)
    model.load_state_dict(encoder.model.state_dict())
    return model.eval()


def same(one, other) -> None:
    torch.testing.assert_close(one.pooled, other.pooled, rtol=0, atol=0)
    torch.testing.assert_close(one.regions, other.regions, rtol=0, atol=0)
    assert one.grid == other.grid


@pytest.mark.parametrize("name", MATRIX)
def test_pooled_and_regions_are_the_models_own(name):
    encoder = cached(name).eval()
    pictures = images(encoder)
    with torch.no_grad():
        features = encoder(pictures)
        model = plain_timm(encoder)
        maps = model.forward_intermediates(
            pictures,
            norm=not name.startswith("hiera"),
            intermediates_only=True,
            stop_early=False,
            output_fmt="NCHW",
        )
        pooled = model(pictures)
    torch.testing.assert_close(features.pooled, pooled, rtol=1e-5, atol=1e-5)
    assert features.pooled.shape == (2, encoder.pooled_dim)

    feature_map = maps[-2]
    height, width = feature_map.shape[2:]
    assert features.grid == (height, width)
    assert features.regions.shape == (2, height * width, encoder.region_dim)
    assert features.region_mask is None
    by_hand = [feature_map[:, :, row, column] for row in range(height) for column in range(width)]
    torch.testing.assert_close(features.regions, torch.stack(by_hand, 1), rtol=1e-5, atol=1e-5)

    with torch.no_grad():
        every, (last,) = encoder.feature_maps(pictures), encoder.feature_maps(pictures, [-1])
    torch.testing.assert_close(every, maps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, maps[-1], rtol=1e-5, atol=1e-5)
    strides = [pictures.shape[2] / map_.shape[2] for map_ in maps]
    assert encoder.stages == tuple((m.shape[1], s) for m, s in zip(maps, strides, strict=True))


@pytest.mark.parametrize("name", MATRIX)
def test_every_parameter_learns(name):
    encoder = copy.deepcopy(cached(name)).train()
    for part in encoder.modules():
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.0  # a layer that happens to be dropped learns nothing
    features = encoder(images(encoder))
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(part.shape, generator=generator) for part in features[:2]]
    torch.autograd.backward(features[:2], upstream)
    idle = [key for key, value in encoder.named_parameters() if value.requires_grad]
    idle = [key for key in idle if not _learns(encoder.get_parameter(key))]
    assert idle == []


def _learns(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


@pytest.mark.parametrize("name", MATRIX)
def test_a_recipe_makes_the_architecture_again(name, tmp_path):
    encoder = cached(name).eval()
    recipe = encoder.recipe(tmp_path)
    assert recipe.name == f"timm:{name}"
    assert recipe.options["pretrained"] is False
    assert list(tmp_path.iterdir()) == []

    options = json.loads(json.dumps(recipe.options))
    again = TimmImageEncoder(recipe.name.removeprefix("timm:"), **options)
    again.load_state_dict(encoder.state_dict(), strict=True)
    pictures = images(encoder)
    with torch.no_grad():
        same(again.eval()(pictures), encoder(pictures))
    assert again.image_input == encoder.image_input


@pytest.mark.parametrize("name", MATRIX)
def test_images_do_not_influence_each_other_in_eval_mode(name):
    encoder = cached(name).eval()
    pictures = images(encoder)
    with torch.no_grad():
        both = encoder(pictures)
        same(encoder(pictures), both)
        one = encoder(pictures[1:])
    torch.testing.assert_close(one.pooled, both.pooled[1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.regions, both.regions[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_exports_for_any_number_of_images(name):
    encoder = cached(name).eval()
    pictures = images(encoder)
    axes = ({0: torch.export.Dim("image")},)
    exported = torch.export.export(encoder, (pictures,), dynamic_shapes=axes).module()
    three = torch.cat([pictures, pictures[:1]])
    with torch.no_grad():
        found, expected = exported(three), encoder(three)
    assert found.grid == expected.grid
    torch.testing.assert_close(found[:2], expected[:2], rtol=1e-4, atol=1e-4)


def test_regions_of_a_resnet_are_the_output_of_its_third_stage():
    encoder = cached("resnet50").eval()
    seen = []
    handle = encoder.model.layer3.register_forward_hook(lambda *call: seen.append(call[2].clone()))
    with torch.no_grad():
        features = encoder(images(encoder))
    handle.remove()
    assert (encoder.region_dim, encoder.pooled_dim, features.grid) == (1024, 2048, (4, 4))
    assert torch.equal(features.regions, seen[0].flatten(2).transpose(1, 2))


def test_regions_of_a_vit_are_normalised_patch_tokens_without_class_token():
    encoder = cached("vit_tiny_patch16_224").eval()
    seen = []
    handle = encoder.model.blocks[-2].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        features = encoder(images(encoder))
        tokens = encoder.model.norm(seen[0])
    handle.remove()
    torch.testing.assert_close(features.regions, tokens[:, 1:])


@pytest.mark.parametrize(
    "stage, dim, grid", [(0, 64, (32, 32)), (2, 128, (8, 8)), (-1, 512, (2, 2))]
)
def test_region_stage_counts_as_in_a_list(stage, dim, grid):
    encoder = TimmImageEncoder("resnet18", region_stage=stage).eval()
    features = encoder(torch.randn(1, 3, 64, 64))
    assert (encoder.region_dim, features.grid) == (dim, grid)
    assert features.regions.shape == (1, grid[0] * grid[1], dim)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_any_number_of_channels(name, channels):
    encoder = make(name, in_chans=channels).eval()
    features = encoder(images(encoder))
    assert features.pooled.shape == (2, encoder.pooled_dim)
    config = timm.get_pretrained_cfg(name)
    assert encoder.image_input.mean == pytest.approx((sum(config.mean) / 3,) * channels)
    assert encoder.image_input.std == pytest.approx((sum(config.std) / 3,) * channels)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [(97, 65), (70, 111)])
def test_odd_sizes(name, size):
    encoder = cached(name).eval()
    with torch.no_grad():
        features = encoder(images(encoder, size=size))
        maps = encoder.model.forward_intermediates(
            images(encoder, size=size), intermediates_only=True
        )
    assert features.grid == tuple(maps[-2].shape[2:])
    unflattened = features.regions.unflatten(1, features.grid).permute(0, 3, 1, 2)
    assert torch.equal(unflattened, maps[-2])


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"]
)
def test_transformers_take_other_sizes_than_their_own(name):
    encoder = cached(name).eval()
    height, width = encoder.image_input.size
    with torch.no_grad():
        grid = encoder(images(encoder)).grid
        features = encoder(images(encoder, size=(2 * height, width)))
    assert features.grid == (2 * grid[0], grid[1])
    assert features.regions.isfinite().all()


def test_image_size_may_be_a_pair():
    encoder = TimmImageEncoder("vit_tiny_patch16_224", image_size=(64, 32), depth=2, in_chans=1)
    assert encoder.image_input.size == (64, 32)
    assert encoder(torch.randn(1, 1, 64, 32)).grid == (4, 2)
    by_timms_name = TimmImageEncoder("vit_tiny_patch16_224", img_size=(64, 32), depth=2)
    assert by_timms_name.image_input.size == (64, 32)


def test_image_input_is_read_off_the_model():
    free = TimmImageEncoder("resnet18").image_input
    assert (free.channels, free.size) == (3, None)
    assert free.mean == pytest.approx((0.485, 0.456, 0.406))
    fixed = TimmImageEncoder("vit_tiny_patch16_224", depth=2).image_input
    assert (fixed.size, fixed.mean, fixed.std) == ((224, 224), (0.5,) * 3, (0.5,) * 3)


def test_protocols():
    encoder = cached("resnet18")
    assert isinstance(encoder, ImageEncoder)
    assert isinstance(encoder, SavesRecipe)


# Construction leaves no trace


def test_weights_are_drawn_as_timm_draws_them():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = timm.create_model("resnet18", num_classes=0)
        after_timm = torch.get_rng_state()
        torch.manual_seed(3)
        encoder = TimmImageEncoder("resnet18")
        assert torch.equal(torch.get_rng_state(), after_timm)
    for key, value in expected.state_dict().items():
        assert torch.equal(encoder.model.state_dict()[key], value), key


def test_reading_the_widths_leaves_statistics_and_mode_alone():
    encoder = TimmImageEncoder("resnet18")
    norms = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert encoder.training
    assert all(part.training for part in norms)
    assert all(int(part.num_batches_tracked) == 0 for part in norms)
    assert all(value.device.type == "cpu" for value in encoder.state_dict().values())


def test_a_model_that_cannot_be_sketched_is_measured_as_it_is(monkeypatch):
    class ReadsValues(timm.models.ResNet):
        def forward_intermediates(self, x, *args, **kwargs):
            assert float(x.sum()) == float(x.sum())  # a sketch has no values
            return super().forward_intermediates(x, *args, **kwargs)

    def create_model(name, pretrained=False, **arguments):
        with monkeypatch.context() as patch:
            patch.setattr(timm.models.resnet, "ResNet", ReadsValues)
            return original(name, pretrained, **arguments)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create_model)
    encoder = TimmImageEncoder("resnet18")
    assert isinstance(encoder.model, ReadsValues)
    assert (encoder.pooled_dim, encoder.region_dim) == (512, 256)
    assert encoder.training
    assert int(encoder.model.bn1.num_batches_tracked) == 0


# Frozen


def test_frozen_is_not_undone_by_training_mode():
    encoder = TimmImageEncoder("resnet18", frozen=True).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    features = encoder(torch.randn(4, 3, 64, 64))
    assert not features.pooled.requires_grad
    assert not features.regions.requires_grad
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_recipe_remembers_which_parts_are_frozen(tmp_path):
    encoder = TimmImageEncoder("resnet18").freeze("model.layer1", "model.bn1")
    options = json.loads(json.dumps(encoder.recipe(tmp_path).options))
    assert options["frozen"] == ["model.layer1", "model.bn1"]
    again = TimmImageEncoder("resnet18", **options).train()
    assert not any(value.requires_grad for value in again.model.layer1.parameters())
    assert not any(part.training for part in again.model.layer1.modules())
    assert again.model.layer2.training
    assert again.model.conv1.weight.requires_grad


# Weights from a file


def classifier(name: str, **options) -> nn.Module:
    """A whole model of timm, as somebody else would have trained and saved it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return timm.create_model(name, **options).eval()


def save(model: nn.Module, path: pathlib.Path, **extra: torch.Tensor) -> pathlib.Path:
    state = {**model.state_dict(), **extra}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize(
    "classes, suffix", [(1000, ".safetensors"), (14, ".pth"), (0, ".safetensors")]
)
@pytest.mark.parametrize("name", ["resnet18", "swinv2_cr_tiny_224", "swin_tiny_patch4_window7_224"])
def test_weights_from_a_file_with_or_without_classifier(name, classes, suffix, tmp_path):
    options = {} if name == "resnet18" else {"depths": (1, 1, 1, 1), "embed_dim": 24}
    model = classifier(name, num_classes=classes, **options)
    path = save(model, tmp_path / f"weights{suffix}")
    encoder = TimmImageEncoder(name, pretrained=path, **options).eval()
    pictures = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        last, maps = model.forward_intermediates(pictures, norm=True)
        features = encoder(pictures)
        assert torch.equal(features.pooled, model.forward_head(last, pre_logits=True))
    assert torch.equal(features.regions, maps[-2].flatten(2).transpose(1, 2))


def test_weights_for_colour_become_weights_for_gray(tmp_path):
    model = classifier("resnet18")
    path = save(model, tmp_path / "weights.safetensors")
    encoder = TimmImageEncoder("resnet18", pretrained=str(path), in_chans=1)
    torch.testing.assert_close(encoder.model.conv1.weight, model.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(encoder.model.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


def test_positions_from_a_file_are_resized(tmp_path):
    model = classifier("vit_tiny_patch16_224", depth=2)
    path = save(model, tmp_path / "weights.safetensors")
    encoder = TimmImageEncoder("vit_tiny_patch16_224", pretrained=path, image_size=64, depth=2)
    assert encoder.model.pos_embed.shape == (1, 1 + 4 * 4, 192)
    assert torch.equal(encoder.model.pos_embed[:, 0], model.pos_embed[:, 0])
    assert torch.equal(encoder.model.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)


def test_pretrained_true_is_left_to_timm(tmp_path):
    model = classifier("resnet18")
    path = save(model, tmp_path / "weights.safetensors")
    overlay = {"file": str(path)}
    encoder = TimmImageEncoder("resnet18", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(encoder.model.layer1[0].conv1.weight, model.layer1[0].conv1.weight)


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet18", r"the weights of resnet18 cannot be had \(ConnectionError: no route\)"),
        ("hf-hub:timm/resnet18", r"the model hf-hub:timm/resnet18 cannot be had"),
    ],
)
def test_weights_out_of_reach(name, message, monkeypatch):
    def create_model(asked, pretrained=False, **arguments):
        if pretrained or ":" in asked:
            raise ConnectionError("no route\nto the hub")
        return original(asked, **arguments)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(CheckpointError, match=rf"{message}.*pretrained='path/to") as caught:
        TimmImageEncoder(name, pretrained=True)
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "there is no file"),
        (b"no weights at all", "cannot be loaded into resnet18"),
        ({"something.else": torch.ones(3)}, "no weights for 20 of the 60 parameters of resnet18"),
        ({"conv1.weight": torch.ones(2, 2)}, "cannot be loaded into resnet18"),
    ],
)
def test_a_file_that_does_not_fit(content, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        safetensors.torch.save_file(content, path)
    with pytest.raises(CheckpointError, match=message):
        TimmImageEncoder("resnet18", pretrained=path)


def test_a_file_that_lacks_one_layer(tmp_path):
    state = classifier("resnet18").state_dict()
    del state["layer3.0.conv1.weight"]
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"no weights for 1 of .* layer3\.0\.conv1\.weight"):
        TimmImageEncoder("resnet18", pretrained=path)


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, target: pathlib.Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_file_cannot_run_code(tmp_path):
    torch.save({"state_dict": Bomb(tmp_path / "run")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TimmImageEncoder("resnet18", pretrained=tmp_path / "weights.pth")
    assert not (tmp_path / "run").exists()


# Bad input


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"no model 'resnet_50'\. Did you mean .*resnet50"):
        TimmImageEncoder("resnet_50")
    with pytest.raises(DtypeError, match="model_name must be a string; got int"):
        TimmImageEncoder(50)


@pytest.mark.parametrize("stage", [-6, 5, 17])
def test_region_stage_out_of_range(stage):
    message = rf"region_stage must be from -5 to 4; got {stage}\..* 256 x 14 x 14, 512 x 7 x 7"
    with pytest.raises(OptionError, match=message):
        TimmImageEncoder("resnet18", region_stage=stage)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"region_stage": 1.0}, DtypeError, "region_stage must be an integer; got 1.0"),
        ({"in_chans": 0}, OptionError, "in_chans must be at least 1; got 0"),
        ({"in_chans": "1"}, DtypeError, "in_chans must be an integer; got '1'"),
        ({"image_size": 0}, OptionError, "image_size must be a number of pixels or"),
        ({"image_size": (1, 2, 3)}, OptionError, r"got \(1, 2, 3\)"),
        ({"image_size": 64.0}, OptionError, "image_size must be .*; got 64.0"),
        ({"pretrained": None}, CheckpointError, "pretrained must be True, False or a file of wei"),
        ({"no_such_option": 1}, OptionError, "cannot make resnet18.*no_such_option"),
        ({"channels": 1}, OptionError, "cannot make resnet18.*channels is in_chans"),
        ({"num_classes": 5}, OptionError, "num_classes is not an option"),
        ({"image_size": 64, "img_size": 32}, OptionError, "image_size and timm's img_size are the"),
        ({"features_only": True}, OptionError, "features_only is not an option"),
        ({"global_pool": ""}, OptionError, r"pooled output must be \(image, dim\)"),
        ({"output_stride": 7}, OptionError, "cannot make resnet18"),
    ],
)
def test_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        TimmImageEncoder("resnet18", **arguments)


def test_a_size_that_the_model_cannot_be_made_for():
    with pytest.raises(OptionError, match="cannot encode images of 112 x 112 pixels"):
        TimmImageEncoder("hiera_tiny_224", image_size=112)
    with pytest.raises(OptionError, match="cannot make twins_svt_small"):
        TimmImageEncoder("twins_svt_small", image_size=112)


def test_a_model_without_feature_maps(monkeypatch):
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    with pytest.raises(OptionError, match="resnet18 gives no feature maps"):
        TimmImageEncoder("resnet18")


@pytest.mark.parametrize(
    "pictures, error, message",
    [
        (torch.zeros(3, 64, 64), ShapeError, r"images must be \(image, channel, height, width\)"),
        (torch.zeros(2, 1, 64, 64), ShapeError, r"3 channels; got \(2, 1, 64, 64\).*in_chans"),
        (torch.zeros(0, 3, 64, 64), ShapeError, "at least one image"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), DtypeError, "floating-point.*uint8"),
        (torch.zeros(2, 3, 64, 64).double(), DtypeError, "in the dtype of .*32; got torch.float64"),
        (torch.zeros(2, 3, 64, 64).to("meta"), DeviceError, "device of the encoder, cpu; got meta"),
        ([[1.0]], DtypeError, "images must be a tensor"),
    ],
)
def test_bad_images(pictures, error, message):
    with pytest.raises(error, match=message):
        cached("resnet18")(pictures)


@pytest.mark.parametrize("stages", [[2, 1], [1, 1], [-1, 0], [5], [-6], []])
def test_stages_that_are_none_or_out_of_order(stages):
    with pytest.raises(OptionError, match=r"stages must be some from -5 to 4 in ascending order"):
        cached("resnet18").feature_maps(torch.zeros(1, 3, 64, 64), stages)


def test_images_of_a_size_that_the_model_cannot_take():
    with pytest.raises(ShapeError, match=r"must be of \(64, 64\) pixels; got \(80, 64\)"):
        cached("cait_xxs24_224")(torch.zeros(1, 3, 80, 64))
    with pytest.raises(ShapeError, match=r"cannot take images of \(63, 64\) pixels"):
        cached("vit_tiny_patch16_224")(torch.zeros(1, 3, 63, 64))


@pytest.mark.parametrize(
    "name, size",
    [("dla46x_c", (97, 65)), ("hrnet_w18_small", (97, 65)), ("convnext_atto", (2, 64))],
)
def test_convolutional_models_that_cannot_take_a_size(name, size):
    encoder = TimmImageEncoder(name).eval()
    with pytest.raises(ShapeError, match=rf"{name} cannot take images of \({size[0]}, {size[1]}\)"):
        encoder(torch.zeros(1, 3, *size))
    assert encoder(torch.zeros(1, 3, 64, 64)).grid == (4, 4)


def test_an_image_size_that_leaves_a_stage_less_than_its_kernel():
    with pytest.raises(OptionError, match="cannot encode images of 16 x 64 pixels"):
        TimmImageEncoder("convnext_atto", image_size=(16, 64))


BEIT = {"depth": 2, "embed_dim": 96, "num_heads": 3}


@pytest.mark.parametrize(
    "name, options, stride",
    [
        ("beitv2_base_patch16_224", BEIT, 16),
        ("mixer_s16_224", {}, 16),
        ("pit_s_224", {}, 8),  # patches of 16 pixels, which overlap
        ("volo_d1_224", {}, 8),
        ("tnt_s_patch16_224", {"depth": 2}, 16),
    ],
)
def test_no_patch_is_cut_off_in_silence(name, options, stride):
    told = re.escape(f"multiple of the patches' {(stride, stride)} pixels")
    for given in ({"image_size": (48, 59)}, {"image_size": (47, 64)}, {"img_size": (48, 59)}):
        (size,) = given.values()
        with pytest.raises(OptionError, match=f"{told}.*got {re.escape(str(size))}"):
            TimmImageEncoder(name, **given, **options)
    encoder = TimmImageEncoder(name, image_size=(48, 64), **options).eval()
    images = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    encoder(images.requires_grad_()).regions.square().sum().backward()
    assert images.grad[0, :, -1].any()
    assert images.grad[0, :, :, -1].any()


def test_a_size_that_is_found_out_in_the_forward_pass():
    encoder = TimmImageEncoder("mvitv2_tiny", image_size=233).eval()
    with pytest.raises(ShapeError, match=r"cannot take images of \(233, 233\) pixels"):
        encoder(torch.zeros(1, 3, 233, 233))


def test_patches_that_a_model_pads_may_be_cut():
    options = {"depth": 1, "embed_dim": 96, "num_heads": 3, "dynamic_img_pad": True}
    encoder = TimmImageEncoder(
        "vit_tiny_patch16_224", region_stage=-1, image_size=(48, 75), **options
    )
    assert encoder(torch.zeros(1, 3, 48, 75)).grid == (3, 5)


def test_maps_that_a_model_folds_into_a_wrong_grid():
    encoder = TimmImageEncoder("vitamin_small_224", depth=2).eval()
    with pytest.raises(ShapeError, match=r"vitamin_small_224 gives no whole maps of \(100, 131\)"):
        encoder(torch.zeros(1, 3, 100, 131))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_errors_are_not_blamed_on_the_images(dtype, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    encoder = TimmImageEncoder("resnet10t")
    monkeypatch.setattr(encoder.model, "forward_intermediates", fail)
    half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)
    with half, pytest.raises(torch.OutOfMemoryError, match="no memory"):
        encoder(torch.zeros(1, 3, 64, 64, dtype=dtype))


# Where the regions are


@pytest.mark.parametrize(
    ("name", "offset"),
    [
        ("resnet18", 0.0),
        ("regnetx_002", 0.0),
        ("convnext_atto", None),
        ("vit_tiny_patch16_224", None),
    ],
)
def test_regions_are_where_the_geometry_says(name, offset):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = TimmImageEncoder(name).eval()
    geometry = encoder.region_geometry
    if offset is None:
        assert geometry is None
        offset = (16 - 1) / 2  # tiles
    else:
        assert geometry == (16.0, offset)
    noise = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    assert measure_region_offset(encoder, noise) == pytest.approx((offset, offset), abs=1.2)


def test_layers_over_sequences_are_no_obstacle_to_the_geometry():
    assert TimmImageEncoder("efficientvim_m1").region_geometry == RegionGeometry(32.0, 0.0)


def test_even_kernels_leave_the_geometry_open():
    assert make("resnet10t").region_geometry is None


@pytest.mark.parametrize("stage", [-3, -2])
def test_the_geometry_of_the_phantoms_encoder(stage):
    encoder = make("resnet10t", avg_down=False, region_stage=stage)
    assert encoder.region_geometry == (8.0, 0.0)


@pytest.mark.parametrize(
    "name, size", [("efficientnet_b1", None), ("resnet18", 300), ("resnet18", 48)]
)
def test_the_stride_is_the_stages_own_at_sizes_that_it_does_not_divide(name, size):
    encoder = TimmImageEncoder(name, image_size=size, region_stage=-1)
    assert encoder.region_geometry == (32.0, 0.0)


def test_upsampling_leaves_the_geometry_open():
    assert TimmImageEncoder("hrnet_w18_small").region_geometry is None
