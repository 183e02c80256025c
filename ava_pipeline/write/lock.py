"""The lock of a run directory: one writer at a time, and the name of the process that holds it."""

import contextlib
import errno
import fcntl
import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ava_pipeline.contract.manifest import read_manifest, utc_now
from ava_pipeline.errors import DamagedFileError, RunError, WriteError
from ava_pipeline.logs import logger

REMOTE_GONE_AFTER_S = 60.0
_POLL_S = 1.0
_MAX_BYTES = 4096
_NEVER = datetime.fromtimestamp(0, UTC)


# The lock files that this process holds or is acquiring, as (pid, device, inode): a forked child, with a pid of its
# own, holds none of them. The guard is never held while waiting.
_guard = threading.Lock()
_held: set[tuple[int, int, int]] = set()


class RunLock:
    """The exclusive right to write a run, from construction to `release` or to the end of the process.

    POSIX record locks are not inherited by forked children, so a child that outlives its parent holds nothing. They do
    not keep two writers of one process apart, and closing any descriptor of the file releases them. So this process
    also remembers which locks it holds, and `is_held` acquires the lock again.

    On network file systems (NFS, SMB, a cluster's) the lock excludes other processes on the same host, provided the
    file system supports locks; if it does not, opening fails and the run has no telemetry. Locks need not reach other
    hosts. A holder on another host is therefore known by the content of the lock file and by the heartbeat in the
    manifest, which is written every 10 s. If the heartbeat is younger than a minute, it is watched for the rest of that
    minute, and the lock is refused at the first sign of life; if it is older, the holder is dead and its lock is
    taken over.

    Three cases are not covered: two hosts that start within the same second; a host whose clock is more than a minute
    behind; and a host that was cut off from the disk for more than a minute, which does not notice on its return that
    another host has taken over.

    The lock file is created if missing and never removed, so that two processes cannot lock two files of the same name.
    The manifest is by default the one beside it.

    Raise WriteError, which names the holder, if another process holds the lock, BlockingIOError if another collector of
    this process does, DamagedFileError if the lock file is a link, and OSError if it cannot be opened or locked.
    """

    def __init__(self, path: Path, manifest: Path | None = None) -> None:
        self._path = path
        self._holder = Holder(os.getpid(), platform.node(), utc_now().isoformat())
        self._descriptor, file = _open(path, os.O_RDWR | os.O_CREAT)
        self._file: tuple[int, int, int] | None = file
        try:
            _acquire(self._descriptor, fcntl.LOCK_EX, path, manifest or path.with_name("manifest.json"))
            _write_holder(self._descriptor, self._holder)
        except BaseException:
            _close(self._descriptor, file)
            raise

    def is_held(self) -> bool:
        """Whether this process still holds the run: its lock file was not moved, removed, replaced or taken over.

        If other code of this process closed the file, for instance by copying the run directory, the lock was released
        with it; it is acquired again here.
        """
        try:
            if _identity(self._path.stat()) != self._file:
                return False
        except OSError:
            return False  # missing, or on a disk that does not respond
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False  # another process acquired it in the meantime
        except OSError:
            return True  # a disk that does not respond says nothing about the lock
        return True

    def release(self) -> None:
        """Let another process write the run. Calling it again has no effect."""
        file, self._file = self._file, None
        if file is None or file not in _held:
            return
        with contextlib.suppress(OSError):  # if the disk is gone, so is the lock
            if _read_holder(self._descriptor) == self._holder:  # else another host took it over
                _write_holder(self._descriptor, None)
        _close(self._descriptor, file)


def check_unlocked(path: Path) -> None:
    """Raise as `RunLock` does if the run is being written. Nothing is changed, not even in the lock file."""
    if not path.exists():
        return
    descriptor, file = _open(path, os.O_RDONLY)
    try:
        _acquire(descriptor, fcntl.LOCK_SH, path, path.with_name("manifest.json"))
    finally:
        _close(descriptor, file)


