"""Which code ran: its git commit, and the versions of its libraries."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_KILL_TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 4096  # less than a pipe holds, so that git never waits for a reader


def ask_git(folder: Path, *words: str, timeout_s: float = 5.0) -> str | None:
    """Run git in a checkout and return the line it prints; None without git or a checkout, or if git is too slow.

    Another thread may fork meanwhile, as a DataLoader does. Therefore git is spawned rather than forked. Its answer is
    read after it has ended, without waiting for the end of the pipe, which a forked child keeps open for as long as it
    lives. No lock of this process is taken either, such as that of `tempfile`: a forked child would find it locked
    forever.
    """
    git = shutil.which("git")
    if git is None:
        return None
    try:
        return _answer([git, "-C", str(folder), *words], timeout_s)
    except OSError:
        return None  # git cannot be started


def _answer(command: Sequence[str], timeout_s: float) -> str | None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb", buffering=0) as answer:  # noqa: PTH123  # a descriptor has no path
        try:
            process = subprocess.Popen(  # noqa: S603  # the user's own git, fixed words and a folder
                command,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=subprocess.DEVNULL,
                close_fds=False,  # lets Python spawn; Python's own descriptors are not inherited in either case
            )
        finally:
            os.close(write_end)
        if _exit_status(process, timeout_s) != 0:
            return None
        os.set_blocking(read_end, False)
        return (answer.read(_MAX_ANSWER_BYTES) or b"").decode(errors="replace").strip() or None


def _exit_status(process: "subprocess.Popen[bytes]", timeout_s: float) -> int | None:
    """Wait for the process; return None if it had to be killed."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # it hangs in a dead file system and is abandoned
            process.wait(_KILL_TIMEOUT_S)
        return None


def versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of those distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
