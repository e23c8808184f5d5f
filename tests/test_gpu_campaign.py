"""The GPU campaign of the benchmarks cannot rot: its logic runs here on tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def campaign(*arguments, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_stage_runs_and_is_written_down(tmp_path):
    done = campaign("--smoke", "--output", str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("triton-*.json")
    report = json.loads(written.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert report["parity"]["passed"] is True
    assert (
        report["timings"]["small"]["triton"]["fwdbwd"]
        > report["timings"]["small"]["roofline"]["fwdbwd"]
    )
    assert {row["pairs"] for row in report["scaling"]} == {2, 3}
    assert len(report["tuning"]) == 3  # two attentions, and what of them is used
    assert report["tuning"]["used"]
    assert report["profile"]
    assert set(report["hard_max"]["small"]) >= {"einops", "chunked", "triton"}
    assert {"memory", "largest", "contrastive", "sanitizer"} < set(report)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so():
    done = campaign()
    assert done.returncode == 2
    assert "No GPU here" in done.stdout