def _open(path: Path, flags: int) -> tuple[int, tuple[int, int, int]]:
    """Open the lock file, unless this process has it open: closing a second descriptor would release the lock."""
    with _guard:
        if path.exists() and _identity(path.stat()) in _held:
            raise BlockingIOError(
                errno.EWOULDBLOCK,
                "another collector of this process still writes there. Close it first, or give this one an output "
                "directory of its own",
                str(path.parent),
            )
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            # The holder writes its name into the file: through a link it would overwrite another file.
            raise DamagedFileError(f"{path} is a link. Remove it; the next writer creates a lock file.") from error
        file = _identity(os.fstat(descriptor))
        _held.add(file)
    return descriptor, file


def _close(descriptor: int, file: tuple[int, int, int]) -> None:
    with _guard:
        if file in _held:
            _held.remove(file)
            with contextlib.suppress(OSError):  # if the disk is gone, so is the lock
                os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino


def _forget_locks_of_parent() -> None:
    """A forked child holds no lock; another thread of the parent may have held the guard during the fork."""
    global _guard  # noqa: PLW0603  # the inherited one may stay locked for ever
    _guard = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_forget_locks_of_parent)


def _acquire(descriptor: int, operation: int, path: Path, manifest: Path) -> None:
    """Acquire the lock, unless another process on this host or a live one on another host holds it."""
    try:
        fcntl.lockf(descriptor, operation | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise _refusal(path, _read_holder(descriptor)) from error
    holder = live_remote_holder(descriptor, manifest)
    if holder is not None:
        raise _refusal(path, holder)


def _refusal(path: Path, holder: "Holder | None") -> WriteError:
    name = f"pid {holder.pid} on host {holder.host}, since {holder.start}" if holder else "process unknown"
    return WriteError(
        f"{path.parent} is being written by another process ({name}). "
        "End that process, or give this run an output directory of its own."
    )


class Holder(NamedTuple):
    """The process that the lock file names."""

    pid: int
    host: str
    start: str


def live_remote_holder(descriptor: int, manifest: Path, *, wait: Callable[[float], None] = time.sleep) -> Holder | None:
    """Find a holder on another host that is alive; locks need not reach across hosts, files do.

    A holder whose last heartbeat is a minute old is dead. Until then it is watched, since the scheduler of a host that
    died may restart the run elsewhere within seconds: a heartbeat or a proper end shows that it was alive. It is
    watched for at most a minute, however far ahead its clock is.
    """
    holder = _read_holder(descriptor)
    if holder is None or holder.host == platform.node():
        return None  # on this host the lock itself decides
    heartbeat = _heartbeat(manifest, holder)
    left_s = min(REMOTE_GONE_AFTER_S, REMOTE_GONE_AFTER_S - (utc_now() - heartbeat).total_seconds())
    if left_s > 0:
        logger.warning(
            "%s may still be written by pid %d on host %s: waiting at most %.0f s for a sign of life.",
            manifest.parent,
            holder.pid,
            holder.host,
            left_s,
        )
    for _ in range(math.ceil(left_s / _POLL_S)):
        wait(_POLL_S)
        if _read_holder(descriptor) != holder or _heartbeat(manifest, holder) != heartbeat:
            return holder
    return None


def _read_holder(descriptor: int) -> Holder | None:
    """The process that the lock file names; None if it was released or its content is invalid."""
    try:
        found: Any = json.loads(os.pread(descriptor, _MAX_BYTES, 0))
        return Holder(int(found["pid"]), str(found["host"]), str(found["start"]))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def _write_holder(descriptor: int, holder: Holder | None) -> None:
    os.ftruncate(descriptor, 0)
    if holder is not None:
        os.pwrite(descriptor, json.dumps(holder._asdict()).encode(), 0)


def _heartbeat(manifest: Path, holder: Holder) -> datetime:
    """The holder's last sign of life: its start, or the later heartbeat in the manifest."""
    try:
        start = datetime.fromisoformat(holder.start)
    except ValueError:
        start = _NEVER  # not a time: the manifest decides
    start = start if start.tzinfo else start.replace(tzinfo=UTC)
    try:
        return max(start, read_manifest(manifest).heartbeat_utc)
    except (OSError, RunError):
        return start  # the manifest is missing or cannot be read
