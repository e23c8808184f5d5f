"""The contract of every aggregator, as a loop."""

import itertools

import pytest
import torch


@pytest.fixture(scope="session")
def by_loop():
    """``by_loop(values, mask, dim, reduce)``: ``reduce`` on the kept floats of each slice."""

    def by_loop(values, mask, dim, reduce):
        mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        moved, keep = values.movedim(dim, -1), mask.expand_as(values).movedim(dim, -1)
        reduced = torch.zeros(moved.shape[:-1], dtype=torch.float64)
        for index in itertools.product(*map(range, reduced.shape)):
            pairs = zip(moved[index].tolist(), keep[index].tolist(), strict=True)
            kept = [value for value, real in pairs if real]
            if kept:
                reduced[index] = reduce(kept)
        return reduced

    return by_loop
