"""A batch that is spread over processes: the loss of the whole of it, with exact gradients.

Contrastive losses take their negatives from the batch, so that a loss computed on each process's
own pairs, as plain data parallelism does, is the loss of a smaller batch. Here every rank gets the
loss of all pairs together.

**What exact means.** Every rank computes the same loss L and calls ``backward`` on it. What reaches
its own tensors ``x_r`` is then ``W · dL/dx_r`` for W ranks, as the derivatives of all W copies of L
arrive there. Averaging the gradients of parameters, as DistributedDataParallel and FSDP do, gives
``1/W Σ_r W · dL/dx_r · dx_r/dθ = dL/dθ``: the gradient of one process with the whole batch, however
unevenly the pairs are spread. Whoever adds gradients up by hand divides by W.

With a ``group``, all pairs are those of its ranks, and W is their number: averaged over several
such groups of one size, the gradient is that of the mean of their losses.

What ranks tell each other before each loss (shapes, and what went wrong) are small objects. They
travel between CPUs where the group has a backend for them, as that of
``init_process_group("cpu:gloo,cuda:nccl")`` or without a name; with ``"nccl"`` alone, through the
memory of the devices, which wait. What was run is gloo, on CPUs; NCCL, and FSDP on GPUs, have not
been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from gloria.checks import check_mask, check_module
from gloria.errors import (
    DeviceError,
    DtypeError,
    EmptyImageError,
    EmptyTextError,
    GloriaError,
    OptionError,
    ShapeError,
    describe,
)
from gloria.functional.inputs import count_real
from gloria.losses import (
    LOSS_INPUTS,
    ColBERTLoss,
    FILIPLoss,
    GlobalLocalContrastiveLoss,
    LocalContrastiveLoss,
    MGCALoss,
    PairLoss,
    SPARCLoss,
)
from gloria.losses.base import call_signature, is_sum_of_terms

_RAGGED = {"words", "word_mask"}
"""Inputs whose second axis is as long as a rank's longest text."""


def gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The tensors of all ranks of a group, concatenated along axis 0 in the order of ranks.

    Differentiable, once: the gradients that all ranks send back to this rank's part are added up,
    half precision in float32. Every rank must call it, and ``backward`` through it, as often and in
    the same order.

    Args:
        tensor: of at least one axis. Axis 0 may be of another length on every rank, and empty.
        group: None = the default process group.

    Returns:
        The same on every rank; ``tensor`` itself without a process group or with one rank.

    Raises:
        OptionError: this rank is not in the group.
        ShapeError, DtypeError, DeviceError, OptionError: other axes, dtypes, kinds of device, or
            the need of a gradient differ between ranks, or a rank gave no tensor; on all of them.

    Example:
        >>> import torch
        >>> gather(torch.ones(2, 3)).shape  # one process
        torch.Size([2, 3])
    """
    return gather_batch({"tensor": tensor}, group)["tensor"]


def gather_batch(
    batch: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
) -> dict[str, Tensor]:
    """:func:`gather` of several tensors by name, word axes padded to the longest on any rank.

    Args:
        batch: ``words (text, word, dim)`` and ``word_mask (text, word)`` may be of another number
            of words on every rank; what is added is 0, and not real in ``word_mask``. Other tensors
            as in :func:`gather`.
        group: None = the default process group.

    Raises what :func:`gather` raises; also, on all ranks:
        OptionError: ranks name different tensors.
        ShapeError: the words and the ``word_mask`` of a rank differ in shape; or ranks have words
            of different lengths without a ``word_mask``, as nothing would tell padding from words.

    Example:
        >>> import torch
        >>> words, word_mask = torch.ones(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
        >>> list(gather_batch({"words": words, "word_mask": word_mask}))
        ['words', 'word_mask']
    """
    _check_member(group)
    if not _is_spread(group):
        return dict(batch)
    return _Share(lambda: batch, group, of_pairs=False).whole(*batch)


class AcrossRanks(PairLoss):
    """A loss, of the whole batch, called on every rank with the pairs of that rank.

    Takes what the loss takes and returns what it returns, on every rank of the process group the
    same. Without a group, or with one rank, it is that loss, to the bit. Attributes that it has not
    are those of the loss, so that ``similarity``, ``terms_of`` and ``attention_maps`` are at hand
    (of the tensors they are given: nothing is gathered there).

    Ranks may have different numbers of pairs, but none 0, and captions of different lengths. Of
    :class:`~gloria.losses.LocalContrastiveLoss`, :class:`~gloria.losses.FILIPLoss` and
    :class:`~gloria.losses.ColBERTLoss`, where the time goes, a rank computes its own images against
    all texts, and the rows are gathered; of SPARC's and MGCA's local parts its own pairs. Of any
    other loss it computes all, from the gathered inputs.

    **Gradients** are exact once averaged over ranks (:mod:`gloria.distributed`). A learned
    temperature is a parameter like others: make this loss part of the module that
    DistributedDataParallel wraps, and the optimizer, checkpoints and averaging have it too; its
    name in ``state_dict`` begins with ``loss.``. On CUDA call ``torch.cuda.set_device`` first.

    Args:
        loss: any module that takes tensors with one row per pair, by the names of its ``forward``;
            one of yours too. What it takes besides :data:`~gloria.losses.LOSS_INPUTS`, such as
            labels, is gathered as well. What compares all pairs (``target_similarity``) cannot be
            given; let a loss of yours make it from labels.
        group: whose ranks have the batch together; None = the default process group. Torch can
            neither copy nor pickle a group, nor then this loss; a ``state_dict`` knows none.

    Raises, on all ranks, so that none waits for another:
        ShapeError, DtypeError, DeviceError, OptionError: a rank has no pair, or tensors that do not
            fit together; or ranks differ in what is given, its axes, dtypes, kinds of device, need
            of a gradient, or in a number or string.
        EmptyTextError, EmptyImageError: a text has no word, an image no region.
        TypeError, OptionError: the arguments of a rank are not those of the loss, or one is
            something else than a tensor, number, string or None; on the other ranks an OptionError
            that names the rank.
        ContractError, OptionError: when it is made, the loss is no module, is compiled or is
            AcrossRanks already, or this rank is not in the group.

    Example:
        >>> import torch
        >>> loss_fn = AcrossRanks(LocalContrastiveLoss())
        >>> regions, words = torch.randn(4, 49, 64), torch.randn(4, 20, 64)
        >>> word_mask = torch.arange(20) < torch.tensor([[20], [12], [5], [1]])
        >>> loss_fn(regions, words, word_mask).shape
        torch.Size([])
    """

    def __init__(self, loss: nn.Module, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        check_module("loss", loss)
        _check_member(group)
        if any(isinstance(part, AcrossRanks) for part in loss.modules()):
            raise OptionError(
                f"loss must work on the pairs of one process; {type(loss).__name__} is or holds "
                f"one already that is AcrossRanks, and would gather twice."
            )
        if any(hasattr(part, "_orig_mod") for part in loss.modules()):
            raise OptionError(
                "loss must not be compiled, or hold what is, as its parts are called one by one; "
                "compile what is outside: torch.compile(AcrossRanks(loss))."
            )
        self.loss = loss
        self.group = group

    def terms(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The unweighted terms of all ranks' pairs; ``loss`` alone where the loss names none."""
        if not _is_spread(self.group):
            return _plain_terms(self.loss, *args, **kwargs)
        signature = call_signature(self.loss)
        share = _Share(lambda: signature.bind(*args, **kwargs).arguments, self.group, of_pairs=True)
        return _shared_terms(self.loss, tuple(share.given), share)

    def weights(self) -> dict[str, float]:
        """The weights of the loss."""
        return self.loss.weights() if is_sum_of_terms(self.loss) else {}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss from its terms."""
        return self.loss.total(terms) if is_sum_of_terms(self.loss) else terms["loss"]

    @property
    def __wrapped__(self) -> nn.Module:
        """The loss, whose signature is this one's (:func:`inspect.unwrap`)."""
        return self.loss

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "loss":  # in the making, by copy or pickle
                raise
            return getattr(self.loss, name)


def _is_spread(group: dist.ProcessGroup | None) -> bool:
    """Whether there is a process group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _check_member(group: dist.ProcessGroup | None) -> None:
    """To torch a group without this rank is none at all, and collectives do nothing."""
    if group is not None and dist.get_rank(group) < 0:
        raise OptionError(f"group must have this rank; rank {dist.get_rank()} is not in it.")


def _plain_terms(loss: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    if is_sum_of_terms(loss):
        return loss.terms(*args, **kwargs)
    return {"loss": loss(*args, **kwargs)}


def _shared_terms(loss: Any, names: Sequence[str], share: _Share) -> dict[str, Tensor]:
    """The terms of all ranks' pairs; each rank does the part of the work that it can do alone.

    Of the loss, or of the local loss in it, which takes ``names`` of the batch.
    """
    kind = type(loss)  # exactly: what a subclass changes is not known, so every rank computes all
    terms: dict[str, Tensor]
    if kind in (LocalContrastiveLoss, ColBERTLoss, FILIPLoss):
        # own images against all texts; what every rank computed, one below the other
        inputs = share.own("regions", "region_mask") | share.whole("words", "word_mask")
        if kind is FILIPLoss:
            matrices = loss.similarities(**inputs)
            return {name: loss.terms_of(share.stack(rows))[name] for name, rows in matrices.items()}
        terms = loss.terms_of(share.stack(loss.similarity(**inputs)))
    elif kind in (GlobalLocalContrastiveLoss, SPARCLoss, MGCALoss):
        whole = loss.global_loss.terms(**share.whole(*LOSS_INPUTS[:2]))
        if kind is GlobalLocalContrastiveLoss:
            parts = _shared_terms(loss.local_loss, LOSS_INPUTS[2:], share)
        else:  # means over pairs: each rank's over its own
            parts = share.mean(loss.local_terms(**share.own(*LOSS_INPUTS[2:])))
        terms = loss.join(whole, parts)
    else:
        terms = _plain_terms(loss, **share.whole(*names))
    return terms


class _Facts(NamedTuple):
    """What the other ranks need to know of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    needs_gradient: bool

    @classmethod
    def of(cls, value: Tensor) -> _Facts:
        needs = torch.is_grad_enabled() and value.requires_grad
        return cls(tuple(value.shape), value.dtype, value.device.type, needs)


class _Share:
    """What this rank has of a batch, and the facts of everybody's.

    ``given`` makes the arguments of a loss by name: what it raises, all ranks hear of. If they are
    ``of_pairs``, each tensor has one row per pair of this rank, at least one.
    """

    def __init__(
        self,
        given: Callable[[], Mapping[str, Any]],
        group: dist.ProcessGroup | None,
        *,
        of_pairs: bool,
    ) -> None:
        self.group = group
        mine: dict[str, Any] = {}
        fault: Exception | None = None
        # values, and what ranks tell each other, are no part of a graph; whether there is one
        # can't be asked here, as a compiler leaves this function out and takes what it calls
        look: Any = torch.compiler.disable(_check_own)
        tell: Any = torch.compiler.disable(dist.all_gather_object)
        try:
            self.given = given()
            look(self.given, of_pairs)
            mine = {
                name: _Facts.of(x) if isinstance(x, Tensor) else x for name, x in self.given.items()
            }
        except Exception as error:  # not yet: the others would wait for this rank
            fault = error
        said = None
        if fault is not None:
            kind = type(fault) if isinstance(fault, GloriaError) else OptionError
            said = kind, describe(fault)
        everyone: list[Any] = [None] * dist.get_world_size(group)
        tell(everyone, (mine, said), group)
        if fault is not None:
            raise fault
        for rank, (_, told) in enumerate(everyone):
            if told is not None:
                kind, message = told
                raise kind(f"rank {rank} cannot take part: {message}")
        _check_agreement([facts for facts, _ in everyone])
        self.facts: list[dict[str, _Facts]] = [
            {name: each for name, each in facts.items() if isinstance(each, _Facts)}
            for facts, _ in everyone
        ]
        if of_pairs:
            self.pairs = [next(iter(facts.values())).shape[0] for facts in self.facts]

    def own(self, *names: str) -> dict[str, Any]:
        """Inputs as this rank has them; None where it has none."""
        return {name: self.given.get(name) for name in names}

    def whole(self, *names: str) -> dict[str, Any]:
        """Inputs of all ranks, texts padded to the longest."""
        return {
            name: self._gathered(name, value) if isinstance(value, Tensor) else value
            for name, value in self.own(*names).items()
        }

    def _gathered(self, name: str, tensor: Tensor) -> Tensor:
        shapes = [facts[name].shape for facts in self.facts]
        if name in _RAGGED:
            missing = max(shape[1] for shape in shapes) - tensor.shape[1]
            tensor = pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing))
        return _gather(tensor, [shape[0] for shape in shapes], self.group)

    def stack(self, rows: Tensor) -> Tensor:
        """One row per pair of this rank, to one row per pair of all."""
        return _gather(rows, self.pairs, self.group)

    def mean(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over the pairs of this rank, to means over the pairs of all."""
        part = self.pairs[dist.get_rank(self.group)] / sum(self.pairs)
        weighted = torch.stack(list(terms.values()))[None] * part
        sums = _gather(weighted, [1] * len(self.pairs), self.group).sum(0)
        return dict(zip(terms, sums.unbind(), strict=True))


def _check_own(given: Mapping[str, Any], of_pairs: bool) -> None:
    """What a rank can tell of what it has, without the others."""
    for name, value in given.items():
        if not isinstance(value, Tensor | Number | str | None):
            raise OptionError(
                f"only tensors are gathered between ranks; {name} is a {type(value).__name__}. "
                f"Give each tensor by a name of its own."
            )
    tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
    if flat := [name for name, x in tensors.items() if not x.dim()]:
        raise ShapeError(f"{flat[0]} must have an axis, to be gathered along; got none.")
    if tensors.keys() >= _RAGGED:
        shape = tuple(tensors["words"].shape[:2])
        check_mask("word_mask", tensors["word_mask"], shape, ("text", "word"))
    if not of_pairs:
        return
    rows = {name: len(x) for name, x in tensors.items()}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise ShapeError(
            f"a rank must have at least one pair, text k belonging to image k; this one gave "
            f"{', '.join(f'{count} {name}' for name, count in rows.items()) or 'nothing'}. "
            f"Let the sampler leave out incomplete batches (drop_last=True)."
        )
    if tensors.keys() >= _RAGGED:
        words, word_mask = tensors["words"], tensors["word_mask"]
        count_real(words, word_mask, "text", "word", EmptyTextError, True)
    if tensors.keys() >= {"regions", "region_mask"}:
        regions, region_mask = tensors["regions"], tensors["region_mask"]
        count_real(regions, region_mask, "image", "region", EmptyImageError, True)


def _check_agreement(everyone: Sequence[Mapping[str, Any]]) -> None:
    """Every rank sees the same facts, so every rank raises the same error."""
    is_masked = all(isinstance(told.get("word_mask"), _Facts) for told in everyone)
    for name in dict.fromkeys(name for told in everyone for name in told):
        every: list[Any] = [told.get(name) for told in everyone]
        lacking = [rank for rank, each in enumerate(every) if not isinstance(each, _Facts)]
        if len(lacking) == len(every):
            _check_same(name, "value", every, OptionError)
            continue
        if lacking:
            raise OptionError(
                f"{name} must be a tensor on every rank, or on none; it is none on rank "
                f"{', '.join(map(str, lacking))} of {len(everyone)}."
            )
        shapes, dtypes, devices, needs = zip(*every, strict=True)
        first, why = (2 if name in _RAGGED and is_masked else 1), ""
        if name == "words" and not is_masked:
            why = ", where no word_mask tells words from padding"
        rest = [shape[first:] for shape in shapes]
        _check_same(name, "kind of device", devices, DeviceError)
        _check_same(name, "dtype", dtypes, DtypeError)
        _check_same(name, "number of axes", [len(shape) for shape in shapes], ShapeError)
        _check_same(name, f"axes from axis {first} on{why}", rest, ShapeError)
        _check_same(name, "need of a gradient", needs, OptionError)


def _check_same(name: str, what: str, values: Sequence[Any], error: type[Exception]) -> None:
    for rank, value in enumerate(values):
        if value != values[0]:
            raise error(
                f"{name} must agree between ranks in {what}; got {values[0]} on rank 0 and "
                f"{value} on rank {rank}."
            )


def _gather(tensor: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None) -> Tensor:
    gathered: Tensor = _Gather.apply(tensor, sizes, group)
    return gathered


class _Gather(torch.autograd.Function):
    """All ranks' rows forward; backward, what all ranks send to the own ones, added up."""

    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, sizes: Sequence[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        """``sizes``: rows on each rank."""
        ctx.sizes, ctx.group = sizes, group
        # a compiler gathers booleans as integers of 64 bits, and says they are booleans
        dtype = torch.uint8 if tensor.dtype == torch.bool else tensor.dtype
        # backends want equal shapes; gloo aborts or hangs on others
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:], dtype=dtype)
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group)
        whole = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return whole.to(tensor.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        """The sum over ranks, own rows only."""
        rank = dist.get_rank(ctx.group)
        # half precision would round, and overflow, once per rank
        wide = torch.promote_types(upstream.dtype, torch.float32)
        total = upstream.to(wide, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        start = sum(ctx.sizes[:rank])
        own = total[start : start + ctx.sizes[rank]]
        return own.to(upstream.dtype, copy=True), None, None  # a view would keep all ranks' rows
