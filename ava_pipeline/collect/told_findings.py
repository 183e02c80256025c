"""Findings on their way from the background thread to the user's functions in the training thread."""

from collections import deque
from collections.abc import Callable

from ava_pipeline.signs.finding import Finding

MAX_WAITING = 256


class ToldFindings:
    """Holds findings until the training thread comes by; the oldest give way where they are too many.

    Args:
        wake: a weak reference to what is called after each one.
    """

    def __init__(self, wake: Callable[[], Callable[[], None] | None]) -> None:
        self._wake = wake
        self._waiting: deque[Finding] = deque(maxlen=MAX_WAITING)
        self._due: deque[tuple[Callable[[Finding], object], Finding]] = deque()
        self._callbacks: list[Callable[[Finding], object]] = []

    def register(self, callback: Callable[[Finding], object]) -> None:
        """Tell `callback` too."""
        self._callbacks.append(callback)

    def put(self, finding: Finding) -> None:
        """Take a finding; called in the background thread."""
        self._waiting.append(finding)
        self._wake_up()

    def deliver(self) -> None:
        """Call the functions; what one of them raises is raised, and what the others were still to hear waits on."""
        while self._due or self._waiting:
            if not self._due:
                finding = self._waiting.popleft()
                self._due.extend((callback, finding) for callback in self._callbacks)
                continue
            callback, finding = self._due.popleft()
            try:
                callback(finding)
            except BaseException:
                self._wake_up()
                raise

    def _wake_up(self) -> None:
        wake = self._wake()
        if wake is not None:
            wake()
