"""The status of a run: whether a run whose manifest says `running` still is."""

import os
import platform
from contextlib import suppress
from datetime import datetime
from typing import Literal, TypeAlias

from ava_pipeline.contract.manifest import STALE_AFTER, Attempt, Manifest, Status

StatusNow: TypeAlias = Status | Literal["killed"]


def status_now(manifest: Manifest, now: datetime) -> StatusNow:
    """The run's status; `killed` where it counts as running and its process is gone.

    A process of this host is looked for by its number; of one elsewhere, or whose number another process has by now,
    the heartbeat tells, which may be two minutes old.

    Args:
        manifest: of the run.
        now: the time of day, in UTC.
    """
    if manifest.status != "running":
        return manifest.status
    is_gone = bool(manifest.attempts) and _is_gone(manifest.attempt)
    return "killed" if is_gone or now - manifest.heartbeat_utc > STALE_AFTER else "running"


def _is_gone(attempt: Attempt) -> bool:
    """Whether no process of this host has the attempt's number."""
    if not attempt.pid or attempt.host != platform.node():
        return False
    with suppress(PermissionError):  # somebody else's, so it is there
        try:
            os.kill(attempt.pid, 0)
        except ProcessLookupError:
            return True
    return False
