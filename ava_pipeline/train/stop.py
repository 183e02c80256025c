"""Ending cleanly when asked to: Ctrl-C, a scheduler's SIGTERM or SIGUSR1."""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequested(KeyboardInterrupt):
    """Somebody asked training to end; raised between two batches. Telemetry calls such a run interrupted, not failed.

    Attributes:
        signum: the signal that asked.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class StopSignals:
    """Within the `with` block, signals ask for an end instead of bringing it.

    The first Ctrl-C lets the batch finish; the second one ends the process at once, as it would without us. On exit
    every signal means what it meant before. Worker processes forked meanwhile ignore the first Ctrl-C likewise.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._before: dict[int, Any] = {}
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        for signum in _asking():
            self._before[signum] = signal.signal(signum, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def check(self) -> None:
        """Raise `StopRequested` if somebody asked."""
        if self._signum is not None:
            raise StopRequested(self._signum)

    def _ask(self, signum: int, _frame: FrameType | None) -> None:
        self._signum = signum
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if os.getpid() == self._owner:
            # The cursor is hidden behind the progress bar, and a second Ctrl-C would leave it so.
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
            os.write(2, f"{cursor}\nEnding after this batch, with a checkpoint. Ctrl-C ends at once.\n".encode())


def _asking() -> list[int]:
    """The signals that ask; none off the main thread, where Python lets nobody listen."""
    try:
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    except ValueError:
        return []
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    return [getattr(signal, name) for name in names if hasattr(signal, name)]
