"""Progress on stderr, so that stdout stays for results: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self

from gloria.checks import require


def say(message: str, quiet: bool = False) -> None:
    """One line on stderr, above a bar that is there."""
    if not quiet:
        bars = sys.modules.get("tqdm")
        (bars.tqdm.write if bars else print)(message, file=sys.stderr)


SECONDS = 30
"""Between the lines of a log."""


class Progress:
    """A progress bar, or lines for a log; ``advance()`` once per unit of work."""

    def __init__(self, total: int, what: str, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = self._open(total, what)

    def _open(self, total: int, what: str) -> Any:
        # to a file or a pipe, a bar would be one endless line
        if self._quiet or not sys.stderr.isatty():
            return _Lines(total, what, self._quiet)
        return require("tqdm", "train").tqdm(total=total, desc=what, mininterval=0.5)

    def advance(self, count: int = 1) -> None:
        """Some work is done."""
        self._bar.update(count)

    def then(self, total: int, what: str) -> Callable[[int], None]:
        """The ``advance`` of work that follows, on a bar that takes this one's place."""
        first = self._bar

        def advance(count: int) -> None:
            if self._bar is first:
                first.close()
                self._bar = self._open(total, what)
            self.advance(count)

        return advance

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


class _Lines:
    """What a log is told: a whole line every half minute, and one of what was done in the end."""

    def __init__(self, total: int, what: str, quiet: bool) -> None:
        self.n = 0
        self.total = total
        self._what = what
        self._quiet = quiet
        self._shown = ""
        self._told = time.monotonic()

    def update(self, count: int) -> None:
        self.n += count
        if time.monotonic() - self._told >= SECONDS:
            self._tell()

    def set_postfix(self, shown: dict[str, str], refresh: bool) -> None:
        self._shown = "".join(f", {name} {value}" for name, value in shown.items())

    def close(self) -> None:
        if self.n:
            self._tell()
            self.n = 0

    def _tell(self) -> None:
        self._told = time.monotonic()
        say(f"{self._what}: {self.n} of {self.total}{self._shown}", self._quiet)


class StepProgress(Progress):
    """Progress of training steps, with the loss."""

    def __call__(self, record: dict[str, float]) -> None:
        """Take what the training loop logs after a step."""
        shown = {"loss": f"{record['loss']:.3f}"}
        if "validation_loss" in record:
            shown["val"] = f"{record['validation_loss']:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        # a resumed run starts where it stood
        self._bar.update(int(record["step"]) - self._bar.n)
        if self._bar.n == self._bar.total:  # what is said of what follows stands below
            self._bar.close()
