"""A forward and a backward as one differentiable function.

What the backends do depends on lengths, which a compiler cannot see: it takes an operator of
``torch.library`` as a whole. Elsewhere a plain autograd function costs less.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gloria.matching.maxsim.problem import MaxSimInputs
from gloria.matching.problem import refuse_second_derivative


class Forward(Protocol):
    """Computes the sums of the maxima."""

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        query_mask: Tensor | None,
        key_mask: Tensor | None,
        keep_winners: bool,
        memory_budget: int,
    ) -> tuple[Tensor, Tensor]:
        """Scores ``(query, key)`` and, if they are to be kept, :func:`room_for_winners`, filled."""
        ...


class Backward(Protocol):
    """Computes both gradients."""

    def __call__(
        self,
        gradient: Tensor,
        queries: Tensor,
        keys: Tensor,
        query_mask: Tensor | None,
        key_mask: Tensor | None,
        kept: Tensor,
        needs: list[bool],
        memory_budget: int,
    ) -> tuple[Tensor, Tensor]:
        """Gradients for queries and keys, contiguous, from the winners kept or found again.

        Each is :func:`room_for_gradient`, filled.
        """
        ...


class SummedMaxima(Protocol):
    """A backend's function."""

    def __call__(self, inputs: MaxSimInputs, memory_budget: int) -> Tensor:
        """``Σ_i max_j <q_i, k_j>`` over real tokens, ``(query, key)``."""
        ...


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


def differentiable(name: str, forward: Forward, backward: Backward) -> SummedMaxima:
    """Register ``gloria::name`` and ``gloria::name_backward``; what calls the first.

    The winners are kept for the backward if they take no more than half of the memory budget. What
    needs no gradient costs none. Who calls it has switched autocast off; a backward sees to itself.
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
        def forward(ctx: Any, queries: Tensor, keys: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            scores, kept = forward(queries, keys, *rest)
            save(ctx, (queries, keys, *rest), (scores, kept))
            ctx.mark_non_differentiable(kept)
            ctx.set_materialize_grads(False)  # no zeros of its size
            return scores, kept

        @staticmethod
        def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
            if gradient is None:
                return (None,) * 6
            graph = torch.is_grad_enabled()  # create_graph=True
            return backpropagate(backward_operator if graph else backward, ctx, gradient)

    def summed_maxima(inputs: MaxSimInputs, memory_budget: int) -> Tensor:
        queries, keys = inputs.queries, inputs.keys
        needs_gradient = torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad)
        size_of_winners = 4 * queries.shape[0] * queries.shape[1] * keys.shape[0]
        keep_winners = needs_gradient and size_of_winners <= memory_budget // 2
        function = forward_operator if torch.compiler.is_compiling() else Eager.apply
        scores: Tensor = function(*inputs, keep_winners, memory_budget)[0]
        return scores

    return summed_maxima
