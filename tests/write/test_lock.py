"""One writer per run directory."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from ava_pipeline.contract.manifest import Manifest, utc_now, write_manifest
from ava_pipeline.errors import DamagedFileError, WriteError
from ava_pipeline.write.lock import RunLock, check_unlocked, live_remote_holder

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
    """Another process that holds the lock until the block ends."""
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
    """The message names the holder: pid, host and start."""
    path = tmp_path / "writer.lock"
    with held_elsewhere(path) as holder:
        with pytest.raises(
            WriteError,
            match=rf"pid {holder.pid} on host {re.escape(platform.node())}, since 2\d{{3}}-.*output directory",
        ):
            RunLock(path)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        RunLock(path).release()


def test_refusals_leak_no_descriptor(tmp_path: Path) -> None:
    """Repeated attempts leave no open file."""
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
    """A second collector in a notebook neither shares the first one's lock nor releases it."""
    path = tmp_path / "writer.lock"
    first = RunLock(path)
    with pytest.raises(BlockingIOError, match="another collector of this process"):
        RunLock(path)
    ask = f"from pathlib import Path; from ava_pipeline.write.lock import RunLock; RunLock(Path({str(path)!r}))"
    other = subprocess.run([sys.executable, "-c", ask], check=False, capture_output=True, text=True, timeout=25)
    assert re.search(rf"WriteError.*pid {os.getpid()} on host", other.stderr)
    first.release()
    first.release()
    RunLock(path).release()


def test_a_lock_file_that_is_no_longer_in_place_is_noticed(tmp_path: Path) -> None:
    """A run directory that was moved away, or replaced, is not the one that is locked."""
    folder = tmp_path / "run"
    folder.mkdir()
    lock = RunLock(folder / "writer.lock")
    assert lock.is_held()
    folder.rename(tmp_path / "moved")
    assert not lock.is_held()
    folder.mkdir()
    second = RunLock(folder / "writer.lock")
    assert not lock.is_held()
    assert second.is_held()
    lock.release()
    second.release()


def test_a_child_forked_while_a_lock_is_taken_can_take_one(tmp_path: Path) -> None:
    """It inherits no lock that is never released."""
    fork = """
import os, signal, sys
from pathlib import Path
from ava_pipeline.write import lock

with lock._guard:
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        lock.RunLock(Path(sys.argv[1])).release()
        os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""
    subprocess.run([sys.executable, "-c", fork, str(tmp_path / "writer.lock")], check=True, timeout=25)


FORK_AND_HOLD = """
import os, sys
from pathlib import Path
from ava_pipeline.write.lock import RunLock

