"""What the loops share: a recipe, what an encoder is given, and one step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gloria.checks import check_integer, check_positive, check_weight
from gloria.data.images import normalize
from gloria.errors import ContractError, DtypeError, NonFiniteLossError, OptionError
from gloria.types import ImageInput

OnStep = Callable[[dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class AdamWRecipe:
    """How to train by AdamW.

    Attributes:
        steps: optimizer steps.
        batch_size: items in a step; of images with labels or masks fewer, if there are not so many.
        learning_rate: the highest; falls to 0 as a cosine.
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
        check_integer("seed", self.seed, 0, 2**64 - 1)  # as torch takes
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
    """Require that each parameter and buffer has its shape, which a lazy layer's has not yet."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise OptionError(
                f"model must know the shapes of its parameters; {name} has none yet, as it is of "
                f"a lazy layer. Give that layer its width, or send one batch through the model."
            )


def check_float32(model: nn.Module) -> None:
    """Require float32 of what is trained: in half precision, small updates round to none."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise DtypeError(
                f"model must be in float32 to be trained; {name} is in "
                f"{str(parameter.dtype).removeprefix('torch.')}. Call model.float() before."
            )


def to_channels_last(model: nn.Module) -> None:
    """The memory format in which convolutions of images are 1.5 times faster on the CPU."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):  # there is none of other axes
            module.to(memory_format=torch.channels_last)


def prepare(images: Tensor, device: torch.device, image_input: ImageInput) -> Tensor:
    """Images in [0, 1] as an encoder takes them: normalised, in the memory format of the loops."""
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    return normalize(images, image_input)


def update(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    recipe: AdamWRecipe,
    *,
    step: int,
    terms: Mapping[str, Tensor] | None = None,
) -> dict[str, float]:
    """Update the optimizer's parameters by the gradient of a loss, in a step counted from 0.

    Returns:
        What is logged: ``step``, counted from 1, ``learning_rate``, ``loss``, its terms,
        ``gradient_norm``.

    Raises:
        NonFiniteLossError: one of them is NaN or infinite; nothing was updated.
        ContractError: the loss has no gradient.
    """
    if not loss.requires_grad:
        raise ContractError(
            "the loss must have a gradient; it has none with respect to anything that is trained. "
            "What computes it detaches its inputs, or is without what is trained."
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradient_norm = nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
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
    learning_rate = recipe.learning_rate_at(step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    return {"step": step + 1, "learning_rate": learning_rate, **record}
