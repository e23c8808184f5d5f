"""Transfer: the four tasks of the paper's tables, for a trained model on one data set.

Each task gives JSON values, of which :func:`transfer_table` makes the paper's table. Confidence
intervals are over the test images, those of a patient drawn together, for they are alike; the model
and the drawn labels are as they are. What other labels would give is in the spread over their
draws, and what another training would give is in neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from gloria.checks import check_choice, check_integer
from gloria.data.protocols import class_labels, column_of
from gloria.data.transfer import TASKS, LabelledPairs, TransferData
from gloria.errors import DataError, OptionError
from gloria.evaluation.bootstrap import RESAMPLES, Interval, bootstrap
from gloria.evaluation.classification import (
    auroc_of_some,
    choose_thresholds,
    multiclass_metrics,
    multilabel_metrics,
)
from gloria.evaluation.features import (
    encode_items,
    encode_texts,
    in_batches,
    similarity_by_kind,
)
from gloria.evaluation.published import ZERO_SHOT_COLUMNS
from gloria.evaluation.retrieval import (
    class_relevance,
    evaluate_retrieval,
    precision_at_k,
    recall_at_k,
)
from gloria.evaluation.segmentation import Overlap, summarize_overlap
from gloria.evaluation.tables import Cell, Spread, Table
from gloria.evaluation.zero_shot import zero_shot_probabilities, zero_shot_scores
from gloria.model import GLoRIA
from gloria.registry import describe_target
from gloria.training.classification import ClassifierRecipe, are_defined, label_efficiency
from gloria.training.segmentation import SegmentationRecipe, segmentation_efficiency
from gloria.training.shares import check_runs
from gloria.types import ImageFeatures

KINDS = {"global": "global similarity", "local": "local similarity", "both": "both"}
"""How the similarities are called in the retrieval table."""

DICE = {"positives": "dice_positives", "all images": "dice_all"}
"""The rows of the segmentation table, and what their figures are called."""

BLOCK = 1024
"""Images of a whole split whose regions are in memory at a time: of all, they may fill it."""

Report = dict[str, Any]
Figure = float | Sequence[float | None]
OnProgress = Callable[[int], Any]

PHANTOM_UNET: Mapping[str, Any] = {
    "segmentation": SegmentationRecipe(steps=150, batch_size=16, learning_rate=1e-3),
    "width": 64,
}
"""Of :class:`TransferSettings`: as much of a U-Net as 64 pixels need, and a CPU trains."""


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
        workers: processes that load images.
        classification: recipe of a linear probe; None = the usual.
        segmentation: recipe of a U-Net; None = the usual.
        width: of the U-Net's first decoder block.
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
    width: int = 256

    def __post_init__(self) -> None:
        for name in ("seeds", "resamples", "batch_size", "width"):
            check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0, 2**64 - 1)  # as torch takes
        check_runs({"model": self}, self.fractions, self.drawn)
        if not self.ks:
            raise OptionError("ks must hold at least one K.")

    @property
    def drawn(self) -> range:
        """The seeds of the shares."""
        return range(self.seed, self.seed + self.seeds)

    def description(self) -> dict[str, Any]:
        """What the figures depend on, in JSON values; the same in another process."""
        values = {name: value for name, value in asdict(self).items() if name != "workers"}
        if self.segmentation is not None:
            values["segmentation"]["loss"] = describe_target(self.segmentation.loss)
        described: dict[str, Any] = json.loads(json.dumps(values))
        return described


def evaluate_task(
    task: str,
    model: GLoRIA,
    data: TransferData,
    settings: TransferSettings | None = None,
    *,
    progress: OnProgress = lambda done: None,
    resampled: OnProgress = lambda drawn: None,
) -> Report:
    """The figures of one task.

    Args:
        task: of :data:`~gloria.data.transfer.TASKS`.
        model: any; it and its modes are left as they were.
        data: what it is evaluated on.
        settings: how.
        progress: called with the work done since the last call; :func:`count_work` is all of it.
        resampled: called afterwards with the number of resamples drawn since the last call;
            :func:`count_resamples` is all of them.

    Returns:
        What ``json.dumps`` takes: ``protocol``, ``columns``, ``rows`` of cells (an interval, a
        spread, or None), ``details``, all figures as the task's own functions give them, and the
        number of ``resamples``.

    Raises:
        OptionError: there is no such task.
        DataError: the data do not permit it; the message says why.
    """
    check_choice("task", task, TASKS)
    settings = settings or TransferSettings()
    if reason := why_not(task, data, settings):
        raise DataError(f"{task} can't be evaluated on {data.name}: {reason}.")
    given = _Given(model, data, settings, progress, resampled)
    with torch.device("cpu"):  # where figures are made of scores, whatever torch's default is
        report = _TASKS[task](given)
    return {**report, "resamples": settings.resamples}


def why_not(task: str, data: TransferData, settings: TransferSettings) -> str:
    """Why the data do not permit a task; empty = they do."""
    if task in data.missing:
        return data.missing[task]
    if task == "retrieval" and data.gallery is not None:
        least, there = min(settings.ks), len(data.gallery)
        differ = len(set(data.gallery.reports))
        if not data.classes and differ <= least:
            return f"Recall@{least} needs more different reports than {least}; there are {differ}"
        if there < least:
            return f"Prec@{least} needs as many images of one class each; there are {there}"
    by_label = task == "classification" or data.gallery is None  # zero-shot by pairs, too
    for split in ("val", "test"):
        if task == "segmentation":
            if not (getattr(data.masked, split).labels == 1).any(0).all():
                return f"a class has no image with a mask in the split {split}"
        elif by_label and not are_defined(getattr(data.labelled, split).labels).any():
            return f"no class has positive and negative images in the split {split}"
    return ""


def count_work(task: str, data: TransferData, settings: TransferSettings) -> int:
    """How much :func:`evaluate_task` reports to ``progress`` in all."""
    if task in ("classification", "segmentation"):
        return len(settings.fractions) * settings.seeds
    if data.gallery is None:
        return len(data.labelled.val) + len(data.labelled.test)
    return len(data.gallery) * (2 if task == "retrieval" else 1)


def count_resamples(task: str, settings: TransferSettings) -> int:
    """How many :func:`evaluate_task` reports to ``resampled`` in all; those of retrieval are none.

    Means over queries are resampled in no time.
    """
    return 0 if task == "retrieval" else settings.resamples


def transfer_table(task: str, reports: Mapping[str, Report]) -> Table:
    """The paper's table of a task, of each model's report by its name, all on the same data."""
    rows: dict[str, Sequence[Cell]] = {}
    for model, report in reports.items():
        for name, cells in report["rows"].items():
            rows[f"{model}, {name}" if name else model] = [_read(cell) for cell in cells]
    first = next(iter(reports.values()))
    caption = first["protocol"]
    cells = [cell for row in rows.values() for cell in row if isinstance(cell, Interval)]
    left_out = max((cell.left_out for cell in cells), default=0)
    if left_out:
        caption += (
            f"; in up to {left_out} of {first['resamples']} resamples a class has no value; they "
            f"are left out"
        )
    return Table(task, caption, tuple(first["columns"]), rows)


class _Given(NamedTuple):
    """What every task is evaluated from; see :func:`evaluate_task`."""

    model: GLoRIA
    data: TransferData
    settings: TransferSettings
    progress: OnProgress
    resampled: OnProgress

    def encode(self, items: Any) -> ImageFeatures:
        size, workers = self.settings.batch_size, self.settings.workers
        return encode_items(self.model, items, size, workers=workers, progress=self.progress)

    def encode_some(self, items: Any) -> Iterator[ImageFeatures]:
        """As :meth:`encode`, :data:`BLOCK` images at a time."""
        for numbers in in_batches(len(items), BLOCK):
            yield self.encode(Subset(items, numbers))

    def trainings(self) -> dict[str, Any]:
        """What is trained of the labels."""
        return {
            "fractions": self.settings.fractions,
            "seeds": self.settings.drawn,
            "workers": self.settings.workers,
            "progress": self.progress,
        }

    def intervals(
        self, figures: Callable[[Tensor], Mapping[str, Figure]], patients: Sequence[str]
    ) -> dict[str, Interval | None]:
        """Bootstrap intervals; None for a figure that all images together do not define."""
        of_patients, units = _by_patient(figures, patients)
        whole = of_patients(torch.arange(units))
        defined = [
            name
            for name, figure in whole.items()
            if not isinstance(figure, Sequence) or any(value is not None for value in figure)
        ]

        def some(index: Tensor) -> dict[str, Figure]:
            found = of_patients(index)
            return {name: found[name] for name in defined}

        resamples, seed = self.settings.resamples, self.settings.seed
        known = bootstrap(some, units, resamples=resamples, seed=seed, progress=self.resampled)
        return {name: known.get(name) for name in whole}


def _by_patient(
    figures: Callable[[Tensor], Mapping[str, Figure]], patients: Sequence[str]
) -> tuple[Callable[[Tensor], Mapping[str, Figure]], int]:
    """The figures of some patients with all of their images, and how many patients there are.

    Images of one patient are alike: drawn one by one, they would count as so many patients, and the
    intervals would be too narrow.
    """
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    patient_of = torch.tensor([numbers[patient] for patient in patients], dtype=torch.long)
    together, counts = patient_of.argsort(stable=True), patient_of.bincount()
    starts = counts.cumsum(0) - counts

    def of_patients(index: Tensor) -> Mapping[str, Figure]:
        many = counts[index]
        behind = torch.arange(int(many.sum())) - (many.cumsum(0) - many).repeat_interleave(many)
        return figures(together[starts[index].repeat_interleave(many) + behind])

    return of_patients, len(numbers)


def _retrieval(given: _Given) -> Report:
    data, settings, gallery = given.data, given.settings, given.data.gallery
    if gallery is None:
        raise DataError(f"{data.name} has no images of exactly one class each.")
    asked = _ask_by_class(data, gallery) if data.classes else _ask_for_own(data, gallery)
    candidates = asked.relevant.shape[1]
    ks = [k for k in settings.ks if k <= candidates]
    columns = [f"{asked.figure}@{k}" for k in settings.ks]
    images = given.encode(gallery)
    texts = encode_texts(given.model, asked.texts, settings.batch_size)
    similarities = similarity_by_kind(given.model, images, texts, progress=given.progress)
    details, rows = {}, {}
    for kind, similarity in similarities.items():
        matrix = similarity.cpu()
        details[kind] = evaluate_retrieval(matrix, asked.relevant, ks)
        each = [
            asked.at_k(*query, ks)
            for query in zip(matrix[:, None], asked.relevant[:, None], strict=True)
        ]
        of_query = torch.tensor([[of[k] for k in ks] for of in each], dtype=torch.float64)
        figures = partial(_mean_at_k, [f"{asked.figure}@{k}" for k in ks], of_query)
        of_patients, units = _by_patient(figures, gallery.patients)
        found = bootstrap(of_patients, units, resamples=settings.resamples, seed=settings.seed)
        name = KINDS[kind] if len(similarities) > 1 else ""
        rows[name] = [_write(found.get(column)) for column in columns]
    caption = f"{asked.protocol}; 95 % intervals over the queries, a patient's drawn together"
    if beyond := [f"{asked.figure}@{k}" for k in settings.ks if k > candidates]:
        caption += f"; none for {' and '.join(beyond)}: there are {candidates} reports"
    return {"protocol": caption, "columns": columns, "rows": rows, "details": details}


def _mean_at_k(names: Sequence[str], of_query: Tensor, index: Tensor) -> dict[str, float]:
    return dict(zip(names, of_query[index].mean(0).tolist(), strict=True))


class _Asked(NamedTuple):
    """What a gallery's images ask for, and what is counted."""

    texts: Sequence[str]
    relevant: Tensor
    figure: str
    at_k: Callable[[Tensor, Tensor, Sequence[int]], dict[int, float]]
    protocol: str


