"""The files of one run: what is written, what fails, and which events say so."""

import errno
import logging
import math
import os
import shutil
from pathlib import Path

import pytest

from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.errors import WriteError
from ava_pipeline.write.channel import PendingStep, TelemetryStats
from tests.disk_calls import recorded
from tests.write.feeding import NO_STEPS, Room, Staged, csv_batches, csv_rows, event_rows, parquet_batches, step, steps
from tests.write.test_lock import held_elsewhere

pytestmark = pytest.mark.timeout(60)


def ranges(root: Path, name: str) -> list[tuple[object, object]]:
    """The batches that events of a name speak of."""
    return [(row["batch_idx"], row["batch_idx_end"]) for row in event_rows(root, name)]


def test_a_run_is_written_in_every_format_and_described(tmp_path: Path) -> None:
    """Rows are in CSV and Parquet, and the manifest says how many, of what and by whom."""
    room = Room(tmp_path)
    room.write([1, 2, 3])
    room.files.close(TelemetryStats(collected=4, written=3, dropped=1), "failed", "ValueError")
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3]
    assert not room.layout.journal("norms").exists()
    manifest = read_manifest(room.layout.manifest)
    assert (manifest.status, manifest.attempt.status, manifest.attempt.error) == ("failed", "failed", "ValueError")
    assert manifest.attempt.rows == {"norms.csv": 3, "norms.parquet": 3, "events.csv": 0}
    assert manifest.attempt.counters.model_dump() == {
        "collected": 4, "written": 3, "dropped": 1, "failed": 0, "pending": 0,
    }  # fmt: skip
    assert manifest.tables["norms"].declaration == room.measure.run_table
    assert manifest.tables["norms"].formats == ("csv", "parquet")


def test_bad_rows_fail_and_are_named(tmp_path: Path) -> None:
    """A negative norm costs its own row, in an event with batch, column and value."""
    room = Room(tmp_path)
    room.files.open(NO_STEPS)
    assert room.files.write([step(1), step(2, -1.0, 0.5), step(3), step(4, 1.0, "many")]) == 2
    room.close()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 3]
    events = event_rows(tmp_path, "failed_row")
    assert [(row["batch_idx"], row["column"]) for row in events] == [(2, "overall"), (4, "head")]
    assert "norms.overall: expected 0 or more, got -1.0. " in str(events[0]["message"])


def test_a_measure_that_raises_costs_only_the_rows_it_raises_on(tmp_path: Path) -> None:
    """Other rows of the same hand-over are written; the event names the step and the exception."""
    room = Room(tmp_path)
    room.measure.broken = {2.0}
    room.files.open(NO_STEPS)
    assert room.files.write(steps([1, 2, 3])) == 1
    room.close()
    assert csv_batches(tmp_path) == [1, 3]
    (event,) = event_rows(tmp_path, "failed_row")
    assert event["batch_idx"] == 2
    assert "ZeroDivisionError: a measure with a bug" in str(event["message"])


def test_numbers_that_do_not_come_cost_only_their_step(tmp_path: Path) -> None:
    """A device that fails once is reported once."""
    room = Room(tmp_path)
    room.files.open(NO_STEPS)
    lost = PendingStep(2, 0, Staged([], RuntimeError("the device is gone")), (None,))
    assert room.files.write([step(1), lost, step(3)]) == 1
    room.close()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 3]
    assert ranges(tmp_path, "failed_row") == [(2, 2)]


