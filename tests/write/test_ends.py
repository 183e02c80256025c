"""Processes that end normally without close, by an exception, by sys.exit or by SIGKILL."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.contract.parquet import read_parquet
from tests.scripts import run_script, with_deadline
from tests.write.feeding import Room, csv_batches, csv_rows, event_rows, parquet_batches

pytestmark = pytest.mark.timeout(120)

ENDING = """
import sys
from pathlib import Path
from tests.write.feeding import Room, step

room = Room(Path(sys.argv[1]), flush_interval_s=1e6)
room.worker.start()
for batch in range(1, 31):
    room.offer(step(batch))
"""


@pytest.mark.parametrize(
    ("ending", "status", "error", "code"),
    [
        ("", "finished", None, 0),
        ("raise ValueError('a bug in the loop')", "failed", "ValueError", 1),
        ("raise KeyboardInterrupt", "interrupted", "KeyboardInterrupt", -signal.SIGINT),
        ("sys.exit(0)", "finished", None, 0),
        ("sys.exit(3)", "failed", "SystemExit", 3),
        ("sys.exit('no data')", "failed", "SystemExit", 1),
    ],
    ids=["normal", "exception", "ctrl-c", "sys.exit(0)", "sys.exit(3)", "sys.exit(text)"],
)
def test_a_process_without_close_writes_every_row(
    ending: str, status: str, error: str | None, code: int, tmp_path: Path
) -> None:
    """The interpreter's exit waits for the rows, and the manifest records how the run ended."""
    run_script(ENDING + ending, tmp_path, code=code)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == list(range(1, 31))
    layout = RunLayout(tmp_path)
    assert not layout.journal("norms").exists()
    manifest = read_manifest(layout.manifest)
    assert (manifest.status, manifest.attempt.error) == (status, error)
    assert manifest.attempt.counters.written == 30


CELL = """
import code
code.InteractiveInterpreter().runsource("1/0")
"""


@pytest.mark.parametrize(
    ("script", "status", "error"),
    [(CELL + ENDING, "finished", None), (CELL + ENDING + CELL, "failed", "ZeroDivisionError")],
    ids=["before", "since"],
)
def test_an_error_in_a_notebook_counts_only_if_it_came_after_the_run_began(
    script: str, status: str, error: str | None, tmp_path: Path
) -> None:
    """An error in an earlier cell does not count."""
    run_script(script, tmp_path)
    manifest = read_manifest(RunLayout(tmp_path).manifest)
    assert (manifest.status, manifest.attempt.error) == (status, error)


LATE = """
import atexit, threading
from ava_pipeline.errors import ChannelClosedError, ChannelFullError

def feed():
    for batch in range(31, 10**9):
        try:
            room.offer(step(batch))
        except ChannelFullError:
            pass
        except ChannelClosedError:
            assert room.channel.flush(20)
            ended.set()
            return

def step_on():
    ended.wait(20)
    try:
        room.offer(step(10**9))
    except ChannelClosedError:
        room.worker.close(20, "finished")
        print("refused")

ended = threading.Event()
atexit.unregister(room.worker._close_at_exit)
atexit.register(step_on)  # so that it is called behind telemetry's own
atexit.register(room.worker._close_at_exit)
threading.Thread(target=feed, daemon=True).start()
assert room.channel.flush(20)
"""


def test_steps_during_the_interpreters_shutdown_are_dropped_and_delay_nothing(tmp_path: Path) -> None:
    """Steps of a daemon thread that continues, and of an exit handler that runs after telemetry's own."""
    assert run_script(ENDING + LATE, tmp_path).stdout == "refused\n"
    manifest = read_manifest(RunLayout(tmp_path).manifest)
    assert manifest.status == "finished"
    batches = csv_batches(tmp_path)
    assert batches[:30] == list(range(1, 31))
    assert batches == parquet_batches(tmp_path)
    assert len(batches) == manifest.attempt.counters.written


STUCK = """
import threading
from ava_pipeline.write.writers import CsvWriter

assert room.channel.flush(20)
CsvWriter.write = lambda *_: threading.Event().wait()
room.worker._exit_timeout_s = 0.1
room.offer(step(31))
"""


def test_a_stuck_disk_does_not_hold_up_the_interpreters_exit(tmp_path: Path) -> None:
    """The process logs what is unwritten and ends; flushed rows are readable."""
    ended = run_script(ENDING + STUCK, tmp_path)
    assert "it still has 1 collected step to write and files to finish" in ended.stderr
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == list(range(1, 31))


