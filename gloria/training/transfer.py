"""Transfer: the four tasks of the paper's tables, for a trained model on one data set.

Each task gives JSON values, of which :func:`transfer_table` makes the paper's table. Confidence
intervals are over the test images, with the model and the drawn labels as they are; what other
labels would give is in the spread over their draws, and what another training would give is in
neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gloria.checks import check_choice, check_integer
from gloria.data.transfer import TASKS, TransferData
from gloria.errors import DataError
from gloria.evaluation.bootstrap import RESAMPLES, Interval, bootstrap, bootstrap_mean
from gloria.evaluation.classification import (
    choose_thresholds,
    multiclass_metrics,
    multilabel_auroc,
    multilabel_metrics,
)
from gloria.evaluation.features import encode_texts, similarity_by_kind
from gloria.evaluation.published import ZERO_SHOT_COLUMNS
from gloria.evaluation.retrieval import class_relevance, evaluate_retrieval, precision_at_k
from gloria.evaluation.tables import Cell, Table
from gloria.evaluation.zero_shot import zero_shot_probabilities, zero_shot_scores
from gloria.model import GLoRIA
from gloria.training.classification import ClassifierRecipe, label_efficiency
from gloria.training.segmentation import SegmentationRecipe

Report = dict[str, Any]
Progress = Callable[[int], Any]


@dataclass(frozen=True)
class TransferSettings:
    """How the tasks are evaluated.

    Attributes:
        fractions: shares of the labels, and of the masks, that train.
        seeds: how many shares of each size are drawn and trained on.
        seed: the first of them, and that of the bootstrap.
        ks: the K of retrieval's precision and recall; those above the gallery are left out.
        resamples: of the bootstrap.
        batch_size: images encoded at a time; it does not change a figure.
        workers: processes that load images in training.
        classification: recipe of a linear probe; None = the usual.
        segmentation: recipe of a U-Net; None = the usual.
    """

    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: int = 3
    seed: int = 0
    ks: tuple[int, ...] = (5, 10, 100)
    resamples: int = RESAMPLES
    batch_size: int = 64
    workers: int = 0
    classification: ClassifierRecipe | None = None
    segmentation: SegmentationRecipe | None = None

    def __post_init__(self) -> None:
        for name in ("seeds", "resamples", "batch_size"):
            check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0)

    @property
    def drawn(self) -> range:
        """The seeds of the shares."""
        return range(self.seed, self.seed + self.seeds)


def evaluate_task(
    task: str,
    model: GLoRIA,
    data: TransferData,
    settings: TransferSettings | None = None,
    *,
    progress: Progress = lambda done: None,
) -> Report:
    """The figures of one task.

    Args:
        task: of :data:`~gloria.data.transfer.TASKS`.
        model: any; it and its modes are left as they were.
        data: what it is evaluated on.
        settings: how.
        progress: called with the work done since the last call, as ``tqdm.update`` is;
            :func:`count_work` is all of it.

    Returns:
        What ``json.dumps`` takes: ``protocol``, ``columns``, ``rows`` of cells (an interval, a
        spread, or None), and ``details``, all figures as the task's own functions give them.

    Raises:
        OptionError: there is no such task.
        DataError: the data do not permit it; the message says why.
    """
    check_choice("task", task, TASKS)
    if task in data.missing:
        raise DataError(f"{task} can't be evaluated on {data.name}: {data.missing[task]}.")
    return _TASKS[task](model, data, settings or TransferSettings(), progress)


def count_work(task: str, data: TransferData, settings: TransferSettings) -> int:
    """How much :func:`evaluate_task` reports to ``progress`` in all."""
    if task in ("classification", "segmentation"):
        return len(settings.fractions) * settings.seeds
    if data.gallery is None:
        return len(data.labelled.val) + len(data.labelled.test)
    return len(data.gallery) * (2 if task == "retrieval" else 1)


def transfer_table(task: str, reports: Mapping[str, Report]) -> Table:
    """The paper's table of a task.

    Args:
        task: as in :func:`evaluate_task`.
        reports: model: what :func:`evaluate_task` gave, all on the same data.
    """
    rows: dict[str, Sequence[Cell]] = {}
    for model, report in reports.items():
        for name, cells in report["rows"].items():
            rows[f"{model}, {name}" if name else model] = [_read_cell(cell) for cell in cells]
    first = next(iter(reports.values()))
    return Table(task, first["protocol"], tuple(first["columns"]), rows)


def _retrieval(
    model: GLoRIA, data: TransferData, settings: TransferSettings, progress: Progress
) -> Report:
    gallery, labels = _gallery(data)
    relevant = class_relevance(labels, labels)
    ks = [k for k in settings.ks if k <= len(gallery)]
    images = _encode(model, gallery, settings, progress)
    texts = encode_texts(model, gallery.reports, settings.batch_size)
    similarities = similarity_by_kind(model, images, texts, progress=progress)
    details, rows = {}, {}
    for kind, similarity in similarities.items():
        matrix = similarity.cpu()
        details[kind] = evaluate_retrieval(matrix, relevant, ks)
        intervals = _precision_intervals(matrix, relevant, ks, settings)
        name = f"{kind} similarity" if len(similarities) > 1 else ""
        rows[name] = [_write_cell(intervals.get(k)) for k in settings.ks]
    rows["chance"] = [float(relevant.double().mean())] * len(settings.ks)
    return {
        "protocol": f"{_name_gallery(data)}: an image asks for reports of its class; "
        f"[95 % interval over queries]",
        "columns": [f"Prec@{k}" for k in settings.ks],
        "rows": rows,
        "details": details,
    }


def _precision_intervals(
    similarity: Tensor, relevant: Tensor, ks: Sequence[int], settings: TransferSettings
) -> dict[int, Interval]:
    """Of the precision at each K, over queries; the candidates stay as they are."""
    each = [
        precision_at_k(similarity[query : query + 1], relevant[query : query + 1], ks)
        for query in range(len(similarity))
    ]
    by_name = bootstrap_mean(
        {str(k): [precision[k] for precision in each] for k in ks},
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return {k: by_name[str(k)] for k in ks}


def _zero_shot(
    model: GLoRIA, data: TransferData, settings: TransferSettings, progress: Progress
) -> Report:
    if data.gallery is None:
        return _zero_shot_pairs(model, data, settings, progress)
    gallery, labels = _gallery(data)
    prompts = {name: data.prompts[name] for name in data.classes}
    scores = zero_shot_scores(model, _encode(model, gallery, settings, progress), prompts).cpu()
    figures = multiclass_metrics(scores, labels)
    intervals = bootstrap(
        lambda index: _decisions(multiclass_metrics(scores[index], labels[index])),
        len(labels),
        resamples=settings.resamples,
        seed=settings.seed,
    )
    count = len(data.classes)
    return {
        "protocol": f"{_name_gallery(data)}: the class whose prompts match best, of {count}; means "
        f"over classes, each against the others; [95 % interval over images]",
        "columns": list(ZERO_SHOT_COLUMNS),
        "rows": {"": [_write_cell(intervals[name]) for name in ZERO_SHOT_COLUMNS]},
        "details": figures,
    }


def _zero_shot_pairs(
    model: GLoRIA, data: TransferData, settings: TransferSettings, progress: Progress
) -> Report:
    """One class, yes or no: by positive and negative prompts, and a threshold of validation."""
    prompts = {name: data.prompts[name] for name in data.classes}
    scores, labels = {}, {}
    for split in ("val", "test"):
        items = getattr(data.labelled, split)
        images = _encode(model, items, settings, progress)
        scores[split] = zero_shot_probabilities(model, images, prompts).cpu()
        labels[split] = torch.as_tensor(items.labels)
    thresholds = choose_thresholds(scores["val"], labels["val"])

    def figures(index: Tensor) -> Report:
        return multilabel_metrics(scores["test"][index], labels["test"][index], thresholds)

    everything = torch.arange(len(labels["test"]))
    intervals = bootstrap(
        lambda index: _decisions(figures(index)),
        len(everything),
        resamples=settings.resamples,
        seed=settings.seed,
    )
    return {
        "protocol": f"{data.name}, {len(everything)} test images: {' and '.join(data.classes)} or "
        f"not by prompts, thresholds chosen on {len(labels['val'])} validation images; "
        f"[95 % interval over images]",
        "columns": list(ZERO_SHOT_COLUMNS),
        "rows": {"": [_write_cell(intervals[name]) for name in ZERO_SHOT_COLUMNS]},
        "details": {**figures(everything), "thresholds": thresholds.values.tolist()},
    }


def _decisions(figures: Mapping[str, Any]) -> dict[str, float]:
    """The columns of the zero-shot table; NaN where a figure is undefined."""
    names = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1")
    values = [figures[name] for name in names]
    means = [value["mean"] if isinstance(value, Mapping) else value for value in values]
    return dict(zip(ZERO_SHOT_COLUMNS, map(_number, means), strict=True))


def _classification(
    model: GLoRIA, data: TransferData, settings: TransferSettings, progress: Progress
) -> Report:
    scores: dict[float, list[Tensor]] = {fraction: [] for fraction in settings.fractions}
    report = label_efficiency(
        {"model": model.image_encoder},
        *data.labelled,
        fractions=settings.fractions,
        seeds=settings.drawn,
        recipe=settings.classification,
        workers=settings.workers,
        progress=progress,
        on_scores=lambda row, fraction, seed, given: scores[fraction].append(given.cpu()),
    )
    labels = torch.as_tensor(data.labelled.test.labels)

    def auroc(index: Tensor) -> dict[str, float]:
        return {
            f"{fraction:g}": _mean(
                _number(multilabel_auroc(each[index], labels[index])["mean"]) for each in of_share
            )
            for fraction, of_share in scores.items()
        }

    intervals = bootstrap(auroc, len(labels), resamples=settings.resamples, seed=settings.seed)
    return {
        "protocol": f"{data.name}: linear classifier on the frozen image encoder, mean over "
        f"{len(report['classes'])} classes, {len(labels)} test images; {_how_uncertain(settings)}",
        "columns": [f"{100 * fraction:g}%" for fraction in settings.fractions],
        "rows": _with_spread(
            {"": list(intervals.values())},
            {
                "": [
                    [run["auroc"] for run in report["rows"]["model"][share]["runs"]]
                    for share in report["rows"]["model"]
                ]
            },
        ),
        "details": report,
    }
