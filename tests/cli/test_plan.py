"""`gloria plan` shows what cost.py counts."""

import json
import tracemalloc

import pytest
import torch

from gloria.cli import main
from gloria.matching import ATTENTION_VARIANTS, BACKENDS, MatchingOptions, Problem
from gloria.matching.cost import COUNTED, DEVICES, Device, count
from gloria.matching.problem import MEMORY_BUDGET

SIZES = ["--images", "64", "--regions", "49", "--words", "97", "--dim", "768", "--device", "cpu"]


def problem(attention="regions", budget=MEMORY_BUDGET, dtype=torch.float32, texts=64):
    options = MatchingOptions(attention, 1 / 4, 1 / 5, "logsumexp", memory_budget=budget)
    return Problem(
        images=64,
        regions=49,
        texts=texts,
        words=97,
        dim=768,
        dtype=dtype,
        device="cpu",
        options=options,
    )


def facts(capsys, *more):
    assert main(["plan", *SIZES, "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "more, expected, real_words",
    [
        ([], problem(), 64 * 97),
        (["--mean-words", "21.5", "--texts", "3"], problem(texts=3), 64),
        (["--dtype", "bf16"], problem(dtype=torch.bfloat16), 64 * 97),
        (["--memory-budget", "2"], problem(budget=2**21), 64 * 97),
        (["--attention", "words_then_regions"], problem("words_then_regions"), 64 * 97),
    ],
)
def test_the_plan_is_what_is_counted(capsys, more, expected, real_words):
    shown = facts(capsys, *more)["backends"]
    assert set(shown) == set(COUNTED)
    for name, plan in shown.items():
        cost = count(expected, name, real_words)
        assert plan["memory"] == cost.memory
        for half, work in (("forward", cost.forward), ("backward", cost.backward)):
            assert plan[half] == work._asdict()
            multiplied = expected.dtype if name == "triton" else torch.float32
            for label, rates in DEVICES.items():
                assert plan["least_seconds"][label][half] == work.seconds(rates[multiplied])


def test_your_own_device(capsys):
    plan = facts(capsys, "--tflops", "0.1", "--bandwidth", "20")["backends"]["chunked"]
    work = count(problem(), "chunked").forward
    assert plan["least_seconds"] == {
        "your device": {
            "forward": work.seconds(Device(1e11, 2e10)),
            "backward": count(problem(), "chunked").backward.seconds(Device(1e11, 2e10)),
        }
    }


def test_no_rate_is_shown_that_nobody_measured(capsys):
    shown = facts(capsys, "--dtype", "fp64")["backends"]
    assert all(plan["least_seconds"] == {} for plan in shown.values())
    assert main(["plan", *SIZES, "--dtype", "fp64"]) == 0
    text = capsys.readouterr().out
    assert "H200" not in text
    assert "No times, for want of rates in fp64: give those of your device with --tflops" in text


@pytest.mark.parametrize("installed", [False, True])
def test_a_device_that_is_not_here_is_asked_nothing(capsys, monkeypatch, installed):
    monkeypatch.setattr("gloria.training.devices.pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("gloria.matching.triton_support.INSTALLED", installed)
    shown = facts(capsys, "--device", "cuda", "--dtype", "bf16")
    assert (shown["auto"], shown["cannot_run"]) == ("triton", {})
    shown = facts(capsys, "--device", "cuda", "--dtype", "fp64")
    assert shown["auto"] == "chunked"
    assert shown["cannot_run"] == {
        "triton": ["It takes float32, bfloat16 and float16; got torch.float64."]
    }
    assert facts(capsys, "--device", "mps")["auto"] == "chunked"
    assert main(["plan", *SIZES, "--device", "cuda"]) == 0
    text = capsys.readouterr().out
    assert "backend='auto' takes 'triton' on cuda, which is not here: taken to have" in text


def test_a_device_that_is_here_is_asked(capsys, monkeypatch):
    monkeypatch.setattr("gloria.training.devices.pick_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("gloria.matching.triton_support.INSTALLED", False)
    shown = facts(capsys, "--device", "cuda")
    assert shown["auto"] == "chunked"
    assert shown["cannot_run"] == {
        "triton": ["triton is not installed: pip install gloria-torch[triton]."]
    }


def test_what_auto_takes_and_who_cannot_run(capsys):
    shown = facts(capsys)
    assert shown["auto"] == next(name for name in BACKENDS if name not in shown["cannot_run"])
    assert shown["device"] == "cpu"


def test_small_problems_show_their_first_digits(capsys):
    small = ["--images", "2", "--regions", "4", "--words", "3", "--dim", "8", "--device", "cpu"]
    assert main(["plan", *small, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["backends"]
    assert main(["plan", *small]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, cost in facts.items():
        (row,) = (line.split()[1:] for line in lines if line.startswith(f"{name} "))
        halves = [cost["forward"], cost["backward"]]
        expected = [figure for half in halves for figure in (half["operations"], half["bytes"])]
        expected = [expected[0] / 1e12, expected[1] / 1e9, expected[2] / 1e12, expected[3] / 1e9]
        expected += [cost["memory"] / 2**20]
        expected += [1e3 * each for each in cost["least_seconds"]["NVIDIA H200"].values()]
        assert [float(cell) for cell in row] == pytest.approx(expected, rel=0.05)
        assert min(expected) > 0


def test_the_table_has_a_row_per_backend_and_says_what_its_times_are(capsys):
    assert main(["plan", *SIZES]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    for name in COUNTED:
        cost = count(problem(), name)
        assert f" {cost.forward.operations / 1e12:,.3f} " in rows[name]
        assert f" {cost.memory / 2**20:,.0f} " in rows[name]
    assert lines[-1] == (
        "≥ are lower bounds by count, no measurements, at the rates of NVIDIA H200; give those of "
        "your device with --tflops and --bandwidth."
    )
    assert main(["plan", *SIZES, "--tflops", "1", "--bandwidth", "20"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("≥ are lower bounds by count, no measurements.\n")
    assert "H200" not in shown


def test_a_count_takes_no_memory_however_many_images_there_are():
    many = problem()._replace(images=10**6, texts=10**6)
    for backend in COUNTED:
        tracemalloc.start()
        assert count(many, backend).memory > 0
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20, backend


def test_every_attention_variant_can_be_planned(capsys):
    assert main(["plan", *SIZES, "--attention", "none"]) == 2
    error = capsys.readouterr().err
    assert all(variant in error for variant in ATTENTION_VARIANTS)


def test_regions_may_be_a_grid(capsys):
    assert facts(capsys, "--regions", "7x7") == facts(capsys)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--images", "0"], "images must be at least 1; got 0"),
        (["--texts", "-2"], "texts must be at least 1; got -2"),
        (["--mean-words", "0"], "mean-words must be a finite number above 0; got 0"),
        (["--mean-words", "98"], "mean-words must be at most words = 97; got 98"),
        (["--memory-budget", "0"], "memory-budget must be at least 1; got 0"),
        (["--tflops", "3"], "tflops and bandwidth must be given together, or neither"),
        (["--tflops", "3", "--bandwidth", "-1"], "bandwidth must be a finite number above 0"),
        (["--regions", "7x"], "argument --regions: must be a number, or as 19x19; got '7x'"),
        (["--device", "abacus"], "device must be auto, cpu, cuda (of ROCm, too), cuda:1, mps or"),
    ],
)
def test_bad_numbers_are_one_line(capsys, change, message):
    assert main(["plan", *SIZES, *change]) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert message in error
    assert error.count("\n") == 1
