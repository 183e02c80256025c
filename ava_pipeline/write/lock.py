"""One writer a run directory."""

import contextlib
import errno
import fcntl
import os
import threading
from pathlib import Path

from ava_pipeline.errors import WriteError
from ava_pipeline.write.holder import Holder, lives_elsewhere, read_holder, this_process, write_holder

_guard = threading.Lock()
_held: set[tuple[int, int, int]] = set()  # by this process: pid (a forked child holds none), device and inode


class RunLock:
    """Held from construction to `release`, or until the process ends in whatever way.

    POSIX record locks are not inherited by forked children, so a child that lives on holds nothing. They do not keep
    two writers of one process apart, and closing any descriptor of the file lets go of them; so this process also
    remembers what it holds.

    What is promised on network file systems (NFS, SMB, a cluster's): one writer among the processes of a host, as
    anywhere, where the file system knows locks; where it knows none, opening fails and the run goes without telemetry.
    Its locks need not reach other hosts. So a holder on another host is known by the lock file's content, and by the
    heartbeat in the manifest, which is written every 10 s: one whose heartbeat is younger than a minute is watched
    until the minute is over, and refused at the first sign of life; an older one is dead, and its lock is taken over.
    Not promised: that two hosts which begin within the same second are kept apart, or two whose clocks are more than
    a minute apart; and that a host which was cut off from the disk for more than a minute notices, when it comes
    back, that another one has taken over.

    Args:
        path: the lock file; made if need be, never removed, so that two processes cannot lock two files of one name.
        manifest: whose heartbeat shows that a holder on another host lives; left out, that of the lock's folder.

    Raises:
        WriteError: another process holds it; the message names it.
        BlockingIOError: another collector of this process holds it.
        OSError: the file cannot be opened, or its file system knows no locks.
    """

    def __init__(self, path: Path, manifest: Path | None = None) -> None:
        self._path = path
        self._manifest = manifest or path.with_name("manifest.json")
        self._file: tuple[int, int, int] | None = None
        with _guard:
            _refuse_second(path)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                self._take()
            except BaseException:
                os.close(self._descriptor)
                raise
            self._file = _identity(os.fstat(self._descriptor))
            _held.add(self._file)

    def is_in_place(self) -> bool:
        """Whether the run directory still holds this lock file: it was not moved, removed or replaced."""
        try:
            return _identity(self._path.stat()) == self._file
        except OSError:
            return False  # not there, or on a disk that does not answer

    def release(self) -> None:
        """Let another process write. Releasing twice is releasing once."""
        with _guard:
            if self._file is not None and self._file in _held:
                _held.remove(self._file)
                self._file = None
                with contextlib.suppress(OSError):  # the file is on a disk that is gone: so is the lock
                    write_holder(self._descriptor, None)
                with contextlib.suppress(OSError):
                    os.close(self._descriptor)

    def _take(self) -> None:
        _ask(self._descriptor, fcntl.LOCK_EX, self._path, self._manifest)
        write_holder(self._descriptor, this_process())


def check_unlocked(path: Path) -> None:
    """Refuse a run that somebody writes, and change nothing, not even in the lock file.

    Args:
        path: the lock file; where there is none, nobody writes.

    Raises:
        WriteError: another process holds it; the message names it.
        BlockingIOError: a collector of this process holds it.
        OSError: the file cannot be opened, or its file system knows no locks.
    """
    with _guard:
        _refuse_second(path)
        if not path.exists():
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _ask(descriptor, fcntl.LOCK_SH, path, path.with_name("manifest.json"))
        finally:
            os.close(descriptor)  # which lets go of it


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
    """Look before opening: closing a second descriptor would let go of the first one's lock."""
    if path.exists() and _identity(path.stat()) in _held:
        raise BlockingIOError(
            errno.EWOULDBLOCK,
            "another collector of this process still writes there. Close it first, or give this one an output "
            "directory of its own",
            str(path.parent),
        )


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return os.getpid(), status.st_dev, status.st_ino
