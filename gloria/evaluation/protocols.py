"""Retrieval as papers report it: on a data set, between classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gloria.data.chexpert import COMPETITION_CLASSES
from gloria.data.protocols import class_labels
from gloria.data.radiographs import Radiographs
from gloria.errors import DataError, DtypeError
from gloria.evaluation.features import (
    encode_items,
    encode_prompts,
    encode_texts,
    similarity_by_kind,
)
from gloria.evaluation.retrieval import (
    check_ks,
    class_relevance,
    evaluate_queries,
    evaluate_retrieval,
)
from gloria.functional import global_similarity
from gloria.matching import AggregatorFunction, WordAggregation
from gloria.model import GLoRIA


def evaluate_pairs(
    model: GLoRIA,
    data: Radiographs,
    classes: Sequence[str] = COMPETITION_CLASSES,
    *,
    ks: Sequence[int] = (5, 10, 100),
    aggregation: WordAggregation | AggregatorFunction | None = None,
    weights: tuple[float, float] = (0.5, 0.5),
    batch_size: int = 64,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, dict[str, dict[str, float]]]:
    """Image-text retrieval on a 5x200 set: a report is right if it is of the image's class.

    Args:
        model: any; evaluated in eval mode, its modes are left as they were.
        data: images with reports, each positive for exactly one of ``classes``.
        classes: of ``data.classes``.
        ks: the K of precision and recall, each at most the number of images.
        aggregation: of the local similarity, as in :meth:`~gloria.model.GLoRIA.similarity`.
        weights: of the global and the local similarity in their sum.
        batch_size: images, and texts, encoded at a time; it does not change the result.
        progress: called with the number of images encoded, and later of images compared, since the
            last call: in all, twice the number of images.

    Returns:
        ``"global"``, ``"local"`` and ``"both"``, or the one that the model's loss trains; each as
        :func:`~gloria.evaluation.retrieval.evaluate_retrieval` gives it.

    Raises:
        DataError: an image has no report, or is positive for none or several of the classes.
        OptionError: a K is larger than the gallery.

    Source: Huang et al., GLoRIA, ICCV 2021, section 4.2.
    """
    check_ks(ks, len(data))
    labels = class_labels(data, classes)
    without = [record.place for record in data.records if not record.report]
    if without:
        raise DataError(f"{len(without)} images have no report, first: {without[0]}.")
    texts = encode_texts(model, data.reports, batch_size)
    images = encode_items(model, data, batch_size, progress=progress)
    similarities = similarity_by_kind(
        model, images, texts, aggregation=aggregation, weights=weights, progress=progress
    )
    relevant = class_relevance(labels, labels)
    return {
        kind: evaluate_retrieval(similarity.cpu(), relevant, ks)
        for kind, similarity in similarities.items()
    }


def evaluate_image_queries(
    model: GLoRIA,
    queries: Radiographs,
    candidates: Radiographs,
    classes: Sequence[str],
    *,
    ks: Sequence[int] = (5, 10, 100),
    batch_size: int = 64,
    progress: Callable[[int], Any] = lambda encoded: None,
) -> dict[str, float]:
    """Image-image retrieval, as of 8x200: a candidate is right if it is of the query's class.

    The similarity is the cosine of the pooled embeddings, whatever the model's loss trains.

    Args as in :func:`evaluate_pairs`, and:
        queries: each image positive for exactly one of ``classes``.
        candidates: likewise; ``ks`` are at most as many.
        progress: called with the number of images encoded since the last call.

    Returns:
        As :func:`~gloria.evaluation.retrieval.evaluate_queries` gives it.

    Raises:
        DataError: an image is positive for none or several of the classes, or is both a query and
            a candidate.
        OptionError: a K is larger than the gallery.

    Source: Zhang et al., ConVIRT, MLHC 2022.
    """
    check_ks(ks, len(candidates))
    relevant = class_relevance(class_labels(queries, classes), class_labels(candidates, classes))
    shared = sorted(set(queries.ids) & set(candidates.ids))
    if shared:
        raise DataError(
            f"no query may be a candidate, which it would find first; {len(shared)} are, first: "
            f"{shared[0]}."
        )
    asked = encode_items(model, queries, batch_size, progress=progress).pooled
    found = encode_items(model, candidates, batch_size, progress=progress).pooled
    return evaluate_queries(global_similarity(asked, found).cpu(), relevant, ks)


def evaluate_text_queries(
    model: GLoRIA,
    queries: Mapping[str, Sequence[str]],
    candidates: Radiographs,
    *,
    ks: Sequence[int] = (5, 10, 100),
    aggregation: WordAggregation | AggregatorFunction | None = None,
    weights: tuple[float, float] = (0.5, 0.5),
    batch_size: int = 64,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, dict[str, float]]:
    """Text-image retrieval, as of 8x200: a candidate is right if it is of the query's class.

    Args as in :func:`evaluate_pairs`, and:
        queries: ``{class: texts}``, such as :data:`~gloria.data.protocols.TEXT_QUERIES`.
        candidates: each image positive for exactly one of the classes asked for.

    Returns:
        ``"global"``, ``"local"`` and ``"both"``, or the one that the model's loss trains; each as
        :func:`~gloria.evaluation.retrieval.evaluate_queries` gives it.

    Raises:
        DataError: there is no query; an image is positive for none or several of the classes.
        DtypeError: the queries of a class are one text, not a list.
        OptionError: a K is larger than the gallery.

    Warns:
        UnknownWordWarning: the model's vocabulary lacks words of the queries.

    Source: Zhang et al., ConVIRT, MLHC 2022.
    """
    for name, texts in queries.items():
        if isinstance(texts, str):  # its letters would be asked for
            raise DtypeError(f"queries of {name!r} must be a list of texts; got {texts!r}.")
    flat = [text for texts in queries.values() for text in texts]
    if not flat:
        raise DataError("queries must hold at least one text; there is nothing to ask.")
    check_ks(ks, len(candidates))
    labels = class_labels(candidates, list(queries))
    numbers = [number for number, texts in enumerate(queries.values()) for _ in texts]
    relevant = class_relevance(labels.new_tensor(numbers), labels)
    asked = encode_prompts(model, flat, stacklevel=3)
    images = encode_items(model, candidates, batch_size, progress=progress)
    similarities = similarity_by_kind(
        model, images, asked, aggregation=aggregation, weights=weights, progress=progress
    )
    return {
        kind: evaluate_queries(similarity.T.cpu(), relevant, ks)
        for kind, similarity in similarities.items()
    }
