"""Saving is all or nothing."""

import pytest

from gloria.errors import OptionError
from gloria.visualize import plot_comparison, save_figure

pytest.importorskip("matplotlib")


@pytest.fixture
def figure():
    return plot_comparison({"AUROC": {"trained": 0.9}})


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_ending_gives_the_format_and_folders_are_made(figure, tmp_path, ending, magic):
    path = tmp_path / "some" / "folder" / f"picture.{ending}"
    assert save_figure(figure, path) == path
    assert path.read_bytes().startswith(magic)
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_the_file_before_it(figure, tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    save_figure(figure, path)
    before = path.read_bytes()

    def fail(target, **options):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_dots_per_inch_are_positive(figure, tmp_path):
    with pytest.raises(OptionError, match="dpi must be"):
        save_figure(figure, tmp_path / "picture.png", dpi=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["picture", "picture.", "picture.foo", ".png"])
def test_an_ending_of_no_picture_is_an_error(figure, tmp_path, name):
    with pytest.raises(OptionError, match=r"path must end in \.png, .*; got "):
        save_figure(figure, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
