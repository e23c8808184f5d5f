"""Compile every kernel in its default configurations for GPUs that need not be here; JSON.

Two at a time. One entry per compilation: bytes of shared memory, registers, spilled bytes or
registers, and on NVIDIA the widths in bytes of what reads and writes tiles.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gloria.matching import triton as backend
from gloria.matching import triton_kernels as kernels
from gloria.matching.triton_support import FUSED

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KIND = {"bf16": torch.bfloat16, "fp32": torch.float32}
REGIONS = (49, 196, 361, 1024, 4096)

INTEGERS = {"starts_ptr", "word_of_column_ptr", "column_of_word_ptr"}
MASKS = {"mask_ptr", "region_mask_ptr"}
KEPT = {"weights_ptr", "attended_ptr", "gradient_ptr", "curved_ptr"}
"""What stands between kernels: bfloat16 for either half type."""
INPUTS = {"words_ptr", "packed_ptr"}
WHOLE = {"dim", "packed_dim"}
"""Sizes that are compiled for: multiples of 16, as the launcher finds out too."""

Job = tuple[str, str, str, dict[str, Any], int]
"""Machine, kernel, dtype, constants, warps."""


def describe(machine: str, name: str, dtype: str, constants: dict, warps: int) -> dict:
    """One kernel, compiled."""
    kernel = getattr(kernels, name)
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
        options={"num_warps": warps, **FUSED},
    )
    text = result.asm.get("ptx") or result.asm["amdgcn"]
    registers, spilled = resources(result, text)
    return {
        "machine": machine,
        "kernel": name,
        "dtype": dtype,
        "constants": constants,
        "shared": result.metadata.shared,
        "registers": registers,
        "spilled": spilled,
        "reads": widths(text, kernels.read),
        "writes": widths(text, kernels.write),
    }


def type_of(argument: str, dtype: str) -> str:
    if argument in INTEGERS:
        return "*i32"
    if argument in MASKS:
        return "*i1"
    if argument in INPUTS:
        return f"*{dtype}"
    if argument in KEPT:
        return "*fp32" if dtype == "fp32" else "*bf16"
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


def widths(ptx: str, function: triton.JITFunction) -> list[int]:
    """Bytes at a time of the global memory accesses that come from the lines of a function."""
    lines, first = inspect.getsourcelines(function.fn)
    found, inside = set(), False
    for line in ptx.splitlines():
        if place := re.match(r"\s*\.loc\s+\d+ (\d+)", line):
            inside = first <= int(place[1]) < first + len(lines)
        elif inside and (copy := re.search(r"cp\.async\.c.*\], (0x\w+)", line)):
            found.add(int(copy[1], 16))
        elif inside and (access := re.search(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.b(\d+)", line)):
            found.add(int(access[1] or 1) * int(access[2]) // 8)
    return sorted(found)


def matching(machine: str, dtype: str) -> Iterator[Job]:
    """The kernels of all regions at each of their widths, and those of some regions."""
    seen = []
    for regions in REGIONS:
        blocks = backend.choose_blocks(regions, KIND[dtype])
        for name, launch in blocks._asdict().items():
            for over_words in (False,) if name == "cosine" else (False, True):
                constants = {
                    "MASKED": True,
                    "OVER_WORDS": over_words,
                    "WORDS": launch.words,
                    "REGIONS": launch.regions,
                    "STAGES": launch.stages,
                }
                arguments = getattr(kernels, name).arg_names
                constants = {key: constants[key] for key in arguments if key in constants}
                job = machine, name, dtype, constants, launch.warps
                if job not in seen:
                    seen.append(job)
                    yield job


def small(machine: str, dtype: str) -> Iterator[Job]:
    """The small ones around them, in Triton's default arrangement."""
    for name, constants in (
        ("pack_words", {"WORDS": 16, "DIM": 256}),
        ("unpack_word_gradient", {"WORDS": 16, "DIM": 128}),
        ("differentiate_cosine", {"BLOCK": 256}),
        ("soft_maximum", {"MEAN": False, "IMAGES": 16, "WORDS": 32}),
        ("soft_maximum", {"MEAN": True, "IMAGES": 16, "WORDS": 32}),
        ("soft_maximum_gradient", {"IMAGES": 16, "WORDS": 32}),
    ):
        yield machine, name, dtype, constants, 4


def jobs() -> Iterator[Job]:
    """Half precision and float32 everywhere."""
    for machine in TARGETS:
        for dtype in ("bf16", "fp32"):
            yield from matching(machine, dtype)
            yield from small(machine, dtype)


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(json.dumps(pool.starmap(describe, jobs(), chunksize=1)))
