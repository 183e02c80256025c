"""Readable files that are no longer a table of the run are kept and reported, and telemetry continues."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.write.recover import recover_run
from tests.contract.test_untrusted import frame
from tests.write.feeding import Room, csv_batches, event_rows, leave_as_killed, parquet_batches

pytestmark = pytest.mark.timeout(60)

BATCHES = pa.array(range(1, 11))
ONE_MISSING = pa.array([1, 2, None, *range(4, 11)])

RESAVED: dict[str, Callable[[pa.Table], pa.Table]] = {
    "index": lambda rows: rows.drop_columns(["batch_idx"]).append_column("__index_level_0__", BATCHES),
    "text": lambda rows: rows.set_column(0, "batch_idx", BATCHES.cast(pa.string())),
    "float": lambda rows: rows.set_column(0, "batch_idx", BATCHES.cast(pa.float64())),
    "twice": lambda rows: pa.table([*rows.columns, BATCHES], names=[*rows.column_names, "batch_idx"]),
    "null": lambda rows: rows.set_column(0, "batch_idx", ONE_MISSING),
    "list": lambda rows: rows.set_column(0, "batch_idx", pa.array([[1]] * 10)),
}


def journal_of(names: Sequence[str], columns: Sequence[Any], *, rows_before: int) -> bytes:
    """A journal of one batch, with valid checksums."""
    pairs = zip(names, columns, strict=True)
    schema = pa.schema([pa.field(name, column.type, nullable=column.null_count > 0) for name, column in pairs])
    rows = pa.RecordBatch.from_arrays(list(columns), schema=schema)
    head = frame(b"AVAjrnS1", schema.serialize().to_pybytes(), 0, before=rows_before)
    return head + frame(b"AVAjrnR1", rows.serialize().to_pybytes(), rows.num_rows, before=rows_before)


JOURNALS: dict[str, tuple[Sequence[str], Sequence[Any]]] = {
    "no batch_idx": (["a"], [pa.array(["text"])]),
    "text": (["batch_idx"], [pa.array(["11"])]),
    "null": (["batch_idx"], [pa.array([11, None])]),
    "twice": (["batch_idx", "batch_idx"], [pa.array([11]), pa.array([11])]),
    "no column": ([], []),
    "another type": (["batch_idx", "epoch", "overall"], [pa.array([11]), pa.array([0]), pa.array(["text"])]),
}


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A finished run of ten rows."""
    room = Room(tmp_path / "run")
    room.write(range(1, 11))
    room.close()
    return room.layout


def resave(layout: RunLayout, how: str) -> bytes:
    """Save the table's Parquet file again with other columns."""
    path = layout.parquet("norms")
    pq.write_table(RESAVED[how](pq.read_table(path)), path)
    return path.read_bytes()


def resume(layout: RunLayout, resumed_from: int) -> None:
    """Resume behind a batch and write one row."""
    room = Room(layout.root, resumed_from=resumed_from)
    room.write([resumed_from + 1])
    room.close()


def lost(layout: RunLayout) -> str:
    """The messages of all events about damaged files."""
    return json.dumps([row["message"] for row in event_rows(layout.root, "damaged_file")])


@pytest.mark.parametrize("resumed_from", [0, 5, 10])
@pytest.mark.parametrize("how", RESAVED)
def test_a_parquet_file_that_another_program_saved_again_is_kept(
    how: str, resumed_from: int, layout: RunLayout
) -> None:
    """None of its rows is dropped without an event, and the next attempt writes."""
    content = resave(layout, how)
    resume(layout, resumed_from)
    assert (layout.damaged / "norms.parquet").read_bytes() == content
    assert "norms.parquet" in lost(layout)
    assert parquet_batches(layout.root) == [resumed_from + 1]
    assert csv_batches(layout.root) == list(range(1, resumed_from + 2))


@pytest.mark.parametrize("resumed_from", [0, 10])
@pytest.mark.parametrize("what", JOURNALS)
@pytest.mark.parametrize("has_parquet", [True, False], ids=["parquet", "no parquet"])
def test_a_journal_of_other_columns_is_kept(
    what: str, resumed_from: int, *, has_parquet: bool, layout: RunLayout
) -> None:
    """With and without a Parquet file beside it, and for any start of the attempt."""
    if not has_parquet:
        layout.parquet("norms").unlink()
    content = journal_of(*JOURNALS[what], rows_before=10 if has_parquet else 0)
    layout.journal("norms").write_bytes(content)
    resume(layout, resumed_from)
    older = list(range(1, 11)) if has_parquet and resumed_from else []
    if what == "another type" and not has_parquet:  # a table of its own, which is set aside
        assert (layout.superseded(2) / "norms.parquet").exists()
    else:
        assert (layout.damaged / "norms.journal").read_bytes() == content
        assert "norms.journal" in lost(layout)
    assert parquet_batches(layout.root) == [*older, resumed_from + 1]


def test_a_journal_of_more_columns_is_added_to_the_others(layout: RunLayout) -> None:
    """Older rows are null in them, although the journal's schema does not allow null."""
    columns = [pa.array([11]), pa.array([0]), pa.array([7])]
    layout.journal("norms").write_bytes(journal_of(["batch_idx", "epoch", "mine"], columns, rows_before=10))
    recover_run(layout.root)
    rows = pq.read_table(layout.parquet("norms"))
    assert rows["batch_idx"].to_pylist() == list(range(1, 12))
    assert rows["mine"].to_pylist() == [None] * 10 + [7]


@pytest.mark.parametrize("how", RESAVED)
def test_recovery_keeps_a_parquet_file_that_was_saved_again(how: str, layout: RunLayout) -> None:
    """The dry run and the recovery report the same, and a second recovery has nothing to do."""
    resave(layout, how)
    recovers_once(layout, "norms.parquet")


@pytest.mark.parametrize("what", JOURNALS)
def test_recovery_keeps_a_journal_of_other_columns(what: str, layout: RunLayout) -> None:
    """The same holds for a journal."""
    room = Room(layout.root, resumed_from=10)
    room.write([11])
    leave_as_killed(room)
    layout.journal("norms").write_bytes(journal_of(*JOURNALS[what], rows_before=10))
    recovers_once(layout, "norms.journal")
    assert read_manifest(layout.manifest).status == "killed"
    assert parquet_batches(layout.root) == list(range(1, 11))


def recovers_once(layout: RunLayout, file: str) -> None:
    """Check that a recovery does what the dry run reports, and that a second one has nothing to do."""
    planned = list(recover_run(layout.root, dry_run=True).lost)
    assert {finding.file for finding in planned} == {f"telemetry/{file}"}
    assert list(recover_run(layout.root).lost) == planned
    assert (layout.damaged / file).exists()
    assert file in lost(layout)
    assert list(recover_run(layout.root).lost) == []
