"""A plain training loop: pairs in, a trained model and its history out.

Everything random in step k depends on the seed and k only; on the CPU, a run that was killed and
resumed ends with the same weights, to the bit, as one that was not. (Accelerators add in an order
of their own.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from gloria.checks import check_choice, check_integer
from gloria.data.loading import load_batches, stack_images
from gloria.data.pairs import Pair
from gloria.errors import DataError, DtypeError, NonFiniteLossError, OptionError
from gloria.evaluation.features import evaluating
from gloria.files import remove_drafts
from gloria.model import GLoRIA
from gloria.registry import describe_target
from gloria.training.augmentation import Augmentation
from gloria.training.checkpoints import Standing, alone_in, as_json, resume, save_checkpoint
from gloria.training.randomness import StepBatches, derive_seed, isolated
from gloria.training.steps import (
    AdamWRecipe,
    OnStep,
    check_float32,
    check_initialized,
    parameter_groups,
    prepare,
    to_channels_last,
    update,
)
from gloria.types import ScheduledLoss
from gloria.weights import check_model, save_model
from gloria.wrapping import unwrapped, wrapped_in

Precision = Literal["float32", "bfloat16"]

TextPolicy = Callable[[Sequence[str], torch.Generator], list[str]]


class Pairs(Sized, Protocol):
    """Anything with a length and items that have an ``image`` and a ``report``."""

    def __getitem__(self, index: int, /) -> Pair:
        """One pair."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(AdamWRecipe):
    """How to train. The defaults train small encoders from scratch.

    Adam's published recipe is in the paper, section 4; this one learns from scratch in minutes.

    Attributes, beside those of every :class:`~gloria.training.steps.AdamWRecipe`:
        warmup_steps: of a linear warm-up; at most a tenth of ``steps`` is used.
        betas: AdamW's.
        augmentation: None = none.
        text_policy: what of a batch's reports is read in a step, from the reports and a generator;
            :func:`gloria.data.random_sentences`, say, or a :class:`~gloria.data.ReportPolicy`.
            None = all.
        checkpoint_every: steps between checkpoints.
        precision: of the model's matrix products and convolutions, by :func:`torch.autocast`.
            Weights, gradients, gloria's losses and the update are in float32 all the same.
        mini_batch_size: pairs encoded at a time, as :meth:`gloria.model.GLoRIA.forward` does: a
            batch in less memory, with the loss of the whole. None = all at once.
    """

    steps: int = 700
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    validate_every: int = 100
    warmup_steps: int = 60
    betas: tuple[float, float] = (0.9, 0.98)
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    text_policy: TextPolicy | None = None
    checkpoint_every: int = 200
    precision: Precision = "float32"
    mini_batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("checkpoint_every", self.checkpoint_every, 1)
        # one pair has nothing to be told apart from: its loss is 0 whatever the model does
        check_integer("batch_size", self.batch_size, 2)
        check_integer("warmup_steps", self.warmup_steps, 0)
        check_choice("precision", self.precision, get_args(Precision))
        if self.mini_batch_size is not None:
            check_integer("mini_batch_size", self.mini_batch_size, 1)
        if self.text_policy is not None and not callable(self.text_policy):
            raise DtypeError(
                f"text_policy must be a function of reports and a generator, such as "
                f"gloria.data.random_sentences; got {self.text_policy!r}."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise OptionError(f"betas must be two numbers in [0, 1); got {self.betas}.")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        warmup = min(self.warmup_steps, self.steps // 10)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(self.steps - warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train(
    model: GLoRIA,
    pairs: Pairs,
    recipe: TrainingRecipe,
    *,
    validation: Pairs | None = None,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int = 0,
    on_step: OnStep | None = None,
) -> list[dict[str, float]]:
    """Train a model on pairs, on the device it is on.

    Args:
        model: its weights in float32; trained in place, its convolutions in the memory format
            ``channels_last``. It is told the size of the images it sees, cropped if they are:
            ``trained_image_size``.
        pairs: images ``(channel, height, width)`` in [0, 1], all of one size, with reports. They
            are normalised here, as ``model.image_encoder.image_input`` says. An index must always
            give the same item: random numbers that items draw are not those of step k.
        recipe: how.
        validation: pairs whose loss is computed every ``recipe.validate_every`` steps, in batches
            of ``recipe.batch_size``; those at the end that fill none do not count.
        folder: where checkpoints go (``checkpoints/step-N``), and the model with the lowest
            validation loss (``best``). A run that stands there is continued, and what a kill left
            half-written is removed. None = nothing is written.
        settings: what else, in JSON values, must be equal for the run in ``folder`` to be this
            one. The recipe must be, what :func:`~gloria.create_model` was told, the classes of
            encoders and loss, the number of pairs, and their ``fingerprint()`` if they have one.
        workers: processes that load items.
        on_step: called after every step with what was logged; ``on_step(record)``. What it raises
            ends the run, of which a checkpoint is written first.

    Returns:
        One record per step, counted from 1: ``step``, ``loss``, its terms, ``learning_rate``,
        ``gradient_norm``, and ``validation_loss`` where it was computed.

    Raises:
        DtypeError: ``model`` is no GLoRIA, but what wraps one, say (of what :func:`torch.compile`
            wraps the weights are trained); or what is trained of it is not in float32.
        DataError: fewer pairs than one batch.
        OptionError: a parameter of the model has no shape yet, as that of a lazy layer; or one of
            ``settings`` is called as a field of the recipe, which tells runs apart, too.
        NonFiniteLossError: the loss, the gradient or the validation loss is NaN or infinite; the
            last checkpoint stays.
        CheckpointError: the run in ``folder`` had other settings, or is damaged, or another process
            trains into it.
    """
    check_model(model)
    check_integer("workers", workers, 0)
    _check_enough("pairs", pairs, recipe.batch_size)
    if validation is not None:
        _check_enough("validation", validation, 2)
    folder = None if folder is None else Path(folder)
    check_initialized(model)
    check_float32(model)
    model.trained_image_size = _seen_size(pairs, recipe.augmentation)
    to_channels_last(model)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=recipe.betas
    )
    own = {**_described(recipe), "pairs": len(pairs), "composed": _composed(model)}
    if hasattr(pairs, "fingerprint"):
        own["training_data"] = pairs.fingerprint()
    if taken := own.keys() & (settings or {}).keys():
        raise OptionError(f"settings must not be called as the recipe's; got {sorted(taken)}.")
    fixed = as_json({**own, **(settings or {})})
    standing = Standing(0, [])
    with nullcontext() if folder is None else alone_in(folder):
        if folder is not None:
            for place in (folder, folder / "checkpoints"):
                remove_drafts(place)
            standing = resume(folder / "checkpoints", model, optimizer, fixed)

        batches = StepBatches(
            len(pairs), recipe.batch_size, recipe.seed, range(standing.step, recipe.steps)
        )
        model.train()
        loaded = load_batches(pairs, batches, collate, workers=workers, seed=recipe.seed)
        for images, reports in loaded:
            record = _train_step(model, optimizer, images, reports, recipe, standing.step)
            standing.step += 1
            standing.history.append(record)
            done = standing.step == recipe.steps
            if validation is not None and (done or standing.step % recipe.validate_every == 0):
                with _in_precision(recipe, model):
                    record["validation_loss"] = validation_loss(
                        model, validation, recipe.batch_size, recipe.augmentation, workers=workers
                    )
                if record["validation_loss"] < standing.best:
                    standing.best = record["validation_loss"]
                    if folder is not None:
                        save_model(model, folder / "best")
            due = done or standing.step % recipe.checkpoint_every == 0
            try:
                if on_step is not None:
                    on_step(record)
            except BaseException:
                due = True
                raise
            finally:
                if folder is not None and due:
                    save_checkpoint(folder / "checkpoints", model, optimizer, standing, fixed)
    model.eval()
    return standing.history


