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
import report

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
    found = json.loads(written.read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert found["parity"]["passed"] is True
    assert all(held is True for held in found["parity"]["features"].values())
    assert (
        found["timings"]["small"]["triton"]["fwdbwd"]
        > found["timings"]["small"]["roofline"]["fwdbwd"]
    )
    assert {row["pairs"] for row in found["scaling"]} == {2, 3}
    assert len(found["tuning"]) == 2  # attentions
    assert all(set(each["seconds"]) == {"default", "fastest"} for each in found["tuning"].values())
    assert found["profile"]
    assert set(found["hard_max"]["small"]) >= {"einops", "chunked", "triton"}
    assert {"memory", "largest", "contrastive", "sanitizer"} < set(found)
    assert "3 pairs of 361 regions" in report.campaign(found)  # which a run ends with


def test_stages_in_processes_of_their_own_write_into_one_file(tmp_path):
    smoke = ("--smoke", "--only", "sanitizer")
    done = campaign(*smoke, "--output", str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("triton-*.json")
    found = json.loads(written.read_text())
    assert set(found) == {"machine", "sanitizer"}
    # what the docs will say, in case the file is lost
    assert f"torch {torch.__version__}, triton" in done.stdout
    assert "compute-sanitizer: skipped" in done.stdout
    # one that did not end is no fault of those after it
    written.write_text(json.dumps(found | {"unfinished": {"tuning": "ended after 1 seconds"}}))
    again = campaign(*smoke, "--here", "--output", str(tmp_path), TRITON_INTERPRET="1")
    assert again.returncode == 0, again.stderr


def test_times_stand_without_the_rates_of_a_machine_that_did_not_tell(tmp_path):
    target = tmp_path / "triton-cpu.json"
    target.write_text(json.dumps({"unfinished": {"machine": "ended after 60 seconds"}}))
    only = ("--smoke", "--here", "--only", "scaling")
    done = campaign(*only, "--output", str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(target.read_text())["scaling"]
    assert all(row["seconds"]["fwdbwd"] > 0 for row in rows)
    assert "| 2 | `regions` |" in "\n".join(report.scaling(rows))


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
    gpu.run_here(stage, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == {"unfinished": {}, "stage": 1}


def test_kernels_are_named_as_a_profile_names_them():
    assert all(hasattr(triton_kernels, name) for name in gpu.KERNELS)


def test_what_matters_most_comes_first():
    order = [stage.__name__ for stage in gpu.STAGES]
    assert order[:4] == ["machine", "parity", "timings", "scaling"]
    assert order.index("hard_max") < order.index("tuning")


def test_without_parity_all_is_run_and_no_time_is_told(tmp_path, monkeypatch):
    def machine(sizes):  # which was ended before it had its rates
        yield {"device": "Abacus", "torch": "2.11", "triton": "3.6", "python": "3.12"}

    def parity(sizes):
        cases = [(True, [1e-7, 1e-6, 2e-6]), (False, [0.5, 1e-3, 1e-3]), (False, "no memory")]
        cases = [{"dtype": "bfloat16", "errors": each, "passed": held} for held, each in cases]
        yield {"passed": False, "features": {"same bits twice": True}, "cases": cases}

    def largest(sizes):
        yield {"pairs": 3, "extra_bytes": 5, "seconds": 1.0}

    monkeypatch.setattr(gpu, "STAGES", dict.fromkeys((machine, parity, largest), 1))
    monkeypatch.setattr(gpu, "REPORT", {})
    for name in ("SMOKE", "INTERPRETED"):
        monkeypatch.setattr(gpu, name, True)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--here", "--output", str(tmp_path)])
    assert gpu.main() == 1
    (written,) = tmp_path.glob("triton-*.json")
    found = json.loads(written.read_text())
    assert found["largest"]["seconds"] == 1.0
    page = report.campaign(found)
    assert "ran forward and backward" not in page
    assert "| bfloat16 | 5.0e-01 | 1.0e-03 | 1.0e-03 |" in page
    assert page.count("\n- bfloat16, ") == 2
    assert "no memory" in page
    # the stages after it are no worse for it
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "largest"])
    assert gpu.main() == 0
    found["parity"]["passed"] = True
    assert "3 pairs of 361 regions ran forward and backward in 1.00 s" in report.campaign(found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_it_says_so():
    done = campaign()
    assert done.returncode == 2
    assert "No GPU here" in done.stdout
