"""A forward and a backward as one differentiable function.

What the backends do depends on lengths, which a compiler cannot see: it takes an operator of
``torch.library`` as a whole. Elsewhere a plain autograd function costs less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gloria.matching.maxsim import einops
from gloria.matching.maxsim.problem import MaxSimInputs
from gloria.matching.problem import by_definition, out_of_reach, refuse_second_derivative

Forward = Callable[..., tuple[Tensor, Tensor]]
"""Of ``queries, keys, query_mask, key_mask, keep_winners, memory_budget`` the scores ``(query,
key)``; and :func:`room_for_winners`, filled, or empty if they are not to be kept."""

ForwardBoth = Callable[..., tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]
"""Of the same what :data:`Forward` gives, and that of keys and queries exchanged."""

Backward = Callable[..., tuple[Tensor, Tensor]]
"""Of ``gradient, queries, keys, query_mask, key_mask, kept, needs, memory_budget`` the gradients of
queries and keys, each :func:`room_for_gradient`, filled; from the winners kept or found again."""

SummedMaxima = Callable[[MaxSimInputs, int], Tensor]
BothSummedMaxima = Callable[[MaxSimInputs, int], tuple[Tensor, Tensor]]


def room_for_scores(queries: Tensor, keys: Tensor) -> Tensor:
    """For ``(query, key)``, in float32 or float64."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    return queries.new_empty(queries.shape[0], keys.shape[0], dtype=dtype)


def room_for_winners(queries: Tensor, keys: Tensor, keep: bool) -> Tensor:
    """For an int32 per query token and key, in any order; none if they are not to be kept."""
    shape = (queries.shape[0] * queries.shape[1], keys.shape[0]) if keep else (0, 0)
    return queries.new_empty(shape, dtype=torch.int32)


def room_for_gradient(like: Tensor, needed: bool) -> Tensor:
    """As large as the tensor it is for, or empty."""
    return like.new_empty(like.shape if needed else (0,))


def _definition(masks: list[Tensor | None], queries: Tensor, keys: Tensor) -> Tensor:
    """The same scores, in what can be differentiated any number of times."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    tokens = [
        # what is masked may be anything, and a gradient of 0 times NaN is NaN
        each.to(dtype) if mask is None else each.to(dtype).masked_fill(~mask[..., None], 0.0)
        for each, mask in zip((queries, keys), masks, strict=True)
    ]
    return einops.summed_maxima(MaxSimInputs(*tokens, *masks), 0)


def differentiable(
    name: str, forward: Forward, backward: Backward, forward_both: ForwardBoth | None = None
) -> tuple[SummedMaxima, BothSummedMaxima]:
    """Register ``gloria::name`` and ``gloria::name_backward``; what calls the first, and twice.

    Twice is ``forward_both`` where there is one, outside a compiled graph. The winners are kept for
    the backward if they take no more than half of the memory budget. What needs no gradient costs
    none. Who calls it has switched autocast off; a backward sees to itself.
    """
    forward_operator = torch.library.custom_op(f"gloria::{name}", forward, mutates_args=())
    backward_operator = torch.library.custom_op(
        f"gloria::{name}_backward", backward, mutates_args=()
    )

    @forward_operator.register_fake
    def _(
        queries: Tensor, keys: Tensor, _: Any, __: Any, keep_winners: bool, ___: int
    ) -> tuple[Tensor, Tensor]:
        return room_for_scores(queries, keys), room_for_winners(queries, keys, keep_winners)

    @backward_operator.register_fake
    def _(_: Tensor, queries: Tensor, keys: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        for_queries, for_keys = rest[3]
        return room_for_gradient(queries, for_queries), room_for_gradient(keys, for_keys)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        queries, keys, query_mask, key_mask, _, ctx.memory_budget = inputs
        ctx.save_for_backward(queries, keys, query_mask, key_mask, output[1])

    def backpropagate(function: Any, ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[:2])
        both = function(gradient, *ctx.saved_tensors, needs, ctx.memory_budget)
        kept = (each if needed else None for each, needed in zip(both, needs, strict=True))
        return *kept, None, None, None, None

    def differentiate(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        return backpropagate(backward_operator, ctx, gradient)

    forward_operator.register_autograd(differentiate, setup_context=save)
    backward_operator.register_autograd(refuse_second_derivative)

    class Eager(torch.autograd.Function):
        """The same without the operator's overhead."""

        @staticmethod
        def forward(ctx: Any, *inputs_and_found: Any) -> tuple[Tensor, Tensor]:
            *inputs, found = inputs_and_found
            scores, kept = found or forward(*inputs)
            save(ctx, tuple(inputs), (scores, kept))
            ctx.mark_non_differentiable(kept)
            ctx.set_materialize_grads(False)  # no zeros of its size
            return scores, kept

        @staticmethod
        def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
            if gradient is None:
                return (None,) * 7
            if out_of_reach(gradient):
                queries, keys, *masks, _ = ctx.saved_tensors
                needs = ctx.needs_input_grad[:2]
                definition = partial(_definition, masks)
                return *by_definition(definition, (queries, keys), needs, gradient), *[None] * 5
            return *backpropagate(backward, ctx, gradient), None

    def keeps_winners(inputs: MaxSimInputs, both: bool, memory_budget: int) -> bool:
        queries, keys = inputs.queries, inputs.keys
        needs_gradient = torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad)
        winners = queries.shape[0] * queries.shape[1] * keys.shape[0]
        if both:
            winners += keys.shape[0] * keys.shape[1] * queries.shape[0]
        return needs_gradient and 4 * winners <= memory_budget // 2

    def summed_maxima(inputs: MaxSimInputs, memory_budget: int) -> Tensor:
        keep = keeps_winners(inputs, False, memory_budget)
        scores: Tensor
        if torch.compiler.is_compiling():
            scores, _ = forward_operator(*inputs, keep, memory_budget)
        else:
            scores, _ = Eager.apply(*inputs, keep, memory_budget, None)
        return scores

    def both_summed_maxima(inputs: MaxSimInputs, memory_budget: int) -> tuple[Tensor, Tensor]:
        exchanged = inputs.exchanged()
        if forward_both is None or torch.compiler.is_compiling():
            return summed_maxima(inputs, memory_budget), summed_maxima(exchanged, memory_budget)
        how = keeps_winners(inputs, True, memory_budget), memory_budget
        with torch.no_grad():
            found, found_of_keys = forward_both(*inputs, *how)
        scores, _ = Eager.apply(*inputs, *how, found)
        scores_of_keys, _ = Eager.apply(*exchanged, *how, found_of_keys)
        return scores, scores_of_keys

    return summed_maxima, both_summed_maxima
