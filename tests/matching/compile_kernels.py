"""Compile every kernel in its default configurations for GPUs that need not be here; JSON.

Two at a time. One entry per compilation: the matrix instruction found, bytes of shared memory,
registers, spilled bytes or registers.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gloria.matching import triton as backend
from gloria.matching import triton_kernels as kernels

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
INSTRUCTIONS = ("mma.sync", "wgmma", "tcgen05.mma", "v_mfma")

INTEGERS = {
    "counts_ptr", "starts_ptr", "windows_ptr", "sizes_ptr", "word_of_column_ptr",
    "column_of_word_ptr",
}  # fmt: skip
INPUTS = {"regions_ptr", "words_ptr", "packed_ptr", "gradient_ptr"}
KEPT = {"weights_ptr", "score_gradient_ptr", "softmax_ptr", "gram_ptr"}
WHOLE = {"dim", "packed_dim", "gram_width"}
"""Always multiples of 16, as the launcher finds out too."""

Job = tuple[str, str, str, dict[str, Any], int, int]
"""Machine, kernel, dtype, constants, warps, stages."""


def describe(machine: str, name: str, dtype: str, constants: dict, warps: int, stages: int) -> dict:
    """One kernel, compiled."""
    kernel = getattr(kernels, name)
    constants = {key: constants[key] for key in kernel.arg_names if key in constants}
    signature = {
        argument: "constexpr" if argument in constants else type_of(argument, dtype)
        for argument in kernel.arg_names
    }
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, argument in enumerate(kernel.arg_names)
        if argument.endswith("_ptr") or argument in WHOLE
    }
    result = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=TARGETS[machine],
        options={"num_warps": warps, "num_stages": stages},
    )
    text = result.asm.get("ptx") or result.asm["amdgcn"]
    registers, spilled = resources(result, text)
    return {
        "machine": machine,
        "kernel": name,
        "dtype": dtype,
        "constants": constants,
        "instruction": next((i for i in reversed(INSTRUCTIONS) if i in text), None),
        "shared": result.metadata.shared,
        "registers": registers,
        "spilled": spilled,
    }


def type_of(argument: str, dtype: str) -> str:
    if argument in INTEGERS:
        return "*i32"
    if argument in INPUTS:
        return f"*{dtype}"
    if argument in KEPT:
        return "*fp32" if dtype == "fp32" else "*bf16"
    if argument in ("mask_ptr", "region_mask_ptr"):
        return "*i1"
    if argument == "inverse_temperature":
        return "fp32"
    return "*fp32" if argument.endswith("_ptr") else "i32"


def resources(result: triton.compiler.CompiledKernel, text: str) -> tuple[int, int]:
    """Registers per thread, and what of them is spilled (bytes on NVIDIA, registers on AMD)."""
    if "cubin" not in result.asm:
        return tuple(
            int(re.search(rf"\.{key}:\s*(\d+)", text)[1])
            for key in ("vgpr_count", "vgpr_spill_count")
        )
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(result.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [cuobjdump, "--dump-resource-usage", cubin.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    registers, stack, local = (
        int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")
    )
    return registers, stack + local


def matching(
    machine: str, dtype: str, over_words: bool, blocks: backend.Blocks, precision: str = "ieee"
) -> Iterator[Job]:
    """The four kernels that multiply."""
    for name in ("attend", "cosine", "attend_again", "score_gradient"):
        launch = getattr(blocks, name)
        constants = {
            "HAS_REGION_MASK": True,
            "OVER_WORDS": over_words,
            "RUNNING_MAX": not over_words,
            "REGIONS": launch.regions,
            "WIDTH": blocks.width,
            "DIM": blocks.inner,
            "INNER": blocks.inner,
            "PRECISION": precision,
        }
        yield machine, name, dtype, constants, launch.warps, launch.stages


def packing(machine: str, dtype: str) -> Iterator[Job]:
    """The small ones around them, in Triton's default arrangement."""
    for name, constants in (
        ("place_texts", {"OVER_WORDS": True, "WIDTH": 128, "BLOCK": 1024}),
        ("place_texts", {"OVER_WORDS": False, "WIDTH": 128, "BLOCK": 1024}),
        ("pack_words", {"WORDS": 16, "DIM": 128}),
        ("unpack_word_gradient", {"WORDS": 16, "DIM": 128}),
        ("differentiate_cosine", {"BLOCK": 256}),
    ):
        yield machine, name, dtype, constants, 4, 3


def jobs() -> Iterator[Job]:
    """Half precision everywhere; float32 where products need most registers, and on ROCm."""
    for (machine, over_words), blocks in backend.TALL.items():
        yield from matching(machine, "bf16", over_words, blocks)
    for machine in TARGETS:
        yield from matching(machine, "bf16", True, backend.SHORT[machine])
        yield from packing(machine, "bf16")
    for machine in ("sm80", "gfx942"):
        yield from matching(machine, "bf16", True, backend.WIDE[machine])
        yield from matching(machine, "fp32", True, backend.FULL[128])
    yield from matching("sm90", "fp16", True, backend.TALL["sm90", True])
    yield from matching("sm80", "fp32", True, backend.FULL[64])
    yield from matching("sm80", "fp32", True, backend.FULL[64], "tf32")
    yield from packing("sm80", "fp32")


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(json.dumps(pool.starmap(describe, jobs(), chunksize=1)))
