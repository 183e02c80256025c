"""Which code ran: its commit and the versions of its libraries."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_REAP_S = 5.0
_MAX_ANSWER_BYTES = 4096  # less than a pipe holds, so that git never waits for its reader


def ask_git(folder: Path, *words: str, timeout_s: float = 5.0) -> str | None:
    """One line from git about the checkout that a folder lies in.

    Another thread may fork meanwhile, as a DataLoader does. So git is spawned rather than forked; its answer is what
    lies in the pipe once it has ended, since a forked child holds the pipe open for as long as it lives; and no lock of
    the process is taken, such as the one of `tempfile`, that the child would find held for ever.

    Returns:
        None where there is no git, no checkout, or no answer in time.
    """
    git = shutil.which("git")
    if git is None:
        return None
    try:
        return _answer([git, "-C", str(folder), *words], timeout_s)
    except OSError:
        return None  # git cannot be started


def _answer(command: Sequence[str], timeout_s: float) -> str | None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as answer:  # noqa: PTH123  # a descriptor has no path
        try:
            asked = subprocess.Popen(  # noqa: S603  # the user's own git, fixed words and a folder
                command,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=subprocess.DEVNULL,
                close_fds=False,  # lets Python spawn; its own descriptors are not inherited either way
            )
        finally:
            os.close(writing)
        if _status(asked, timeout_s) != 0:
            return None
        os.set_blocking(reading, False)
        return (answer.read(_MAX_ANSWER_BYTES) or b"").decode(errors="replace").strip() or None


def _status(asked: "subprocess.Popen[bytes]", timeout_s: float) -> int | None:
    """How it ended; None where it had to be killed."""
    try:
        return asked.wait(timeout_s)
    except subprocess.TimeoutExpired:
        asked.kill()
        with suppress(subprocess.TimeoutExpired):  # a dead file system holds it: it is left behind
            asked.wait(_REAP_S)
        return None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of Python, and of those of these distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