def test_a_file_that_refuses_rows_is_named_and_the_other_one_is_written(tmp_path: Path) -> None:
    """Every row that one file lacks lies in a range that an event names together with the file."""
    room = Room(tmp_path)
    room.write([1])
    journal = room.files._tables[0]._files._writers["norms.parquet"]
    journal.abandon()
    assert room.files.write(steps([2, 3])) == 2
    room.close()
    assert csv_batches(tmp_path) == [1, 2, 3]
    assert parquet_batches(tmp_path) == [1]
    (event,) = event_rows(tmp_path, "failed_write")
    assert (event["batch_idx"], event["batch_idx_end"], event["column"], event["value"]) == (2, 3, "norms.parquet", 2.0)
    assert read_manifest(room.layout.manifest).attempt.rows["norms.parquet"] == 1


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (["a.jpg", "b.jpg"], "a.jpg, b.jpg."),
        (range(30), "17, 18, 19 and 10 more."),
        (7, "batch 2: 7."),
        (None, "1 collected step."),
    ],
)
def test_samples_of_a_step_that_is_not_finite_are_named(ids: object, named: str, tmp_path: Path) -> None:
    """Whoever looks for the cause of a nan knows which images the batch held."""
    room = Room(tmp_path)
    room.files.open(NO_STEPS)
    room.files.write([step(1), step(2, math.nan, 1.0, sample_ids=ids)])  # type: ignore[arg-type]  # a user may give anything
    room.close()
    (event,) = event_rows(tmp_path, "non_finite")
    assert (event["batch_idx"], event["column"]) == (2, "overall")
    assert str(event["message"]).endswith(named)


def test_a_tensor_of_sample_ids_is_read_by_the_background_thread(tmp_path: Path) -> None:
    """Ids that lie on a device are not waited for in training; ids that cannot be read cost no row."""

    class OnDevice(list[object]):
        def tolist(self) -> list[object]:
            if not self:
                raise RuntimeError("the device is gone")
            return [f"image {one}" for one in self]

    room = Room(tmp_path)
    room.files.open(NO_STEPS)
    assert room.files.write([step(1, math.inf, 1.0, sample_ids=OnDevice([5, 6]))]) == 0
    assert room.files.write([step(2, math.inf, 1.0, sample_ids=OnDevice())]) == 0
    room.close()
    messages = [str(row["message"]) for row in event_rows(tmp_path, "non_finite")]
    assert messages[0].endswith('"image 5", "image 6".')
    assert "the device is gone" in messages[1]
    assert csv_batches(tmp_path) == [1, 2]


def test_opening_is_tried_again_when_the_trouble_is_gone(tmp_path: Path) -> None:
    """A folder that could not be made is made later; what was tried too early is not tried at all."""
    root = tmp_path / "file" / "run"
    root.parent.touch()
    room = Room(root, retry_s=math.inf)
    with pytest.raises(OSError, match=r"Not a directory|exists"):
        room.files.open(NO_STEPS)
    root.parent.unlink()
    with pytest.raises(WriteError, match=r"Not a directory|exists"):
        room.files.open(NO_STEPS)
    room.files._closed_until = 0.0
    room.write([5])
    room.close()
    assert csv_batches(root) == [5]


def test_whatever_an_opening_failed_of_the_next_waits(tmp_path: Path) -> None:
    """A bug is no reason to make older files whole, and set rows aside, anew at every hand-over."""
    room = Room(tmp_path, retry_s=math.inf)
    table = room.measure.run_table
    del room.measure.run_table
    with pytest.raises(AttributeError, match="run_table"):
        room.files.open(NO_STEPS)
    room.measure.run_table = table
    with pytest.raises(WriteError, match=r"AttributeError.*run_table"):
        room.files.open(NO_STEPS)


