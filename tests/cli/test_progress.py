"""Progress bars on stderr."""

from gloria.cli.progress import Progress


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


def test_quiet_is_quiet(capsys):
    with Progress(2, "encode", True) as progress:
        progress.advance()
        progress.then(3, "intervals")(3)
    assert capsys.readouterr().err == ""
