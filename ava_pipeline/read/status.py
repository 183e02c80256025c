"""The status of a run: whether a run whose manifest says `running` still is."""

import os
import platform
from contextlib import suppress
from datetime import datetime

from ava_pipeline.contract.manifest import STALE_AFTER, Attempt, Manifest, Status


def status_now(manifest: Manifest, now: datetime) -> Status:
    """The run's status; `killed` if the manifest says `running` and the process is gone.

    A process on this host is looked up by its number. For a process on another host, or one whose number another
    process may have by now, the heartbeat decides, which may be two minutes old.

    Args:
        manifest: of the run.
        now: the current time in UTC.

    Example:
        >>> status_now(run.manifest, utc_now())  # doctest: +SKIP
        'finished'
    """
    if manifest.status != "running":
        return manifest.status
    is_gone = bool(manifest.attempts) and _is_gone(manifest.attempt)
    return "killed" if is_gone or now - manifest.heartbeat_utc > STALE_AFTER else "running"


def _is_gone(attempt: Attempt) -> bool:
    """Whether no process on this host has the attempt's number."""
    if not attempt.pid or attempt.host != platform.node():
        return False
    with suppress(PermissionError):  # a process of another user: it exists
        try:
            os.kill(attempt.pid, 0)
        except ProcessLookupError:
            return True
    return False
