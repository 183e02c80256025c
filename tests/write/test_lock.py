"""One writer a run directory."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ava_pipeline.errors import WriteError
from ava_pipeline.write.lock import RunLock

pytestmark = pytest.mark.timeout(30)

HOLD = """
import sys
from pathlib import Path
from ava_pipeline.write.lock import RunLock

lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock until it is told to end."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_by_name_of_the_first(tmp_path: Path) -> None:
    """The message says who holds it: pid, host and start."""
    path = tmp_path / "writer.lock"
    with held_elsewhere(path) as holder:
        with pytest.raises(WriteError, match=rf'"pid": {holder.pid}.*"host".*"start".*output directory'):
            RunLock(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        RunLock(path).release()


def test_refusals_leak_no_descriptor(tmp_path: Path) -> None:
    """Asking again and again costs nothing."""
    path = tmp_path / "writer.lock"
    with held_elsewhere(path):
        before = os.dup(0)
        os.close(before)
        for _ in range(20):
            with pytest.raises(WriteError):
                RunLock(path)
        after = os.dup(0)
        os.close(after)
    assert after == before


def test_two_writers_of_one_process_are_kept_apart(tmp_path: Path) -> None:
    """A second collector in a notebook neither shares the lock nor lets go of the first one's."""
    path = tmp_path / "writer.lock"
    first = RunLock(path)
    with pytest.raises(BlockingIOError, match="another collector of this process"):
        RunLock(path)
    ask = f"from pathlib import Path; from ava_pipeline.write.lock import RunLock; RunLock(Path({str(path)!r}))"
    other = subprocess.run([sys.executable, "-c", ask], check=False, capture_output=True, text=True, timeout=25)
    assert re.search(rf'WriteError.*"pid": {os.getpid()}', other.stderr)
    first.release()
    first.release()
    RunLock(path).release()


def test_a_lock_file_that_is_no_longer_in_place_is_noticed(tmp_path: Path) -> None:
    """A run directory that was moved away, or replaced, is not the one that is locked."""
    folder = tmp_path / "run"
    folder.mkdir()
    lock = RunLock(folder / "writer.lock")
    assert lock.is_in_place()
    folder.rename(tmp_path / "moved")
    assert not lock.is_in_place()
    folder.mkdir()
    second = RunLock(folder / "writer.lock")
    assert not lock.is_in_place()
    assert second.is_in_place()
    lock.release()
    second.release()
