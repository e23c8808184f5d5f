"""Bootstrap confidence intervals: how a figure would move with other images of the same kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gloria.checks import check_integer, check_share, check_tensor
from gloria.errors import DataError, DtypeError, OptionError

RESAMPLES = 1000


class Interval(NamedTuple):
    """A figure with its confidence interval.

    Attributes:
        value: the figure of all units.
        low: lower end; None if no resample defines the figure.
        high: upper end; likewise.
        left_out: resamples that did not define the figure, and so have no part in the ends; in one
            of few images a class may have no positive image, or none that was called positive.
    """

    value: float
    low: float | None
    high: float | None
    left_out: int = 0


def bootstrap(
    figures: Callable[[Tensor], Mapping[str, float | Sequence[float | None]]],
    units: int,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda drawn: None,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of any figures over units that were drawn independently.

    ``units`` of the units are drawn with replacement, ``resamples`` times; the ends are the
    quantiles ``(1 - level) / 2`` and ``(1 + level) / 2`` of the figures of these draws. A unit is
    what was sampled: an image, a query, a patient. The model is held fixed: what another training
    would change is not in the interval.

    A mean over classes is always one over the same classes: those that all units together define.
    A resample in which one of them has no value (no positive image of it for a sensitivity, none
    that was called positive for a PPV) is left out and counted, as if it were drawn again. Where
    many are left out, the figure is better given class by class.

    Args:
        figures: gives the figures of some units, ``figures(index)`` with ``index (unit,)`` integers
            on the CPU, in which a unit may come several times. A figure is a number, NaN or
            infinite where the units do not define it; or a list with one number for each class,
            None where it is undefined, whose mean over classes is meant.
        units: how many there are.
        resamples: draws; 1,000 give the ends to about a twentieth of the interval's width.
        level: the share of draws inside, above 0 and below 1.
        seed: decides the draws. Figures of one seed and number of units share them.
        progress: called with the number of resamples drawn since the last call.

    Returns:
        Figure: its interval.

    Raises:
        DataError: there is no unit, or all units together do not define a figure.
        DtypeError: a figure is neither a number nor a list: a tensor, an array or a mapping of
            several.
        OptionError: ``resamples``, ``level`` or ``seed`` is out of range.

    Example:
        >>> right = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
        >>> share = bootstrap(lambda index: {"accuracy": float(right[index].mean())}, len(right))
        >>> share["accuracy"]
        Interval(value=0.75, low=0.375, high=1.0, left_out=0)
    """
    check_integer("resamples", resamples, 1)
    check_integer("seed", seed, 0)
    check_share("level", level)
    if level in (0, 1):
        raise OptionError(f"level must be above 0 and below 1; got {level}.")
    check_integer("units", units)
    if units < 1:
        raise DataError("units must be at least 1; there is nothing to resample.")
    whole = figures(torch.arange(units, device="cpu"))
    for name, figure in whole.items():
        if not isinstance(figure, Real | Sequence):
            raise DtypeError(
                f"figure {name!r} must be a number, or a list with one for each class, not a "
                f"tensor or several figures in one; got {figure!r}."
            )
    classes = {
        name: [number for number, value in enumerate(figure) if value is not None]
        for name, figure in whole.items()
        if isinstance(figure, Sequence)
    }

    def number(name: str, figure: float | Sequence[float | None]) -> float:
        if not isinstance(figure, Sequence):
            return float(figure)
        of_class = (figure[each] for each in classes[name])
        known = [math.nan if value is None else value for value in of_class]
        return sum(known) / len(known) if known else math.nan

    values = {name: number(name, figure) for name, figure in whole.items()}
    for name, value in values.items():  # before minutes of resampling, not after
        if not math.isfinite(value):
            raise DataError(f"the units do not define {name}: it is no number, or no class has it.")
    generator = torch.Generator().manual_seed(seed)
    draws: dict[str, list[float]] = {name: [] for name in whole}
    for _ in range(resamples):
        index = torch.randint(units, (units,), generator=generator, device="cpu")
        for name, figure in figures(index).items():
            draws[name].append(number(name, figure))
        progress(1)
    return {name: _interval(values[name], drawn, level) for name, drawn in draws.items()}


def bootstrap_mean(
    values: Mapping[str, Tensor] | Mapping[str, Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Bootstrap intervals of means over units: per-query precision, per-image Dice.

    Args:
        values: figure: its value for each unit, ``(unit,)``; all figures of the same units. NaN =
            the unit does not have the figure; it is drawn, and has no part in the mean.

    The other arguments, what is returned and raised are those of :func:`bootstrap`; besides,
    figures of other numbers of units are a :class:`~gloria.errors.DataError`.

    Example:
        >>> bootstrap_mean({"dice": [0.5, 0.7, 0.6, 0.6]})["dice"].value
        0.6
    """
    columns = {}
    for name, column in values.items():
        # a column of pandas torch would read by the column's own labels, a list by place
        if isinstance(column, Tensor):
            columns[name] = column.cpu().double()  # not at once: MPS has no float64
        else:
            listed = column if isinstance(column, Real) else list(column)
            columns[name] = torch.as_tensor(listed, dtype=torch.float64, device="cpu")
        check_tensor(name, columns[name], ("unit",))
    sizes = {len(column) for column in columns.values()}
    if len(sizes) != 1:
        raise DataError(f"values must hold figures of the same units; got {sorted(sizes)} units.")
    table = torch.stack(list(columns.values()), dim=1)

    def means(index: Tensor) -> dict[str, float]:
        return dict(zip(columns, table[index].nanmean(0).tolist(), strict=True))

    return bootstrap(means, sizes.pop(), resamples=resamples, level=level, seed=seed)


def _interval(value: float, drawn: list[float], level: float) -> Interval:
    draws = torch.tensor(drawn, dtype=torch.float64, device="cpu")
    defined = draws[draws.isfinite()]
    if not len(defined):
        return Interval(value, None, None, len(draws))
    low, high = (float(defined.quantile(share)) for share in ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, low, high, len(draws) - len(defined))
