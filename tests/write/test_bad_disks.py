"""Disks that refuse once or for a while: lost rows are reported, the others are written, memory stays bounded."""

import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.errors import ChannelClosedError
from ava_pipeline.write.channel import TelemetryStats
from tests.scripts import run_script
from tests.write.feeding import Room, csv_batches, event_rows, parquet_batches, step

pytestmark = pytest.mark.timeout(90)

SOON_S = 25.0

NO_ROOM = """
import gc, resource, sys, tracemalloc
from pathlib import Path
from ava_pipeline.errors import ChannelClosedError
from ava_pipeline.write.channel import TelemetryStats
from tests.write.feeding import Room, csv_batches, event_rows, parquet_batches, step

room = Room(Path(sys.argv[1]), flush_interval_s=0.001)
room.worker.start()

def feed(first, last):
    for batch in range(first, last):
        room.offer(step(batch))
        if batch % 64 == 0:
            assert room.channel.flush(30)
    assert room.channel.flush(30)

feed(1, 2)
_, unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (8, unlimited))
feed(2, 1000)
gc.collect()
tracemalloc.start()
feed(1000, 5000)
gc.collect()
num_bytes, _ = tracemalloc.get_traced_memory()
tracemalloc.stop()
assert num_bytes < 100_000, num_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
feed(5000, 5003)
stats = room.worker.close(30, "finished")
assert stats == TelemetryStats(collected=5002, written=4, failed=4998), stats
assert csv_batches(room.root) == parquet_batches(room.root) == [1, 5000, 5001, 5002]
events = [(row["column"], row["batch_idx"], row["batch_idx_end"], row["value"])
        for row in event_rows(room.root, "failed_write")]
assert events == [(name, 2, 4999, 4998) for name in ("norms.csv", "norms.parquet")], events
"""


def test_a_full_disk_for_thousands_of_rows_fills_no_memory(tmp_path: Path) -> None:
    """Rows are counted; one event and one warning per file name them, and 4,000 rows leave nothing in memory."""
    warnings = run_script(NO_ROOM, tmp_path).stderr.splitlines()
    named = [line.partition("run: ")[2] or line for line in warnings]
    assert len(named) == 3, named
    for name in ("norms.csv", "norms.parquet", "events.csv"):
        assert len([line for line in named if name in line]) == 1


READ_ONLY = """
import os, sys
from pathlib import Path
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.errors import ChannelClosedError
from ava_pipeline.write.channel import TelemetryStats
from tests.write.feeding import Room, csv_batches, parquet_batches, step

root = Path(sys.argv[1])
whole = Room(root / "whole")  # imports everything while it still can read root's Python
whole.write([1])
whole.close()
if os.geteuid() == 0:  # root ignores permissions
    os.chown(root, 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
room = Room(root / "run", flush_interval_s=0.001)

def offer(batches):
    for batch in batches:
        room.offer(step(batch))
    assert room.channel.flush(30)

root.chmod(0o555)
room.worker.start()
offer([1, 2])
assert room.channel.stats() == TelemetryStats(collected=2, failed=2)
root.chmod(0o755)
offer([3, 4])
room.layout.telemetry.chmod(0o555)
offer(range(5, 21))
stats = room.worker.close(30, "finished")
assert stats == TelemetryStats(collected=20, written=18, failed=2), stats
assert csv_batches(room.root) == parquet_batches(room.root) == list(range(3, 21))
assert room.layout.journal("norms").exists()
room.layout.telemetry.chmod(0o755)
again = Room(room.root, resumed_from=20)
again.write([21])
again.close()
assert csv_batches(room.root) == parquet_batches(room.root) == list(range(3, 22))
assert not room.layout.journal("norms").exists()
attempts = read_manifest(room.layout.manifest).attempts
assert [(one.status, one.rows["norms.parquet"]) for one in attempts] == [("killed", 18), ("finished", 1)], attempts
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose owner can be changed, unlike that of pytest's `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="ava-pipeline-") as folder:
        yield Path(folder)


def test_a_directory_that_turns_read_only_costs_nothing_that_was_open(open_folder: Path) -> None:
    """Without root's privileges: rows go into the open files, and stay in the journal until files can be created.

    The Parquet file and the final manifest need new files: each failure is logged once.
    """
    warnings = run_script(READ_ONLY, open_folder).stderr.splitlines()
    assert len([line for line in warnings if "norms.parquet could not be finished" in line]) == 1
    assert len([line for line in warnings if "manifest.json could not be written" in line]) == 1
    assert len([line for line in warnings if "collected step" in line]) == 1
    assert len(warnings) == 3, warnings


@pytest.mark.parametrize(("broken_call", "file"), [(1, "norms.csv"), (2, "norms.parquet")])
def test_an_error_that_comes_once_is_one_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_call: int, file: str
) -> None:
    """In the middle of a write: an event has the batches, their number and the cause; later rows are complete."""
    room = Room(tmp_path)
    room.worker.start()
    room.offer(step(1))
    assert room.channel.flush(SOON_S)
    pwrite, num_calls = os.pwrite, 0

    def break_once(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls == broken_call:
            pwrite(descriptor, data[: len(data) // 2], offset)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pwrite(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", break_once)
        for batch in (2, 3, 4):
            room.offer(step(batch))
            assert room.channel.flush(SOON_S)
    assert room.worker.close(SOON_S, "finished") == TelemetryStats(collected=4, written=3, failed=1)
    batches = {"norms.csv": csv_batches(tmp_path), "norms.parquet": parquet_batches(tmp_path)}
    assert batches.pop(file) == [1, 3, 4]
    assert list(batches.values()) == [[1, 2, 3, 4]]
    (event,) = event_rows(tmp_path, "failed_write")
    assert (event["batch_idx"], event["batch_idx_end"], event["value"], event["column"]) == (2, 2, 1, file)
    assert os.strerror(errno.EIO) in str(event["message"])
    counters = read_manifest(room.layout.manifest).attempt.counters
    assert counters.model_dump() == {"collected": 4, "written": 3, "dropped": 0, "failed": 1, "pending": 0}


def test_half_a_write_that_could_not_be_cut_is_overwritten_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses both and leaves part of a row; the end of that part must not stay behind a shorter row."""
    room = Room(tmp_path)
    room.write([1])
    pwrite = os.pwrite

    def write_half(descriptor: int, data: memoryview, offset: int) -> int:
        pwrite(descriptor, data[:-1], offset)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write_half)
        patch.setattr(os, "ftruncate", refuse)
        assert room.files.write([step(batch, 0.1234567, 0.1234567) for batch in range(2, 9)]) == 7
    assert room.files.write([step(9)]) == 0
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 9]
    room.close()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 9]


def test_a_system_that_refuses_a_thread_costs_telemetry_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For instance at a limit of processes per user: logged once, counted, and neither flush nor close waits."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    room = Room(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        room.worker.start()
    for batch in (1, 2):
        with pytest.raises(ChannelClosedError):
            room.offer(step(batch))
    assert room.channel.flush(SOON_S)
    assert room.worker.close(SOON_S, "finished") == TelemetryStats(collected=2, dropped=2)
    assert len(caplog.messages) == 1
    assert "can't start new thread" in caplog.text
