"""Fixtures of the tests of matching."""

import pytest
import torch

from gloria.matching.triton_support import INTERPRETED


@pytest.fixture
def true_bfloat16(monkeypatch):
    """Triton's interpreter multiplies bfloat16 as integers and truncates to it; mend that."""
    if not INTERPRETED:
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def widen(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def true_cast(self, source, target):
        if target.scalar != tl.bfloat16:
            return cast(self, widen(source), target)
        wide = np.ascontiguousarray(widen(source).data, dtype=np.float32)
        bits = torch.from_numpy(wide).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return TensorHandle(bits, tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", true_cast)
    monkeypatch.setattr(
        InterpreterBuilder,
        "create_fp_to_fp",
        lambda self, source, target, _: true_cast(self, source, target),
    )
    monkeypatch.setattr(
        InterpreterBuilder,
        "create_dot",
        lambda self, left, right, *rest: dot(self, widen(left), widen(right), *rest),
    )