def _ask_by_class(data: TransferData, gallery: LabelledPairs) -> _Asked:
    labels = class_labels(gallery, data.classes)
    relevant = class_relevance(labels, labels)
    return _Asked(
        gallery.reports,
        relevant,
        "Prec",
        precision_at_k,
        f"{_name_gallery(data, labels)}: an image asks for reports of its class; chance "
        f"{100 * float(relevant.double().mean()):.0f}",
    )


def _ask_for_own(data: TransferData, gallery: LabelledPairs) -> _Asked:
    """Images with the same report, as two views of one study, ask for one text."""
    texts = list(dict.fromkeys(gallery.reports))
    number = {text: index for index, text in enumerate(texts)}
    own = torch.tensor([number[report] for report in gallery.reports])
    return _Asked(
        texts,
        class_relevance(own, torch.arange(len(texts))),
        "Recall",
        recall_at_k,
        f"{data.name}, {len(own)} images: each asks for its own of {len(texts)} different reports; "
        f"chance K in {len(texts)}",
    )


def _zero_shot(given: _Given) -> Report:
    """The class whose prompts match best; of a single class, whether it is there."""
    data, gallery = given.data, given.data.gallery
    if gallery is None:
        return _zero_shot_pairs(given)
    labels = class_labels(gallery, data.classes)
    prompts = {name: data.prompts[name] for name in data.classes}
    scores = zero_shot_scores(given.model, given.encode(gallery), prompts).cpu()
    return {
        "protocol": f"{_name_gallery(data, labels)}: the class whose prompts match best; all but "
        f"the accuracy are means over classes, each against the others; chance of the accuracy "
        f"{1 / len(prompts):.2f}; 95 % intervals over the images, a patient's drawn together",
        **_decisions(
            given,
            lambda index: multiclass_metrics(scores[index], labels[index]),
            gallery.patients,
        ),
    }


