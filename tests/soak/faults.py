"""Random disk faults, each of which lasts for a short time."""

import errno
import os
import random
import resource
import threading
import time
from collections import Counter
from pathlib import Path

KINDS = ("full", "error", "blocked", "vanished")
RATE = 1 / 50
_TINY_BYTES = 8


class Faults:
    """Breaks the writing of this process. The feeding thread calls `turn` with every batch.

    Args:
        root: the run directory, which is moved away now and then.
        moments: decides what happens when.
        kinds: of `KINDS`, that may happen.
    """

    def __init__(self, root: Path, moments: random.Random, kinds: tuple[str, ...]) -> None:
        self._root = root
        self._moments = moments
        self._kinds = kinds
        self._ends_s = 0.0
        self._num_errors = 0
        self._is_open = threading.Event()
        self._is_open.set()
        self._pwrite = os.pwrite
        self.counts: Counter[str] = Counter()
        self.active: str | None = None
        os.pwrite = self._write  # type: ignore[assignment]  # telemetry writes from memory views only

    def turn(self) -> None:
        """End a fault that has lasted long enough, or begin one."""
        if self.active is not None:
            if time.monotonic() >= self._ends_s:
                self.end()
        elif self._moments.random() < RATE:
            self._begin(self._moments.choice(self._kinds))

    def end(self) -> None:
        """End every fault."""
        self.active = None
        self._num_errors = 0
        self._is_open.set()
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    def _begin(self, kind: str) -> None:
        self.active = kind
        self.counts[kind] += 1
        self._ends_s = time.monotonic() + self._moments.uniform(0.02, 0.3)
        if kind == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (_TINY_BYTES, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        elif kind == "error":
            self._num_errors = self._moments.randint(1, 3)
        elif kind == "blocked":
            self._is_open.clear()
        elif self._root.exists():
            self._root.rename(self._root.with_name(f"{self._root.name}-gone-{self.counts[kind]}"))

    def _write(self, descriptor: int, data: memoryview, offset: int) -> int:
        self._is_open.wait()
        if self._num_errors > 0:
            self._num_errors -= 1
            self._pwrite(descriptor, data[: len(data) // 2], offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._pwrite(descriptor, data, offset)