def _described(recipe: TrainingRecipe) -> dict[str, Any]:
    """What of a recipe decides the result; its text policy in words, as JSON holds no function."""
    policy = recipe.text_policy
    described = asdict(replace(recipe, text_policy=None))
    del described["checkpoint_every"]
    if policy is not None:
        named = repr(policy) if is_dataclass(policy) else describe_target(policy)
        described["text_policy"] = named
    return described


def _composed(model: GLoRIA) -> dict[str, Any]:
    """What tells a model from others, as far as it says it."""
    parts: list[Any] = [model.image_encoder, model.text_encoder, model.loss]
    return {
        "parts": [type(unwrapped(part)).__name__ for part in parts],
        "composition": model.composition,
    }


def collate(items: Sequence[Pair]) -> tuple[Tensor, list[str]]:
    """Stack a batch's images; keep its reports as they are."""
    return stack_images(items), [item.report for item in items]


def validation_loss(
    model: GLoRIA,
    pairs: Pairs,
    batch_size: int,
    augmentation: Augmentation | None = None,
    *,
    workers: int = 0,
) -> float:
    """Mean loss over the whole batches of ``pairs`` in their order, in eval mode.

    What is left at the end and fills no batch does not count: a smaller batch has a smaller loss.
    An augmentation that crops decides which middle part of the images is seen.

    Raises:
        NonFiniteLossError: it is NaN or infinite, and so no model is the best by it.
    """
    losses = []
    size = min(batch_size, len(pairs))
    batches = [range(start, start + size) for start in range(0, len(pairs) - size + 1, size)]
    with evaluating(model):
        for images, reports in load_batches(pairs, batches, collate, workers=workers):
            if augmentation is not None:
                images = augmentation.center(images)
            images = prepare(images, model.device, model.image_encoder.image_input)
            losses.append(model(images, reports).loss)
    loss = float(torch.stack(losses).mean())
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"the validation loss is {loss}, and that of training finite: look at the validation "
            f"data, and at what eval mode changes, as the statistics of BatchNorms."
        )
    return loss


