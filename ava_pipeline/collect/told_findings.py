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
        self._callbacks: list[Callable[[Finding], object]] = []

    def register(self, callback: Callable[[Finding], object]) -> None:
        """Tell `callback` too."""
        self._callbacks.append(callback)

    def put(self, finding: Finding) -> None:
        """Take a finding; called in the background thread."""
        self._waiting.append(finding)
        wake = self._wake()
        if wake is not None:
            wake()

    def deliver(self) -> None:
        """Call the functions; what one of them raises is raised, and the findings behind it wait on."""
        while self._waiting:
            finding = self._waiting.popleft()
            for callback in self._callbacks:
                callback(finding)
