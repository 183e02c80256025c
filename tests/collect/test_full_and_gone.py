"""If the disk is full, read-only or gone, training continues, every loss is recorded, and writing resumes."""

import logging
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch

from ava_pipeline import TelemetryCollector, TelemetryStats, open_run
from ava_pipeline.errors import WriteError
from ava_pipeline.validate.validate import validate_run
from ava_pipeline.write.writers import ParquetWriter
from tests.collect.models import tiny, train
from tests.write.test_worker import Gate

pytestmark = pytest.mark.timeout(90)

SOON_S = 25.0
TABLES = ("gradient_norms", "learning_rates", "steps", "per_layer_stats")
LOSSES = ("failed_write", "gap")


class FullDisk:
    """A disk that is full from `fill` to `free`: the system limits each file to 2 KiB, for root too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """Take all the free space."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, self._limits[1]))

    def free(self) -> None:
        """Give it back."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)


class SmallDisk(FullDisk):
    """A real file system of 256 KiB."""

    def fill(self) -> None:
        """Take all the free space."""
        with (self.folder / "other").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 1024):
                pass

    def free(self) -> None:
        """Give it back."""
        (self.folder / "other").unlink(missing_ok=True)


@pytest.fixture(params=["a limit on file sizes", "a small file system"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FullDisk]:
    """A disk that can be full: by the limit for everyone, and a real one where root may mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "a small file system":
        with mounted(folder):
            yield SmallDisk(folder)
        return
    disk = FullDisk(folder)
    yield disk
    disk.free()


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A tmpfs of 256 KiB."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if os.geteuid() or mount is None or umount is None:
        pytest.skip("only root may mount a small file system")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("this system mounts no tmpfs")
    yield
    subprocess.run([umount, "--lazy", str(folder)], check=True)


def batches(path: Path) -> set[int]:
    """The batches in one file."""
    rows = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    return set(rows["batch_idx"])


def assert_missing_rows_have_events(root: Path, num_batches: int) -> None:
    """Each batch that a file lacks lies in an event that names the file, or one that speaks of all files."""
    events = open_run(root).events()
    for table, suffix in product(TABLES, ("csv", "parquet")):
        path = root / "telemetry" / f"{table}.{suffix}"
        losses = events[(events["column"].isna() | (events["column"] == path.name)) & events["event"].isin(LOSSES)]
        spans = zip(losses["batch_idx"], losses["batch_idx_end"], strict=True)
        covered = {batch for first, last in spans for batch in range(first, last + 1)}
        assert set(range(1, num_batches + 1)) - batches(path) <= covered


def assert_balanced(root: Path, stats: TelemetryStats) -> None:
    """The manifest counts what `close` returned, nothing is pending, and all of it adds up."""
    assert stats.collected == stats.written + stats.dropped + stats.failed
    counted = open_run(root).manifest.attempt.counters.model_dump()
    assert TelemetryStats(**counted) == stats


def test_a_full_disk_costs_rows_until_space_is_free(disk: FullDisk, caplog: pytest.LogCaptureFixture) -> None:
    """Training is the same to the bit; rows fail, with one warning a file, and are written again after `free`."""
    root = disk.folder / "run"
    model, optimizer = tiny()
    with caplog.at_level(logging.WARNING, "ava_pipeline"):
        telemetry = TelemetryCollector(
            model, optimizer, root, collect_every_n=1, track_per_layer_stats=True, csv_of_long_tables=True
        )
        train(telemetry, model, optimizer, 5)
        assert telemetry.flush(SOON_S)
        disk.fill()
        train(telemetry, model, optimizer, 300)
        assert telemetry.flush(SOON_S)
        num_failed = telemetry.stats().failed
        assert num_failed > 200  # a little fits into pages that the files have already
        disk.free()
        train(telemetry, model, optimizer, 5)
        stats = telemetry.close()
    assert stats == TelemetryStats(collected=310, written=310 - num_failed, failed=num_failed)
    assert_balanced(root, stats)
    assert_missing_rows_have_events(root, 310)
    for path in (root / "telemetry").glob("*.parquet"):
        assert set(range(306, 311)) <= batches(path)
    assert [str(one) for one in validate_run(root)] == []
    kinds = [message.rpartition(" could not be written to ")[2] for message in caplog.messages]
    assert len(kinds) == len(set(kinds)) <= 2 * len(TABLES) + 2
    untouched, other = tiny()
    for num_batches in (5, 300, 5):
        train(None, untouched, other, num_batches)
    assert all(map(torch.equal, model.parameters(), untouched.parameters()))


