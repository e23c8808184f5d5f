"""Any timm backbone with feature maps or tokens, as an image encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from gloria.checks import (
    check_images,
    check_images_suit,
    check_integer,
    height_width,
    nearest,
    require,
)
from gloria.encoders.freezing import Freezable
from gloria.errors import (
    CheckpointError,
    DtypeError,
    OptionError,
    ShapeError,
    UnknownNameError,
    describe,
    reason,
)
from gloria.types import ImageFeatures, ImageInput, Recipe, RegionGeometry, Stage


class TimmImageEncoder(Freezable):
    """An image encoder from timm: pooled vector and regions in one pass.

    ``pooled`` is what timm's own classifier would be given; ``regions`` are the feature map of
    stage ``region_stage``, row by row. The model has no classifier, so every parameter can receive
    a gradient; with regions from an early stage, the later stages learn from ``pooled`` only.

    The published code takes the regions of a ResNet-50 after its third of four stages and the
    pooled vector after the fourth, as ``region_stage=-2`` does. In a plain transformer a stage is a
    block, all at one resolution: ``-1`` is the usual choice there.

    Args:
        model_name: name in timm, such as ``"resnet50"`` or ``"convnext_tiny.fb_in1k"``;
            also timm's ``"hf-hub:..."`` and ``"local-dir:..."``.
        pretrained: False = random weights; True = timm's published ones; a path = a local
            ``.safetensors`` or ``.pth`` file with this model's weights under timm's names, with or
            without classifier, adapted by timm to ``in_chans`` and ``image_size``.
        in_chans: number of image channels.
        region_stage: which feature map gives the regions, counted as in a list: 0 is the first,
            -1 the last.
        image_size: pixels, one number or ``(height, width)``. Needed only by models made for one
            size (ViT, Swin ...), to make them for another. None = timm's own.
        frozen: no gradients, and eval mode that ``train()`` does not undo; for everything, or for
            the submodules of the given names, such as ``["model.layer1"]``.
        **options: for ``timm.create_model``, such as ``drop_path_rate=0.1``, ``output_stride=8``
            or ``channels=(24, 48, 96, 192)`` where the model has them.

    Attributes:
        pooled_dim: width of the pooled vector.
        region_dim: width of a region; differs from ``pooled_dim`` in most models.
        region_geometry: where the regions are, for models of odd, symmetrically padded kernels
            throughout (ResNet, RegNet, ...): region i is centred on pixel ``stride * i``. None for
            all others: their regions are taken to tile the image, as patches do.
        stages: width and stride of every stage's feature map.
        image_input: what the model wants to be fed; mean and standard deviation are averaged over
            the channels where ``in_chans`` is not what the weights were trained on.

    Raises:
        UnknownNameError: timm has no such model; the message suggests the nearest.
        OptionError: the model has no such stage, no feature maps, or refuses an option or a size.
        CheckpointError: the weights are out of reach, or their file is missing, unreadable, or
            not this model's.
        MissingDependencyError: timm is not installed.

    Convolutional models take any size; transformers whose positions timm interpolates, and Swin,
    take other sizes than their own; the remaining ones refuse them.

    Example::

        encoder = TimmImageEncoder("resnet50", pretrained=True, in_chans=1)
        features = encoder(radiographs)  # (image, 1, 224, 224)
        features.pooled  # (image, 2048)
        features.regions  # (image, 196, 1024), from a grid of (14, 14)
    """

    model: Any

    def __init__(
        self,
        model_name: str,
        *,
        pretrained: bool | str | Path = False,
        in_chans: int = 3,
        region_stage: int = -2,
        image_size: int | Sequence[int] | None = None,
        frozen: bool | Sequence[str] = False,
        **options: Any,
    ) -> None:
        super().__init__()
        timm = require("timm", "encoders")
        _check_name(timm, model_name)
        check_integer("in_chans", in_chans, lowest=1)
        check_integer("region_stage", region_stage)
        for name in ("num_classes", "features_only"):
            if name in options:
                raise OptionError(f"{name} is not an option: the encoder gives features only.")
        if image_size is not None and "img_size" in options:
            raise OptionError("image_size and timm's img_size are the same; give one of them.")
        self.model_name = model_name
        self.region_stage = int(region_stage)
        self.image_size = height_width("image_size", image_size)
        self.options = options

        arguments = {"in_chans": in_chans, "num_classes": 0, **options}
        sketch, arguments = _sketch(timm, model_name, self.image_size, arguments)
        if not hasattr(sketch, "forward_intermediates"):
            raise OptionError(
                f"{model_name} gives no feature maps: it has no forward_intermediates in timm "
                f"{timm.__version__}. Choose another model."
            )
        wanted = timm.models.get_model_input_config(sketch)
        size = self.image_size or tuple(wanted["input_size"][1:])
        if "img_size" in arguments:  # many models refuse it, too; some, as BEiT and Mixers, do not
            check_patches(size, _patch_stride(timm, sketch))
        try:
            layout = _measure(sketch, in_chans, size)
            layout.check_stage(model_name, region_stage)  # before weights are read or downloaded
            self.model = _create(timm, model_name, pretrained, arguments)
        except _CannotRunError:  # a rare model reads values, which a sketch does not have
            self.model = _create(timm, model_name, pretrained, arguments)
            layout = _measure(self.model.eval(), in_chans, size)
            layout.check_stage(model_name, region_stage)
            self.model.train()

        self.pooled_dim = layout.pooled_dim
        self.region_dim = layout.stages[region_stage][0]
        self.stages = tuple(Stage(dim, size[0] / height) for dim, height, _ in layout.stages)
        self.region_geometry = _region_geometry(sketch, in_chans, region_stage)
        self._norm = layout.norm
        self._only_size = size if wanted["fixed_input_size"] else None
        config = sketch.pretrained_cfg
        has_own_size = self.image_size is not None or config.get("fixed_input_size", False)
        self.image_input = ImageInput(
            channels=int(in_chans),
            size=size if has_own_size else None,
            mean=_per_channel(config["mean"], in_chans),
            std=_per_channel(config["std"], in_chans),
        )
        self.freeze_as(frozen)

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode ``images (image, channel, height, width)``, normalised as ``image_input`` says.

        Raises:
            ShapeError: wrong rank or number of channels, no image, or a size that the model cannot
                take.
            DtypeError, DeviceError: the images are not floating-point, or not of the dtype or on
                the device of the model.
        """
        check_images(images, self.image_input.channels, self._only_size)
        last, (feature_map,) = self._run(images, [self.region_stage])
        return features_of(self.model.forward_head(last, pre_logits=True), feature_map)

    def feature_maps(self, images: Tensor, stages: Sequence[int] | None = None) -> list[Tensor]:
        """The feature maps of several stages, for decoders that want more than regions.

        Args:
            images: as in :meth:`forward`.
            stages: which, in ascending order; None = all. Plain transformers normalise each as
                their last.

        Returns:
            A map ``(image, dim, height, width)`` per stage.

        Raises what :meth:`forward` raises, and OptionError where there are no such stages, or they
        are in another order.
        """
        check_images(images, self.image_input.channels, self._only_size)
        count = len(self.stages)
        indices = list(range(count) if stages is None else stages)
        for index in indices:
            check_integer("each of stages", index)
        places = [index % count for index in indices if -count <= index < count]
        if not places or len(places) < len(indices) or places != sorted(set(places)):
            raise OptionError(
                f"stages must be some from {-count} to {count - 1} in ascending order; got "
                f"{indices}."
            )
        return list(self._run(images, indices)[1])

    def recipe(self, folder: Path) -> Recipe:
        """How to make this architecture again; nothing is written to ``folder``."""
        options = {
            "pretrained": False,
            "in_chans": self.image_input.channels,
            "region_stage": self.region_stage,
            "image_size": None if self.image_size is None else list(self.image_size),
            "frozen": self.frozen_as(),
            **self.options,
        }
        return Recipe(f"timm:{self.model_name}", options)

    def _run(self, images: Tensor, stages: list[int]) -> tuple[Any, list[Tensor]]:
        """What the model's head would be given, and the maps of the stages."""
        size = tuple(images.shape[2:])
        try:
            last, maps = self.model.forward_intermediates(
                images,
                indices=stages,
                norm=self._norm,
                stop_early=False,  # some models would stop at the stage and leave nothing to pool
                output_fmt="NCHW",
            )
        except (AssertionError, IndexError, RuntimeError) as cause:
            if isinstance(cause, RuntimeError):
                check_images_suit(images, self.model)
                if self._takes(size):
                    raise  # of memory
            raise ShapeError(
                f"{self.model_name} cannot take images of {size} pixels. {cause}"
            ) from cause
        dims = [self.stages[stage].dim for stage in stages]
        if [map_.shape[1] for map_ in maps] != dims:  # as ViTamin's, folded into a wrong grid
            raise ShapeError(f"{self.model_name} gives no whole maps of {size} pixels.")
        return last, maps

    def _takes(self, size: tuple[int, ...]) -> bool:
        """Whether the architecture can encode images of a size."""
        timm = require("timm", "encoders")
        arguments = {"in_chans": self.image_input.channels, "num_classes": 0, **self.options}
        sketch, _ = _sketch(timm, self.model_name, self.image_size, arguments)
        try:
            _measure(sketch, self.image_input.channels, size)
        except _CannotRunError:
            return False
        return True


