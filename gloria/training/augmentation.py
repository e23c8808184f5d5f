"""Augmentation that keeps a report true: shift, gain and offset; never a flip.

Reports say left and right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Augmentation:
    """What to vary, in units of the image.

    Attributes:
        shift: largest shift in either direction, as a fraction of the image's side; the border is
            repeated.
        gain: standard deviation of the factor's difference from 1.
        offset: standard deviation of what is added, pixel values being in [0, 1].
    """

    shift: float = 0.08
    gain: float = 0.1
    offset: float = 0.03

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Vary each image ``(image, channel, height, width)`` on its own.

        Args:
            images: values in [0, 1].
            generator: a CPU generator, the only source of randomness.
        """
        count, _, height, width = images.shape
        reach_y, reach_x = round(self.shift * height), round(self.shift * width)
        padded = pad(images, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
        top = torch.randint(2 * reach_y + 1, (count,), generator=generator).tolist()
        left = torch.randint(2 * reach_x + 1, (count,), generator=generator).tolist()
        shifted = torch.stack(
            [
                image[:, y : y + height, x : x + width]
                for image, y, x in zip(padded, top, left, strict=True)
            ]
        )
        vary = torch.randn(2, count, 1, 1, 1, generator=generator).to(images.device)
        return shifted * (1 + self.gain * vary[0]) + self.offset * vary[1]
