"""Phantoms as pairs for training."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from gloria.data import ImageReport, PhantomPairs
from gloria.data.pairs import PhantomItems
from gloria.data.phantom import FINDINGS, PhantomDataset
from gloria.errors import DtypeError


@pytest.fixture(scope="module")
def dataset():
    return PhantomDataset("train", count=7, size=40).draw()


@pytest.mark.parametrize("as_list", [False, True])
def test_a_pair_is_the_film_in_unit_range_and_its_report(dataset, as_list):
    pairs = PhantomPairs(list(dataset) if as_list else dataset)
    assert len(pairs) == 7
    for index, item in enumerate(dataset):
        pair = pairs[index]
        assert isinstance(pair, ImageReport)
        assert pair.image.shape == (1, 40, 40)
        assert pair.image.dtype == torch.float32
        assert pair.image.min() >= 0
        assert pair.image.max() <= 1
        np.testing.assert_allclose(pair.image[0].numpy() * 255, item.image, rtol=0, atol=1e-4)
        assert pair.report == item.report
    assert max(float(pairs[index].image.max()) for index in range(7)) > 0.5


def test_reports_are_those_of_the_pairs_in_their_order(dataset):
    pairs = PhantomPairs(dataset)
    assert pairs.reports == [pairs[index].report for index in range(len(pairs))]
    assert len(set(pairs.reports)) > 1


def test_a_pair_is_a_copy(dataset):
    pairs = PhantomPairs(dataset)
    before = dataset[0].image.copy()
    pairs[0].image.zero_()
    assert np.array_equal(dataset[0].image, before)


def test_one_string_is_no_list_of_classes(dataset):
    fault = r"classes must be .* one string\. Wrap it: \['cardiomegaly'\]"
    with pytest.raises(DtypeError, match=fault):
        PhantomItems(dataset, "cardiomegaly")


def test_a_loader_makes_batches_of_them(dataset):
    batches = list(DataLoader(PhantomPairs(dataset), batch_size=3))
    assert [len(batch.report) for batch in batches] == [3, 3, 1]
    assert batches[0].image.shape == (3, 1, 40, 40)
    assert [text for batch in batches for text in batch.report] == PhantomPairs(dataset).reports


def test_labels_are_what_the_films_show(dataset):
    pairs = PhantomPairs(dataset)
    assert pairs.classes == FINDINGS
    shown = [[name in item.sides for name in pairs.classes] for item in dataset]
    assert pairs.labels.tolist() == np.array(shown, int).tolist()
    assert pairs.labels.any()
    assert len(set(pairs.ids)) == len(pairs) == len(pairs.patients)
