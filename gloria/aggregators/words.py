"""Word pieces to words: the same reduction as elsewhere in this room, over groups of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from gloria.aggregators.reductions import widen
from gloria.checks import check_choice, check_tensor
from gloria.errors import DtypeError, ShapeError

WORD_REDUCTIONS = ("sum", "mean", "max", "first")

_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)


def merge_word_pieces(
    values: Tensor, word_ids: Tensor, reduction: str = "sum", *, word_count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Merge the vectors of all tokens that belong to one word.

    ``words[n, i] = reduction of values[n, t] over {t : word_ids[n, t] = i}``

    The tokens of a word need not be neighbours. What stands at tokens without a word, NaN included,
    reaches no output and gets a zero gradient. Half precision accumulates in float32 and returns
    the dtype of ``values``.

    Args:
        values: one vector per token, ``(text, token, dim)``.
        word_ids: ``(text, token)`` integers: the index of the word a token belongs to; below 0 =
            none (special tokens, padding).
        reduction: ``"sum"`` (the published code), ``"mean"``, ``"max"`` (equal maxima share the
            gradient) or ``"first"`` (the piece of lowest position).
        word_count: number of words in the output. None = highest word id of the batch + 1, which
            waits for the device; a number does not, and must be above every word id.

    Returns:
        ``words (text, word, dim)``, exactly zero where a text has no such word, and
        ``word_mask (text, word)``, True where the word has at least one token.

    Raises:
        ShapeError: ``values`` and ``word_ids`` do not fit together.
        DtypeError: ``values`` are not floating-point or ``word_ids`` not integers.
        OptionError: unknown ``reduction``.

    The published code finds the pieces by their ``##`` and adds them up in a Python loop; word ids
    come from any tokenizer.

    Example:
        >>> pieces = torch.tensor([[[9.0], [1.0], [2.0], [3.0], [9.0]]])  # [CLS] Car ##dio X [SEP]
        >>> words, mask = merge_word_pieces(pieces, torch.tensor([[-1, 0, 0, 1, -1]]))
        >>> words.tolist(), mask.tolist()
        ([[[3.0], [3.0]]], [[True, True]])
    """
    _check(values, word_ids, reduction)
    if word_count is None:
        word_count = int(word_ids.max()) + 1 if word_ids.numel() else 0
    # slot 0 takes the tokens without a word and is cut off at the end
    slots = (word_ids.long() + 1).clamp_min(0)
    size = max(word_count, 0) + 1
    pieces = widen(values).masked_fill((word_ids < 0).unsqueeze(-1), 0.0)
    counts = torch.zeros(slots.shape[0], size, dtype=torch.long, device=slots.device)
    counts = counts.scatter_add(1, slots, torch.ones_like(slots))

    if reduction == "first":
        pieces = pieces.masked_fill(~_is_first(slots, size).unsqueeze(-1), 0.0)
    index = slots.unsqueeze(-1).expand_as(pieces)
    words = pieces.new_zeros(pieces.shape[0], size, pieces.shape[2])
    if reduction == "max":
        words = words.scatter_reduce(1, index, pieces, "amax", include_self=False)
    else:
        words = words.scatter_add(1, index, pieces)
    if reduction == "mean":
        words = words / counts.clamp_min(1).unsqueeze(-1)
    return words[:, 1:].to(values.dtype), counts[:, 1:] > 0


def _is_first(slots: Tensor, size: int) -> Tensor:
    """True at the token of lowest position in each slot."""
    positions = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    beyond = positions.new_full((slots.shape[0], size), slots.shape[1])
    lowest = beyond.scatter_reduce(1, slots, positions, "amin")
    return positions == lowest.gather(1, slots)


def _check(values: Tensor, word_ids: Tensor, reduction: str) -> None:
    check_tensor("values", values, ("text", "token", "dim"))
    check_choice("reduction", reduction, WORD_REDUCTIONS)
    if not isinstance(word_ids, Tensor) or word_ids.dtype not in _SIGNED:
        given = word_ids.dtype if isinstance(word_ids, Tensor) else type(word_ids).__name__
        raise DtypeError(f"word_ids must be a tensor of signed integers; got {given}.")
    if word_ids.shape != values.shape[:2]:
        raise ShapeError(
            f"word_ids must be {tuple(values.shape[:2])} = (text, token), one per vector of "
            f"values; got {tuple(word_ids.shape)}."
        )
