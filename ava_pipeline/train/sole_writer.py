"""One training a run directory."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.errors import RunInUseError, WriteError
from ava_pipeline.write.lock import RunLock

_log = logging.getLogger("ava_pipeline")


def train_lock(layout: RunLayout) -> Path:
    """Held from before the first file of a training to behind its last one."""
    return layout.root / "train.lock"


@contextmanager
def sole_writer(layout: RunLayout) -> Iterator[None]:
    """Keep other trainings out of the run directory while the block lasts.

    Raises:
        RunInUseError: another process trains into it, or writes its telemetry; the message names it.
    """
    lock = _take(layout)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _take(layout: RunLayout) -> RunLock | None:
    """The lock; None on a file system that knows none."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        lock = RunLock(train_lock(layout), layout.manifest)
    except (WriteError, BlockingIOError) as error:
        raise RunInUseError(str(error)) from error
    except OSError as error:
        _log.warning("%s cannot be locked (%s): see to it that no other process trains into it.", layout.root, error)
        return None
    try:
        _refuse_telemetry(layout)
    except BaseException:
        lock.release()
        raise
    return lock


def _refuse_telemetry(layout: RunLayout) -> None:
    """Ask for the collector's own lock, which it takes at the first collected step, and let go of it."""
    if layout.lock.exists():
        try:
            RunLock(layout.lock).release()
        except (WriteError, BlockingIOError) as error:
            raise RunInUseError(str(error)) from error
