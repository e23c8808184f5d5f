"""The Triton kernels where there is no GPU: in the interpreter, and compiled for real ones."""

import re
import subprocess
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from gloria.matching.maxsim import MaxSimProblem, triton
from gloria.matching.triton_support import FUSED

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
KIBIBYTES = {80: 163, 90: 227, 100: 227, "gfx942": 64}  # of shared memory that a program may take


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_everything_in_the_interpreter(assert_passes_interpreted):
    """See ``interpreted.py``."""
    assert_passes_interpreted(Path(__file__).with_name("interpreted.py"))


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
    return compiler.compile(source, target=target, options=options | FUSED)


def compile_with(kernel, launch, architecture, pointers, constants):
    """As :func:`compile_for`, launched so; numbers are whatever else the kernel takes."""
    constants |= launch._asdict()
    warps = constants.pop("num_warps")
    types = {f"{name}_ptr": f"*{kind}" for name, kind in pointers.items()}
    names = getattr(triton.kernels(), kernel).arg_names
    numbers = [name for name in names if name not in types and name not in constants]
    types |= dict.fromkeys(numbers, "i32")
    return compile_for(architecture, kernel, types, constants, num_warps=warps)


def sum_maxima(
    architecture, dtype, *, sizes=(97, 196, 768), masked=True, with_winners=True, precision="ieee"
):
    pointers = dict.fromkeys(("queries", "keys"), TYPES[dtype])
    pointers |= dict.fromkeys(("query_mask", "key_mask"), "i1")
    pointers |= {"scores": "fp32", "winners": "i32"}
    constants = dict.fromkeys(("QUERIES_MASKED", "KEYS_MASKED"), masked)
    constants |= {"WITH_WINNERS": with_winners, "PRECISION": precision, "GROUP": triton.GROUP}
    launch = triton.Forward.of(*sizes, dtype, masked)
    return compile_with("sum_maxima", launch, architecture, pointers, constants)


def query_gradient(architecture, dtype, *, add=False):
    pointers = {"keys": TYPES[dtype], "winners": "i32", "upstream": "fp32"}
    pointers |= {"query_mask": "i1", "gradient": "fp32" if add else TYPES[dtype]}
    launch = triton.QueryGradient.of(768)
    constants = {"QUERIES_MASKED": True, "ADD": add}
    return compile_with("query_gradient", launch, architecture, pointers, constants)


def key_gradient(architecture, dtype, *, masked=True, sizes=(196, 768)):
    pointers = dict.fromkeys(("queries", "gradient"), TYPES[dtype])
    pointers |= {"listed": "i32", "key_mask": "i1", "winners": "i32", "upstream": "fp32"}
    launch = triton.KeyGradient.of(*sizes, dtype)
    constants = {"LISTED": masked, "KEYS_MASKED": masked, "PRECISION": "ieee"}
    return compile_with("key_gradient", launch, architecture, pointers, constants)


def list_rows(architecture):
    names = {"mask_ptr": "*i1", "listed_ptr": "*i32", "rows": "i32"}
    return compile_for(architecture, "list_rows", names, {"BLOCK": 1024}, num_warps=4)


def assembly(compiled):
    return compiled.asm.get("ptx") or compiled.asm["amdgcn"]


def usage_of(compiled, tmp_path):
    """Of a CUDA kernel: what a thread has, by name."""
    import triton as installed

    tool = Path(installed.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}


def assert_nothing_spills(compiled, tmp_path):
    if "amdgcn" in compiled.asm:
        # scalars that do not fit go to lanes of a vector register, not to memory
        assert re.findall(r"vgpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"]) == ["0"]
        return
    usage = usage_of(compiled, tmp_path)
    # Triton 3.6 keeps 8 or 16 bytes on the stack for sm_80
    stack = 16 if version("triton").startswith("3.6.") else 0
    assert usage["LOCAL"] == 0, usage
    assert usage["STACK"] <= stack, usage


