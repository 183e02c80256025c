"""Which code ran: its commit and the versions of its libraries."""

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

_REAP_S = 5.0


def ask_git(folder: Path, *words: str, timeout_s: float = 5.0) -> str | None:
    """One line from git about the checkout that a folder lies in.

    The answer comes through a file, and the child is spawned rather than forked: a process that another thread forks
    meanwhile, a DataLoader worker say, would hold a pipe open for as long as it lives, and reading it would not end.

    Returns:
        None where there is no git, no checkout, or no answer in time.
    """
    git = shutil.which("git")
    if git is None:
        return None
    try:
        with tempfile.TemporaryFile() as answer:
            return _answer([git, "-C", str(folder), *words], answer, timeout_s)
    except OSError:
        return None  # no room for the answer, or git cannot be started


def _answer(command: Sequence[str], file: IO[bytes], timeout_s: float) -> str | None:
    asked = subprocess.Popen(  # noqa: S603  # the user's own git, fixed words and a folder
        command,
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.DEVNULL,
        close_fds=False,  # lets Python spawn; its own descriptors are not inherited either way
    )
    try:
        asked.wait(timeout_s)
    except subprocess.TimeoutExpired:
        asked.kill()
        with suppress(subprocess.TimeoutExpired):  # a dead file system holds it: it is left behind
            asked.wait(_REAP_S)
        return None
    file.seek(0)
    return file.read().decode(errors="replace").strip() or None


def versions(names: Iterable[str]) -> dict[str, str]:
    """Of Python, and of those of these distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