def test_a_manifest_that_cannot_be_written_is_no_open_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a manifest would belong to no attempt; what was set aside before is not lost."""
    first = Room(tmp_path)
    first.write([1, 2])
    first.close()

    def refuse(path: Path, manifest: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as full:
        full.setattr("ava_pipeline.write.manifest_writer.write_manifest", refuse)
        room = Room(tmp_path)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                room.files.open(NO_STEPS)
    room.write([1])
    room.close()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1]
    attempts = read_manifest(room.layout.manifest).attempts
    assert [attempt.number for attempt in attempts] == [1, 2]
    assert attempts[1].set_aside == {"norms.csv": 2, "norms.parquet": 2}
    kept = [csv_rows(path) for path in room.layout.superseded(2).glob("norms*.csv")]
    assert [row["batch_idx"] for rows in kept for row in rows] == [1, 2]


def test_another_process_keeps_its_run(tmp_path: Path) -> None:
    """Whoever comes second is refused by name of the first, and never takes over when the first one ends."""
    room = Room(tmp_path)
    room.layout.telemetry.mkdir()
    with held_elsewhere(room.layout.lock) as holder, pytest.raises(WriteError, match=str(holder.pid)):
        room.files.open(NO_STEPS)
    with pytest.raises(WriteError, match=str(holder.pid)):
        room.files.open(NO_STEPS)
    assert [path.name for path in room.layout.telemetry.iterdir()] == ["writer.lock"]


def test_a_second_collector_of_the_process_goes_on_when_the_first_is_closed(tmp_path: Path) -> None:
    """A notebook cell that is run again gets its telemetry as soon as the older collector is gone."""
    first, second = Room(tmp_path), Room(tmp_path)
    first.write([1])
    with pytest.raises(BlockingIOError, match="another collector of this process"):
        second.files.open(NO_STEPS)
    first.write([2])
    first.close()
    second.write([1])
    second.close()
    assert csv_batches(tmp_path) == [1]


def test_a_run_directory_that_vanishes_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows that follow are written where they are looked for, and an event covers those that went away."""
    root = tmp_path / "run"
    room = Room(root)
    room.write([1, 2])
    shutil.rmtree(root)
    room.files.open(TelemetryStats(collected=3, written=2, pending=1))
    assert room.files.write(steps([3])) == 0
    room.files.close(TelemetryStats(collected=3, written=3), "finished", None)
    assert csv_batches(root) == parquet_batches(root) == [3]
    assert ranges(root, "damaged_file") == [(1, 2)]
    manifest = read_manifest(room.layout.manifest)
    assert manifest.attempt.resumed_from == 2
    assert (manifest.attempt.counters.collected, manifest.attempt.counters.written) == (1, 1)
    assert len([message for message in caplog.messages if "moved or removed" in message]) == 1


def test_a_run_directory_that_vanishes_before_the_end_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No directory is made that holds a manifest and no row; where the rows went, they can be recovered."""
    root, away = tmp_path / "run", tmp_path / "away"
    room = Room(root)
    room.write([1, 2])
    root.rename(away)
    room.files.heartbeat(TelemetryStats(collected=2, written=2))
    room.files.close(TelemetryStats(collected=2, written=2), "finished", None)
    assert not root.exists()
    assert csv_batches(away) == parquet_batches(away) == [1, 2]
    assert len([message for message in caplog.messages if "moved or removed" in message]) == 1


def test_a_run_directory_that_comes_back_goes_on(tmp_path: Path) -> None:
    """A disk that was away for a while holds every row in the end, none set aside, none twice."""
    root, away = tmp_path / "run", tmp_path / "away"
    room = Room(root)
    room.write([1, 2])
    root.rename(away)
    root.touch()
    with pytest.raises(OSError, match=r"Not a directory|exists"):
        room.files.open(TelemetryStats(collected=3, written=2, pending=1))
    root.unlink()
    away.rename(root)
    room.files.open(TelemetryStats(collected=4, written=2, failed=1, pending=1))
    assert room.files.write(steps([4])) == 0
    room.files.close(TelemetryStats(collected=4, written=3, failed=1), "finished", None)
    assert csv_batches(root) == parquet_batches(root) == [1, 2, 4]
    assert not (room.layout.telemetry / "superseded").exists()


def test_the_manifest_is_rewritten_by_the_heartbeat_and_not_with_every_row(tmp_path: Path) -> None:
    """Each manifest is a sync of the disk: once in ten seconds and no more."""
    room = Room(tmp_path)
    room.write([1])
    before = room.layout.manifest.stat().st_ino
    for batch in range(2, 20):
        room.files.write(steps([batch]))
        room.files.heartbeat(NO_STEPS)
    assert room.layout.manifest.stat().st_ino == before
    assert room.files._manifest is not None
    room.files._manifest._due = 0.0
    room.files.heartbeat(TelemetryStats(collected=19, written=19))
    attempt = read_manifest(room.layout.manifest).attempt
    assert attempt.counters.written == attempt.rows["norms.csv"] == 19
    room.close()


def test_syncing_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `fsync`, each write is followed by a sync of every file of rows and events, and of the folder."""
    room = Room(tmp_path, fsync=True)
    room.write([1])
    calls = recorded(monkeypatch)
    for batch in (2, 3):
        assert room.files.write(steps([batch])) == 0
        rows = ["norms.csv", "norms.journal"]
        syncs = [("sync", name) for name in (*rows, "events.csv", "telemetry")]
        assert calls == [*(("write", name) for name in rows), *syncs]
        calls.clear()
    room.close()


