"""The Triton backend where there is no GPU: all of it in the interpreter, and what it refuses.

What compilers make of it is in ``test_triton_compile.py``.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gloria.matching import MatchingOptions, Problem, triton, triton_support


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_in_the_interpreter(assert_passes_interpreted):
    """See ``interpreted.py``."""
    assert_passes_interpreted(Path(__file__).with_name("interpreted.py"))


OPTIONS = MatchingOptions("words_then_regions", 0.25, 0.2, "max")
PAPER = Problem(48, 361, 48, 97, 768, torch.bfloat16, "cuda", OPTIONS)


@pytest.fixture
def machine(monkeypatch):
    """One that has what it takes."""
    monkeypatch.setattr(triton_support, "INSTALLED", True)
    monkeypatch.setattr(triton, "kernels", lambda: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    triton_support.what_is_wrong.cache_clear()
    yield monkeypatch
    triton_support.what_is_wrong.cache_clear()


def test_the_reasons_are_named(machine):
    assert triton.reasons_not_supported(PAPER) == []
    assert triton.reasons_not_supported(PAPER._replace(regions=4096, words=300)) == []
    assert triton.reasons_not_supported(
        PAPER._replace(dtype=torch.float64, device="mps", regions=4097, words=2200, texts=10**6)
    ) == [
        "It runs on CUDA and ROCm devices; the tensors are on mps.",
        "It takes float32, bfloat16 and float16; got torch.float64.",
        "It takes at most 4096 regions; got 4097.",
        "It counts the words of all texts in 32 bits; got 1000000 · 2200.",
    ]


@pytest.mark.parametrize(
    ("hip", "architecture", "multiplies_in"),
    [(None, "", "tf32"), ("7.0", "gfx942:sramecc+:xnack-", "tf32"), ("7.0", "gfx1100", "ieee")],
)
def test_tf32_is_asked_for_where_there_is_some(monkeypatch, hip, architecture, multiplies_in):
    """Triton refuses it on other AMD devices, however the user lets torch multiply."""
    monkeypatch.setattr("torch.version.hip", hip)
    device = SimpleNamespace(gcnArchName=architecture)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda: device)
    triton_support.has_tf32.cache_clear()
    assert triton_support.multiply_precision(torch.float32) == "ieee"
    torch.set_float32_matmul_precision("high")
    try:
        assert triton_support.multiply_precision(torch.float32) == multiplies_in
        assert triton_support.multiply_precision(torch.bfloat16) == "ieee"
    finally:
        torch.set_float32_matmul_precision("highest")
        triton_support.has_tf32.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("gloria.matching.triton_support.INSTALLED", False, "triton is not installed: pip install"),
        ("torch.cuda.is_available", lambda: False, "finds no CUDA or ROCm device"),
        ("torch.cuda.get_device_capability", lambda: (7, 5), r"capability 8\.0; .* has 7\.5"),
        ("gloria.matching.triton.kernels", lambda: 1 / 0, "broken: ZeroDivisionError: division"),
    ],
)
def test_so_is_what_is_wrong_with_the_machine(name, value, reason, machine):
    machine.setattr(name, value)
    (said,) = triton.reasons_not_supported(PAPER)
    assert re.search(reason, said)