FREED = """
import atexit, threading
from ava_pipeline.write.writers import ParquetWriter

freed, close = threading.Event(), ParquetWriter.close
ParquetWriter.close = lambda writer: freed.wait(20) and close(writer)
room.worker.close(0.01, "failed", "ValueError")
atexit.register(freed.set)
"""


def test_the_interpreters_exit_waits_again_for_files_that_close_left_unfinished(tmp_path: Path) -> None:
    """The disk was stuck only during `close`; the manifest records how the run ended."""
    ended = run_script(ENDING + FREED, tmp_path)
    assert "telemetry did not finish within 0.01 s" in ended.stderr
    layout = RunLayout(tmp_path)
    manifest = read_manifest(layout.manifest)
    assert (manifest.status, manifest.attempt.error) == ("failed", "ValueError")
    assert not layout.journal("norms").exists()


SIGNALS = """
import os, signal

assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
assert room.channel.flush(20)
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals_are_left_as_they_are(tmp_path: Path) -> None:
    """SIGTERM ends a process with telemetry like any other; flushed rows are readable."""
    run_script(ENDING + SIGNALS, tmp_path, code=-signal.SIGTERM)
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == list(range(1, 31))
    assert read_manifest(RunLayout(tmp_path).manifest).status == "running"


FEEDING = """
import os, signal, sys
from itertools import count
from pathlib import Path
from ava_pipeline.errors import ChannelFullError
from tests.write.feeding import Room, step

def feed(root, last, lines):
    room = Room(root, resumed_from=last, flush_interval_s=0.001, max_pending=64)
    room.worker.start()
    for batch in count(last + 1):
        try:
            room.offer(step(batch))
        except ChannelFullError:
            room.channel.flush()
        if batch % 50 == 0:
            room.channel.flush()
            os.write(lines, b"%d\\n" % batch)

# Importing is slow: one process imports, and its children are killed.
for request in sys.stdin:
    last, num_flushes = map(int, request.split())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        feed(Path(sys.argv[1]), last, writing)
    os.close(writing)
    with os.fdopen(reading) as lines:
        for _ in range(num_flushes):
            flushed = lines.readline().strip()
        os.kill(child, signal.SIGKILL)
        later = lines.read().splitlines()
    os.waitpid(child, 0)
    print([flushed, *later][-1], flush=True)
"""


def test_rows_flushed_before_sigkill_are_readable_every_time(tmp_path: Path) -> None:
    """After many kills at any time, no flushed row is lost, repeated or out of order.

    Each process resumes behind the rows that the one before flushed; the kill falls anywhere in the writing
    of the next rows, since nothing waits for it.
    """
    last, num_kills = 0, 200
    with subprocess.Popen(
        [sys.executable, "-c", with_deadline(FEEDING, 100), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for kill in range(num_kills):
            print(last, 1 + kill % 3, file=process.stdin, flush=True)
            last = int(process.stdout.readline())
            assert_nothing_flushed_is_lost(tmp_path, last)
        process.stdin.close()
    room = Room(tmp_path, resumed_from=last)
    room.write([last + 1])
    room.close()
    attempts = read_manifest(room.layout.manifest).attempts
    assert [one.status for one in attempts] == ["killed"] * num_kills + ["finished"]
    rows = csv_rows(room.layout.csv("norms"))
    assert rows == read_parquet(room.layout.parquet("norms")).to_pylist()
    assert all(row["overall"] == row["batch_idx"] and row["head"] == 0.5 for row in rows)


def assert_nothing_flushed_is_lost(root: Path, last: int) -> None:
    """Check that every batch up to `last` is in both files, once and in order, or an event reports it as dropped."""
    dropped = missing_by_gaps(root)
    for found in (csv_whole_batches(root), parquet_batches(root)):
        numbers = [int(str(batch)) for batch in found]
        assert numbers == sorted(set(numbers))
        assert set(range(1, last + 1)) - set(numbers) <= dropped


def csv_whole_batches(root: Path) -> list[int]:
    """The batches of the CSV file's whole lines; the last line may be incomplete until the next open."""
    whole, _, _ = RunLayout(root).csv("norms").read_text().rpartition("\n")
    return [int(line.split(",")[0]) for line in whole.splitlines()[1:]]


def missing_by_gaps(root: Path) -> set[int]:
    """Batches that events say were dropped."""
    ranges = [(int(str(row["batch_idx"])), int(str(row["batch_idx_end"]))) for row in event_rows(root, "gap")]
    return {batch for first, last in ranges for batch in range(first, last + 1)}
