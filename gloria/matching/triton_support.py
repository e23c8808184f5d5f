"""What the Triton backends ask of the machine."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from gloria.errors import describe
from gloria.matching.problem import why_only_the_definition

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

INSTALLED = importlib.util.find_spec("triton") is not None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run on CPU tensors, in Triton's interpreter: for tests."""

FUSED = {"enable_fp_fusion": True}
"""Of every launch: multiply and add in one instruction, as was measured. Triton 3.9 warns where it
is not said, and 3.10 no longer does it then."""


def why_not_here(
    device: str, dtype: torch.dtype, kernels: Callable[[], object] | None
) -> list[str]:
    """Sentences that say why no kernel runs on a device of this type with this dtype.

    Args:
        device: type of the tensors' device.
        dtype: of the tensors.
        kernels: imports the kernels, and triton with them; None: the device is elsewhere, and
            nothing here is asked.
    """
    reasons = []
    if kernels and not INSTALLED:
        reasons.append("triton is not installed: pip install gloria-torch[triton].")
    elif device != "cuda" and not (device == "cpu" and INTERPRETED):
        reasons.append(f"It runs on CUDA and ROCm devices; the tensors are on {device}.")
    elif kernels and not torch.compiler.is_compiling():
        # a trace cannot ask; if something is wrong, it fails when the kernel runs
        wrong = what_is_wrong(device, kernels)
        reasons += [wrong] if wrong else []
    reasons += why_only_the_definition(device)
    if dtype not in DTYPES:
        reasons.append(f"It takes float32, bfloat16 and float16; got {dtype}.")
    return reasons


def multiply_precision(dtype: torch.dtype) -> str:
    """How kernels multiply: float32 in TF32 only where the user allows torch's products that."""
    if dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "ieee"
    return "tf32" if torch.version.hip is None or has_tf32() else "ieee"


@functools.cache
def has_tf32() -> bool:
    """Whether Triton multiplies in TF32 on this machine's AMD device."""
    return torch.cuda.get_device_properties().gcnArchName.startswith("gfx942")


def ceil_div(size: int, step: int) -> int:
    """How many steps it takes, the last perhaps in part."""
    return -(-size // step)


def capturing(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured, so that nothing may wait for the device."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@functools.cache
def what_is_wrong(device: str, kernels: Callable[[], object]) -> str | None:
    """What is wrong with this machine's device or its triton, or None; asked once."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch finds no CUDA or ROCm device here."
    if device == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability()
        if major < 8:
            return f"It needs compute capability 8.0; the device has {major}.{minor}."
    try:
        kernels()
    except Exception as error:  # an installed and broken triton raises anything
        return f"triton is installed and broken: {describe(error)}."
    return None
