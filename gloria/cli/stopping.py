"""Ctrl-C, and the SIGTERM of a scheduler, end a training between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Self

from gloria.errors import DataError

_TOLD = b"\ngloria: stopping after this step, which is saved then; once more to stop at once\n"


class Stopping:
    """Inside, the first SIGINT or SIGTERM waits until ``check()``; the second one does not."""

    def __init__(self) -> None:
        self._asked = False

    def check(self) -> None:
        """Raise the KeyboardInterrupt here, if one was asked for."""
        if self._asked:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            signals = ()  # Python hears signals in the main thread alone
        # what is ignored stays so, as Ctrl-C by a job in the background; None: a handler of C
        deaf = (None, signal.SIG_IGN)
        heard = [number for number in signals if signal.getsignal(number) not in deaf]
        self._usual = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, usual in self._usual.items():
            signal.signal(number, usual)
        if self._asked and isinstance(error, DataError):  # a loading process was stopped, too
            raise KeyboardInterrupt from error

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        with contextlib.suppress(OSError):  # a full disk, or nobody reads
            # not by print, in the middle of which this may be
            os.write(sys.stderr.fileno(), _TOLD)
        if hasattr(signal, "SIGCHLD"):
            # torch would raise in this step that a scheduler stopped the loading processes, too
            self._usual[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _nothing)


def _nothing(number: int, frame: FrameType | None) -> None:
    """Not SIG_DFL, of which Python would complain where the signal is there already."""
