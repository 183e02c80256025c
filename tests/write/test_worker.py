"""The background thread writes rows soon, loses only rows to errors, and always ends."""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.write.channel import FULL, TelemetryStats
from ava_pipeline.write.lock import live_remote_holder
from ava_pipeline.write.writers import CsvWriter, ParquetWriter
from tests.write.feeding import Room, csv_batches, event_rows, parquet_batches, step
from tests.write.test_lock import left_by_another_host

pytestmark = pytest.mark.timeout(30)

SOON_S = 25.0


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Room]]:
    """Make runs whose worker is running; they are closed after the test."""
    rooms: list[Room] = []

    def start(**settings: object) -> Room:
        rooms.append(Room(tmp_path / "run", **settings))  # type: ignore[arg-type]  # a room's own fields
        rooms[-1].worker.start()
        return rooms[-1]

    yield start
    for room in rooms:
        room.worker.close(SOON_S, "finished")


class Gate:
    """A stuck disk: blocks a method of a writer, by default every CSV write, until the gate is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: type = CsvWriter, name: str = "write") -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        go_on = getattr(kind, name)

        def wait_and_go_on(*given: object) -> object:
            self.reached.set()
            self.opened.wait(SOON_S)
            return go_on(*given)

        monkeypatch.setattr(kind, name, wait_and_go_on)


def test_rows_are_written_without_flush_or_close(run: Callable[..., Room], monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush interval alone brings a single row to the files."""
    written = threading.Event()
    room = run(flush_interval_s=0.01)
    write = room.files.write

    def write_and_say_so(steps: list[object]) -> int:
        try:
            return write(steps)  # type: ignore[arg-type]  # handed on as it is
        finally:
            written.set()

    monkeypatch.setattr(room.files, "write", write_and_say_so)
    room.offer(step(1))
    assert written.wait(SOON_S)
    assert csv_batches(room.root) == parquet_batches(room.root) == [1]


def test_flush_returns_when_the_rows_before_it_are_in_the_files(run: Callable[..., Room]) -> None:
    """It does so for any interval."""
    room = run(flush_interval_s=1e6)
    for batch in range(1, 40):
        room.offer(step(batch))
        if batch % 13 == 0:
            assert room.channel.flush(SOON_S)
            assert csv_batches(room.root) == parquet_batches(room.root) == list(range(1, batch + 1))


def test_close_writes_what_waits_and_a_second_close_changes_nothing(run: Callable[..., Room]) -> None:
    """The manifest records the ending given to the first close."""
    room = run(flush_interval_s=1e6)
    room.offer(step(1))
    expected = TelemetryStats(collected=1, written=1)
    assert room.worker.close(SOON_S, "failed", "ValueError") == expected
    assert room.worker.close(SOON_S, "finished") == expected
    manifest = read_manifest(room.layout.manifest)
    assert (manifest.status, manifest.attempt.error) == ("failed", "ValueError")
    assert manifest.attempt.counters.written == 1


def test_a_run_without_rows_leaves_no_files(run: Callable[..., Room]) -> None:
    """No file is created before there is something to write."""
    room = run()
    room.worker.close(SOON_S, "finished")
    assert not room.root.exists()


