import pytest
import torch


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights and images every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
