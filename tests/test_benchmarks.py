"""The benchmarks' own bookkeeping; what they measure is asserted where they run."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import measure
import peers as peers_of_benchmarks
import pytest
import report

from gloria.functional import local_similarity

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def peers(**seconds):
    return {
        name: {"fastest": value, "seconds": value, "rounds": 3, "memory": 3 * 2**20}
        for name, value in seconds.items()
    }


def results():
    forward = peers(definition=6.0, published=3.0, chunked=1.5, products=1.0)
    both = peers(published=0.3, chunked=0.06, products=0.05)
    both = {"definition": {"failed": "out of memory"}, **both}
    both["chunked"] |= {"operations": 3_000_000, "bytes": 10, "counted_memory": 5}
    return {
        "machine": {
            "device": "Abacus",
            "dtype": "float32",
            "threads": 2,
            "python": "3.11",
            "torch": "2.10",
            "gloria": "0.1",
            "flops": 1e8,
            "bandwidth": 1e9,
        },
        "workloads": {"paper": "48 images"},
        "cases": [
            {"workload": "paper", "attention": "regions", "mode": "fwd", "peers": forward},
            {"workload": "paper", "attention": "regions", "mode": "fwdbwd", "peers": both},
        ],
    }


def test_the_page_of_the_docs_is_what_the_results_say():
    """Nobody types a figure; ``python benchmarks/report.py --write docs/benchmarks.md`` does."""
    measured = report.load(list(report.RESULTS.glob("*.json")))
    campaigns = report.load(list((report.RESULTS / "campaign").glob("*.json")))
    assert DOCS.read_text(encoding="utf-8") == report.page(measured, campaigns)


@pytest.mark.parametrize("missing", report.CAMPAIGN)
def test_a_campaign_cut_short_has_a_page_that_says_so(missing):
    """Of what failed there is the reason, and of what did not end that; the rest is told."""

    def failed(value):
        if isinstance(value, dict):
            return {key: each if key == "pairs" else failed(each) for key, each in value.items()}
        return "no memory" if isinstance(value, int | float) else value

    (whole,) = report.load([report.RESULTS / "campaign" / "triton-nvidia-h200.json"])
    figures = ("timings", "memory", "largest", "contrastive")
    cut = whole | {name: failed(whole[name]) for name in figures}
    cut["scaling"] = [row | {"seconds": failed(row["seconds"])} for row in whole["scaling"]]
    cut["hard_max"] = {
        name: dict.fromkeys(peers, "none") for name, peers in whole["hard_max"].items()
    }
    del cut[missing]
    page = report.campaign(cut | {"unfinished": {missing: "exit code 1"}})
    assert f"Not all of it was measured. {missing}: exit code 1." in page
    assert page.count("###") == report.campaign(whole).count("###") - HEADINGS.get(missing, 1)
    assert "no memory" in page


def test_a_stage_cut_short_tells_what_it_had():
    (whole,) = report.load([report.RESULTS / "campaign" / "triton-nvidia-h200.json"])
    largest = {name: whole["largest"][name] for name in ("pairs", "extra_bytes")}
    page = report.campaign(whole | {"largest": largest, "timings": {"paper": {"roofline": {}}}})
    assert "2,048 pairs of 361 regions: not timed" in page


def test_a_campaign_on_a_machine_that_did_not_tell_has_a_page():
    (whole,) = report.load([report.RESULTS / "campaign" / "triton-nvidia-h200.json"])
    cut = {"largest": whole["largest"], "unfinished": {"machine": "ended after 60 seconds"}}
    page = report.campaign(cut)
    assert "torch unknown" in page
    assert "2,048 pairs of 361 regions ran" in page
    assert "Not all of it was measured. machine: ended after 60 seconds." in page


HEADINGS = {"timings": 2, "largest": 0, "sanitizer": 0}


def test_ratios_shares_and_failures_of_a_table():
    lines = report.section(results()).splitlines()
    rows = {
        cells[1].strip("`"): cells[2:]
        for line in lines
        if line.startswith("| `") and (cells := [cell.strip() for cell in line.split("|")])
    }
    # forward, × definition, both, × definition (out of memory: none), × published, products, ...
    assert rows["definition"][:3] == ["6.00 s", "1.00", "out of memory"]
    assert rows["chunked"] == ["1.50 s", "4.00", "60 ms", "5.00", "1.20", "3 MiB", "50%", ""]
    assert rows["published"][4] == "6.00"
    assert "### paper, `regions`" in lines
    assert any(line.startswith("2 CPU threads, torch 2.10") for line in lines)


def test_a_peer_that_is_wrong_or_breaks_is_named_and_the_others_go_on(
    tmp_path, monkeypatch, capsys
):
    def slightly_off(*inputs, attention):
        return 1.01 * local_similarity(*inputs, attention=attention)

    def alone(case, peer, *rest):
        return measure.fault("ValueError: no") if peer == "published" else {"memory": 1}

    out = tmp_path / "out.json"
    monkeypatch.setitem(peers_of_benchmarks.SIMILARITIES, "mine", slightly_off)
    monkeypatch.setattr(measure, "alone", alone)
    monkeypatch.setattr(measure, "rates", lambda *_: measure.Device(1.0, 1.0))
    given = ["--out", str(out), "--workloads", "small", "--modes", "fwd", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", ["measure.py", *given, "--device", "cpu"])
    monkeypatch.delitem(peers_of_benchmarks.SIMILARITIES, "compiled")  # takes seconds
    monkeypatch.delitem(peers_of_benchmarks.SIMILARITIES, "chunked-compiled")
    assert measure.main() == 1
    told = capsys.readouterr().err
    assert "mine on small regions fwd: not the definition: Tensor-likes are not close!" in told
    assert "published on small regions fwd: ValueError: no" in told
    figures = json.loads(out.read_text())["cases"][0]["peers"]
    assert "seconds" not in figures["mine"]
    assert figures["chunked"]["seconds"] > 0


@pytest.mark.parametrize(
    "case, definition",
    [
        (measure.Case("small", "regions", "fwdbwd"), "definition"),
        (measure.Case("global-1024", "", "fwdbwd"), "matrix"),
    ],
)
def test_what_the_definition_cannot_do_is_held_to_it_on_a_corner(case, definition, monkeypatch):
    def alone(case, peer, *rest):
        return {"failed": "out of memory"} if peer == definition else {"memory": 1}

    monkeypatch.setattr(measure, "alone", alone)
    for name in ("compiled", "chunked-compiled"):  # take seconds
        monkeypatch.delitem(peers_of_benchmarks.SIMILARITIES, name)
    figures = measure.measure(case, "cpu", measure.torch.float32, 0, 1)
    assert figures.pop(definition) == {"failed": "out of memory"}
    assert all(each["fastest"] > 0 for each in figures.values())


def test_a_peer_that_is_killed_is_told_by_its_exit_code(monkeypatch):
    killed = subprocess.CompletedProcess([], -9, stdout="", stderr="")
    monkeypatch.setattr(measure.subprocess, "run", lambda *_, **options: killed)
    case = measure.Case("small", "regions", "fwd")
    figures = measure.alone(case, "chunked", "cpu", measure.torch.float32, 1)
    assert figures == {"failed": "exit code -9", "fault": True}


def test_a_processor_without_a_model_name_has_its_architectures(monkeypatch):
    monkeypatch.setattr(measure.Path, "read_text", lambda path: "processor\t: 0\nBogoMIPS\t: 2")
    assert measure.device_name("cpu") == platform.machine()
    monkeypatch.setattr(measure.Path, "exists", lambda path: False)
    assert measure.device_name("cpu") == platform.machine()


def test_a_plot_of_the_sweep(tmp_path):
    pytest.importorskip("matplotlib")
    import plot

    sweep = results()
    case = sweep["cases"][1]
    sweep["cases"] = [case | {"workload": f"batch-{pairs}"} for pairs in (4, 8)]
    sweep["workloads"] = {f"batch-{pairs}": "some images" for pairs in (4, 8)}
    plot.draw(sweep, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    with pytest.raises(SystemExit, match="no workload batch-N"):
        plot.draw(json.loads(json.dumps(results())), tmp_path / "none.png")


def test_pytest_times_the_benchmarks(tmp_path):
    """The tests' own options, of processes side by side, would turn the timing off."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pytest", DOCS.parents[1] / "benchmarks", "--benchmark-only"]
    command += ["-k", "small and (products-small-regions-fwd or einops)", "-p", "no:cacheprovider"]
    command += ["--benchmark-max-time=0.01", f"--benchmark-json={figures}"]
    # nor is it one of these processes
    alone = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    timed = json.loads(figures.read_text())["benchmarks"]
    groups = ["small-fwd", "small-fwdbwd", "small-regions-fwd", "small-regions-fwdbwd"]
    assert sorted(each["group"] for each in timed) == groups
    assert all(each["stats"]["median"] > 0 for each in timed)
    assert all(each["extra_info"]["threads"] for each in timed)