def test_a_run_directory_that_vanishes_in_training_is_begun_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One event says that the rows so far went with it; later rows are in the run directory, which validates."""
    root, away = tmp_path / "run", tmp_path / "away"
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, root, collect_every_n=1)
    train(telemetry, model, optimizer, 5)
    assert telemetry.flush(SOON_S)
    root.rename(away)
    train(telemetry, model, optimizer, 5)
    assert telemetry.close() == TelemetryStats(collected=10, written=10)
    assert [open_run(one).gradient_norms()["batch_idx"].tolist() for one in (away, root)] == [
        [1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10],
    ]
    counters = open_run(root).manifest.attempt.counters
    assert (counters.collected, counters.written, counters.pending) == (5, 5, 0)
    assert [str(one) for one in validate_run(root)] == []
    assert len([one for one in caplog.messages if "moved or removed" in one]) == 1


def test_closing_again_finishes_what_a_stuck_disk_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While files are being finished the first close waits no longer than its timeout, and not for the disk."""
    gate = Gate(monkeypatch, ParquetWriter, "close")
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1)
    train(telemetry, model, optimizer, 1)
    assert telemetry.flush(SOON_S)
    (tmp_path / "predictions").write_text("in the way")
    with telemetry.val_predictions(0) as predictions:
        predictions.add([7], torch.full((1, 10), 0.1), torch.ones(1, 10))
    (tmp_path / "predictions").unlink()
    assert telemetry.close(timeout_s=0.01) == TelemetryStats(collected=1, written=1)
    assert not (tmp_path / "predictions").exists()  # nor did that thread go to the disk
    gate.opened.set()
    telemetry.close()
    run = open_run(tmp_path)
    assert (run.manifest.status, run.val_predictions(0)["image_id"].tolist()) == ("finished", [7])
    assert not list(tmp_path.rglob("*.journal*"))


def test_steps_never_wait_for_a_disk_that_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps and `close` return while the disk still hangs, memory holds what was allowed, and the rest is one gap."""
    gate = Gate(monkeypatch)
    model, optimizer = tiny()
    telemetry = TelemetryCollector(model, optimizer, tmp_path, collect_every_n=1, max_pending_rows=8)
    train(telemetry, model, optimizer, 1)
    assert gate.reached.wait(SOON_S)
    train(telemetry, model, optimizer, 50)
    stuck = TelemetryStats(collected=51, dropped=43, pending=8)
    assert not telemetry.flush(0.01)
    assert telemetry.stats() == telemetry.close(timeout_s=0.01) == stuck
    assert "it still has 8 collected steps to write and files to finish" in caplog.text
    assert not gate.opened.is_set()
    gate.opened.set()
    assert telemetry.close() == TelemetryStats(collected=51, written=8, dropped=43)
    assert_balanced(tmp_path, telemetry.stats())
    gaps = open_run(tmp_path).events().query("event == 'gap'")
    assert gaps[["batch_idx", "batch_idx_end", "value"]].to_numpy().tolist() == [[9, 51, 43]]
    assert [str(one) for one in validate_run(tmp_path)] == []


class TestRaise:
    """With `on_error="raise"` the next call raises, once, with the remedy."""

    REMEDY = r"fix the cause, or set on_error='warn'"

    @pytest.fixture
    def telemetry(self, tmp_path: Path) -> Iterator[TelemetryCollector]:
        """A collector whose first step could not be written and which has not raised yet."""
        (tmp_path / "file").write_text("in the way")
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path / "file" / "run", collect_every_n=1, on_error="raise")
        train(telemetry, model, optimizer, 1)
        assert telemetry._recorder._channel.flush(SOON_S)
        yield telemetry
        assert telemetry.flush(SOON_S)
        assert telemetry.close() == TelemetryStats(collected=1, failed=1)

    @pytest.mark.parametrize("ask", ["step", "flush", "state_dict", "close"])
    def test_the_next_call_raises(self, telemetry: TelemetryCollector, ask: str) -> None:
        """Any call does; later calls work as usual."""
        with pytest.raises(WriteError, match=self.REMEDY):
            getattr(telemetry, ask)()

    def test_a_flush_raises_for_the_rows_that_it_waited_for(self, tmp_path: Path) -> None:
        """And does not say that all is well."""
        (tmp_path / "file").write_text("in the way")
        model, optimizer = tiny()
        telemetry = TelemetryCollector(model, optimizer, tmp_path / "file" / "run", collect_every_n=1, on_error="raise")
        train(telemetry, model, optimizer, 1)
        with pytest.raises(WriteError, match=self.REMEDY):
            telemetry.flush(SOON_S)
        telemetry.close()
