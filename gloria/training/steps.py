"""What the loops share: one step of the optimizer, and the recipe of supervised training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gloria.checks import check_integer, check_positive, check_weight
from gloria.errors import NonFiniteLossError, OptionError


@dataclass(frozen=True)
class SupervisedRecipe:
    """How to train on labels or masks, by AdamW.

    Attributes:
        steps: optimizer steps.
        batch_size: images in a step; fewer if there are not so many.
        learning_rate: of the first step; falls to 0 as a cosine.
        weight_decay: AdamW's; not applied to biases, norms and other vectors.
        clip_norm: gradients are scaled down to this norm.
        validate_every: steps between validations.
        seed: decides order, augmentation and dropout.
    """

    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip_norm: float = 1.0
    validate_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every"):
            check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0)
        check_positive("learning_rate", self.learning_rate)
        check_positive("clip_norm", self.clip_norm)
        check_weight("weight_decay", self.weight_decay)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained, for an optimizer; biases, norms and other vectors do not decay.

    Raises:
        OptionError: every parameter is frozen.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise OptionError(
            f"model must have a parameter to train; all of this {type(model).__name__} are frozen."
        )
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def check_initialized(model: nn.Module) -> None:
    """Require that each parameter and buffer has its shape, which a lazy layer's has not yet.

    Raises:
        OptionError: one has none; the message names it.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise OptionError(
                f"model must know the shapes of its parameters; {name} has none yet, as it is of "
                f"a lazy layer. Give that layer its width, or send one batch through the model."
            )


@contextmanager
def naming_batch(batch_size: int, images: int) -> Iterator[None]:
    """Inside, BatchNorm's error on a batch of one image is said in terms of who chose the batch.

    Args:
        batch_size: the recipe's.
        images: how many there are to train on; a batch has no more.

    Raises:
        OptionError: a channel of the batch has one value only, which has no variance.
    """
    try:
        yield
    except ValueError as cause:
        if "Expected more than 1 value per channel" not in str(cause):
            raise
        raise OptionError(
            f"batch_size must be at least 2, of as many images, to train a BatchNorm on a feature "
            f"map of one pixel; got batch_size {batch_size} and {images} to train on. Give more "
            f"images, or larger ones."
        ) from cause


def update(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    *,
    step: int,
    learning_rate: float,
    clip_norm: float,
    terms: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Update the optimizer's parameters by the gradient of a loss.

    Args:
        optimizer: whose learning rate is set here.
        loss: a scalar.
        step: which one, counted from 0.
        learning_rate: of this step.
        clip_norm: the gradient is scaled down to this norm.
        terms: what else to log.

    Returns:
        ``step``, counted from 1, ``learning_rate``, ``loss``, its terms, ``gradient_norm``.

    Raises:
        NonFiniteLossError: one of them is NaN or infinite; nothing was updated.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradient_norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    values = {"loss": loss, **(terms or {}), "gradient_norm": gradient_norm}
    # one transfer for all: each would wait for the device
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    record = dict(zip(values, numbers, strict=True))
    wrong = {name: value for name, value in record.items() if not math.isfinite(value)}
    if wrong:
        raise NonFiniteLossError(
            f"step {step + 1}: {wrong} is not finite; nothing was updated. Lower the learning "
            f"rate, or look at the data of this step."
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return {"step": step + 1, "learning_rate": learning_rate, **record}
