"""Who holds a run directory, and whether a holder on another host still lives."""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ava_pipeline.contract.manifest import read_manifest, utc_now
from ava_pipeline.errors import RunError

_log = logging.getLogger("ava_pipeline")

STALE_AFTER_S = 60.0
_POLL_S = 1.0
_MAX_BYTES = 4096
_NEVER = datetime.fromtimestamp(0, UTC)


class Holder(NamedTuple):
    """One process, as the lock file tells of it."""

    pid: int
    host: str
    start: str


def this_process() -> Holder:
    """Who is asking."""
    return Holder(os.getpid(), platform.node(), utc_now().isoformat())


def read_holder(descriptor: int) -> Holder | None:
    """Who wrote into the lock file last; None where it was let go of, or cannot be read."""
    try:
        found: Any = json.loads(os.pread(descriptor, _MAX_BYTES, 0))
        return Holder(int(found["pid"]), str(found["host"]), str(found["start"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None  # empty, or written by something else


def write_holder(descriptor: int, holder: Holder | None) -> None:
    """Say who holds the lock; None says that it was let go of."""
    os.ftruncate(descriptor, 0)
    if holder is not None:
        os.pwrite(descriptor, json.dumps(holder._asdict()).encode(), 0)


def lives_elsewhere(descriptor: int, manifest: Path, *, wait: Callable[[float], None] = time.sleep) -> Holder | None:
    """A holder on another host that shows a sign of life; locks need not reach across hosts, files do.

    One whose heartbeat is a minute old is dead. Until then it is watched, since the scheduler of a host that died may
    begin the run elsewhere within seconds: a heartbeat or a proper end tells that it lived. It is watched for a minute
    at most, however far ahead its clock is.

    Args:
        descriptor: of the lock file.
        manifest: of the run, whose heartbeat counts.
        wait: lets some seconds pass.

    Returns:
        The holder; None where nobody else can be alive.
    """
    holder = read_holder(descriptor)
    if holder is None or holder.host == platform.node():
        return None  # of a process on this host the lock itself tells
    beat = _heartbeat(manifest, holder)
    left_s = min(STALE_AFTER_S, STALE_AFTER_S - (utc_now() - beat).total_seconds())
    if left_s > 0:
        _log.warning(
            "%s may still be written by pid %d on host %s: a sign of its life is waited for, %.0f s at most.",
            manifest.parent,
            holder.pid,
            holder.host,
            left_s,
        )
    for _ in range(math.ceil(left_s / _POLL_S)):
        wait(_POLL_S)
        if read_holder(descriptor) != holder or _heartbeat(manifest, holder) != beat:
            return holder
    return None


def _heartbeat(manifest: Path, holder: Holder) -> datetime:
    """The holder's last sign of life: in the manifest, or its start."""
    try:
        start = datetime.fromisoformat(holder.start)
    except ValueError:
        start = _NEVER  # no time that we wrote: the manifest decides
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    try:
        return max(start, read_manifest(manifest).heartbeat_utc)
    except (OSError, RunError):
        return start  # not written yet, or not readable