def _zero_shot_pairs(given: _Given) -> Report:
    data = given.data
    prompts: Any = {name: data.prompts[name] for name in data.classes}
    columns = [column_of(data.labelled.test, name) for name in data.classes]
    scores, labels = {}, {}
    for split in ("val", "test"):
        items = getattr(data.labelled, split)
        some = (
            zero_shot_probabilities(given.model, images, prompts).cpu()
            for images in given.encode_some(items)
        )
        scores[split] = torch.cat(list(some))
        labels[split] = torch.as_tensor(items.labels)[:, columns]
    thresholds = choose_thresholds(scores["val"], labels["val"])

    def metrics(index: Tensor) -> Mapping[str, Any]:
        return multilabel_metrics(scores["test"][index], labels["test"][index], thresholds)

    return {
        "protocol": f"{data.name}, {len(labels['test'])} test images: {', '.join(data.classes)} or "
        f"not, by pairs of prompts; threshold chosen on {len(labels['val'])} other images; 95 % "
        f"intervals over the images, a patient's drawn together",
        **_decisions(given, metrics, data.labelled.test.patients),
    }


def _decisions(
    given: _Given, metrics: Callable[[Tensor], Mapping[str, Any]], patients: Sequence[str]
) -> Report:
    """The zero-shot table's columns and row, with all figures."""
    names = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1")

    def columns(index: Tensor) -> dict[str, Figure]:
        found = metrics(index)
        figures = [found[name] for name in names]
        of_class = [each["per_class"] if isinstance(each, Mapping) else each for each in figures]
        return dict(zip(ZERO_SHOT_COLUMNS, of_class, strict=True))

    found = given.intervals(columns, patients)
    return {
        "columns": list(ZERO_SHOT_COLUMNS),
        "rows": {"": [_write(found[name]) for name in ZERO_SHOT_COLUMNS]},
        "details": metrics(torch.arange(len(patients))),
    }


