"""One table's rows to all of its files: bad rows and broken writers cost only themselves."""

from pathlib import Path

import pyarrow as pa
import pytest

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.tables import KEY_COLUMNS, RunTable, Table
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.table_writer import TableWriter
from ava_pipeline.write.writers import Outcome, TableFiles
from tests.write.feeding import PlainMeasure
from tests.write.memory_writer import MemoryWriter

TABLE = RunTable.of(
    Table(
        name="mixed",
        description="A norm that may be missing, a rate that may not, a note.",
        columns=(
            *KEY_COLUMNS,
            Column(name="norm", dtype="float32", description="Norm.", nullable=True, not_below=0),
            Column(name="rate", dtype="float64", description="Rate."),
            Column(name="note", dtype="string", description="Note."),
        ),
    )
)


def row(batch_idx: object, **values: object) -> dict[str, object]:
    """A good row, but for what is given."""
    return {"batch_idx": batch_idx, "epoch": 0, "norm": 1.0, "rate": 0.1, "note": ""} | values


def write(files: TableFiles, rows: list[dict[str, object]]) -> Outcome:
    """Write rows, given row by row."""
    return files.write({name: [one[name] for one in rows] for name in TABLE.column_names}, len(rows))


def batches(writer: MemoryWriter) -> list[object]:
    """The batches that the writer took."""
    return [one for batch in writer.batches for one in batch.column("batch_idx").to_pylist()]


class BrokenWriter(MemoryWriter):
    """A writer that refuses while it is broken, by whatever exception."""

    error: Exception | None = OSError("no space left on device")

    def write(self, batch: pa.RecordBatch) -> None:
        """Refuse, or take the batch."""
        if self.error is not None:
            raise self.error
        super().write(batch)


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ({"norm": -1.0}, "norm"),
        ({"norm": "1.0"}, "norm"),
        ({"rate": None}, "rate"),
        ({"rate": True}, "rate"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": 2**63}, "epoch"),
        ({"rate": 2**53 + 1}, "rate"),
        ({"note": "\ud800"}, "note"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_written(values: dict[str, object], column: str) -> None:
    """A value that breaks a rule, or that no file can hold, costs its own row only."""
    writer = MemoryWriter()
    outcome = write(TableFiles(TABLE, [writer]), [row(1), row(2, **values), row(3)])
    assert batches(writer) == [1, 3]
    assert outcome.failed == {1}
    assert [(finding.row, finding.column) for finding in outcome.findings] == [(2, column)]
    assert not outcome.errors


def test_nan_and_null_keep_the_rules() -> None:
    """What was measured and is not finite is written, and so is what was not measured."""
    writer = MemoryWriter()
    rows = [row(1, norm=None), row(2, norm=float("nan")), row(3, norm=float("inf"))]
    assert write(TableFiles(TABLE, [writer]), rows).failed == set()
    assert batches(writer) == [1, 2, 3]


def test_a_broken_writer_does_not_cost_the_other_file_its_rows() -> None:
    """The steps count as failed, the file that lacks them is named, and it goes on when it can."""
    broken, sound = BrokenWriter("broken.csv"), MemoryWriter("sound.parquet")
    files = TableFiles(TABLE, [broken, sound])
    outcome = write(files, [row(1), row(2)])
    assert outcome.failed == {0, 1}
    assert list(outcome.errors) == ["broken.csv"]
    broken.error = None
    assert write(files, [row(3)]).failed == set()
    assert (batches(broken), batches(sound)) == ([3], [1, 2, 3])
    assert files.num_rows == {"broken.csv": 1, "sound.parquet": 3}


def test_an_unexpected_exception_of_a_writer_is_an_outcome_like_any_other() -> None:
    """A writer with a bug costs its rows, not the thread."""
    broken = BrokenWriter("broken.csv")
    broken.error = ZeroDivisionError("a writer with a bug")
    assert write(TableFiles(TABLE, [broken]), [row(1)]).errors == {"broken.csv": broken.error}


def test_a_file_that_cannot_be_released_is_reported(tmp_path: Path) -> None:
    """A writer of the user's that raises when the run directory was moved away costs the other files nothing."""

    class StuckWriter(MemoryWriter):
        def abandon(self) -> None:
            raise OSError("the connection is gone")

    class ReleasedWriter(MemoryWriter):
        is_released = False

        def abandon(self) -> None:
            self.is_released = True

    log, released = EventLog(tmp_path), ReleasedWriter("mixed.released")
    files = TableFiles(TABLE, [StuckWriter("mixed.stuck"), released])
    TableWriter(PlainMeasure(), 0, files, log).abandon()
    assert "mixed.stuck could not be released: OSError: the connection is gone." in str(log.first_error)
    assert released.is_released


def test_rows_that_are_all_bad_are_no_batch() -> None:
    """Nothing is handed to the writers."""
    writer = MemoryWriter()
    assert write(TableFiles(TABLE, [writer]), [row("1")]).failed == {0}
    assert writer.batches == []


def test_rows_that_together_are_too_large_for_arrow_are_all_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value could be stored; every row is reported, and the thread continues."""
    monkeypatch.setattr("ava_pipeline.contract.columns.MAX_TEXT_BYTES", 9)
    files = TableFiles(TABLE, [writer := MemoryWriter()])
    outcome = write(files, [row(1, note="12345"), row(2, note="12345")])
    assert outcome.failed == {0, 1}
    assert [(finding.row, finding.id) for finding in outcome.findings] == [(1, "values.dtype"), (2, "values.dtype")]
    assert all("fit into one Arrow array" in finding.message for finding in outcome.findings)
    assert writer.batches == []
