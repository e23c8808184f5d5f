"""The GPU campaign of the benchmarks cannot rot: its logic runs here on tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import gpu

from gloria.matching import triton_kernels

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
    done = campaign("--smoke", "--here", "--output", str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("triton-*.json")
    report = json.loads(written.read_text())
    assert report["machine"]["torch"] == torch.__version__
    assert report["parity"]["passed"] is True
    assert all(held is True for held in report["parity"]["features"].values())
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


def test_stages_in_processes_of_their_own_write_into_one_file(tmp_path):
    smoke = ("--smoke", "--only", "sanitizer")
    done = campaign(*smoke, "--output", str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("triton-*.json")
    report = json.loads(written.read_text())
    assert set(report) == {"machine", "sanitizer"}
    # one that did not end is no fault of those after it
    written.write_text(json.dumps(report | {"unfinished": {"tuning": "ended after 1 seconds"}}))
    again = campaign(*smoke, "--here", "--output", str(tmp_path), TRITON_INTERPRET="1")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    "code, why",
    [
        ("pass", ""),
        ("raise SystemExit(3)", "exit code 3"),
        ("import os; os.abort()", "exit code -6"),
        ("import time; time.sleep(100)", "ended after 1 seconds"),
    ],
)
def test_a_stage_that_hangs_or_dies_is_over(code, why):
    assert gpu.ended([sys.executable, "-c", code], limit=1) == why


def test_what_a_stage_began_ends_with_it(tmp_path):
    child = "import pathlib, time; time.sleep(1); pathlib.Path('alive').touch()"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"
    assert (
        gpu.ended([sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {code}"], 5)
        == ""
    )
    time.sleep(1.5)
    assert not (tmp_path / "alive").exists()


def test_a_stage_that_fails_keeps_what_it_had_and_no_folder_of_this_machine(tmp_path, monkeypatch):
    def stage(sizes):
        yield {"first": "in /some/where/file.py"}
        raise RuntimeError("/opt/thing/ptxas died\nmore")

    monkeypatch.setattr(gpu, "REPORT", {"machine": {}})
    monkeypatch.setattr(gpu.backend, "choose_blocks", gpu.CHOOSE)
    gpu.run_here(stage, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "machine": {},
        "stage": {"first": "in file.py"},
        "unfinished": {"stage": "RuntimeError: ptxas died"},
    }


def test_a_stage_that_ends_well_is_unfinished_no_more(tmp_path, monkeypatch):
    def stage(sizes):
        yield 1

    monkeypatch.setattr(gpu, "REPORT", {"unfinished": {"stage": "ended after 1 seconds"}})
    monkeypatch.setattr(gpu.backend, "choose_blocks", gpu.CHOOSE)
    gpu.run_here(stage, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == {"unfinished": {}, "stage": 1}


def test_stages_after_tuning_take_its_blocks(monkeypatch):
    monkeypatch.setattr(gpu.backend, "choose_blocks", gpu.CHOOSE)
    launch = [512, 2, 1, 3]
    gpu.use_blocks({"512": dict.fromkeys(gpu.KERNELS, launch)})
    assert gpu.backend.choose_blocks(361) == tuple(tuple(launch) for _ in gpu.KERNELS)
    assert gpu.backend.choose_blocks(49) == gpu.CHOOSE(49)
    assert all(hasattr(triton_kernels, name) for name in gpu.KERNELS)  # as a profile names them


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so():
    done = campaign()
    assert done.returncode == 2
    assert "No GPU here" in done.stdout
