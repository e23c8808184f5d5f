"""TorchXRayVision's classifiers without their classifier: pooled vector and regions."""

from __future__ import annotations

import contextlib
import difflib
import sys
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from gloria.checks import check_tensor
from gloria.encoders import Freezable
from gloria.errors import CheckpointError, ShapeError, UnknownNameError
from gloria.types import ImageFeatures, ImageInput, Recipe, RegionGeometry
from gloria_torchxrayvision.hooks import NAMES

with warnings.catch_warnings():  # importing it turns off every warning of the process
    import torchxrayvision as xrv


class XRVImageEncoder(Freezable):
    """A backbone of TorchXRayVision: the feature map before pooling, and its mean.

    Args:
        name: TorchXRayVision's name of the weights, such as ``"densenet121-res224-all"``.
        pretrained: False = random weights; True = the published ones, by TorchXRayVision's own
            loader, which downloads them once; a path = a file that you have: one of the published
            ones, or weights under their names as ``.safetensors`` or ``.pt``, with or without
            classifier.
        frozen: no gradients, and eval mode that ``train()`` does not undo; for everything, or for
            the submodules of the given names, such as ``["trunk.conv0"]``.

    Attributes:
        pooled_dim, region_dim: 1,024 for a DenseNet-121, 2,048 for a ResNet-50.
        image_input: one channel and, from pixels in [0, 1], TorchXRayVision's range of
            [-1024, 1024]. The size is that of the weights; others of at least 32 pixels will do.
        region_geometry: a region every 32 pixels. The first one's centre is pixel 0 in a ResNet,
            whose kernels are odd, and pixel 14 in a DenseNet: each of its three transitions
            averages two by two, which moves the centre by half a step of 4, 8 and 16 pixels.

    Raises:
        UnknownNameError: TorchXRayVision has no such weights; the message suggests the nearest.
        CheckpointError: the weights can't be downloaded, or the file is missing, unreadable, or
            not this architecture's.

    TorchXRayVision resizes every image to the resolution of the weights, and warns on stdout of
    unusual pixel values. Here an image is taken as it is.

    Source: Cohen et al., "TorchXRayVision: A library of chest X-ray datasets and models", 2021.

    Example::

        encoder = gloria.create_image_encoder("xrv:densenet121-res224-all", pretrained=True)
        features = encoder(gloria.data.normalize(radiographs, encoder.image_input))
        features.regions  # (image, 49, 1024), from a grid of (7, 7)
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool | str | Path = False,
        frozen: bool | Sequence[str] = False,
    ) -> None:
        super().__init__()
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES)
            raise UnknownNameError(
                f"TorchXRayVision has no weights {name!r}. "
                + (f"Did you mean {', '.join(near)}? " if near else "")
                + f"There are {', '.join(NAMES)}."
            )
        self.name = name
        if name.startswith("densenet"):
            model = _download(name) if pretrained is True else xrv.models.DenseNet()
            self.trunk = model.features
            self.trunk.add_module("relu5", nn.ReLU())
            self.pooled_dim = self.region_dim = model.classifier.in_features
            self.region_geometry = RegionGeometry(stride=32.0, offset=14.0)
        else:
            model = _download(name).model if pretrained is True else _untrained_resnet()
            layers = [(key, layer) for key, layer in model.named_children() if key != "fc"]
            self.trunk = nn.Sequential(OrderedDict(layers[:-1]))  # the last one pools
            self.pooled_dim = self.region_dim = model.fc.in_features
            self.region_geometry = RegionGeometry(stride=32.0, offset=0.0)
        if not isinstance(pretrained, bool):
            _load(self.trunk, Path(pretrained), name)
        side = xrv.models.model_urls[name]["input_resolution"]
        # (p - 0.5) / (1 / 2048) = (2 p - 1) * 1024
        self.image_input = ImageInput(channels=1, size=(side, side), mean=(0.5,), std=(1 / 2048,))
        self.train()  # the published models come in eval mode
        self.freeze_as(frozen)

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode images.

        Args:
            images: ``(image, 1, height, width)``, normalised as ``image_input`` says.

        Raises:
            ShapeError: wrong rank or number of channels, or fewer than 32 pixels.
            DtypeError: the images are not floating-point.
        """
        check_tensor("images", images, ("image", "channel", "height", "width"))
        if images.shape[1] != 1 or min(images.shape[2:]) < 32:
            raise ShapeError(
                f"images must have 1 channel and at least 32 x 32 pixels; got "
                f"{tuple(images.shape)}. Load them as grayscale: load_image(path, channels=1)."
            )
        maps = self.trunk(images)
        return ImageFeatures(
            pooled=maps.mean((2, 3)),
            regions=maps.flatten(2).mT,  # (image, region, dim)
            grid=(maps.shape[2], maps.shape[3]),
        )

    def recipe(self, folder: Path) -> Recipe:
        """How to make this architecture again; nothing is written to ``folder``."""
        return Recipe(f"xrv:{self.name}", {"pretrained": False, "frozen": self.frozen_as()})


def _untrained_resnet() -> Any:
    """TorchXRayVision's ResNet-50, which it makes with downloaded weights only."""
    model = torchvision.models.resnet50(weights=None)
    model.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


def _download(name: str) -> Any:
    """The published model, from TorchXRayVision's cache or the network."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where it reports its progress
            return xrv.models.get_model(name)
    except Exception as cause:  # requests, torch and the file system raise as they please
        raise CheckpointError(
            f"the weights of {name} cannot be had ({type(cause).__name__}: {_one_line(cause)}). "
            f"Download {_url(name)} elsewhere and give the file's path: pretrained='path/to/file'."
        ) from cause


def _load(trunk: nn.Module, path: Path, name: str) -> None:
    """Load what a file has of the trunk's weights, which must be all."""
    if not path.is_file():
        raise CheckpointError(
            f"pretrained must be True, False or a file of weights; there is no file {path}."
        )
    try:
        weights = {
            key.removeprefix("model.").removeprefix("features."): tensor
            for key, tensor in _read(path).items()
        }
        trunk.load_state_dict({key: weights[key] for key in trunk.state_dict() if key in weights})
    except Exception as cause:  # torch and safetensors raise as they please
        cached = Path(xrv.utils.get_cache_dir(), Path(_url(name)).name)
        raise CheckpointError(
            f"{path} cannot be loaded into {name} ({type(cause).__name__}: {_one_line(cause)}). "
            f"If it is the published file and you trust it, which can run code when it is read, "
            f"put it at {cached} and give pretrained=True."
        ) from cause


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    # the published DenseNets are pickled models, which may hold no class but their own
    classes = {type(layer) for layer in xrv.models.DenseNet().modules()}
    with torch.serialization.safe_globals([*classes, set]):
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    state: Mapping[str, Tensor] = (
        content.state_dict() if isinstance(content, nn.Module) else content
    )
    return state


def _url(name: str) -> str:
    url: str = xrv.models.model_urls[name]["weights_url"]
    return url


def _one_line(cause: Exception) -> str:
    return shorten(str(cause), 300)
