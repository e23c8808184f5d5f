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
def test_tiles_are_read_and_written_16_bytes_at_a_time(compiled):
    """The layout of rows in whole octets is for this alone."""
    tiles = [
        entry
        for entry in compiled
        if entry["machine"] != "gfx942" and "REGIONS" in entry["constants"]
    ]
    assert {entry["kernel"] for entry in tiles} == {
        "attend", "cosine", "score_gradient",
    }  # fmt: skip
    assert not broken(tiles, lambda entry: entry["reads"] == [16])
    # the cosine, one number a word, is all that kernel writes
    assert not broken(
        tiles, lambda entry: entry["writes"] == ([] if entry["kernel"] == "cosine" else [16])
    )
