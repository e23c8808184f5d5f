"""Image encoders around a trunk, which is any image encoder that gloria knows by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import normalize

import gloria
from gloria.catalog import default_catalog
from gloria.checks import check_integer
from gloria.errors import OptionError, UnknownNameError
from gloria.types import ImageEncoder, ImageFeatures, Recipe, SavesRecipe
from gloria.wrapping import unwrapped


class TrunkImageEncoder(nn.Module):
    """An image encoder that works on the features of another one, its trunk.

    Args:
        trunk: a registered name, or an encoder.
        in_chans: number of image channels, for a trunk that takes it.
        trunk_options: more keyword arguments for a trunk given by name.
    """

    name: ClassVar[str]

    def __init__(
        self, trunk: str | ImageEncoder, in_chans: int, trunk_options: dict[str, Any]
    ) -> None:
        super().__init__()
        if isinstance(trunk, str):
            if default_catalog().takes("image_encoders", trunk, "in_chans"):
                trunk_options = {"in_chans": in_chans, **trunk_options}
            trunk = gloria.create_image_encoder(trunk, **trunk_options)
        elif trunk_options:
            raise OptionError(
                f"{', '.join(trunk_options)} go with a name for trunk; got them with a "
                f"{type(trunk).__name__} object. Set them on the object instead."
            )
        self.trunk = trunk
        self.image_input = trunk.image_input
        self.region_geometry = getattr(trunk, "region_geometry", None)

    def recipe(self, folder: Path) -> Recipe:
        """The trunk's recipe, with what is around it.

        Raises:
            OptionError: the trunk has no recipe.
        """
        trunk: Any = self.trunk
        if not isinstance(unwrapped(trunk), SavesRecipe):
            raise OptionError(f"the trunk, a {type(trunk).__name__}, has no recipe method.")
        name, options, files = trunk.recipe(folder)
        return Recipe(self.name, {**options, **self._own_options(), "trunk": name}, files)

    def _own_options(self) -> dict[str, Any]:
        return {}


class VSEImageEncoder(TrunkImageEncoder):
    """VSE++'s image encoder: the trunk's pooled vector, L2-normalised.

    The linear map to the shared space, and the L2 norm behind it, are the model's and the loss's.
    Regions are the trunk's own.

    Args:
        trunk: a registered name, or an encoder; published: a ResNet-152.
        in_chans: number of image channels.
        trunk_options: keyword arguments for the trunk, such as ``pretrained=True``.

    Source: Faghri et al., VSE++ (BMVC 2018), section 4, and its code.
    """

    name = "baselines:vse"

    def __init__(
        self,
        trunk: str | ImageEncoder = "timm:resnet152",
        *,
        in_chans: int = 3,
        **trunk_options: Any,
    ) -> None:
        super().__init__(trunk, in_chans, trunk_options)
        self.pooled_dim = self.trunk.pooled_dim
        self.region_dim = self.trunk.region_dim

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode ``images (image, channel, height, width)``."""
        features: ImageFeatures = self.trunk(images)
        return features._replace(pooled=normalize(features.pooled, dim=-1))


class DSVEImageEncoder(TrunkImageEncoder):
    """DSVE's image encoder: the trunk's regions, a 1 × 1 convolution, and WELDON pooling.

    ``regions`` are the map behind the convolution; ``pooled`` is, per channel, the mean of its
    highest plus the mean of its lowest values (:class:`gloria.aggregators.Weldon`), with dropout.
    The linear map to the shared space is the model's ``image_head``, of which
    :func:`gloria_baselines.localization.localize` makes heat maps.

    Args:
        trunk: a registered name, or an encoder; published: a ResNet-152.
        in_chans: number of image channels.
        width: channels of the convolution; published: 2400.
        pooling: name of a registered aggregator of regions; published: ``"weldon"``, with the 15
            highest and the 15 lowest values.
        dropout: of the pooled vector; published: 0.5.
        trunk_options: keyword arguments for the trunk, such as ``pretrained=True``. A trunk from
            timm gives its last stage, as published, unless ``region_stage`` says otherwise.

    Source: Engilberge et al., Finding beans in burgers (CVPR 2018), section 3.
    """

    name = "baselines:dsve"

    def __init__(
        self,
        trunk: str | ImageEncoder = "timm:resnet152",
        *,
        in_chans: int = 3,
        width: int = 2400,
        pooling: str = "weldon",
        dropout: float = 0.5,
        **trunk_options: Any,
    ) -> None:
        check_integer("width", width, 1)
        if isinstance(trunk, str) and trunk.startswith("timm:"):
            trunk_options = {"region_stage": -1, **trunk_options}
        super().__init__(trunk, in_chans, trunk_options)
        self.pooling = pooling
        self.convolution = nn.Linear(self.trunk.region_dim, width)  # 1 × 1, of flattened maps
        self.pool = gloria.create_aggregator(pooling)
        self.dropout = nn.Dropout(dropout)
        self.pooled_dim = self.region_dim = width

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode ``images (image, channel, height, width)``."""
        features: ImageFeatures = self.trunk(images)
        regions = self.convolution(features.regions)
        mask = features.region_mask
        pooled = self.pool(regions, None if mask is None else mask[..., None], 1)
        return features._replace(pooled=self.dropout(pooled), regions=regions)

    def _own_options(self) -> dict[str, Any]:
        return {"width": self.pooled_dim, "pooling": self.pooling, "dropout": self.dropout.p}


ENCODERS: dict[str, type[VSEImageEncoder | DSVEImageEncoder]] = {
    "vse": VSEImageEncoder,
    "dsve": DSVEImageEncoder,
}


def create(name: str, *, in_chans: int = 3, **options: Any) -> VSEImageEncoder | DSVEImageEncoder:
    """Make the image encoder ``baselines:<name>``."""
    if name not in ENCODERS:
        raise UnknownNameError(
            f"no image encoder is named 'baselines:{name}'; there are {', '.join(ENCODERS)}."
        )
    return ENCODERS[name](in_chans=in_chans, **options)


def list_names() -> list[str]:
    """What follows ``baselines:``."""
    return list(ENCODERS)