def _classification(given: _Given) -> Report:
    data = given.data
    labels = torch.as_tensor(data.labelled.test.labels)
    draws: _Draws = {fraction: [] for fraction in given.settings.fractions}

    def keep(row: str, fraction: float, seed: int, logits: Tensor) -> None:
        aurocs = auroc_of_some(logits, labels)
        draws[fraction].append(lambda index: {"auroc": aurocs(index)})

    details = label_efficiency(
        {"model": given.model.image_encoder},
        *data.labelled,
        recipe=given.settings.classification,
        on_scores=keep,
        **given.trainings(),
    )
    defined = int(are_defined(labels).sum())
    count = len(details["classes"])
    others = "" if defined == count else f" of {count}, the others in all test images or in none"
    about = (
        f"{data.name}: linear classifier on the frozen image encoder, mean over {defined} "
        f"class{'' if defined == 1 else 'es'}{others}, {len(labels)} test images"
    )
    return _by_share(given, details, draws, {"": "auroc"}, about, data.labelled.test.patients)


def _segmentation(given: _Given) -> Report:
    data = given.data
    draws: _Draws = {fraction: [] for fraction in given.settings.fractions}

    def keep(row: str, fraction: float, seed: int, overlap: Overlap) -> None:
        draws[fraction].append(partial(_dice, overlap))

    details = segmentation_efficiency(
        {"model": given.model.image_encoder},
        *data.masked,
        recipe=given.settings.segmentation,
        width=given.settings.width,
        on_overlap=keep,
        **given.trainings(),
    )
    about = (
        f"{data.name}: U-Net on the image encoder, {', '.join(data.masked.test.classes)}, "
        f"{details['images']['test']} test images; positives: those with a mask; all images: an "
        f"empty prediction on an empty mask counts 1"
    )
    return _by_share(given, details, draws, DICE, about, data.masked.test.patients)