def assert_fits(compiled, architecture):
    assert compiled.metadata.shared <= 1024 * KIBIBYTES[architecture]


instructions = pytest.mark.parametrize(
    "architecture, instruction",
    [(80, "mma.sync"), (90, "wgmma.mma_async"), (100, "tcgen05.mma"), ("gfx942", "v_mfma")],
)


@instructions
@pytest.mark.parametrize(
    "compiled_for",
    [
        sum_maxima,
        partial(sum_maxima, sizes=(97, 196, 256)),
        partial(sum_maxima, sizes=(32, 180, 128)),
        key_gradient,
        partial(key_gradient, masked=False),
    ],
)
def test_half_precision_runs_on_the_matrix_units(compiled_for, architecture, instruction, tmp_path):
    compiled = compiled_for(architecture, torch.bfloat16)
    assert instruction in assembly(compiled)
    assert_nothing_spills(compiled, tmp_path)
    assert_fits(compiled, architecture)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "compiled_for",
    [
        *(partial(sum_maxima, sizes=(97, 196, dim)) for dim in (128, 256, 768)),
        partial(key_gradient, sizes=(196, 256)),
    ],
)
def test_two_programs_share_a_processor(compiled_for, dtype, masked, tmp_path):
    """Of an H100 or H200: one alone would leave it idle while it waits for memory."""
    compiled = compiled_for(90, dtype, masked=masked)
    registers = 32 * compiled.metadata.num_warps * usage_of(compiled, tmp_path)["REG"]
    assert 2 * registers <= 65_536
    assert 2 * (compiled.metadata.shared + 1024) <= 228 * 1024


@pytest.mark.parametrize("architecture", [80, 90, 100, "gfx942"])
def test_the_list_of_rows_compiles(architecture, tmp_path):
    assert_nothing_spills(list_rows(architecture), tmp_path)


@pytest.mark.parametrize("options", [{"masked": False}, {"with_winners": False}])
def test_so_does_what_has_less_to_do(options, tmp_path):
    compiled = sum_maxima(90, torch.float16, **options)
    assert "wgmma.mma_async" in assembly(compiled)
    assert_nothing_spills(compiled, tmp_path)


@pytest.mark.parametrize("architecture", [80, "gfx942"])
def test_float32_multiplies_in_float32_unless_told(architecture, tmp_path):
    for exact in sum_maxima(architecture, torch.float32), key_gradient(architecture, torch.float32):
        assert_nothing_spills(exact, tmp_path)
        assert_fits(exact, architecture)
    tf32 = "tf32" if architecture == 80 else "xf32"
    assert tf32 not in assembly(sum_maxima(architecture, torch.float32))
    assert tf32 in assembly(sum_maxima(architecture, torch.float32, precision="tf32"))


@pytest.mark.parametrize("architecture", [80, 90, 100, "gfx942"])
def test_the_backward_has_no_atomics(architecture, tmp_path):
    for compiled in (
        query_gradient(architecture, torch.bfloat16, add=architecture == 90),
        key_gradient(architecture, torch.bfloat16),
    ):
        assert not re.search(r"\b(atom|red)\.|_atomic_", assembly(compiled))
        assert_nothing_spills(compiled, tmp_path)


def test_the_reasons_are_named():
    problem = MaxSimProblem(2, 3, 4, 5, 6, torch.float64, "mps")
    assert triton.reasons_not_supported(problem._replace(key_tokens=2**30)) == [
        "It runs on CUDA and ROCm devices; the tensors are on mps.",
        "It takes float32, bfloat16 and float16; got torch.float64.",
        "It counts key tokens in 32 bits; got 4294967296.",
    ]
    many = MaxSimProblem(2**16, 1, 2**15, 1, 6, torch.float32, "mps")
    assert triton.reasons_not_supported(many)[1:] == [
        "It counts pairs in 32 bits; got 65536 queries · 32768 keys."
    ]