def _train_step(
    model: GLoRIA,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    reports: list[str],
    recipe: TrainingRecipe,
    step: int,
) -> dict[str, float]:
    if recipe.augmentation is not None:
        generator = torch.Generator().manual_seed(derive_seed(recipe.seed, step, 1))
        images = recipe.augmentation(images, generator)
    if recipe.text_policy is not None:
        generator = torch.Generator().manual_seed(derive_seed(recipe.seed, step, 3))
        reports = recipe.text_policy(reports, generator)
    for part in model.loss.modules():
        # what wraps a loss has all of its methods
        if isinstance(part, ScheduledLoss) and wrapped_in(part) is None:
            part.at_step(step)
    images = prepare(images, model.device, model.image_encoder.image_input)
    size = recipe.mini_batch_size
    how = {} if size is None else {"mini_batch_size": size}  # a subclass's forward may lack it
    with isolated(recipe.seed, step, 2), _in_precision(recipe, model):
        output = model(images, reports, **how)
    return update(optimizer, output.loss, recipe, step=step, terms=output.terms)


def _in_precision(recipe: TrainingRecipe, model: GLoRIA) -> AbstractContextManager[Any]:
    if recipe.precision == "float32":
        return nullcontext()
    return torch.autocast(model.device.type, getattr(torch, recipe.precision))


def _seen_size(pairs: Pairs, augmentation: Augmentation | None) -> tuple[int, int]:
    """``(height, width)`` of the images as the model sees them."""
    images = stack_images([pairs[0]])
    height, width = (images if augmentation is None else augmentation.center(images)).shape[-2:]
    return height, width


def _check_enough(name: str, pairs: Pairs, least: int) -> None:
    if isinstance(pairs, str | Path):
        raise DtypeError(
            f"{name} must be pairs, such as gloria.data.ImageReportTable({str(pairs)!r}, 'train', "
            f"size=(64, 64)); got a path."
        )
    if len(pairs) < least:
        raise DataError(
            f"{name} must hold at least one batch of {least} pairs; got {len(pairs)}. Choose a "
            f"smaller batch size."
        )
