"""Stopping cleanly on Ctrl-C and on a scheduler's SIGTERM or SIGUSR1."""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequested(KeyboardInterrupt):
    """A signal asked training to stop; raised between two batches.

    The manifest calls such a run interrupted, not failed.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopSignals:
    """Inside the `with` block, signals request a stop instead of ending the process.

    The first Ctrl-C lets the batch finish; the second one ends the process immediately. On exit the earlier signal
    handlers are restored. Worker processes forked inside the block ignore the first Ctrl-C too.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        for signum in _handled_signals():
            self._before[signum] = signal.signal(signum, self._request_stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def check(self) -> None:
        """Raise `StopRequested` if a signal has arrived."""
        if self._signum is not None:
            raise StopRequested(self._signum)

    def _request_stop(self, signum: int, _frame: FrameType | None) -> None:
        self._signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if os.getpid() == self._owner:
            # The progress bar hides the cursor, and a second Ctrl-C would leave it hidden.
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
            os.write(2, f"{cursor}\nEnding after this batch, with a checkpoint. Ctrl-C ends at once.\n".encode())


def _handled_signals() -> list[int]:
    """The handled signals; empty outside the main thread, where Python allows no handlers."""
    try:
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    except ValueError:
        return []
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
