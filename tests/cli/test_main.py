"""The entry: which command, which exit code, what is imported."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import gloria
from gloria import cli
from gloria.cli import train
from gloria.cli.progress import Progress
from gloria.cli.stopping import Stopping
from gloria.errors import DataError, UnknownNameError


@pytest.fixture
def command(monkeypatch):
    """A command ``act`` whose ``run`` is set by the test."""

    def command(run):
        module = SimpleNamespace(
            __doc__="Act at length.",
            add_arguments=lambda parser: parser.add_argument("--steps", type=int, default=3),
            run=run,
        )
        monkeypatch.setitem(sys.modules, "gloria.cli.act", module)
        monkeypatch.setitem(cli.COMMANDS, "act", "Act in short.")

    return command


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options
    )


# --- help and version -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_quick_and_import_nothing_heavy(option):
    code = (
        "import sys; from gloria.cli import main; "
        f"code = main([{option!r}]); "
        "heavy = {'torch', 'numpy', 'einops', 'pluggy', 'gloria.catalog'} & set(sys.modules); "
        "print(heavy, file=sys.stderr); sys.exit(code or len(heavy))"
    )
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy
        start = time.perf_counter()
        done = python("-c", code)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 0.5


def test_help_shows_every_command_and_what_it_does(capsys):
    assert cli.main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name, summary in cli.COMMANDS.items():
        assert f"{name} {summary}" in shown


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "train",
        "search",
        "attention",
        "import-published",
        "check-splits",
        "phantoms",
        "plan",
    ],
)
def test_the_help_of_a_command_imports_no_torch(name):
    code = (
        "import sys; from gloria.cli import main; "
        f"code = main([{name!r}, '--help']); sys.exit(code or 'torch' in sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_of_a_command_is_explained_with_its_default(name, capsys):
    parser = argparse.ArgumentParser()
    cli._module(name).add_arguments(parser)
    assert cli.main([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: gloria {name} ")
    for action in parser._actions[1:]:  # without --help
        assert action.help, action.dest
        default = action.default
        if default == argparse.SUPPRESS:  # and put in once it is known what was not given
            default = train.NEW_MODEL[action.dest]
        if any(default is nothing for nothing in (None, False, ())):
            continue
        about = shown.rpartition(f" {action.option_strings[0]} ")[2].partition(" --")[0]
        told = "1,10,100" if action.dest == "fractions" else default
        assert f"default: {told} " in f"{about} ", action.dest


def test_an_option_is_not_cut_short(capsys):
    assert cli.main(["phantoms", "--out", "films", "--trai", "3"]) == 2
    assert "there is no option --trai (did you mean --train?)" in capsys.readouterr().err
    assert cli.main(["--vers"]) == 2


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gloria {gloria.__version__}\n"


def test_python_m_gloria_is_the_command_line():
    done = python("-m", "gloria", "--version")
    assert (done.returncode, done.stdout) == (0, f"gloria {gloria.__version__}\n")


def test_the_help_of_a_command_is_its_docstring_and_arguments(command, capsys):
    command(lambda args: 0)
    assert cli.main(["act", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Act at length." in shown
    assert "--steps" in shown


# --- running --------------------------------------------------------------------------------------


def test_a_command_is_given_its_arguments_and_gives_the_exit_code(command):
    command(lambda args: args.steps)
    assert cli.main(["act", "--steps", "7"]) == 7
    assert cli.main(["act"]) == 3
    assert cli.main(["--debug", "act"]) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_that_load_images_import_torch_once_and_not_each(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import multiprocessing
import os
from pathlib import Path
from gloria import cli
from gloria.data.loading import load_batches

class Items:
    def __getitem__(self, index):
        return "libtorch" in Path(f"/proc/{os.getppid()}/maps").read_text()

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    assert cli.main(["info"]) == 0
    assert list(load_batches(Items(), [[0]], list, workers=1)) == [[True]]
""")
    done = python(script)
    assert done.returncode == 0, done.stderr


