"""Findings on their way from the background thread to the training thread's callbacks."""

import threading
from collections import deque
from collections.abc import Callable

from ava_pipeline.collect.batch_count import BatchCount
from ava_pipeline.contract.finding import Finding

MAX_WAITING_FINDINGS = 256


class FindingQueue:
    """Holds findings until the training thread's next `step`; if too many wait, the oldest are dropped."""

    def __init__(self, count: BatchCount) -> None:
        self._count = count
        self._waiting: deque[Finding] = deque(maxlen=MAX_WAITING_FINDINGS)
        self._calls: deque[tuple[Callable[[Finding], object], Finding]] = deque()
        self._callbacks: list[Callable[[Finding], object]] = []
        self._turn = threading.RLock()

    def register(self, callback: Callable[[Finding], object]) -> None:
        """Deliver findings to `callback` too."""
        self._callbacks.append(callback)

    def put(self, finding: Finding) -> None:
        """Add a finding; called in the background thread."""
        self._waiting.append(finding)
        self._count.wake()

    def deliver(self) -> None:
        """Call every callback with every finding; after one that raises, the next `deliver` makes the other calls."""
        with self._turn:
            while self._calls or self._waiting:
                if not self._calls:
                    finding = self._waiting.popleft()
                    self._calls.extend((callback, finding) for callback in self._callbacks)
                    continue
                callback, finding = self._calls.popleft()
                try:
                    callback(finding)
                except BaseException:
                    self._count.wake()
                    raise
