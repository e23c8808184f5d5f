"""Progress bars on stderr."""

import sys

from gloria.cli.progress import Progress, StepProgress


def test_work_that_follows_takes_the_bars_place(capsys):
    with Progress(2, "encode", False) as progress:
        intervals = progress.then(3, "intervals")
        progress.advance(2)
        assert "intervals" not in capsys.readouterr().err
        intervals(1)
        intervals(2)
    told = capsys.readouterr().err
    assert told.index("encode: 100%") < told.index("intervals:   0%")
    assert "intervals: 100%" in told


def test_quiet_is_quiet_and_needs_no_tqdm(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Progress(2, "encode", True) as progress:
        progress.advance()
        progress.then(3, "intervals")(3)
    with StepProgress(2, "train", True) as progress:
        progress({"step": 1, "loss": 0.5, "validation_loss": 0.25})
    assert capsys.readouterr().err == ""