def test_pytest_waits_for_the_device(monkeypatch):
    """Kernels run on while their launches return."""
    import test_peers

    class Benchmark:
        enabled, extra_info = True, {}

        def __call__(self, function, *arguments):
            done.clear()
            function(*arguments)

    done = []
    runs = dict.fromkeys(("definition", "chunked"), lambda: done.append("launched") or [])
    monkeypatch.setattr(measure.Case, "peers", lambda *_: runs)
    monkeypatch.setattr(measure, "synchronize", lambda device: done.append(device))
    monkeypatch.setattr(test_peers, "machine", lambda *_: {})
    monkeypatch.setattr(measure.torch.cuda, "is_available", lambda: True)
    test_peers.test_peer(Benchmark(), "chunked", measure.Case("small", "regions", "fwd"))
    assert done == ["cuda", "launched", "cuda"]


def test_the_benchmark_of_retrieval_scores_every_pair():
    import retrieval

    from gloria.training.small import small_model

    figures = retrieval.measure(small_model(["report"]), 6, 4, quiet=True)
    assert figures["pairs"] == 36
    assert figures["pairs_per_second"] == pytest.approx(36 / figures["seconds"])
    assert 0 <= figures["memory"] < 2**30


def test_the_benchmark_of_loading_counts_images(tmp_path):
    import loading

    from gloria.data import ImageReportTable
    from gloria.data.phantom import PhantomDataset, write_phantoms

    table = write_phantoms(tmp_path, [PhantomDataset("train", size=96, count=32)])
    pairs = ImageReportTable(table, "train", size=(64, 64), channels=1)
    assert loading.loaded_per_second(pairs, 1, workers=0) > 0
    assert loading.trained_per_second([pairs[k] for k in range(32)], 1, None) > 0
