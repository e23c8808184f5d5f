"""The folder of results is tried before the work."""

import pytest

from gloria.cli import main, out
from gloria.cli.out import check_out
from gloria.errors import OptionError


def test_nothing_is_left_of_a_folder_that_was_tried(tmp_path):
    (tmp_path / "a").mkdir()
    check_out(tmp_path / "a")
    check_out(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_what_is_no_place_for_results_is_named(tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(OptionError, match=f"^out must be a folder; {taken} is a file"):
        check_out(taken)
    with pytest.raises(OptionError, match=f"written into; {taken / 'below'}: Not a directory"):
        check_out(taken / "below")

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(out, "TemporaryFile", refuse)
    with pytest.raises(OptionError, match=f"written into; {tmp_path}: Permission denied"):
        check_out(tmp_path)
    with pytest.raises(OptionError, match="Permission denied"):
        check_out(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [taken]
    assert taken.read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ["demo"],
        ["phantoms"],
        ["train", "--data", "none.csv"],  # which is told only after
    ],
)
def test_commands_try_it_first(tmp_path, capsys, command):
    (tmp_path / "taken").write_text("mine")
    assert main([*command, "--out", str(tmp_path / "taken" / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gloria: error: out must be a folder that can be written into; ")
    assert error.count("\n") == 1


def test_a_saved_model_is_no_folder_of_results(tmp_path):
    """It would be replaced as a whole, with what was written into it."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(OptionError, match=f"folder of its own; {tmp_path} is a saved model"):
        check_out(tmp_path)
    with pytest.raises(OptionError, match=f"folder of its own; {tmp_path} is a saved model"):
        check_out(tmp_path / "run" / "inside")


@pytest.mark.parametrize("name", ["model", "best/inside", "checkpoints/step-000001"])
def test_what_a_run_replaces_is_no_folder_of_results(tmp_path, name):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(OptionError, match=f"{tmp_path}/.* is of the run around it"):
        check_out(tmp_path / name)
    check_out(tmp_path)
    check_out(tmp_path / "evaluation")


@pytest.mark.parametrize(
    "command, name",
    [(["demo"], "model"), (["train", "--data", "none.csv"], "best")],
)
def test_what_a_model_would_replace_is_told_first(tmp_path, capsys, command, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "holds notes.txt, which would be lost" in capsys.readouterr().err
    assert (tmp_path / name / "notes.txt").read_text() == "mine"
