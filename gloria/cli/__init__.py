"""The command line: ``gloria <command>``, also ``python -m gloria <command>``.

A command is a file of this folder (``check-splits`` is ``check_splits.py``) with
``add_arguments(parser)`` and ``run(args) -> int``; its docstring is what
``gloria <command> --help`` says. It is imported only when it is chosen, so ``gloria --help``
imports nothing heavy.

Exit codes: 0 done; 1 done, and what the command looks for is there (``check-splits`` alone); 2 an
error, wrong usage or not (one line on stderr; the traceback with ``--debug``, and of a bug of ours
always); 130 stopped by Ctrl-C, and ``train`` by SIGTERM, too; 141 the reader of our output went
away.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from multiprocessing import get_all_start_methods, set_forkserver_preload
from types import ModuleType
from typing import Any, NoReturn

import gloria
from gloria.errors import BrokenItemError, GloriaError, GloriaWarning, IncompleteItemError, reason

# command: what `gloria --help` says about it; the code is in gloria/cli/<command>.py
COMMANDS = {
    "demo": "Train on the built-in phantom radiographs and see what was learned.",
    "train": "Train on your own images and reports.",
    "search": "Find the images of a folder that fit a text best.",
    "attention": "Draw where each word of a text looks in an image.",
    "evaluate": "Retrieval, zero-shot, classification, segmentation: a model's tables.",
    "import-published": "Make a saved model of a checkpoint of the published code.",
    "check-splits": "Look for patients and images that are in more than one split.",
    "phantoms": "Write the phantom radiographs to disk, as PNG and CSV.",
    "plan": "Count what the local loss of a batch size would cost.",
    "info": "Show versions, devices, backends, registered names and plugins.",
}

# error: the option, where a command has it, that leaves out what it is about
LEFT_OUT_BY = {BrokenItemError: "skip_broken", IncompleteItemError: "skip_incomplete"}

DASHES = "-\u2013\u2014"
"""What options begin with, also those that a text program made longer."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, of ``argv`` or this process's arguments, and return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # there is no console, or it is closed by 2>&-: nobody reads
            setattr(sys, name, io.StringIO())
        elif isinstance(stream, io.TextIOWrapper):  # a file's name may be in no encoding at all
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parse(arguments)
        with _plain_warnings():
            code = _run(args)
        sys.stdout.flush()  # a closed pipe shows here, not while the interpreter shuts down
        return code
    except SystemExit as stop:  # argparse: 0 after --help, 2 after wrong usage
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        _complain("gloria: interrupted")
        return 130
    except BrokenPipeError:
        # whatever is still buffered goes nowhere, so that the shutdown does not fail on it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception:  # a bug: left to Python it would be exit code 1, which says "a leak"
        _complain(traceback.format_exc().rstrip())
        return 2


class _Parser(argparse.ArgumentParser):
    """One whose errors are one line, and say where to read on."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help shows what there is\n")

    def check_options(self, words: Iterable[str]) -> None:
        """Require known options: parsing would miss a required one before a misspelt one."""
        known = self._option_string_actions
        for word in takewhile(lambda word: word != "--", words):
            name = word.partition("=")[0]
            if re.fullmatch(rf"[{DASHES}]{{1,2}}[a-zA-Z][\w-]*", name) and name not in known:
                near = _did_you_mean(name, known)
                if near or name.startswith("-"):  # a text may begin with a long dash
                    self.error(f"there is no option {name}{near}")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help in which every option that has a default says it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        none = any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS))
        told = "default:" in text or none
        return text if told else f"{text}; default: %(default)s"


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Inside, a warning of gloria is one line on stderr, without a place in the code."""
    usual = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        if issubclass(category, GloriaWarning):
            return f"gloria: warning: {message}\n"
        return usual(message, category, *place, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments; only the command that is chosen is imported and knows them."""
    # options before the command take no value, so the first word is the command
    before = list(takewhile(lambda word: word.startswith("-"), arguments))
    chosen = next(iter(arguments[len(before) :]), None)
    # an option that is cut short might be another one tomorrow
    codes = "Exit code: 0 done, 1 done and check-splits found a leak, 2 an error."
    parser = _Parser("gloria", description=gloria.__doc__, epilog=codes, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gloria {gloria.__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    parser.check_options(before)
    commands = parser.add_subparsers(dest="command", metavar="<command>")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, allow_abbrev=False)
        if name == chosen:
            module = _module(name)
            command.description = module.__doc__
            command.formatter_class = _Help
            command.add_argument(
                "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )
            module.add_arguments(command)
            command.check_options(arguments[len(before) + 1 :])
    if chosen is not None and chosen not in COMMANDS:
        parser.error(f"there is no command {chosen!r}{_did_you_mean(chosen, COMMANDS)}")
    args, more = parser.parse_known_args(arguments)
    if chosen is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if more:  # words, since every option is known
        told = f"too many arguments: {' '.join(more)} (a text of several words stands in quotes)"
        commands.choices[chosen].error(told)
    return args


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    """A question after a name that is unknown; initials are near, as lr; empty if nothing is."""
    names = {name.lstrip("-"): name for name in known}
    initials = {"".join(re.findall(r"\b\w", name)): name for name in names if "-" in name}
    word = given.lstrip(DASHES)
    near = [initials[word]] if word in initials else difflib.get_close_matches(word, names, n=1)
    return f" (did you mean {names[near[0]]}?)" if near else ""


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"gloria.cli.{command.replace('-', '_')}")


def _run(args: argparse.Namespace) -> int:
    command = _module(args.command)
    # from Python 3.14 on each process that loads images would import torch, seconds long
    if "forkserver" in get_all_start_methods():
        set_forkserver_preload(["gloria.data.loading"])
    try:
        code: int = command.run(args)
        return code
    except BrokenPipeError:
        raise
    except (GloriaError, OSError, MemoryError, RuntimeError) as error:
        if not isinstance(error, GloriaError | OSError) and not _is_out_of_memory(error):
            raise
        notes = [*_hints(error, args), *getattr(error, "__notes__", [])]
        told = "\n  ".join([f"gloria: error: {_message(error)}", *notes])
        _complain(traceback.format_exc().rstrip() if args.debug else told)
        return 2


def _complain(message: str) -> None:
    """Print on stderr; a full disk there leaves the exit code as it is."""
    with suppress(OSError):
        print(message, file=sys.stderr)


def _hints(error: Exception, args: argparse.Namespace) -> list[str]:
    """The options of this command that would leave out, or find, what the error is about."""
    hints = {
        option: "leaves such images out"
        for kind, option in LEFT_OUT_BY.items()
        if isinstance(error, kind) and not getattr(args, option, True)
    } | {
        option: "is to name one of these"
        for option, value in vars(args).items()
        if option.endswith("_column")
        and getattr(args, "format", "csv") == "csv"  # another's columns have their names
        and f"has no column {value!r}" in str(error)
    }
    if _is_out_of_memory(error) and hasattr(args, "mini_batch_size"):
        hints["mini_batch_size"] = "encodes fewer pairs at a time, with the loss of the whole batch"
    return [f"--{option.replace('_', '-')} {hint}." for option, hint in hints.items()]


def _message(error: Exception) -> str:
    """What went wrong; of an error of the operating system, the file first."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {reason(error)}."
    if isinstance(error, GloriaError | OSError):
        return str(error)
    told = str(error).strip().splitlines() or ["MemoryError"]
    return f"too little memory for batches or images of this size: {told[-1].rstrip('.')}."


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory was lacking; on a CPU torch has no class of its own for it."""
    told = ("out of memory", "can't allocate memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or any(words in str(error) for words in told)
