"""Merging of word pieces, against a plain Python loop."""

import math

import pytest
import torch

from gloria.aggregators.words import merge_word_pieces
from gloria.errors import DtypeError, OptionError, ShapeError

REDUCTIONS = ("sum", "mean", "max", "first")


def loop(values, word_ids, reduction):
    """The definition, word by word, on Python floats."""
    rows = values.tolist()
    ids = word_ids.tolist()
    count = max([-1, *(i for row in ids for i in row)]) + 1
    dim = values.shape[2]
    words, mask = [], []
    for vectors, row in zip(rows, ids, strict=True):
        groups = [[v for v, i in zip(vectors, row, strict=True) if i == w] for w in range(count)]
        mask.append([bool(group) for group in groups])
        words.append([merge(group, reduction, dim) for group in groups])
    shape = (len(rows), count, dim)
    return torch.tensor(words, dtype=values.dtype).reshape(shape), torch.tensor(
        mask, dtype=torch.bool
    ).reshape(shape[:2])


def merge(group, reduction, dim):
    if not group:
        return [0.0] * dim
    columns = list(zip(*group, strict=True))
    if reduction == "first":
        return list(group[0])
    if reduction == "max":
        return [max(column) for column in columns]
    total = [math.fsum(column) for column in columns]
    return total if reduction == "sum" else [x / len(group) for x in total]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (3, 1, 5), (4, 13, 6), (2, 97, 11)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_equals_a_loop_over_scattered_pieces(reduction, shape, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    word_ids = torch.randint(-1, 6, shape[:2], generator=generator, dtype=dtype)
    words, mask = merge_word_pieces(values, word_ids, reduction)
    expected_words, expected_mask = loop(values, word_ids, reduction)
    torch.testing.assert_close(words, expected_words, rtol=0, atol=1e-14)
    assert torch.equal(mask, expected_mask)
    assert words[~mask].eq(0).all()


def test_max_of_negative_pieces_is_not_the_zero_of_the_padding():
    values = torch.tensor([[[-3.0], [-2.0], [5.0]]])
    words, _ = merge_word_pieces(values, torch.tensor([[0, 0, -1]]), "max")
    assert words.tolist() == [[[-2.0]]]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient(reduction):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    word_ids = torch.tensor([[-1, 2, 0, 2, -1], [0, 0, 0, 1, -1]])
    assert torch.autograd.gradcheck(lambda v: merge_word_pieces(v, word_ids, reduction)[0], values)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tokens_without_a_word_are_inert_even_when_nan(reduction):
    values = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1))
    word_ids = torch.tensor([[-1, 0, 0, 1, -7]])
    clean, _ = merge_word_pieces(values, word_ids, reduction)
    dirty = values.clone()
    dirty[0, [0, 4]] = math.nan
    dirty.requires_grad_()
    words, mask = merge_word_pieces(dirty, word_ids, reduction)
    assert torch.equal(words, clean)
    assert mask.tolist() == [[True, True]]
    words.square().sum().backward()
    assert dirty.grad.isfinite().all()
    assert dirty.grad[0, [0, 4]].eq(0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_word_count_sets_the_width_without_reading_the_ids(reduction):
    values = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))
    word_ids = torch.tensor([[0, 1, 1, -1], [0, -1, -1, -1]])
    words, mask = merge_word_pieces(values, word_ids, reduction, word_count=5)
    narrow, narrow_mask = merge_word_pieces(values, word_ids, reduction)
    assert torch.equal(words[:, :2], narrow)
    assert torch.equal(mask[:, :2], narrow_mask)
    assert words[:, 2:].eq(0).all()
    assert not mask[:, 2:].any()


def test_a_word_count_below_the_ids_loses_no_word_silently():
    with pytest.raises(RuntimeError, match="out of bounds"):
        merge_word_pieces(torch.ones(1, 2, 1), torch.tensor([[0, 1]]), word_count=1)


def test_no_words_no_texts_no_tokens():
    words, mask = merge_word_pieces(torch.ones(2, 3, 4), torch.full((2, 3), -1))
    assert words.shape == (2, 0, 4)
    assert mask.shape == (2, 0)
    words, mask = merge_word_pieces(torch.ones(0, 3, 4), torch.zeros(0, 3, dtype=torch.long))
    assert words.shape == (0, 0, 4)
    words, mask = merge_word_pieces(torch.ones(2, 0, 4), torch.zeros(2, 0, dtype=torch.long))
    assert words.shape == (2, 0, 4)
    assert mask.shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_half_precision_accumulates_in_float32(dtype, reduction):
    # added one by one in half precision, the ones after the first 2048 (256) would vanish
    values = torch.ones(1, 4096, 1, dtype=dtype)
    words, _ = merge_word_pieces(values, torch.zeros(1, 4096, dtype=torch.long), reduction)
    assert words.dtype == dtype
    assert words.item() == (4096 if reduction == "sum" else 1)


@pytest.mark.parametrize(
    "values, word_ids, reduction, error, message",
    [
        (torch.ones(2, 3), torch.zeros(2, 3).long(), "sum", ShapeError, r"\(text, token, dim\)"),
        (torch.ones(2, 3, 1).long(), torch.zeros(2, 3).long(), "sum", DtypeError, "floating"),
        (torch.ones(2, 3, 1), torch.zeros(2, 3), "sum", DtypeError, "signed integers; got torch.f"),
        (torch.ones(2, 3, 1), [[0, 0, 1]], "sum", DtypeError, "signed integers; got list"),
        (torch.ones(2, 3, 1), torch.zeros(2, 4).long(), "sum", ShapeError, r"\(2, 3\) = \(text"),
        (torch.ones(2, 3, 1), torch.zeros(2, 3).long(), "last", OptionError, "reduction must be"),
    ],
)
def test_bad_input(values, word_ids, reduction, error, message):
    with pytest.raises(error, match=message):
        merge_word_pieces(values, word_ids, reduction)