def features_of(pooled: Tensor, feature_map: Tensor) -> ImageFeatures:
    """Pooled vectors, and regions of a map ``(image, dim, height, width)``, row by row."""
    height, width = feature_map.shape[2:]
    return ImageFeatures(pooled, rearrange(feature_map, "b d h w -> b (h w) d"), (height, width))


def check_patches(size: tuple[int, int], patch: tuple[int, int]) -> None:
    """Require a size that cuts no patch off."""
    if any(side % each for side, each in zip(size, patch, strict=True)):
        raise OptionError(
            f"image_size must be a multiple of the patches' {patch} pixels, or the rest would not "
            f"be seen; got {size}."
        )


_PROBE = 512  # pixels


class _CannotRunError(OptionError):
    """The model cannot encode an image of the wanted size."""


class _Layout(NamedTuple):
    """Widths and stages, as seen in one pass."""

    pooled_dim: int
    stages: list[tuple[int, int, int]]  # (dim, height, width) each
    norm: bool

    def check_stage(self, model_name: str, region_stage: int) -> None:
        count = len(self.stages)
        if not -count <= region_stage < count:
            listed = ", ".join(f"{dim} x {h} x {w}" for dim, h, w in self.stages)
            raise OptionError(
                f"region_stage must be from {-count} to {count - 1}; got {region_stage}. "
                f"The stages of {model_name} are (dim x height x width): {listed}."
            )


