"""One writer a run directory."""

import contextlib
import fcntl
import json
import os
import platform
from pathlib import Path

from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.errors import WriteError


class RunLock:
    """Held from construction to `release`, or until the process ends in whatever way.

    POSIX record locks are not inherited by forked children, so a child that lives on holds nothing.

    Args:
        path: the lock file; made if need be, never removed, so that two processes cannot lock two files of one name.

    Raises:
        WriteError: another process holds it; the message names it.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise WriteError(
                f"{path.parent} is being written by another process ({holder}). "
                "Give this run an output directory of its own."
            ) from error
        self._descriptor = descriptor
        holder = json.dumps({"pid": os.getpid(), "host": platform.node(), "start": utc_now().isoformat()})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)

    def release(self) -> None:
        """Let another process write. Releasing twice is releasing once."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # the file is on a disk that is gone: so is the lock
                os.close(self._descriptor)
            self._descriptor = -1