@pytest.mark.parametrize("name", ["norms.csv", "norms.journal", "telemetry"])
def test_rows_that_the_disk_does_not_sync_are_reported_and_count_as_failed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in the files, but may not be on the disk; a later sync that succeeds says nothing about them."""
    room = Room(tmp_path, fsync=True)
    room.write([1])
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        assert room.files.write(steps([2, 3])) == 2
    assert room.files.write(steps([4])) == 0
    room.close()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3, 4]
    (event,) = event_rows(tmp_path, "failed_sync")
    file = name.replace("journal", "parquet")
    assert (event["batch_idx"], event["batch_idx_end"], event["value"], event["column"]) == (2, 3, 2, file)
    assert f"2 collected steps in {file} could not be synced" in str(event["message"])


def test_events_that_the_disk_does_not_sync_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost no row."""
    room = Room(tmp_path, fsync=True)
    room.write([1])
    with monkeypatch.context() as broken:
        broken.setattr(room.log._files, "sync", lambda: {"events.csv": OSError(errno.EIO, os.strerror(errno.EIO))})
        assert room.files.write(steps([2])) == 0
    assert "events.csv could not be synced" in str(room.log.first_error)
    room.close()


def test_a_journal_that_does_not_become_parquet_is_kept_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk too full for the Parquet file costs no row: the journal stands, and the next open makes it whole."""
    room = Room(tmp_path)
    room.write([1, 2])

    def refuse(path: Path) -> object:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as full, caplog.at_level(logging.WARNING, "ava_pipeline"):
        full.setattr("ava_pipeline.contract.parquet.written_aside", refuse)
        room.close()
    assert any("norms.parquet could not be finished" in message for message in caplog.messages)
    assert parquet_batches(tmp_path) == [1, 2]
    again = Room(tmp_path, resumed_from=2)
    again.write([3])
    again.close()
    assert csv_batches(tmp_path) == parquet_batches(tmp_path) == [1, 2, 3]


def test_a_copy_of_the_run_directory_leaves_it_locked(tmp_path: Path) -> None:
    """Closing the copied lock file lets go of the lock, says POSIX; the next heartbeat takes it again."""
    room = Room(tmp_path / "run")
    room.write([1])
    shutil.copytree(room.root, tmp_path / "copy")
    room.files.heartbeat(NO_STEPS)
    with pytest.raises(AssertionError), held_elsewhere(room.layout.lock):
        pass
    room.write([2])
    room.close()
    assert csv_batches(room.root) == [1, 2]


def test_a_run_that_was_taken_over_is_left_to_the_other_process(tmp_path: Path) -> None:
    """Nothing of it is written any more, and the lock file goes on naming who holds it."""
    room = Room(tmp_path / "run")
    room.write([1])
    shutil.copytree(room.root, tmp_path / "copy")
    with held_elsewhere(room.layout.lock):
        holder = room.layout.lock.read_text()
        manifest = room.layout.manifest.read_bytes()
        room.files.heartbeat(NO_STEPS)
        with pytest.raises(WriteError, match="being written by another process"):
            room.files.open(NO_STEPS)
        room.close()
        assert room.layout.lock.read_text() == holder
        assert room.layout.manifest.read_bytes() == manifest
