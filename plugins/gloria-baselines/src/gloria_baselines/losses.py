"""The losses of the three systems: hinges on triplets, and ConVIRT's weighted InfoNCE."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from gloria.checks import check_choice, check_integer, check_positive, check_same_size
from gloria.errors import OptionError
from gloria.functional import global_similarity
from gloria.losses import GlobalContrastiveLoss, PairLoss

PLATEAU_TOLERANCE = 0.02
"""How far from the plateau, as a share of it, a loss still counts as sitting on it."""


class PlateauWarning(UserWarning):
    """A hardest-negative loss sits where all embeddings are alike; the message says what helps."""


class TripletHingeLoss(PairLoss):
    """Hinges on the cosine: an own pair must be closer than every wrong one, by a margin.

    ``h_ij = [m + S_ij - S_ii]₊`` for image i with text j ≠ i, and
    ``g_ij = [m + S_ij - S_jj]₊`` for text j with image i ≠ j;
    VSE0 is ``Σ_ij h_ij + Σ_ij g_ij``, VSE++ (and DSVE) ``Σ_i max_j h_ij + Σ_j max_i g_ij``.

    The sums run over the batch, as published: the loss grows with it. A batch of one has nothing to
    be told apart from, and a loss of 0.

    Args:
        margin: m; published: 0.2.
        negatives: ``"sum"`` (VSE0) or ``"hardest"`` (VSE++, DSVE).
        warmup_steps: with ``"hardest"``, the training steps over which the loss goes from the sum
            to the hardest, in a straight line. The hardest negative alone may drive all embeddings
            together, and then stays there. In eval mode the loss is always the hardest.
        patience: training steps in a row that the hardest hinges may sit on ``2 · batch · m``, to
            2 %, before a :class:`PlateauWarning` is given, once. That is their value where all
            similarities are equal.

    Raises:
        ShapeError: images and texts are not as many, or not of one width.
        OptionError: a training step of a warm-up without :meth:`at_step` before it.

    Own pairs are left out by a similarity of -∞. DSVE's published code subtracts ``2 S_ii`` from
    them, so that an own pair of negative similarity may be taken for the hardest wrong one; VSE++'s
    sets their hinges to 0, which is the same as here.

    Source: Faghri et al., VSE++ (BMVC 2018), eq. 5 and 6; Engilberge et al., Finding beans in
    burgers (CVPR 2018), the triplet loss with hard negatives. The warm-up is common practice.

    Example:
        >>> loss = TripletHingeLoss()
        >>> round(loss(torch.eye(3), torch.eye(3)).item(), 3)  # own 1, others 0
        0.0
        >>> round(loss(torch.ones(3, 2), torch.ones(3, 2)).item(), 3)  # the plateau: 2 * 3 * 0.2
        1.2
    """

    def __init__(
        self,
        *,
        margin: float = 0.2,
        negatives: str = "hardest",
        warmup_steps: int = 0,
        patience: int = 100,
    ) -> None:
        super().__init__()
        check_positive("margin", margin)
        check_choice("negatives", negatives, ("sum", "hardest"))
        check_integer("warmup_steps", warmup_steps, 0)
        check_integer("patience", patience, 1)
        if warmup_steps and negatives == "sum":
            raise OptionError(
                f"warmup_steps goes with negatives='hardest': it starts from the sum; "
                f"got {warmup_steps}."
            )
        self.margin = margin
        self.negatives = negatives
        self.warmup_steps = warmup_steps
        self.patience = patience
        self._step: int | None = None
        self._watched = 0
        self._on_plateau: Tensor | int = 0  # steps in a row, on the device
        self._warned = False

    def at_step(self, step: int) -> None:
        """Say which training step comes next, counted from 0, for the warm-up."""
        self._step = step

    def forward(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """The loss, a scalar, from ``(image, dim)`` and ``(text, dim)``, text k of image k."""
        return self.total(self.terms(image_embeddings, text_embeddings))

    def terms(self, image_embeddings: Tensor, text_embeddings: Tensor) -> dict[str, Tensor]:
        """``image_to_text`` (the h) and ``text_to_image`` (the g), each a scalar."""
        similarity = self.similarity(image_embeddings, text_embeddings)
        check_same_size("number", "images", len(similarity), "texts", similarity.shape[1])
        own = similarity.diagonal()
        itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        others = similarity.masked_fill(itself, -math.inf)
        hinges = {
            "image_to_text": (self.margin + others - own[:, None]).clamp_min(0),
            "text_to_image": (self.margin + others - own).T.clamp_min(0),
        }
        if self.negatives == "sum":
            return {name: each.sum() for name, each in hinges.items()}
        hardest = {name: each.amax(1).sum() for name, each in hinges.items()}
        if self.training:
            self._watch(hardest["image_to_text"] + hardest["text_to_image"], len(similarity))
        share = self._share_of_hardest()
        if share == 1:
            return hardest
        return {
            name: share * hardest[name] + (1 - share) * each.sum() for name, each in hinges.items()
        }

    def similarity(self, image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
        """Cosine of every image with every text, ``(image, text)``; their numbers may differ."""
        return global_similarity(image_embeddings, text_embeddings)

    def extra_repr(self) -> str:
        """Show the hyper-parameters."""
        return (
            f"margin={self.margin}, negatives={self.negatives!r}, "
            f"warmup_steps={self.warmup_steps}, patience={self.patience}"
        )

    def _share_of_hardest(self) -> float:
        if not self.warmup_steps or not self.training:
            return 1.0
        if self._step is None:
            raise OptionError(
                "warmup_steps needs to know the step: call loss.at_step(step) before each, as "
                "gloria.training.train does."
            )
        return min(self._step / self.warmup_steps, 1.0)

    def _watch(self, hardest: Tensor, batch: int) -> None:
        """Count steps on the plateau; the device is waited for once in ``patience`` steps."""
        if batch < 2 or self._warned:
            return
        plateau = 2 * batch * self.margin
        near = (hardest.detach() / plateau - 1).abs() < PLATEAU_TOLERANCE
        self._on_plateau = (self._on_plateau + 1) * near
        self._watched += 1
        if self._watched % self.patience == 0 and int(self._on_plateau) >= self.patience:
            self._warned = True
            warnings.warn(
                f"the loss has been at {plateau:.4g} = 2 · batch · margin for {self.patience} "
                f"steps, as when all embeddings are alike: the hardest negative drives them "
                f"together, not apart. Start from the sum, for longer, with warmup_steps, or lower "
                f"the learning rate.",
                PlateauWarning,
                stacklevel=3,
            )


def vse0(**options: Any) -> TripletHingeLoss:
    """The sum of all hinges (VSE0): :class:`TripletHingeLoss` with ``negatives="sum"``."""
    return TripletHingeLoss(negatives="sum", **options)


def vse_plus_plus(**options: Any) -> TripletHingeLoss:
    """The hardest negatives (VSE++, DSVE): :class:`TripletHingeLoss`, ``negatives="hardest"``."""
    return TripletHingeLoss(negatives="hardest", **options)


def convirt(**options: Any) -> GlobalContrastiveLoss:
    """InfoNCE, weighted .75 and .25 (ConVIRT): a preset of gloria's global contrastive loss."""
    return GlobalContrastiveLoss.from_preset("convirt", **options)
