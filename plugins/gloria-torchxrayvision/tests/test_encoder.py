"""The encoder against TorchXRayVision itself, and against what gloria asks of an encoder."""

import io

import numpy as np
import pytest
import torch
import torchxrayvision as xrv
from gloria_torchxrayvision.encoder import XRVImageEncoder
from gloria_torchxrayvision.hooks import NAMES
from PIL import Image
from safetensors.torch import save_file

from gloria.data import load_image, normalize
from gloria.errors import CheckpointError, DtypeError, ShapeError, UnknownNameError
from gloria.geometry import measure_region_offset
from gloria.types import ImageEncoder

DENSENET, RESNET = "densenet121-res224-all", "resnet50-res512-all"


@pytest.fixture
def noisy():
    """Make a model one whose batch norms have seen something, in eval mode."""

    def noisy(model):
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
        return model.eval()

    return noisy


@pytest.fixture
def published(noisy, monkeypatch, tmp_path):
    """Serve these bytes, or raise this, where TorchXRayVision downloads; its cache is empty."""

    def published(answer):
        class Response(io.BytesIO):
            status_code, headers = 200, {}
            raise_for_status = staticmethod(lambda: None)
            iter_content = lambda self, chunk_size: iter([self.read()])  # noqa: E731

        def get(url, **options):
            if isinstance(answer, Exception):
                raise answer
            return Response(answer)

        monkeypatch.setattr(xrv.utils.requests, "get", get)
        monkeypatch.setattr(xrv.utils, "get_cache_dir", lambda: str(tmp_path / "cache"))

    return published


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def radiographs(count, side):
    """In TorchXRayVision's range."""
    return torch.empty(count, 1, side, side).uniform_(-1024, 1024)


# --- what it computes -----------------------------------------------------------------------------


def test_a_densenet_gives_torchxrayvisions_features(published, noisy):
    model = noisy(xrv.models.DenseNet())
    published(saved(model))
    encoder = XRVImageEncoder(DENSENET, pretrained=True).eval()
    images = radiographs(2, 224)
    with torch.no_grad():
        features, maps = encoder(images), model.features(images).relu()
        torch.testing.assert_close(features.pooled, model.features2(images))
    assert features.grid == (7, 7)
    assert torch.equal(features.regions.unflatten(1, (7, 7)), maps.permute(0, 2, 3, 1))
    assert (encoder.pooled_dim, encoder.region_dim) == (1024, 1024)


def test_a_resnet_gives_torchxrayvisions_features(published, noisy):
    whole = noisy(torch.nn.Sequential(XRVImageEncoder(RESNET).trunk))[0]
    weights = {**whole.state_dict(), "fc.weight": torch.ones(18, 2048), "fc.bias": torch.ones(18)}
    published(saved(weights))
    encoder = XRVImageEncoder(RESNET, pretrained=True).eval()
    model = xrv.models.get_model(RESNET)
    images = radiographs(1, 512)
    with torch.no_grad():
        features = encoder(images)
        torch.testing.assert_close(features.pooled, model.features(images))
    assert features.grid == (16, 16)
    torch.testing.assert_close(features.regions.mean(1), features.pooled)
    assert (encoder.pooled_dim, encoder.region_dim) == (2048, 2048)


def test_our_pipeline_feeds_exactly_what_torchxrayvisions_does(tmp_path):
    pixels = np.arange(256, dtype="uint8").reshape(16, 16)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    wanted = XRVImageEncoder(DENSENET).image_input
    fed = normalize(load_image(tmp_path / "film.png"), wanted)
    assert torch.equal(fed, torch.from_numpy(xrv.utils.load_image(str(tmp_path / "film.png"))))
    assert (wanted.channels, wanted.size) == (1, (224, 224))
    assert XRVImageEncoder(RESNET).image_input.size == (512, 512)


@pytest.mark.parametrize("name", [DENSENET, RESNET])
def test_regions_are_where_it_says(name):
    encoder = XRVImageEncoder(name).eval()
    geometry = encoder.region_geometry
    images = torch.randn(1, 1, 256, 256)
    assert encoder(images).grid == (256 / geometry.stride,) * 2
    measured = measure_region_offset(encoder, images, probes=4)
    # good to about half a pixel either way; tiles would begin at 15.5
    assert sum(measured) / 2 == pytest.approx(geometry.offset, abs=1.0)


