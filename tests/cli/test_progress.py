"""Progress on stderr: bars on a terminal, whole lines elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

from gloria.cli import progress as module
from gloria.cli.progress import Progress, StepProgress, say


def test_work_that_follows_takes_the_bars_place(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(2, "encode", False) as progress:
        intervals = progress.then(3, "intervals")
        progress.advance(2)
        assert "intervals" not in capsys.readouterr().err
        intervals(1)
        intervals(2)
    told = capsys.readouterr().err
    assert told.index("encode: 100%") < told.index("intervals:   0%")
    assert "intervals: 100%" in told


def test_a_log_has_whole_lines_and_needs_no_tqdm(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(2, "encode", False) as progress:
        intervals = progress.then(3, "intervals")
        progress.advance()
        progress.advance()
        intervals(3)
    with StepProgress(9, "train", False) as progress:
        progress({"step": 1, "loss": 0.5, "validation_loss": 0.25})
        progress({"step": 7, "loss": 0.4})
    assert capsys.readouterr().err.splitlines() == [
        "encode: 2 of 2",
        "intervals: 3 of 3",
        "train: 7 of 9, loss 0.400",
    ]


def test_a_log_has_a_line_every_half_minute(capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    with StepProgress(9, "train", False) as progress:
        for step in range(1, 8):
            now += 11
            progress({"step": step, "loss": 1 / step})
    assert capsys.readouterr().err.splitlines() == [
        "train: 3 of 9, loss 0.333",
        "train: 6 of 9, loss 0.167",
        "train: 7 of 9, loss 0.143",
    ]


@pytest.mark.parametrize("isatty", [True, False])
def test_what_is_said_around_the_steps_has_lines_of_its_own(capsys, monkeypatch, isatty):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: isatty)
    with StepProgress(2, "train", False) as progress:
        say("before")
        for step in (1, 2):
            progress({"step": step, "loss": 0.5})
        say("after")
    *lines, end = capsys.readouterr().err.split("\n")
    assert end == ""
    shown = [line.split("\r")[-1] for line in lines]
    assert [line.partition(":")[0] for line in shown] == ["before", "train", "after"]


def test_where_nothing_was_done_nothing_is_told(capsys):
    with Progress(2, "encode", False), StepProgress(9, "train", False):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_message_that_nobody_can_read_does_not_break_the_stop():
    command = [sys.executable, "-c", STOPPED_WITH_A_FULL_DISK_FOR_STDERR]
    process = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    assert process.stdout == "stopped\n"


STOPPED_WITH_A_FULL_DISK_FOR_STDERR = """
import os, signal
from gloria.cli.stopping import Stopping
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
with Stopping() as stopping:
    signal.raise_signal(signal.SIGTERM)
    try:
        stopping.check()
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.parametrize("isatty", [True, False])
def test_quiet_is_quiet_and_needs_no_tqdm(capsys, monkeypatch, isatty):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: isatty)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(2, "encode", True) as progress:
        progress.advance()
        progress.then(3, "intervals")(3)
    with StepProgress(2, "train", True) as progress:
        progress({"step": 1, "loss": 0.5, "validation_loss": 0.25})
    assert capsys.readouterr().err == ""
