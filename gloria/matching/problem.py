"""What a matching backend is asked to do."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gloria.checks import check_choice, check_integer, check_positive, check_temperature
from gloria.errors import BackendError, OptionError

AttentionVariant = Literal["regions", "words_then_regions"]
WordAggregation = Literal["logsumexp", "logmeanexp", "max", "mean"]
AggregatorFunction = Callable[[Tensor, Tensor | None, int], Tensor]

ATTENTION_VARIANTS: tuple[str, ...] = get_args(AttentionVariant)
WORD_AGGREGATIONS: tuple[str, ...] = get_args(WordAggregation)

EPS = 1e-8
"""Lower bound of the product of norms in the cosine, as in the published code."""

MEMORY_BUDGET = 256 * 2**20
"""Bytes of working memory that a backend may take on a CPU, beside inputs, results, gradients.

What the published batch of 48 needs again in its backward fits, or nearly all of it.
"""

MEMORY_BUDGET_OF_ACCELERATORS = 512 * 2**20
"""The same elsewhere: the published batch of 48 fits, and launches do not outlast their work."""


def memory_budget_on(device: str, memory_budget: int | None) -> int:
    """The budget asked for, or where there is none the usual one of a type of device."""
    if memory_budget is not None:
        return memory_budget
    return MEMORY_BUDGET if device == "cpu" else MEMORY_BUDGET_OF_ACCELERATORS


def cosine_divisor(norms: Tensor) -> Tensor:
    """``max(‖v‖·‖t‖, 1e-8)``, and infinity for a zero vector: its cosine is 0 and stays so.

    NaN where the norms are beyond the dtype: no cosine is known then.

    What would reach a zero vector through the bound is up to 1e8 times as long as any other
    gradient of a batch; the cosine has no slope there.
    """
    divisor = norms.clamp_min(EPS).masked_fill(norms == 0, math.inf)
    return divisor.masked_fill(norms == math.inf, math.nan)


# asked once, here: torch 2.10 cannot ask inside a compiled graph
_AUTOCAST = frozenset(
    name
    for name in ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla")
    if torch.amp.is_autocast_available(name)
)


def full_precision(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast off: reductions, exponentials and cosines stay in float32."""
    device = like.device.type
    if device not in _AUTOCAST:
        return contextlib.nullcontext()
    # to ask is faster than to switch off what is off; a trace has to say it
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def transformed() -> bool:
    """Whether ``torch.func`` or forward-mode AD is at work: they know no function of ours.

    A compiler's trace cannot ask, and has its own errors.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def out_of_reach(upstream: Tensor) -> bool:
    """Whether a backward is to be differentiated, or of many gradients (``is_grads_batched``).

    Neither a kernel nor what writes in place can be; the definition can (:func:`by_definition`).
    """
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(upstream)


def by_definition(
    definition: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor],
    needs: Sequence[bool],
    upstream: Tensor | Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of the inputs in need of one that can be differentiated any number of times."""
    again = torch.is_grad_enabled()
    first = upstream if isinstance(upstream, Tensor) else upstream[0]
    with torch.enable_grad(), full_precision(first):
        wanted = [each for each, need in zip(inputs, needs, strict=True) if need]
        gradients = torch.autograd.grad(definition(*inputs), wanted, upstream, create_graph=again)
    found = iter(gradients)
    return [next(found) if need else None for need in needs]


def why_only_the_definition(device: str) -> list[str]:
    """Sentences that say why nothing but plain operations of torch will do; empty = it will."""
    reasons = []
    if device == "meta":
        reasons.append("It reads the masks, and meta tensors hold no values.")
    if transformed():
        reasons.append("It has no rules for torch.func and forward-mode AD.")
    return reasons


def refuse_second_derivative(*_: object) -> None:
    """The backward of an operator's backward, where there is none."""
    raise BackendError(
        "inside a compiled graph a backend has no second derivative. Use backend='einops', which "
        "has every one, or leave the loss out of the graph."
    )


@dataclass(frozen=True)
class MatchingOptions:
    """The hyper-parameters of local matching, as in :func:`gloria.functional.local_similarity`.

    A backend needs the attention only; the aggregation follows, the same for all of them.
    """

    attention: AttentionVariant
    attention_temperature: float
    match_temperature: float | Tensor
    aggregation: WordAggregation | AggregatorFunction
    memory_budget: int = MEMORY_BUDGET

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, ATTENTION_VARIANTS)
        check_positive("attention_temperature", self.attention_temperature)
        check_temperature("match_temperature", self.match_temperature)
        check_integer("memory_budget", self.memory_budget, 1)
        if isinstance(self.aggregation, type):
            name = self.aggregation.__name__
            raise OptionError(
                f"aggregation must be an aggregator; got its class. Make one: {name}()."
            )
        if not callable(self.aggregation):
            check_choice("aggregation", self.aggregation, WORD_AGGREGATIONS)

    @classmethod
    def of_attention(
        cls, attention: str, temperature: float, memory_budget: int = MEMORY_BUDGET
    ) -> MatchingOptions:
        """Of the attention alone, where nothing is aggregated."""
        return cls(cast("AttentionVariant", attention), temperature, 1.0, "mean", memory_budget)


class MatchingInputs(NamedTuple):
    """The tensors of local matching, checked, in one floating dtype, and what the check read.

    Half precision reaches only a backend that takes it as it is.
    """

    regions: Tensor
    """(image, region, dim)"""
    words: Tensor
    """(text, word, dim); masked positions hold zeros, or anything where no backend reads them"""
    word_mask: Tensor
    """(text, word) boolean"""
    region_mask: Tensor | None
    """(image, region) boolean, or None"""
    word_counts: list[int] | None = None
    """Real words of each text; None where nobody read them (a captured or a compiled graph)"""


class Problem(NamedTuple):
    """What a backend looks at to say whether it can run: sizes and options, never values."""

    images: int
    regions: int
    texts: int
    words: int
    dim: int
    dtype: torch.dtype
    device: str
    options: MatchingOptions
    elsewhere: bool = False
    """Whether the device is one of another machine, taken to have all that a backend needs"""

    @classmethod
    def of(cls, regions: Tensor, words: Tensor, options: MatchingOptions) -> Problem:
        """The problem that these tensors pose."""
        return cls(
            images=regions.shape[0],
            regions=regions.shape[1],
            texts=words.shape[0],
            words=words.shape[1],
            dim=regions.shape[2],
            dtype=torch.promote_types(regions.dtype, words.dtype),
            device=regions.device.type,
            options=options,
        )