def test_only_the_chosen_command_is_imported(command, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "broken", "There is no such file.")
    command(lambda args: 0)
    assert cli.main(["act"]) == 0
    assert cli.main(["--help"]) == 0
    assert cli.main(["broken"]) == 2
    assert "ModuleNotFoundError: No module named 'gloria.cli.broken'" in capsys.readouterr().err


# --- exit codes -----------------------------------------------------------------------------------


def test_an_error_of_gloria_is_one_line_on_stderr(command, capsys):
    def run(args):
        raise DataError("row 3, column 'report': empty")

    command(run)
    assert cli.main(["act"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "gloria: error: row 3, column 'report': empty\n")


def test_an_error_of_the_operating_system_is_one_line_on_stderr(command, capsys, tmp_path):
    command(lambda args: (tmp_path / "none" / "a").write_text(""))
    assert cli.main(["act"]) == 2
    shown = capsys.readouterr().err
    assert shown == f"gloria: error: {tmp_path / 'none' / 'a'}: No such file or directory.\n"
    assert cli.main(["act", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_warning_of_gloria_is_one_line_on_stderr():
    """In a process of its own: here, warnings are errors."""
    code = (
        "import sys, types, warnings; from gloria import cli, errors; "
        "run = lambda args: warnings.warn(category('row 3')) or 0; "
        "sys.modules['gloria.cli.act'] = types.SimpleNamespace(add_arguments=lambda p: 0, run=run);"
        "cli.COMMANDS['act'] = ''; category = errors.TruncatedTextWarning; cli.main(['act']); "
        "category = RuntimeWarning; cli.main(['act']); category = errors.TruncatedTextWarning; "
        "warnings.warn(category('row 4'))"
    )
    # from Python 3.13 on, a plain warning is followed by its line of code, indented
    told = [line for line in python("-c", code).stderr.splitlines() if not line.startswith(" ")]
    assert told[0] == "gloria: warning: row 3"
    assert told[1].endswith(": RuntimeWarning: row 3")
    assert told[2].endswith(": TruncatedTextWarning: row 4")  # outside of a command


def test_notes_of_an_error_are_shown(command, capsys):
    def run(args):
        error = UnknownNameError("no loss is named 'x'.")
        error.add_note("Not loaded: plugin 'y'")
        raise error

    command(run)
    assert cli.main(["act"]) == 2
    expected = "gloria: error: no loss is named 'x'.\n  Not loaded: plugin 'y'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("arguments", [["--debug", "act"], ["act", "--debug"]])
def test_debug_shows_the_traceback(command, capsys, arguments):
    def run(args):
        raise DataError("row 3")

    command(run)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "DataError: row 3" in shown


def test_a_bug_shows_its_traceback_and_is_not_the_exit_code_of_a_leak(command, capsys):
    def run(args):
        raise ZeroDivisionError("of ours")

    command(run)
    assert cli.main(["act"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("Traceback")
    assert shown.err.endswith("ZeroDivisionError: of ours\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
        RuntimeError("Storage size calculation overflowed with sizes=[1, 1, 1000000, 1000000000]"),
    ],
)
def test_too_little_memory_is_no_bug(command, capsys, error):
    def run(args):
        raise error

    command(run)
    assert cli.main(["act"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("gloria: error: too little memory for batches or images of this size: ")
    assert shown.count("\n") == 1
    parser = sys.modules["gloria.cli.act"]
    parser.add_arguments = lambda parser: parser.add_argument("--mini-batch-size", type=int)
    assert cli.main(["act"]) == 2
    hint = (
        "\n  --mini-batch-size encodes fewer pairs at a time, with the loss of the whole batch.\n"
    )
    assert capsys.readouterr().err == shown.rstrip() + hint


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nonsense"], "gloria: error: there is no command 'nonsense'; "),
        (["atc", "--steps", "7"], "there is no command 'atc' (did you mean act?)"),
        (["act", "--nonsense"], "gloria act: error: there is no option --nonsense; "),
        (
            ["act", "--step=7"],
            "gloria act: error: there is no option --step (did you mean --steps?)",
        ),
        (["act", "--steps", "many"], "invalid int value: 'many'"),
        (
            ["act", "a", "-1", "b"],
            "gloria act: error: too many arguments: a -1 b (a text of several",
        ),
        (["--nonsense"], "gloria: error: there is no option --nonsense; "),
        (["--verson", "act"], "there is no option --verson (did you mean --version?)"),
        ([], "usage: gloria"),
    ],
)
def test_wrong_usage_is_2(command, capsys, arguments, said):
    command(lambda args: 0)
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
    if arguments:
        assert shown.err.endswith("; --help shows what there is\n")
        assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--ot", "--out"),
        ("--lr", "--learning-rate"),
        ("--bs", "--batch-size"),
        ("-out", "--out"),
        ("\u2014out", "--out"),  # as copied from a text
    ],
)
def test_a_misspelt_option_is_told_before_a_missing_one(capsys, given, meant):
    assert cli.main(["train", "--data", "my.csv", given, "3"]) == 2
    told = f"gloria train: error: there is no option {given} (did you mean {meant}?); "
    assert capsys.readouterr().err.startswith(told)


@pytest.mark.parametrize("words", [["-7"], ["-0.5"], ["a -b"], ["--", "--act"], ["--", "-a"]])
def test_what_begins_with_a_dash_can_be_no_option(words, capsys):
    """As numbers, sentences, and what follows two dashes: argparse takes them for arguments."""
    assert cli.main(["search", "--model", "none", "--images", "none", *words]) == 2
    assert "none is no saved model" in capsys.readouterr().err


def test_what_a_terminal_can_not_show_is_escaped(command, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    command(lambda args: print("≥ 1 ms, caf\udce9.png") or 0)  # a name that is no UTF-8
    assert cli.main(["act"]) == 0
    assert written.getvalue() == b"\\u2265 1 ms, caf\\udce9.png\n"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(command, monkeypatch, capfd, closed):
    """Nor is what it would be told written to the other, or to whatever is file 2 now."""
    monkeypatch.setattr(sys, closed, None)  # as Python has it after >&- and 2>&-

    def run(args):
        with Progress(1, "encode", False) as progress:
            progress.advance()
        with Stopping() as stopping:
            signal.raise_signal(signal.SIGTERM)  # SIGINT may be ignored here
            with pytest.raises(KeyboardInterrupt):
                stopping.check()
        print("done")
        return 0

    command(run)
    assert cli.main(["act"]) == 0
    out, err = capfd.readouterr()
    assert out == ("" if closed == "stdout" else "done\n")
    assert ("encode: 1 of 1" in err) == ("stopping" in err) == (closed == "stdout")


@pytest.mark.parametrize("error", [DataError("wrong"), ZeroDivisionError(), KeyboardInterrupt()])
def test_an_error_that_nobody_can_read_keeps_its_exit_code(command, capsys, monkeypatch, error):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    def run(args):
        raise error

    command(run)
    for stderr in (Full(), None):  # a log on a full disk, or 2>&-
        monkeypatch.setattr(sys, "stderr", stderr)
        assert cli.main(["act"]) == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert capsys.readouterr().out == ""


def test_ctrl_c_is_130(command, capsys):
    def run(args):
        raise KeyboardInterrupt

    command(run)
    assert cli.main(["act"]) == 130
    assert capsys.readouterr().err == "gloria: interrupted\n"


@pytest.mark.parametrize("buffering", ["", "1"])
def test_a_reader_that_goes_away_ends_the_command_quietly(buffering):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gloria", "info"],
            env={**os.environ, "PYTHONUNBUFFERED": buffering},
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
