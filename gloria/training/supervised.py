"""Training on labels or masks: the loop that keeps the best weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gloria.errors import OptionError
from gloria.training.randomness import StepBatches
from gloria.training.steps import (
    AdamWRecipe,
    OnStep,
    check_float32,
    parameter_groups,
    to_channels_last,
    update,
)


class Best(NamedTuple):
    """After which step a validation was best, what it found, and one record per step."""

    step: int
    figure: float
    thresholds: tuple[float, ...]
    history: list[dict[str, float]]


def fit(
    model: nn.Module,
    images: int,
    losses: Callable[[StepBatches], Iterable[Tensor]],
    validate: Callable[[], tuple[float, tuple[float, ...]]],
    recipe: AdamWRecipe,
    *,
    name: str,
    on_step: OnStep | None = None,
) -> Best:
    """Train a model, and put its best weights back.

    Args:
        model: trained in place, in the memory format ``channels_last``; in eval mode afterwards.
        images: how many there are to train on.
        losses: of each batch of images by their numbers, computed when it is asked for.
        validate: the figure that is to be as high as can be, and thresholds that belong to it.
        recipe: how.
        name: of the figure in the history.
        on_step: called after every step with what was logged.

    Raises:
        DtypeError: what is trained of the model is not in float32.
    """
    check_float32(model)
    to_channels_last(model)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate
    )
    size = min(recipe.batch_size, images)
    batches = StepBatches(images, size, recipe.seed, range(recipe.steps))
    best = Best(0, -1.0, (), [])
    weights: dict[str, Tensor] = {}
    model.train()
    with naming_batch(recipe.batch_size, images):
        for step, loss in enumerate(losses(batches)):
            record = update(optimizer, loss, recipe, step=step)
            best.history.append(record)
            done = step + 1
            if done == recipe.steps or done % recipe.validate_every == 0:
                record[name], thresholds = validate()
                if record[name] > best.figure:
                    best = Best(done, record[name], thresholds, best.history)
                    weights = {key: value.clone() for key, value in model.state_dict().items()}
            if on_step is not None:
                on_step(record)
    model.load_state_dict(weights)
    model.eval()
    return best


@contextmanager
def naming_batch(batch_size: int, images: int) -> Iterator[None]:
    """Inside, BatchNorm's error on a batch of one image is said in terms of who chose the batch."""
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
