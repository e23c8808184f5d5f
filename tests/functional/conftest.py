"""Fixtures of the tests of the functions."""

import pytest
import torch


@pytest.fixture(scope="session")
def random():
    """Normal numbers of a shape, in float64 unless told, the same for the same seed."""

    def random(*shape, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return random


@pytest.fixture(scope="session")
def with_gradients(random):
    """Value and the gradients for regions and words of a random upstream gradient."""

    def with_gradients(function, regions, words, *masks, **options):
        regions, words = (x.detach().clone().requires_grad_() for x in (regions, words))
        value = function(regions, words, *masks, **options)
        upstream = random(*value.shape, seed=99).to(value.dtype)
        return value.detach(), *torch.autograd.grad(value, (regions, words), upstream)

    return with_gradients
