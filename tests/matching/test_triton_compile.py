"""What the compilers make of the kernels, for GPUs that need not be here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED = {
    # what a program may have, in bytes
    "sm80": 163 * 1024,
    "sm90": 227 * 1024,
    "sm100": 227 * 1024,
    "gfx942": 64 * 1024,
}
INSTRUCTION = {"sm80": "mma.sync", "sm90": "wgmma", "sm100": "tcgen05.mma", "gfx942": "v_mfma"}


@pytest.fixture(scope="module")
def compiled():
    """Every default configuration."""
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entries = json.loads(done.stdout)
    assert {entry["machine"] for entry in entries} == set(SHARED)
    assert len({entry["kernel"] for entry in entries}) == 8
    return entries


def broken(entries, rule):
    return [entry for entry in entries if not rule(entry)]


@pytest.mark.slow
def test_no_register_is_spilled(compiled):
    assert not broken(compiled, lambda entry: entry["spilled"] == 0)


@pytest.mark.slow
def test_shared_memory_fits(compiled):
    assert not broken(compiled, lambda entry: entry["shared"] <= SHARED[entry["machine"]])


@pytest.mark.slow
def test_products_run_on_the_matrix_units(compiled):
    def expected(entry):
        machine, constants = entry["machine"], entry["constants"]
        if "PRECISION" not in constants:
            return None
        if machine == "gfx942":
            return "v_mfma"
        if entry["dtype"] == "fp32":
            # IEEE float32 has no matrix instruction there
            return "mma.sync" if constants["PRECISION"] == "tf32" else None
        # the wider instructions take 64 regions
        return INSTRUCTION[machine] if constants["REGIONS"] >= 64 else "mma.sync"

    assert not broken(compiled, lambda entry: entry["instruction"] == expected(entry))
