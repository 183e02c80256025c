"""Who holds a run directory, and whether a holder on another host still lives."""

import contextlib
import errno
import fcntl
import json
import logging
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


_guard = threading.Lock()  # of what is held, never while anything is waited for
_held: set[tuple[int, int, int]] = set()  # or asked for by this process: pid (a forked child has none), device, inode


class RunLock:
    """Held from construction to `release`, or until the process ends in whatever way.

    POSIX record locks are not inherited by forked children, so a child that lives on holds nothing. They do not keep
    two writers of one process apart, and closing any descriptor of the file lets go of them; so this process also
    remembers what it holds, and takes the lock again whenever it is asked whether it `is_held`.

    What is promised on network file systems (NFS, SMB, a cluster's): one writer among the processes of a host, as
    anywhere, where the file system knows locks; where it knows none, opening fails and the run goes without telemetry.
    Its locks need not reach other hosts. So a holder on another host is known by the lock file's content, and by the
    heartbeat in the manifest, which is written every 10 s: one whose heartbeat is younger than a minute is watched
    until the minute is over, and refused at the first sign of life; an older one is dead, and its lock is taken over.
    Not promised: that two hosts which begin within the same second are kept apart, or that one is seen whose clock is
    more than a minute behind; and that a host which was cut off from the disk for more than a minute notices, when it
    comes back, that another one has taken over.

    Args:
        path: the lock file; made if need be, never removed, so that two processes cannot lock two files of one name.
        manifest: whose heartbeat shows that a holder on another host lives; left out, that of the lock's folder.

    Raises:
        WriteError: another process holds it; the message names it.
        BlockingIOError: another collector of this process holds it.
        DamagedFileError: the lock file is a link.
        OSError: the file cannot be opened, or its file system knows no locks.
    """

    def __init__(self, path: Path, manifest: Path | None = None) -> None:
        self._path = path
        self._holder = this_process()
        self._descriptor, file = _claim(path, os.O_RDWR | os.O_CREAT)
        self._file: tuple[int, int, int] | None = file
        try:
            _ask(self._descriptor, fcntl.LOCK_EX, path, manifest or path.with_name("manifest.json"))
            write_holder(self._descriptor, self._holder)
        except BaseException:
            _let_go(self._descriptor, file)
            raise

    def is_held(self) -> bool:
        """Whether the run is still this process's: its lock file was not moved, removed, replaced or taken over.

        Whatever else of this process closed the file, a copy of the run directory say, let go of the lock: it is
        taken again.
        """
        try:
            is_in_place = _identity(self._path.stat()) == self._file
        except OSError:
            return False  # not there, or on a disk that does not answer
        return is_in_place and _is_ours(self._descriptor)

    def release(self) -> None:
        """Let another process write. Releasing twice is releasing once."""
        file, self._file = self._file, None
        if file is None or file not in _held:
            return
        with contextlib.suppress(OSError):  # the file is on a disk that is gone: so is the lock
            if read_holder(self._descriptor) == self._holder:  # nobody took it over
                write_holder(self._descriptor, None)
        _let_go(self._descriptor, file)


def check_unlocked(path: Path) -> None:
    """Refuse a run that somebody writes, and change nothing, not even in the lock file.

    Args:
        path: the lock file; where there is none, nobody writes.

    Raises:
        WriteError: another process holds it; the message names it.
        BlockingIOError: a collector of this process holds it.
        OSError: the file cannot be opened, or its file system knows no locks.
    """
    if not path.exists():
        return
    descriptor, file = _claim(path, os.O_RDONLY)
    try:
        _ask(descriptor, fcntl.LOCK_SH, path, path.with_name("manifest.json"))
    finally:
        _let_go(descriptor, file)


def _claim(path: Path, flags: int) -> tuple[int, tuple[int, int, int]]:
    """Open the lock file, unless this process has it open: closing a second descriptor would let go of the lock."""
    with _guard:
        _refuse_second(path)
        descriptor = _opened(path, flags)
        file = _identity(os.fstat(descriptor))
        _held.add(file)
    return descriptor, file


def _opened(path: Path, flags: int) -> int:
    """Never by way of a link, since whoever holds the lock writes over what is there."""
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise DamagedFileError(f"{path} is a link. Remove it: a lock file is made where there is none.") from error


def _let_go(descriptor: int, file: tuple[int, int, int]) -> None:
    """Closing the file lets go of the lock; twice is once."""
    with _guard:
        if file in _held:
            _held.remove(file)
            with contextlib.suppress(OSError):  # the disk is gone: so is the lock
                os.close(descriptor)


def _forget_parents() -> None:
    """In a forked child, which holds nothing: another thread of the parent may have been at the guard."""
    global _guard  # noqa: PLW0603  # the parent's lock may be left held for ever
    _guard = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_forget_parents)


def _is_ours(descriptor: int) -> bool:
    """Take the lock again; False where another process took it meanwhile."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a disk that does not answer says nothing of the lock
    return True


def _ask(descriptor: int, kind: int, path: Path, manifest: Path) -> None:
    """Take the lock, unless another process or a living one on another host holds it."""
    try:
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise _refusal(path, read_holder(descriptor)) from error
    elsewhere = lives_elsewhere(descriptor, manifest)
    if elsewhere is not None:
        raise _refusal(path, elsewhere)


def _refusal(path: Path, holder: Holder | None) -> WriteError:
    named = f"pid {holder.pid} on host {holder.host}, since {holder.start}" if holder else "which one is not known"
    return WriteError(
        f"{path.parent} is being written by another process ({named}). "
        "End that one, or give this run an output directory of its own."
    )


def _refuse_second(path: Path) -> None:
    if path.exists() and _identity(path.stat()) in _held:
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            "another collector of this process still writes there. Close it first, or give this one an output "
            "directory of its own",
            str(path.parent),
        )


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino
