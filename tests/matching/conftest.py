"""Fixtures of the tests of matching."""

import gc
import itertools
import os
import re
import subprocess
import sys
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from gloria.matching.triton_support import FUSED, INTERPRETED


class AliveBytes(TorchDispatchMode):
    """Bytes of the tensors that operators made and nobody has dropped."""

    def __init__(self, *given):
        super().__init__()
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in given}
        self.peak = 0

    def __enter__(self):
        gc.freeze()  # collecting passes over what was there before
        return super().__enter__()

    def __exit__(self, *error):
        gc.unfreeze()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        if INTERPRETED and sum(self.sizes.values()) > self.peak:
            gc.collect()  # Triton's interpreter leaves what a kernel was given in cycles
        self.peak = max(self.peak, sum(self.sizes.values()))
        return output


@pytest.fixture
def alive_bytes():
    """A mode that follows the memory of tensors; it takes those that do not count."""
    return AliveBytes


@pytest.fixture
def peak_bytes():
    """The most that torch's allocator had given out at a time while a function ran."""

    def peak_bytes(function):
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU],
            profile_memory=True,
            acc_events=True,  # or torch 2.11 warns
        ) as profile:
            function()
        events = profile.profiler.kineto_results.events()
        given = [event for event in events if event.name() == "[memory]"]
        given.sort(key=lambda event: event.start_ns())
        return max(itertools.accumulate(event.nbytes() for event in given))

    return peak_bytes


class Launches(TorchDispatchMode):
    """The names of what a device would be asked to run: no views, no allocations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if not (function.is_view or "empty" in name or name in ("promote_types", "_unsafe_view")):
            self.names.append(name)
        return function(*args, **kwargs or {})

    def kernels(self, module):
        """What stands for the module of kernels: each counts once, whatever an interpreter does."""
        launches = self

        class Kernel:
            def __init__(self, name):
                self.name = name

            def __getitem__(self, grid):
                def launch(*arguments, **constants):
                    assert constants.items() >= FUSED.items()  # or Triton 3.9 warns
                    launches.names.append(self.name)
                    with _disable_current_modes():
                        getattr(module, self.name)[grid](*arguments, **constants)

                return launch

        class Kernels:
            __getattr__ = staticmethod(Kernel)

        return Kernels()


@pytest.fixture
def launches_of(monkeypatch):
    """A mode that lists what one of the Triton backends asks a device to run."""

    def launches_of(backend):
        launches = Launches()
        stand_in = launches.kernels(backend.kernels())
        monkeypatch.setattr(backend, "kernels", lambda: stand_in)
        # of a machine, asked once, by the function that is replaced here
        monkeypatch.setattr(backend, "reasons_not_supported", lambda _: [])
        return launches

    return launches_of


@pytest.fixture
def assert_passes_interpreted():
    """That tests pass, all of them, in a process where Triton's interpreter was chosen."""

    def assert_passes(file):
        pytest.importorskip("triton")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", str(file)],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert re.search(r"\d\d passed", done.stdout)
        assert not re.search("skipped|deselected|xfailed", done.stdout)

    return assert_passes


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