@pytest.mark.parametrize("name", [DENSENET, RESNET])
def test_every_parameter_learns_and_odd_sizes_are_taken(name):
    encoder = XRVImageEncoder(name)
    assert isinstance(encoder, ImageEncoder)
    features = encoder(torch.randn(2, 1, 67, 99))
    assert features.regions.shape[1] == features.grid[0] * features.grid[1]
    features.pooled.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


# --- weights --------------------------------------------------------------------------------------


def test_a_failed_download_is_one_error(published, capfd):
    published(ConnectionError("no route to host\nand more"))
    with pytest.raises(CheckpointError, match="ConnectionError: no route to host") as caught:
        XRVImageEncoder(DENSENET, pretrained=True)
    assert xrv.models.model_urls[DENSENET]["weights_url"] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_published_densenet_is_read_from_a_file_without_running_code(noisy, tmp_path):
    model = noisy(xrv.models.DenseNet())
    torch.save(model, tmp_path / "published.pt")
    encoder = XRVImageEncoder(DENSENET, pretrained=tmp_path / "published.pt").eval()
    images = radiographs(1, 64)
    assert torch.equal(encoder.trunk(images), model.features(images).relu())


@pytest.mark.parametrize("kind", ["state dict", "safetensors", "of the classifier"])
def test_weights_are_read_from_a_file(noisy, tmp_path, kind):
    trunk = noisy(XRVImageEncoder(RESNET)).trunk
    path = str(tmp_path / "weights.pt")
    if kind == "safetensors":
        path = str(tmp_path / "weights.safetensors")
        save_file(trunk.state_dict(), path)
    elif kind == "of the classifier":  # as state_dict() of TorchXRayVision's own class names them
        named = {f"model.{key}": value for key, value in trunk.state_dict().items()}
        torch.save({**named, "model.fc.bias": torch.ones(18), "op_threshs": torch.ones(18)}, path)
    else:
        torch.save(trunk.state_dict(), path)
    encoder = XRVImageEncoder(RESNET, pretrained=path)
    for key, value in encoder.trunk.state_dict().items():
        assert torch.equal(value, trunk.state_dict()[key])


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemError('code ran')",)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (Trap(), "UnpicklingError"),
        (b"no weights", "UnpicklingError"),
        ([1, 2], "AttributeError"),
        ({"conv0.weight": torch.ones(64, 1, 7, 7)}, "Missing key"),
    ],
)
def test_another_file_is_one_error(tmp_path, content, complaint):
    path = tmp_path / "weights.pt"
    path.write_bytes(content if isinstance(content, bytes) else saved(content))
    with pytest.raises(CheckpointError, match=complaint) as caught:
        XRVImageEncoder(DENSENET, pretrained=path)
    assert "code ran" not in str(caught.value)
    assert "give pretrained=True" in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*nothing\.pt"):
        XRVImageEncoder(DENSENET, pretrained=tmp_path / "nothing.pt")


# --- arguments ------------------------------------------------------------------------------------


def test_the_names_are_torchxrayvisions():
    known = xrv.models.model_urls
    assert set(NAMES) == {name for name in known if name.startswith(("densenet", "resnet"))}


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean densenet121-res224-nih"):
        XRVImageEncoder("densenet121-res224-nhi")


@pytest.mark.parametrize(
    "images, error",
    [
        (torch.randn(1, 3, 64, 64), ShapeError),
        (torch.randn(1, 1, 31, 64), ShapeError),
        (torch.randn(1, 64, 64), ShapeError),
        (torch.ones(1, 1, 64, 64, dtype=torch.uint8), DtypeError),
    ],
)
def test_images_that_it_cannot_take(images, error):
    with pytest.raises(error, match="images must"):
        XRVImageEncoder(DENSENET)(images)


def test_frozen_parts_stay_as_they_are():
    encoder = XRVImageEncoder(DENSENET, frozen=["trunk.conv0", "trunk.norm0"]).train()
    assert not encoder.trunk.norm0.training
    assert encoder.trunk.norm5.training
    encoder(torch.randn(2, 1, 64, 64)).pooled.sum().backward()
    assert encoder.trunk.conv0.weight.grad is None
    assert encoder.trunk.norm5.weight.grad is not None
    assert encoder.recipe(None).options["frozen"] == ["trunk.conv0", "trunk.norm0"]
