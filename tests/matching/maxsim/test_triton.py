"""The Triton kernels where there is no GPU: in the interpreter, and compiled for real ones."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gloria.matching.maxsim import MaxSimProblem, triton

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
KIBIBYTES = {80: 163, 90: 227, 100: 227, "gfx942": 64}  # of shared memory that a program may take


def test_everything_in_the_interpreter():
    """See ``interpreted.py``."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("interpreted.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)
    assert not re.search("skipped|deselected|xfailed", done.stdout)


def compile_for(architecture, kernel, types, constants, **options):
    """A kernel, compiled; pointers and ``dim`` are taken to be multiples of 16."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    kernel = getattr(triton.kernels(), kernel)
    names = kernel.arg_names
    aligned = [name for name in names if name.endswith("_ptr") or name == "dim"]
    source = compiler.ASTSource(
        kernel,
        types | dict.fromkeys(constants, "constexpr"),
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    vendor, lanes = ("hip", 64) if isinstance(architecture, str) else ("cuda", 32)
    target = backends.GPUTarget(vendor, architecture, lanes)
    return compiler.compile(source, target=target, options=options)


def row_maxima(architecture, dtype, *, keys=48, with_winners=True, precision="ieee"):
    pointers = {
        "queries_ptr": TYPES[dtype],
        "keys_ptr": TYPES[dtype],
        "rows_ptr": "i32",
        "row_count_ptr": "i32",
        "tokens_ptr": "i32",
        "items_ptr": "i64",
        "lengths_ptr": "i32",
        "highest_ptr": "fp32",
        "winners_ptr": "i32",
    }
    numbers = ("row_blocks", "first_item", "items", "key_tokens", "dim")
    types = {name: f"*{kind}" for name, kind in pointers.items()} | dict.fromkeys(numbers, "i32")
    blocks = triton.Blocks.of(keys, dtype)._asdict()
    options = {name: blocks.pop(name) for name in ("num_warps", "num_stages")}
    constants = blocks | {"WITH_WINNERS": with_winners, "PRECISION": precision}
    return compile_for(architecture, "row_maxima", types, constants, **options)


def weighted_sums(architecture, dtype, *, add=False):
    pointers = {
        "values_ptr": TYPES[dtype],
        "indices_ptr": "i64",
        "weights_ptr": "fp32",
        "rows_ptr": "i32",
        "starts_ptr": "i64",
        "ends_ptr": "i64",
        "sums_ptr": "fp32" if add else TYPES[dtype],
    }
    types = {name: f"*{kind}" for name, kind in pointers.items()} | {"dim": "i32"}
    constants = {"ADD": add, "PAIRS": 16, "INNER": 256}
    return compile_for(architecture, "weighted_sums", types, constants)


def assembly(compiled):
    return compiled.asm.get("ptx") or compiled.asm["amdgcn"]


def assert_nothing_spills(compiled, tmp_path):
    if "amdgcn" in compiled.asm:
        counts = re.findall(r"[sv]gpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])
        assert len(counts) >= 2
        assert set(counts) == {"0"}
        return
    import triton as installed

    tool = Path(installed.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"(?:STACK|LOCAL):(\d+)", usage) == ["0", "0"], usage


def assert_fits(compiled, architecture):
    assert compiled.metadata.shared <= 1024 * KIBIBYTES[architecture]


@pytest.mark.parametrize(
    "architecture, instruction",
    [(80, "mma.sync"), (90, "wgmma.mma_async"), (100, "tcgen05.mma"), ("gfx942", "v_mfma")],
)
def test_half_precision_runs_on_the_matrix_units(architecture, instruction, tmp_path):
    compiled = row_maxima(architecture, torch.bfloat16)
    assert instruction in assembly(compiled)
    assert_nothing_spills(compiled, tmp_path)
    assert_fits(compiled, architecture)


@pytest.mark.parametrize("options", [{"keys": 1}, {"with_winners": False}])
def test_so_do_one_key_and_inference(options, tmp_path):
    compiled = row_maxima(90, torch.float16, **options)
    assert "wgmma.mma_async" in assembly(compiled)
    assert_nothing_spills(compiled, tmp_path)


@pytest.mark.parametrize("architecture", [80, "gfx942"])
def test_float32_multiplies_in_float32_unless_told(architecture, tmp_path):
    exact = row_maxima(architecture, torch.float32)
    assert_nothing_spills(exact, tmp_path)
    assert_fits(exact, architecture)
    tf32 = "tf32" if architecture == 80 else "xf32"
    assert tf32 not in assembly(exact)
    assert tf32 in assembly(row_maxima(architecture, torch.float32, precision="tf32"))


@pytest.mark.parametrize("architecture", [80, 90, 100, "gfx942"])
def test_the_backward_has_no_atomics(architecture, tmp_path):
    compiled = weighted_sums(architecture, torch.bfloat16, add=architecture == 90)
    assert not re.search(r"\b(atom|red)\.|atomic", assembly(compiled))
    assert_nothing_spills(compiled, tmp_path)


def test_the_reasons_are_named():
    problem = MaxSimProblem(2, 3, 4, 5, 6, torch.float64, "mps")
    assert triton.reasons_not_supported(problem._replace(key_tokens=2**30)) == [
        "It runs on CUDA and ROCm devices; the tensors are on mps.",
        "It takes float32, bfloat16 and float16; got torch.float64.",
        "It counts key tokens in 32 bits; got 4294967296.",
    ]