def _dice(overlap: Overlap, index: Tensor) -> dict[str, list[float | None]]:
    of_class = summarize_overlap(Overlap(*(count[index] for count in overlap)))["per_class"]
    return {figure: [each.get(figure) for each in of_class] for figure in DICE.values()}


_Draws = dict[float, list[Callable[[Tensor], Mapping[str, Sequence[float | None]]]]]
"""By share, what each training gives: figures of every class, for some of the test images."""


def _by_share(
    given: _Given,
    details: Report,
    draws: _Draws,
    figures: Mapping[str, str],
    about: str,
    patients: Sequence[str],
) -> Report:
    """The report of a supervised task: rows of ``figures`` by their names, a column each share."""
    shares = details["rows"]["model"]

    def means(index: Tensor) -> dict[str, Figure]:
        found: dict[str, Figure] = {}
        for share, of_share in zip(shares, draws.values(), strict=True):
            each = [draw(index) for draw in of_share]
            for figure in figures.values():
                found[f"{figure}, {share}"] = _mean_of_draws([draw[figure] for draw in each])
        return found

    intervals = given.intervals(means, patients)
    rows: dict[str, list[Any]] = {}
    for name, figure in figures.items():
        rows |= _with_spread(
            name,
            [intervals[f"{figure}, {share}"] for share in shares],
            [[run["test"].get(figure) for run in share["runs"]] for share in shares.values()],
        )
    return {
        "protocol": f"{about}; {_uncertainty(given.settings)}",
        "columns": list(shares),
        "rows": rows,
        "details": details,
    }


_TASKS = {
    "retrieval": _retrieval,
    "zero-shot": _zero_shot,
    "classification": _classification,
    "segmentation": _segmentation,
}


def _name_gallery(data: TransferData, labels: Tensor) -> str:
    counts = labels.bincount(minlength=len(data.classes)).unique().tolist()
    size = f"{len(data.classes)}x{counts[0]}" if len(counts) == 1 else f"{len(labels)} images"
    return f"{data.name}, {size}"


def _mean_of_draws(draws: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Of each class, the mean over draws of labels; None where one of them has none."""
    means: list[float | None] = []
    for values in zip(*draws, strict=True):
        known = [value for value in values if value is not None]
        means.append(sum(known) / len(known) if len(known) == len(values) else None)
    return means


def _with_spread(
    name: str, intervals: Sequence[Interval | None], runs: Sequence[Sequence[float | None]]
) -> dict[str, list[Any]]:
    """A row of intervals and, of several draws of labels, one of their spread."""
    rows = {name: [_write(each) for each in intervals]}
    if len(runs[0]) > 1:
        over = f"over {len(runs[0])} draws of labels"
        spreads = []
        for each in runs:
            known = [value for value in each if value is not None]
            spreads.append(_write(Spread.of(known)) if len(known) == len(each) else None)
        rows[f"{name}, {over}" if name else over] = spreads
    return rows


def _uncertainty(settings: TransferSettings) -> str:
    how = "95 % intervals over the test images, a patient's drawn together"
    if settings.seeds == 1:
        return f"{how}, of one draw of labels"
    return f"{how} of the mean of {settings.seeds} draws of labels; ± standard deviation over these"


def _write(cell: Interval | Spread | None) -> Report | None:
    return None if cell is None else dict(cell._asdict())


def _read(cell: Mapping[str, Any] | None) -> Cell:
    if cell is None:
        return None
    return Interval(**cell) if "low" in cell else Spread(**cell)
