"""One writer a run directory."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import threading
from pathlib import Path

from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.errors import WriteError

_guard = threading.Lock()
_held: set[tuple[int, int, int]] = set()  # by this process: pid (a forked child holds none), device and inode


class RunLock:
    """Held from construction to `release`, or until the process ends in whatever way.

    POSIX record locks are not inherited by forked children, so a child that lives on holds nothing. They do not keep
    two writers of one process apart, and closing any descriptor of the file lets go of them; so this process also
    remembers what it holds.

    Args:
        path: the lock file; made if need be, never removed, so that two processes cannot lock two files of one name.

    Raises:
        WriteError: another process holds it; the message names it.
        BlockingIOError: another collector of this process holds it.
        OSError: the file cannot be opened, or its file system knows no locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
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
                    os.close(self._descriptor)

    def _take(self) -> None:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.pread(self._descriptor, 4096, 0).decode(errors="replace").strip() or "unknown"
            raise WriteError(
                f"{self._path.parent} is being written by another process ({holder}). "
                "Give this run an output directory of its own."
            ) from error
        holder = json.dumps({"pid": os.getpid(), "host": platform.node(), "start": utc_now().isoformat()})
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, holder.encode(), 0)


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