def test_close_with_a_stuck_disk_returns_in_time_and_says_what_is_unwritten(
    run: Callable[..., Room], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training ends although the disk is stuck; when the disk recovers, the rows are written."""
    gate = Gate(monkeypatch)
    room = run()
    room.offer(step(1))
    assert gate.reached.wait(SOON_S)
    room.offer(step(2))
    with caplog.at_level(logging.WARNING, "ava_pipeline"):
        stats = room.worker.close(0.01, "finished")
    assert stats == TelemetryStats(collected=2, pending=2)
    assert "it still has 2 collected steps to write and files to finish. It is writing rows" in caplog.text
    gate.opened.set()
    assert room.worker.close(SOON_S, "finished") == TelemetryStats(collected=2, written=2)
    assert csv_batches(room.root) == [1, 2]


def test_close_waits_again_if_the_disk_was_stuck_while_files_were_finished(
    run: Callable[..., Room], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every row was written, and the warning does not say otherwise; the manifest records the first close's ending."""
    gate = Gate(monkeypatch, ParquetWriter, "close")
    room = run()
    room.offer(step(1))
    assert room.channel.flush(SOON_S)
    with caplog.at_level(logging.WARNING, "ava_pipeline"):
        assert room.worker.close(0.01, "failed", "ValueError") == TelemetryStats(collected=1, written=1)
    assert ": it still has files to finish. It is finishing the files, and the disk may be stuck" in caplog.text
    gate.opened.set()
    room.worker.close(SOON_S, "finished")
    assert not room.layout.journal("norms").exists()
    attempt = read_manifest(room.layout.manifest).attempt
    assert (attempt.status, attempt.error) == ("failed", "ValueError")


def test_close_says_that_it_waits_for_a_writer_on_another_host(
    run: Callable[..., Room], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The message does not blame the disk. Without a sign of life from the host, the rows are written."""
    folder = tmp_path / "run" / "telemetry"
    folder.mkdir(parents=True)
    left_by_another_host(folder, age_s=5)
    reached, opened = threading.Event(), threading.Event()

    def wait(_seconds: float) -> None:
        reached.set()
        opened.wait(SOON_S)

    monkeypatch.setattr("ava_pipeline.write.lock.live_remote_holder", partial(live_remote_holder, wait=wait))
    room = run()
    room.offer(step(1))
    assert reached.wait(SOON_S)
    room.worker.close(0.01, "finished")
    assert "It is opening the run, which waits for the disk, or for a writer on another host" in caplog.text
    opened.set()
    assert room.worker.close(SOON_S, "finished") == TelemetryStats(collected=1, written=1)


def test_steps_dropped_while_the_disk_is_stuck_are_a_gap(
    run: Callable[..., Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of events.csv has the batches, their number and the cause."""
    gate = Gate(monkeypatch)
    room = run(max_pending=2)
    room.offer(step(1))
    assert gate.reached.wait(SOON_S)
    room.offer(step(2))
    for batch in range(3, 8):
        room.channel.drop(batch, 0, reason=FULL)
    gate.opened.set()
    stats = room.worker.close(SOON_S, "finished")
    assert stats == TelemetryStats(collected=7, written=2, dropped=5)
    (event,) = event_rows(room.root, "gap")
    assert (event["batch_idx"], event["batch_idx_end"], event["value"]) == (3, 7, 5.0)
    assert FULL in str(event["message"])
    assert read_manifest(room.layout.manifest).attempt.counters.dropped == 5


def test_a_directory_that_cannot_be_made_costs_rows_until_it_can(
    run: Callable[..., Room], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every step is counted, one warning is logged, one event covers them all, and later rows are written."""
    (tmp_path / "run").touch()
    room = run()
    for batch in range(1, 21):
        room.offer(step(batch))
        assert room.channel.flush(SOON_S)
    assert room.channel.stats() == TelemetryStats(collected=20, failed=20)
    assert len(caplog.messages) == 1
    (tmp_path / "run").unlink()
    room.offer(step(21))
    assert room.worker.close(SOON_S, "finished") == TelemetryStats(collected=21, written=1, failed=20)
    assert csv_batches(room.root) == parquet_batches(room.root) == [21]
    (event,) = event_rows(room.root, "failed_write")
    assert (event["batch_idx"], event["batch_idx_end"], event["value"]) == (1, 20, 20.0)
    assert read_manifest(room.layout.manifest).attempt.counters.failed == 20


def test_rows_between_two_tries_of_the_disk_fail_as_one_range(
    run: Callable[..., Room], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows before the next try fail for the same reason, and the disk is not accessed."""
    (tmp_path / "run").touch()
    room = run(retry_s=math.inf)
    for batch in (1, 2):
        room.offer(step(batch))
        assert room.channel.flush(SOON_S)
    (tmp_path / "run").unlink()
    room.offer(step(3))
    assert room.channel.flush(SOON_S)
    assert room.channel.stats().failed == 3
    assert not room.root.exists()
    assert len(caplog.messages) == 1


def test_a_measure_with_a_bug_costs_its_rows_and_not_the_thread(run: Callable[..., Room]) -> None:
    """Whatever a measure raises, the rows before and after are written."""
    room = run()
    room.measure.broken = {2.0}
    for batch in (1, 2, 3):
        room.offer(step(batch))
        assert room.channel.flush(SOON_S)
    assert room.worker.close(SOON_S, "finished") == TelemetryStats(collected=3, written=2, failed=1)
    assert csv_batches(room.root) == [1, 3]


def test_an_exception_in_a_measures_events_costs_no_row(
    run: Callable[..., Room], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its events are made by the user's code; an exception there is logged."""
    room = run()
    monkeypatch.setattr(room.measure, "events", lambda _: 1 / 0)
    room.offer(step(1))
    assert room.worker.close(SOON_S, "finished") == TelemetryStats(collected=1, written=1)
    assert csv_batches(room.root) == [1]
    assert "could not report its events" in caplog.text


def test_an_unforeseen_exception_while_writing_costs_its_rows_and_not_the_thread(
    run: Callable[..., Room], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event names the type of the exception, and telemetry continues."""
    room = run()
    room.offer(step(1))
    assert room.channel.flush(SOON_S)
    with monkeypatch.context() as broken:
        broken.setattr(room.files, "write", None)
        room.offer(step(2))
        assert room.channel.flush(SOON_S)
    room.offer(step(3))
    assert room.worker.close(SOON_S, "finished") == TelemetryStats(collected=3, written=2, failed=1)
    (event,) = event_rows(room.root, "failed_write")
    assert event["batch_idx"] == 2
    assert "TypeError" in str(event["message"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread says how it died
def test_a_worker_that_dies_leaves_no_caller_waiting(
    run: Callable[..., Room], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Flush and close return, the counters add up, the files are finished, and the manifest says what happened."""
    room = run()
    room.offer(step(1))
    assert room.channel.flush(SOON_S)

    def die(stats: TelemetryStats) -> None:
        raise SystemExit

    monkeypatch.setattr(room.files, "heartbeat", die)
    room.offer(step(2))
    assert room.channel.flush(SOON_S)
    room.worker._thread.join(SOON_S)
    stats = room.worker.close(SOON_S, "finished")
    assert stats.collected == stats.written + stats.failed
    assert any("telemetry ended early" in message for message in caplog.messages)
    attempt = read_manifest(room.layout.manifest).attempt
    assert (attempt.status, attempt.error) == ("failed", "SystemExit")
    assert csv_batches(room.root) == parquet_batches(room.root)