lock = RunLock(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_dead_process_is_free_while_a_forked_child_of_it_lives(tmp_path: Path) -> None:
    """A DataLoader worker that outlives its parent holds no lock, and its exit releases none."""
    path = tmp_path / "writer.lock"
    with subprocess.Popen(
        [sys.executable, "-c", FORK_AND_HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.kill(child, 0)
        lock = RunLock(path)
        os.kill(child, signal.SIGKILL)
    ask = f"from pathlib import Path; from ava_pipeline.write.lock import RunLock; RunLock(Path({str(path)!r}))"
    other = subprocess.run([sys.executable, "-c", ask], check=False, capture_output=True, text=True, timeout=25)
    assert f"pid {os.getpid()} on host" in other.stderr
    lock.release()


@pytest.mark.parametrize(
    "content", [b"", b"[" * 4096, b'{"pid": 1e999, "host": "a", "start": "b"}', b'{"pid": [], "host": 1}', b"\xff"]
)
def test_a_lock_file_with_foreign_content_names_no_holder(content: bytes, tmp_path: Path) -> None:
    """This process acquires the lock, as with an empty file."""
    path = tmp_path / "writer.lock"
    path.write_bytes(content)
    RunLock(path).release()


def left_by_another_host(folder: Path, *, age_s: float) -> None:
    """A run whose writer, on another host, gave its last sign of life `age_s` ago."""
    then = utc_now() - timedelta(seconds=age_s)
    (folder / "writer.lock").write_text(json.dumps({"pid": 7, "host": "elsewhere", "start": then.isoformat()}))
    write_manifest(folder / "manifest.json", Manifest(heartbeat_utc=then, tables={}))


def test_another_hosts_lock_is_taken_over_when_its_heartbeat_is_a_minute_old(tmp_path: Path) -> None:
    """Its host died, and its lock does not reach this host."""
    left_by_another_host(tmp_path, age_s=61)
    lock = RunLock(tmp_path / "writer.lock")
    assert json.loads((tmp_path / "writer.lock").read_text())["host"] == platform.node()
    lock.release()


@pytest.mark.parametrize("sign", ["heartbeat", "end"])
def test_a_writer_on_another_host_that_shows_a_sign_of_life_is_named(
    sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heartbeat or a proper end in the meantime: it is alive, and its rows are not superseded."""
    left_by_another_host(tmp_path, age_s=5)

    def show(_seconds: float) -> None:
        if sign == "heartbeat":
            write_manifest(tmp_path / "manifest.json", Manifest(heartbeat_utc=utc_now(), tables={}))
        else:
            (tmp_path / "writer.lock").write_text("")

    monkeypatch.setattr("ava_pipeline.write.lock.live_remote_holder", partial(live_remote_holder, wait=show))
    with pytest.raises(WriteError, match="pid 7 on host elsewhere, since"):
        RunLock(tmp_path / "writer.lock")


@pytest.mark.parametrize(("age_s", "left_s"), [(50, 10), (-86_400, 60)], ids=["seconds ago", "a clock a day ahead"])
def test_a_writer_on_another_host_without_a_sign_of_life_is_watched_until_the_minute_is_over(
    age_s: float, left_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that a scheduler restarts within seconds of its host's death keeps its telemetry.

    One warning says so, and a clock that is ahead does not prolong the wait.
    """
    left_by_another_host(tmp_path, age_s=age_s)
    waited = [0.0]

    def pass_by(seconds: float) -> None:
        waited[0] += seconds

    monkeypatch.setattr("ava_pipeline.write.lock.live_remote_holder", partial(live_remote_holder, wait=pass_by))
    RunLock(tmp_path / "writer.lock").release()
    assert waited[0] == pytest.approx(left_s, abs=1)
    (message,) = caplog.messages
    assert f"{tmp_path} may still be written by pid 7 on host elsewhere" in message
    assert (tmp_path / "writer.lock").read_text() == ""


def test_waiting_for_another_host_delays_no_other_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile a second collector of the process can lock another directory, and is refused this one."""
    other = tmp_path / "other"
    other.mkdir()
    left_by_another_host(tmp_path, age_s=50)
    were_held_up = []

    def look(_seconds: float) -> None:
        with pytest.raises(BlockingIOError, match="another collector"):
            RunLock(tmp_path / "writer.lock")
        second = threading.Thread(target=lambda: RunLock(other / "writer.lock").release(), daemon=True)
        second.start()
        second.join(5)
        were_held_up.append(second.is_alive())
        (tmp_path / "writer.lock").write_text("")

    monkeypatch.setattr("ava_pipeline.write.lock.live_remote_holder", partial(live_remote_holder, wait=look))
    with pytest.raises(WriteError, match="on host elsewhere"):
        RunLock(tmp_path / "writer.lock")
    assert were_held_up == [False]


def test_a_lock_file_that_is_a_link_is_refused_and_its_target_is_kept(tmp_path: Path) -> None:
    """The holder overwrites the content of the lock file with its name."""
    (tmp_path / "events.csv").write_text("rows")
    (tmp_path / "writer.lock").symlink_to("events.csv")
    for ask in (RunLock, check_unlocked):
        with pytest.raises(DamagedFileError, match="is a link"):
            ask(tmp_path / "writer.lock")
    assert (tmp_path / "events.csv").read_text() == "rows"
