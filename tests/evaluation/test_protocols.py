"""Protocols on data sets: against the same figures from features computed one by one."""

import numpy as np
import pytest
import torch
from PIL import Image

from gloria.data import Radiographs, Record
from gloria.data.phantom import PhantomDataset
from gloria.errors import DataError, DtypeError, OptionError, UnknownWordWarning
from gloria.evaluation.features import evaluating
from gloria.evaluation.protocols import (
    evaluate_image_queries,
    evaluate_pairs,
    evaluate_text_queries,
)
from gloria.training.randomness import isolated
from gloria.training.small import small_model

# small vocabularies, of few reports, lack words of the prompts
pytestmark = pytest.mark.filterwarnings("ignore::gloria.errors.UnknownWordWarning")

CLASSES = ("Edema", "Fracture", "Mass")


@pytest.fixture(scope="module")
def model():
    with isolated(0):
        return small_model([item.report for item in PhantomDataset("test", count=60)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve films with reports, four of each class, mixed."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    items = list(PhantomDataset("val", count=12))
    records = []
    for number, item in enumerate(items):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(path)
        labels = tuple(int(number % 3 == column) for column in range(3))
        records.append(
            Record(str(number), path, f"row {number}", report=item.report, labels=labels)
        )
    return Radiographs(records, classes=CLASSES, size=(40, 40))


def encode(model, data):
    """Features one image at a time, as a user would by hand."""
    with evaluating(model):
        wanted = model.image_encoder.image_input
        mean, std = (torch.tensor(each)[:, None, None] for each in (wanted.mean, wanted.std))
        return [model.encode_image((item.image[None] - mean) / std) for item in data]


def score(model, images, texts, **options):
    """``(image, text)``, pair by pair."""
    with evaluating(model):
        encoded = [model.encode_text([text]) for text in texts]
        rows = [[model.similarity(i, t, **options) for t in encoded] for i in images]
    return [[float(value) for value in row] for row in rows]


def precision(scores, query_classes, candidate_classes, k):
    shares = []
    for row, wanted in zip(scores, query_classes, strict=True):
        best = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
        shares.append(sum(candidate_classes[place] == wanted for place in best) / k)
    return sum(shares) / len(shares)


def test_pairs_of_images_and_reports(model, data):
    options = {"aggregation": "max", "weights": (0.5, 2.5)}
    done = []
    found = evaluate_pairs(
        model, data, CLASSES, ks=(1, 4), **options, batch_size=5, progress=done.append
    )
    assert list(found) == ["global", "local", "both"]
    assert sum(done) == 2 * len(data)
    classes = [number % 3 for number in range(12)]
    for kind, figures in found.items():
        scores = score(model, encode(model, data), data.reports, kind=kind, **options)
        columns = list(map(list, zip(*scores, strict=True)))
        for k in (1, 4):
            for direction, values in (("image_to_text", scores), ("text_to_image", columns)):
                expected = precision(values, classes, classes, k)
                assert figures[direction][f"precision@{k}"] == pytest.approx(expected)
    again = evaluate_pairs(model, data, CLASSES, ks=(1, 4), **options, batch_size=12)
    assert again == found


def test_images_that_ask_for_images(model, data):
    queries = data.select(["0", "1", "2", "3"])
    candidates = data.select([str(number) for number in range(4, 12)])
    found = evaluate_image_queries(model, queries, candidates, CLASSES, ks=(2, 5), batch_size=3)
    asked, answers = (
        torch.cat([each.pooled for each in encode(model, some)]) for some in (queries, candidates)
    )
    scores = torch.cosine_similarity(asked[:, None], answers[None], dim=2).tolist()
    for k in (2, 5):
        expected = precision(scores, [0, 1, 2, 0], [n % 3 for n in range(4, 12)], k)
        assert found[f"precision@{k}"] == pytest.approx(expected)


def test_texts_that_ask_for_images(model, data):
    queries = {"Mass": ["small mass", "large mass"], "Edema": ["edema"], "Fracture": ["fracture"]}
    options = {"aggregation": "max", "weights": (0.5, 2.5)}
    found = evaluate_text_queries(model, queries, data, ks=range(1, 13), **options)
    texts = [text for some in queries.values() for text in some]
    for kind, figures in found.items():
        scores = score(model, encode(model, data), texts, kind=kind, **options)
        columns = list(map(list, zip(*scores, strict=True)))
        for k in range(1, 13):
            expected = precision(columns, [2, 2, 0, 1], [number % 3 for number in range(12)], k)
            assert figures[f"precision@{k}"] == pytest.approx(expected)
    assert list(found) == ["global", "local", "both"]
    with pytest.warns(UnknownWordWarning, match="lacks 'mass', '☃'") as warned:
        evaluate_text_queries(model, {**queries, "Edema": ["edema ☃"]}, data, ks=(1,))
    assert warned[0].filename == __file__


def test_a_model_without_a_local_loss_has_the_global_row_only(data):
    with isolated(0):
        model = small_model(data.reports, loss="global_contrastive")
    assert list(evaluate_pairs(model, data, CLASSES, ks=(1,))) == ["global"]
    assert list(evaluate_text_queries(model, {c: [c] for c in CLASSES}, data, ks=(1,))) == [
        "global"
    ]


def test_what_cannot_be_scored_is_refused_before_anything_is_encoded(model, data, monkeypatch):
    monkeypatch.setattr(model, "encode_image", None)
    monkeypatch.setattr(model, "encode_text", None)
    rest = data.select([str(number) for number in range(3, 12)])
    texts = {name: [name] for name in CLASSES}
    with pytest.raises(OptionError, match="12; got 13"):
        evaluate_pairs(model, data, CLASSES, ks=(13,))
    with pytest.raises(OptionError, match="9; got 10"):
        evaluate_image_queries(model, data.select(["0"]), rest, CLASSES, ks=(10,))
    with pytest.raises(OptionError, match="12; got 100"):
        evaluate_text_queries(model, texts, data)
    with pytest.raises(DataError, match=r"no query may be a candidate.*; 9 are, first: 10"):
        evaluate_image_queries(model, data, rest, CLASSES, ks=(1,))
    with pytest.raises(DataError, match="queries must hold at least one text"):
        evaluate_text_queries(model, {}, data, ks=(1,))
    one = r"classes must be .* one string\. Wrap it: \['Mass'\]"
    with pytest.raises(DtypeError, match=one):
        evaluate_pairs(model, data, "Mass", ks=(1,))
    with pytest.raises(DtypeError, match=one):
        evaluate_image_queries(model, data, data, "Mass", ks=(1,))
    with pytest.raises(DtypeError, match="queries of 'Mass' must be a list of texts; got 'mass'"):
        evaluate_text_queries(model, {**texts, "Mass": "mass"}, data, ks=(1,))
    with pytest.raises(DataError, match="4 are not, first: row 2, positive for none"):
        evaluate_pairs(model, data, CLASSES[:2], ks=(1,))
    records = [data.records[0], data.records[1]._replace(report="")]
    silent = Radiographs(records, classes=CLASSES, size=(40, 40))
    with pytest.raises(DataError, match="1 images have no report, first: row 1"):
        evaluate_pairs(model, silent, CLASSES, ks=(1,))
