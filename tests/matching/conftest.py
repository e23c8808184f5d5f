"""Fixtures of the tests of matching."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gloria.matching.triton_support import INTERPRETED


class AliveBytes(TorchDispatchMode):
    """Bytes of the tensors that operators made and nobody has dropped."""

    def __init__(self, *given):
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in given}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return output


@pytest.fixture
def alive_bytes():
    """A mode that follows the memory of tensors; it takes those that do not count."""
    return AliveBytes


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
