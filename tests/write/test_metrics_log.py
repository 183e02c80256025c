"""Whose rows metrics.csv holds: what an attempt keeps of older ones, and what waits for the disk."""

import logging
from pathlib import Path

import pytest

from ava_pipeline.contract.layout import Moment, RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.errors import MisuseError, WriteError
from ava_pipeline.write.metrics_log import MetricsLog
from tests.write.feeding import Room, csv_batches
from tests.write.test_lock import held_elsewhere

OLDER = "epoch,batch_idx,loss\n0,50,1.0\n0,,1.5\n1,150,2.0\n1,,2.5\n2,250,3.0\n"


def log_of(root: Path, older: str = OLDER) -> MetricsLog:
    """The log of an attempt in a directory where an earlier one left rows."""
    root.mkdir(exist_ok=True)
    (root / "metrics.csv").write_text(older)
    return MetricsLog(RunLayout(root))


def lines(path: Path) -> list[str]:
    """The rows of a file."""
    return path.read_text().splitlines()[1:]


@pytest.mark.parametrize(
    ("resumed_from", "kept"),
    [
        (None, []),
        ((0, 0), []),
        ((50, 0), ["0,50,1.0", "0,,1.5"]),
        ((149, 1), ["0,50,1.0", "0,,1.5", "1,,2.5"]),
        ((200, 1), ["0,50,1.0", "0,,1.5", "1,150,2.0", "1,,2.5"]),
        ((300, 3), OLDER.splitlines()[1:]),
    ],
)
def test_an_attempt_keeps_the_rows_up_to_its_checkpoint(
    resumed_from: tuple[int, int] | None, kept: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All others are in superseded/, and a warning says so; the row of the checkpoint's own epoch stays."""
    log = log_of(tmp_path)
    if resumed_from is not None:
        log.resume(*resumed_from)
    log.write(Moment(3), {"loss": 7.0})
    log.write(Moment(4), {"loss": 8.0})
    header = "epoch,batch_idx,loss" if kept else "epoch,loss"
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == header
    comma = ",," if kept else ","
    assert lines(tmp_path / "metrics.csv") == [*kept, f"3{comma}7.0", f"4{comma}8.0"]
    moved = [line for line in OLDER.splitlines()[1:] if line not in kept]
    places = list(tmp_path.glob("superseded/*/metrics.csv"))
    assert [lines(place) for place in places] == ([moved] if moved else [])
    assert caplog.text.count("held rows that this attempt replaces") == len(places)


def test_a_checkpoint_cannot_be_loaded_after_the_first_row(tmp_path: Path) -> None:
    """The rows that it would have kept are in superseded/ already."""
    log = log_of(tmp_path)
    log.write(Moment(0), {"loss": 1.0})
    with pytest.raises(MisuseError, match=r"load_state_dict\(\) came after log_metrics\(\)"):
        log.resume(50, 0)


def test_rows_that_the_disk_refuses_are_written_together_later(tmp_path: Path) -> None:
    """In the order of time, and merged as on the disk."""
    log = MetricsLog(RunLayout(tmp_path))
    (tmp_path / "metrics.csv.partial").mkdir()
    for moment, values in ((Moment(1), {"a": 1.0}), (Moment(0), {"a": 2.0}), (Moment(1), {"a": None, "b": 3.0})):
        with pytest.raises(OSError, match="partial"):
            log.write(moment, values)
    assert log.num_waiting == 2
    (tmp_path / "metrics.csv.partial").rmdir()
    log.write_again()
    assert (tmp_path / "metrics.csv").read_text() == "epoch,a,b\n0,2.0,\n1,1.0,3.0\n"
    assert log.num_waiting == 0
    log.write_again()


def test_no_more_rows_wait_than_permitted(tmp_path: Path) -> None:
    """A disk that is full for days does not fill the memory; a row that waits can still be added to."""
    log = MetricsLog(RunLayout(tmp_path), max_waiting=2)
    (tmp_path / "metrics.csv.partial").mkdir()
    for epoch in (0, 1):
        with pytest.raises(OSError, match="partial"):
            log.write(Moment(epoch), {"a": 1.0})
    with pytest.raises(WriteError, match=r"2 rows are waiting already, so this one is lost\."):
        log.write(Moment(2), {"a": 1.0})
    with pytest.raises(OSError, match="partial"):
        log.write(Moment(1), {"b": 1.0})
    assert not log.is_waiting(Moment(2))
    (tmp_path / "metrics.csv.partial").rmdir()
    log.write_again()
    assert (tmp_path / "metrics.csv").read_text() == "epoch,a,b\n0,1.0,\n1,1.0,1.0\n"


def test_a_run_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    """Its rows are not moved, and the error names it; once it has ended, the rows that waited are written."""
    layout = RunLayout(tmp_path)
    layout.telemetry.mkdir()
    log = log_of(tmp_path)
    with held_elsewhere(layout.lock) as holder, pytest.raises(WriteError, match=f"pid {holder.pid} on host"):
        log.write(Moment(0), {"loss": 7.0})
    assert (tmp_path / "metrics.csv").read_text() == OLDER
    log.write_again()
    assert lines(tmp_path / "metrics.csv") == ["0,7.0"]


CSV_LOGGER = "epoch,step,train_loss\n0,7,0.5\n"  # as Lightning's CSVLogger writes it


def claim(root: Path) -> None:
    """The manifest of an attempt that logged metrics."""
    room = Room(root)
    room.write([1])
    room.metrics.write(Moment(0), {"loss": 1.0})
    room.close()


class TestOtherPrograms:
    """A metrics.csv of another program stays as it is, and metrics are refused until it is moved."""

    @pytest.mark.parametrize("resumed_from", [None, (300, 3)])
    @pytest.mark.parametrize(
        "content",
        [
            CSV_LOGGER,
            "step,loss\n1,0.5\n",
            "epoch,loss",
            "epoch,set,loss\n0,train,0.5\n0,val,0.25\n",
            "epoch,loss\n0,0.5\n0,0.25\n1,0.125\n",
        ],
    )
    def test_its_rows_are_left_alone(self, content: str, resumed_from: tuple[int, int] | None, tmp_path: Path) -> None:
        """With and without a checkpoint. The error says what to do, and what waits is written once that is done."""
        log = log_of(tmp_path, content)
        if resumed_from is not None:
            log.resume(*resumed_from)
        for epoch in (4, 5):
            with pytest.raises(WriteError, match=r"metrics\.csv is of another program, .* move it away, or give"):
                log.write(Moment(epoch), {"loss": 7.0})
        assert (tmp_path / "metrics.csv").read_text() == content
        assert not (tmp_path / "superseded").exists()
        (tmp_path / "metrics.csv").rename(tmp_path / "my_metrics.csv")
        log.write_again()
        assert lines(tmp_path / "metrics.csv") == ["4,7.0", "5,7.0"]

    def test_a_file_that_another_program_writes_later(self, tmp_path: Path) -> None:
        """In place of the one that this process wrote."""
        log = MetricsLog(RunLayout(tmp_path))
        log.write(Moment(0), {"loss": 1.0})
        (tmp_path / "other").write_text("step,loss\n1,0.5\n")
        (tmp_path / "other").replace(tmp_path / "metrics.csv")
        with pytest.raises(WriteError, match="is of another program"):
            log.write(Moment(1), {"loss": 2.0})
        assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.5\n"

    @pytest.mark.parametrize("content", ["epoch,loss\n0,1.0\n1,0.", "epoch,batch_idx,loss\n0,50,1.0\n", ""])
    def test_a_file_in_the_form_of_ours_is_ours(self, content: str, tmp_path: Path) -> None:
        """Without a manifest, as with enabled=False, also if the last line is torn: it makes room for a new attempt."""
        log_of(tmp_path, content).write(Moment(0), {"loss": 7.0})
        assert (tmp_path / "metrics.csv").read_text() == "epoch,loss\n0,7.0\n"
        assert (tmp_path / "superseded/attempt-1/metrics.csv").read_text() == content

    def test_what_the_manifest_claims_is_ours(self, tmp_path: Path) -> None:
        """A user may log a metric `step`, and lines in the middle may be torn."""
        claim(tmp_path)
        content = "epoch,step\n0,7.0\n1,\n1,\n2,9.0\n"
        (tmp_path / "metrics.csv").write_text(content)
        MetricsLog(RunLayout(tmp_path)).write(Moment(0), {"step": 7.0})
        assert lines(tmp_path / "metrics.csv") == ["0,7.0"]
        assert (tmp_path / "superseded/attempt-1/metrics.csv").read_text() == content

    def test_a_column_step_of_this_process_is_ours(self, tmp_path: Path) -> None:
        """It wrote it itself."""
        log = MetricsLog(RunLayout(tmp_path))
        for epoch in (1, 0):
            log.write(Moment(epoch), {"step": 7.0})
        assert lines(tmp_path / "metrics.csv") == ["0,7.0", "1,7.0"]

    def test_the_tables_begin_beside_a_file_that_took_the_place_of_ours(self, tmp_path: Path) -> None:
        """Of a run that logged metrics before: it is not moved, and telemetry goes on."""
        claim(tmp_path)
        (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n")
        room = Room(tmp_path)
        room.write([1])
        with pytest.raises(WriteError, match="is of another program"):
            room.metrics.write(Moment(0), {"loss": 1.0})
        room.close()
        assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.5\n"
        assert csv_batches(tmp_path) == [1]


class TestRunWriter:
    """The background thread begins metrics.csv together with the tables."""

    def test_an_attempt_that_starts_over_moves_the_rows_of_the_one_before(self, tmp_path: Path) -> None:
        """At its first step, before it has logged anything: an old row is not shown beside new tables."""
        first = Room(tmp_path)
        first.write([1])
        first.metrics.write(Moment(0), {"loss": 1.0})
        first.close()
        assert read_manifest(first.layout.manifest).attempt.logs_metrics
        second = Room(tmp_path)
        second.write([1])
        assert not (tmp_path / "metrics.csv").exists()
        assert lines(tmp_path / "superseded/attempt-1/metrics.csv") == ["0,1.0"]
        second.metrics.write(Moment(0), {"loss": 2.0})
        second.close()
        assert lines(tmp_path / "metrics.csv") == ["0,2.0"]

    def test_a_file_that_no_attempt_logged_is_left_alone(self, tmp_path: Path) -> None:
        """A loop may write a metrics.csv of its own."""
        Room(tmp_path).close()
        (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n")
        for _ in range(2):
            room = Room(tmp_path)
            room.write([1])
            room.close()
        assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,0.5\n"

    def test_a_second_process_writes_no_metrics_either(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Its telemetry is refused, and so are its metrics, also after the other process has ended."""
        room = Room(tmp_path)
        room.layout.telemetry.mkdir(parents=True)
        with held_elsewhere(room.layout.lock), caplog.at_level(logging.CRITICAL), pytest.raises(WriteError):
            room.write([1])
        with pytest.raises(WriteError, match="is being written by another process"):
            room.metrics.write(Moment(0), {"loss": 1.0})
        assert not (tmp_path / "metrics.csv").exists()
