"""Progress on stderr, so that stdout stays for results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from gloria.checks import require


def say(message: str, quiet: bool) -> None:
    """One line on stderr."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


class Progress:
    """A progress bar; ``advance()`` once per unit of work."""

    def __init__(self, total: int, what: str, quiet: bool) -> None:
        self._quiet = quiet
        self._bar = self._open(total, what)

    def _open(self, total: int, what: str) -> Any:
        if self._quiet:
            return _NoBar()
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


class _NoBar:
    """What is shown if nothing is to be shown; it needs no tqdm."""

    n = 0

    def update(self, count: int) -> None:
        pass

    def set_postfix(self, shown: dict[str, str], refresh: bool) -> None:
        pass

    def close(self) -> None:
        pass


class StepProgress(Progress):
    """A progress bar of training steps, with the loss."""

    def __call__(self, record: dict[str, float]) -> None:
        """Take what the training loop logs after a step."""
        shown = {"loss": f"{record['loss']:.3f}"}
        if "validation_loss" in record:
            shown["val"] = f"{record['validation_loss']:.3f}"
        self._bar.set_postfix(shown, refresh=False)
        # a resumed run starts where it stood
        self._bar.update(int(record["step"]) - self._bar.n)
