"""Tensors that tests draw, and gradients that they ask for."""

import torch


def random(*shape, seed=0, dtype=torch.float64):
    """Normal numbers of a shape, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def with_gradients(function, regions, words, *masks, **options):
    """Value and the gradients for regions and words of a random upstream gradient."""
    regions, words = (x.detach().clone().requires_grad_() for x in (regions, words))
    value = function(regions, words, *masks, **options)
    upstream = random(*value.shape, seed=99).to(value.dtype)
    return value.detach(), *torch.autograd.grad(value, (regions, words), upstream)