def _check_name(timm: ModuleType, model_name: str) -> None:
    if not isinstance(model_name, str):
        raise DtypeError(f"model_name must be a string; got {type(model_name).__name__}.")
    if ":" in model_name or timm.is_model(model_name):  # "hf-hub:..." and the like are timm's
        return
    near = nearest(model_name.partition(".")[0], timm.list_models(), 3)
    raise UnknownNameError(
        f"timm has no model {model_name!r}.{near} timm.list_models('*part*') lists what there is."
    )


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels


def _sketch(
    timm: ModuleType, name: str, image_size: tuple[int, int] | None, arguments: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model without weights, in eval mode, and the arguments that it understands."""
    sized = arguments if image_size is None else {**arguments, "img_size": image_size}
    # convolutional models know neither argument, some transformers only the first
    for attempt in ({"dynamic_img_size": True, **sized}, sized, arguments):
        try:
            with torch.device("meta"):
                return timm.create_model(name, **attempt).eval(), attempt
        except TypeError as cause:
            refusal: Exception = cause
        except AssertionError as cause:
            refusal = cause
            break
        except Exception as cause:  # the hub raises as it pleases
            if ":" not in name:
                raise
            raise CheckpointError(_out_of_reach(f"the model {name}", cause)) from cause
    raise OptionError(
        f"timm cannot make {name} with these options: {refusal}. (The number of channels is "
        f"in_chans here, the size of images image_size.)"
    ) from refusal


def _patch_stride(timm: ModuleType, model: nn.Module) -> tuple[int, int]:
    """By how many pixels the patches that a model cuts are apart; (1, 1) where it cuts none."""
    kinds = (
        timm.layers.PatchEmbed,
        timm.models.pit.ConvEmbedding,
        timm.models.volo.PatchEmbed,
        nn.Unfold,  # TNT's
    )
    embed = next((module for module in model.modules() if isinstance(module, kinds)), None)
    if embed is None or getattr(embed, "dynamic_img_pad", False):
        return 1, 1
    cuts = [each for each in embed.modules() if isinstance(each, nn.Conv2d | nn.Unfold)]
    height, width = (math.prod(_of_axis(each.stride, axis) for each in cuts) for axis in (0, 1))
    return height, width


def _measure(model: Any, channels: int, size: tuple[int, ...]) -> _Layout:
    """Run one blank image through a model in eval mode."""
    images = torch.zeros(1, channels, *size, device=next(model.parameters()).device)
    for norm in (True, False):  # the few models that cannot normalise a feature map assert so
        try:
            with torch.no_grad():
                last, maps = model.forward_intermediates(
                    images, norm=norm, stop_early=False, output_fmt="NCHW"
                )
                # torch 2.10 runs a kernel over less than its own size where there are no values
                if not all(map_.numel() for map_ in maps):
                    raise ShapeError("a feature map is left with no place")
                pooled = model.forward_head(last, pre_logits=True)
        except Exception as cause:  # whatever a model raises at a size it cannot take
            failure = cause
            continue
        if pooled.dim() != 2:
            raise OptionError(
                f"the pooled output must be (image, dim); got {tuple(pooled.shape)}. "
                f"Leave out the option global_pool, or name a pooling."
            )
        return _Layout(pooled.shape[1], [tuple(map_.shape[1:]) for map_ in maps], norm)
    raise _CannotRunError(
        f"the model cannot encode images of {size[0]} x {size[1]} pixels "
        f"({describe(failure)}). Give another image_size or other options."
    ) from failure


def _region_geometry(sketch: Any, channels: int, region_stage: int) -> RegionGeometry | None:
    """The geometry that a model's layers leave no doubt about; None = as if regions tile the image.

    A layer of odd kernel k, padded by (k - 1) / 2, is centred on every stride-th of its inputs, the
    first included; so is a chain of nothing but such layers. An even kernel anywhere (a patch, the
    ``avg_down`` pooling of some ResNets) moves the centre by half an input, and so does upsampling.
    """
    if not _is_centred(sketch):
        return None
    try:
        # at a size that strides divide: grids are rounded up, so others would show too small ones
        _, height, width = _measure(sketch, channels, (_PROBE, _PROBE)).stages[region_stage]
    except _CannotRunError:
        return None
    stride = _PROBE / height
    return RegionGeometry(stride, 0.0) if height == width and stride.is_integer() else None


def _is_centred(model: nn.Module) -> bool:
    """Whether every layer is of odd, symmetrically padded kernels."""
    for layer in model.modules():
        if any(layer.children()):
            continue
        if isinstance(layer, nn.Upsample | nn.ConvTranspose2d | nn.PixelShuffle):
            return False
        for axis in (0, 1):
            kernel = _of_axis(getattr(layer, "kernel_size", 1), axis)
            padding = _of_axis(getattr(layer, "padding", 0), axis)
            reach = _of_axis(getattr(layer, "dilation", 1), axis) * (kernel - 1)
            if kernel % 2 == 0 or 2 * padding != reach:
                return False
        strided = _of_axis(getattr(layer, "stride", 1), 0) > 1
        if strided and not hasattr(layer, "kernel_size"):
            return False
    return True


def _of_axis(value: Any, axis: int) -> Any:
    if isinstance(value, tuple | list):
        return value[axis % len(value)]  # a layer over a sequence of pixels has one number
    return value


def _create(
    timm: ModuleType, name: str, pretrained: bool | str | Path, arguments: dict[str, Any]
) -> Any:
    if pretrained is False:
        return timm.create_model(name, **arguments)
    if pretrained is True:
        try:
            return timm.create_model(name, pretrained=True, **arguments)
        except Exception as cause:  # timm, the hub and torch raise as they please
            raise CheckpointError(_out_of_reach(f"the weights of {name}", cause)) from cause
    if not Path(str(pretrained)).is_file():  # None, say
        raise CheckpointError(
            f"pretrained must be True, False or a file of weights; there is no file {pretrained}."
        )
    with torch.random.fork_rng(devices=[]):
        untrained = timm.create_model(name, **arguments)
    overlay = arguments.get("pretrained_cfg_overlay", {})
    overlay = {**overlay, "source": "", "file": str(pretrained)}
    try:
        model = timm.create_model(
            name, pretrained=True, **{**arguments, "pretrained_cfg_overlay": overlay}
        )
    except Exception as cause:  # timm, torch and safetensors raise as they please
        raise CheckpointError(
            f"{pretrained} cannot be loaded into {name} ({describe(cause)})."
        ) from cause
    _check_loaded(untrained, model, name, pretrained)
    return model


def _out_of_reach(what: str, cause: Exception) -> str:
    return (
        f"{what} cannot be had ({type(cause).__name__}: {reason(cause)}). Without network, name "
        f"the architecture as timm does and pass its weights: "
        f"pretrained='path/to/model.safetensors'."
    )


def _check_loaded(untrained: nn.Module, model: nn.Module, name: str, path: str | Path) -> None:
    """Require that no random weight is left: without a classifier, timm does not load strictly.

    Both models were drawn from the same random state, so what loading did not touch is equal.
    """
    random = dict(untrained.named_parameters())
    left = [
        key
        for key, loaded in model.named_parameters()
        if loaded.requires_grad
        and bool((random[key] != random[key].flatten()[0]).any())
        and torch.equal(loaded, random[key])
    ]
    if left:
        raise CheckpointError(
            f"{path} has no weights for {len(left)} of the {len(random)} parameters of {name}, "
            f"such as {', '.join(left[:3])}. Is it another model's file, or a wrapped one?"
        )
