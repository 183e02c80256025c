"""Sends a real signal at the n-th line that a piece of code runs, so that its handler raises there."""

import linecache
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import ava_pipeline

PACKAGE = str(Path(ava_pipeline.__file__).parent)
LIBRARY = str(Path(signal.__file__).parent)


class Stop(Exception):  # noqa: N818  # as users name what their handlers raise
    """What a signal handler of the user's raises: an exception like any other."""


def of_package(path: str) -> bool:
    """Whether a file is one of the package's."""
    return path.startswith(PACKAGE)


def of_package_or_standard_library(path: str) -> bool:
    """Whether a file is one of the package's, or of the standard library, such as that of locks."""
    return of_package(path) or (path.startswith(LIBRARY) and "site-packages" not in path)


class Interrupted:
    """A block whose n-th line (1-based) in some files is interrupted by a handler that raises an exception.

    Python runs no handler between the end of a `with` block and the call of its `__exit__`, although it reports the
    line of the `with` there once more. Such lines do not count.

    Attributes:
        came: whether the block ran that many lines.
    """

    def __init__(self, number: int, kind: type[BaseException], files: Callable[[str], bool]) -> None:
        self.came = False
        self._number = number
        self._kind = kind
        self._files = files
        self._entered: set[tuple[FrameType, int]] = set()

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGUSR1, self._stop)
        self._tracer = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._tracer)
        signal.signal(signal.SIGUSR1, self._handler)

    def _stop(self, _signum: int, _frame: FrameType | None) -> None:
        raise self._kind

    def _trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        """Called by Python for each call and each line."""
        if not self._files(frame.f_code.co_filename):
            return None
        if event == "line" and not self._leaves_with(frame):
            self._number -= 1
            if self._number == 0:
                self.came = True
                signal.raise_signal(signal.SIGUSR1)
        return self._trace

    def _leaves_with(self, frame: FrameType) -> bool:
        place = (frame, frame.f_lineno)
        if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            return False
        if place in self._entered:
            return True
        self._entered.add(place)
        return False
