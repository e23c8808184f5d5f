"""An image encoder of one layer."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from gloria.types import ImageFeatures, ImageInput, Recipe


class PatchEncoder(nn.Module):
    """Every patch of the image, projected linearly; their mean is the pooled vector.

    Args:
        width: of a region and of the pooled vector.
        patch_size: side of a patch in pixels; what is left over at the lower and right edge of an
            image is not seen.
    """

    def __init__(self, width: int = 64, patch_size: int = 8) -> None:
        super().__init__()
        self.project = nn.Conv2d(1, width, kernel_size=patch_size, stride=patch_size)
        self.width, self.patch_size = width, patch_size
        self.pooled_dim = self.region_dim = width
        self.image_input = ImageInput(channels=1, size=None, mean=(0.5,), std=(0.5,))

    def forward(self, images: Tensor) -> ImageFeatures:
        """Encode ``images (image, 1, height, width)``."""
        maps = self.project(images)  # (image, width, grid height, grid width)
        regions = maps.flatten(2).mT  # (image, region, width)
        return ImageFeatures(regions.mean(1), regions, grid=(maps.shape[2], maps.shape[3]))

    def recipe(self, folder: Path) -> Recipe:
        """How to make it again, so that ``gloria.save_model`` can save it."""
        return Recipe("template_patches", {"width": self.width, "patch_size": self.patch_size})
