"""How processes end: normally without close, by an exception, by sys.exit, by SIGKILL."""

import subprocess
import sys
from pathlib import Path

import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.contract.stored import read_parquet
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
        ("raise KeyboardInterrupt", "interrupted", "KeyboardInterrupt", 1),
        ("sys.exit(3)", "finished", None, 3),
    ],
    ids=["normal", "exception", "ctrl-c", "sys.exit"],
)
def test_a_process_that_forgets_to_close_writes_every_row(
    ending: str, status: str, error: str | None, code: int, tmp_path: Path
) -> None:
    """The interpreter's exit waits for the rows, and the manifest tells how the run ended."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDING + ending, str(tmp_path)], check=False, timeout=60, capture_output=True
    )
    assert ended.returncode == code
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == list(range(1, 31))
    layout = RunLayout(tmp_path)
    assert not layout.journal("norms").exists()
    manifest = read_manifest(layout.manifest)
    assert (manifest.status, manifest.attempt.error) == (status, error)
    assert manifest.attempt.counters.written == 30


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

# Importing takes longer than all else: one process imports, and its children are killed.
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
    """Killed at any moment, again and again: nothing flushed is lost, none is there twice or out of order.

    Each process resumes behind what the one before had flushed; the moment of the kill falls anywhere in the writing
    of the next rows, since nothing waits for it.
    """
    last, num_kills = 0, 200
    with subprocess.Popen(
        [sys.executable, "-c", FEEDING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
    """Up to `last`, every batch is in both files, once and in order, or an event says that it was dropped."""
    dropped = missing_by_gaps(root)
    for found in (csv_whole_batches(root), parquet_batches(root)):
        numbers = [int(str(batch)) for batch in found]
        assert numbers == sorted(set(numbers))
        assert set(range(1, last + 1)) - set(numbers) <= dropped


def csv_whole_batches(root: Path) -> list[int]:
    """The batches of the CSV file's whole lines; the last may be torn until the next open."""
    whole, _, _ = RunLayout(root).csv("norms").read_text().rpartition("\n")
    return [int(line.split(",")[0]) for line in whole.splitlines()[1:]]


def missing_by_gaps(root: Path) -> set[int]:
    """Batches that events say were dropped."""
    ranges = [(int(str(row["batch_idx"])), int(str(row["batch_idx_end"]))) for row in event_rows(root, "gap")]
    return {batch for first, last in ranges for batch in range(first, last + 1)}
