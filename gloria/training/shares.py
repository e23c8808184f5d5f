"""What tables by share of the labels have in common: which runs there are, and their spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gloria.checks import check_integer, check_share
from gloria.data.pairs import LabelledItems
from gloria.data.splits import draw_share, hash_ids
from gloria.errors import DataError, OptionError
from gloria.evaluation.tables import Spread


def check_runs(rows: Mapping[str, Any], fractions: Sequence[float], seeds: Sequence[int]) -> None:
    """Require rows, fractions and seeds, each once and in range, before anything is trained."""
    for fraction in fractions:
        check_share("fractions", fraction)
        if fraction == 0:
            raise OptionError("fractions must be above 0; got 0.")
    for seed in seeds:
        check_integer("seeds", seed, 0)
    names = [name_share(fraction) for fraction in fractions]
    for what, values in (("rows", rows), ("fractions", names), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise OptionError(f"{what} must hold at least one, each once; got {list(values)}.")


def check_classes(train: LabelledItems, **others: LabelledItems) -> list[str]:
    """The classes of ``train``, which the other sets must have, in the same order."""
    classes = list(train.classes)
    for name, data in others.items():
        if list(data.classes) != classes:
            raise DataError(
                f"{name} must have train's classes {classes}; it has {list(data.classes)}."
            )
    return classes


def check_named_classes(train: Any, validation: Any) -> None:
    """Require one order of classes of two sets that both name theirs."""
    if all(getattr(data, "classes", None) for data in (train, validation)):
        check_classes(train, validation=validation)


def draw_shares(
    train: LabelledItems, fractions: Sequence[float], seeds: Sequence[int]
) -> dict[float, dict[int, list[str]]]:
    """By fraction and seed, the ids of as large a share of the patients."""
    ids, labels, patients = train.ids, train.labels, train.patients
    return {
        fraction: {
            seed: draw_share(ids, labels, fraction, seed=seed, patients=patients) for seed in seeds
        }
        for fraction in fractions
    }


def tabulate(
    shares: Mapping[float, Mapping[int, Sequence[str]]],
    classes: Sequence[str],
    figures: Sequence[str],
    run: Callable[[float, int, Sequence[str]], dict[str, Any]],
) -> dict[str, Any]:
    """One row: by share of :func:`draw_shares`, its runs, and the spreads of their figures.

    ``run(fraction, seed, ids)`` trains on a share, and gives what is noted of it: under ``test``
    the figures, and those of each class ``per_class`` by name.
    """

    def spreads(tested: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {name: spread([found.get(name) for found in tested]) for name in figures}

    row: dict[str, Any] = {}
    for fraction, draws in shares.items():
        runs = [
            {"seed": seed, "images": len(ids), "share": hash_ids(ids), **run(fraction, seed, ids)}
            for seed, ids in draws.items()
        ]
        tested = [each["test"] for each in runs]
        row[name_share(fraction)] = {
            **spreads(tested),
            "per_class": {
                name: spreads([t["per_class"][name] for t in tested]) for name in classes
            },
            "runs": runs,
        }
    return row


def name_share(fraction: float) -> str:
    """What a share is called in tables.

    Example:
        >>> name_share(0.1)
        '10%'
    """
    return f"{100 * fraction:g}%"


def spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Of the values that are there; None where they are too few."""
    defined = [value for value in values if value is not None]
    found = Spread.of(defined) if defined else None
    return {
        "mean": found.mean if found else None,
        "sd": found.sd if found and found.runs > 1 else None,
    }
