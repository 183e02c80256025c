"""Validation in windows of any size finds the same as validation in one window."""

import shutil
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import StepCounters
from ava_pipeline.validate import table_reader
from ava_pipeline.validate.checked_run import BatchNumbers, RowsByBatch
from ava_pipeline.validate.listing import MAX_LISTED
from ava_pipeline.validate.rules_rows import RowCursor
from ava_pipeline.validate.validate import validate_run
from tests.validate.building import NOW, TABLES, RunBuilder
from tests.validate.damaging import cut, delete_line, edit_lines, edit_manifest, edit_parquet, set_cell, set_field
from tests.validate.test_damage import DAMAGES, EVENTS, NORMS, RATES, STEPS, Damage
from tests.validate.test_validate import attempt

# Rows of a Parquet window and bytes of a CSV block: one row each, and windows and blocks with different edges.
SIZES = [(1, 1), (3, 200)]


def in_windows(run: Path, num_rows: int, num_bytes: int) -> list[Finding]:
    """The findings with windows of `num_rows` rows and blocks of `num_bytes` bytes."""
    with pytest.MonkeyPatch.context() as small:
        small.setattr(table_reader, "WINDOW_ROWS", num_rows)
        small.setattr(table_reader, "BLOCK_BYTES", num_bytes)
        return validate_run(run, now=NOW)


def validated(run: Path) -> list[Finding]:
    """The findings, which must be the same for windows of every size."""
    whole = validate_run(run, now=NOW)
    for num_rows, num_bytes in SIZES:
        assert in_windows(run, num_rows, num_bytes) == whole
    return whole


def test_of_many_findings_those_of_the_first_rows_are_listed(tmp_path: Path) -> None:
    """Also if two columns in turn have more findings than are listed."""
    batches = tuple(range(10, 610, 10))
    norms: dict[int, dict[str, object]] = {
        batch: {("overall", "mlp_layer_0")[batch // 10 % 2]: -1.0} for batch in batches
    }
    root = RunBuilder(root=tmp_path / "run", batches=batches, norms=norms).write()
    found = [one for one in validated(root) if one.id == "values.range" and one.file == f"{NORMS}.csv"]
    assert [one.row for one in found] == [*range(1, MAX_LISTED + 1), None]
    assert found[-1].message.startswith(f"{60 - MAX_LISTED} more")


def warning(name: EventName, first: int, last: int) -> Event:
    """A warning event about a range of batches, with quotes in its text."""
    return Event(event=name, severity="warning", message='a, "b"', batch_idx=first, batch_idx_end=last, epoch=0)


@pytest.fixture(scope="module")
def valid_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve rows with events whose text holds line feeds, and without predictions."""
    events = [warning("non_finite", batch, batch) for batch in range(10, 70, 10)]
    root = RunBuilder(root=tmp_path_factory.mktemp("sound") / "run", events=events).write()
    (root / EVENTS).write_text((root / EVENTS).read_text().replace('a, ""b""', 'a,\n""b""\n'))
    shutil.rmtree(root / "predictions")
    (root / "metrics.csv").unlink()
    return root


@pytest.mark.parametrize(
    "damage", [one for one in DAMAGES if one.file.startswith("telemetry/")], ids=lambda damage: damage.name
)
def test_known_damage_is_found_in_windows(damage: Damage, valid_run: Path, tmp_path: Path) -> None:
    """Rule, file, row, column and sentence are the same."""
    run = shutil.copytree(valid_run, tmp_path / "run")
    damage.do(run)
    assert damage.rule in {one.id for one in validated(run)}


def row_damages(row: int) -> list[tuple[str, Callable[[Path], object], str]]:
    """Damage to one row of a table, and the rule that finds it."""
    norms, rates, steps = (f"{table}.csv" for table in (NORMS, RATES, STEPS))
    swapped = lambda lines: [*lines[:row], lines[row + 1], lines[row], *lines[row + 2 :]]  # noqa: E731  # used once
    doubled = lambda lines: [*lines[: row + 1], *lines[row:]]  # noqa: E731  # used once
    long = lambda lines: [*lines[:row], f"{lines[row]},7", *lines[row + 1 :]]  # noqa: E731  # used once
    return [
        ("other", lambda run: set_field(run / steps, row, "loss", "0.25"), "files.csv-parquet"),
        ("other in Parquet", lambda run: set_cell(run / f"{STEPS}.parquet", row, "loss", 0.5), "files.csv-parquet"),
        ("null", lambda run: set_field(run / norms, row, "batch_idx", ""), "values.null"),
        ("missing", lambda run: delete_line(run / norms, row), "rows.tables"),
        ("missing in Parquet", lambda run: edit_parquet(run / f"{NORMS}.parquet", without(row)), "rows.tables"),
        ("swapped", lambda run: edit_lines(run / rates, swapped), "rows.order"),
        ("doubled", lambda run: edit_lines(run / rates, doubled), "rows.order"),
        ("a field too many", lambda run: edit_lines(run / rates, long), "files.line"),
        ("no number", lambda run: set_field(run / norms, row, "overall", "x"), "values.dtype"),
        ("epoch", lambda run: set_field(run / steps, row, "epoch", "3"), "rows.epoch"),
    ]


def without(row: int) -> Callable[[pa.Table], pa.Table]:
    """Remove a 1-based row."""
    return lambda rows: pa.concat_tables([rows.slice(0, row - 1), rows.slice(row)])


@pytest.mark.parametrize("row", range(3, 6))
@pytest.mark.parametrize("index", range(len(row_damages(1))), ids=[name for name, _, _ in row_damages(1)])
def test_a_row_before_at_and_after_an_edge(index: int, row: int, valid_run: Path, tmp_path: Path) -> None:
    """The first window of three rows ends with row 3."""
    run = shutil.copytree(valid_run, tmp_path / "run")
    _, damage, rule = row_damages(row)[index]
    damage(run)
    assert rule in {one.id for one in validated(run)}


def both_doubled(run: Path) -> None:
    """Both files of a table have a batch twice, with other values; a later row differs between them."""
    set_field(run / f"{STEPS}.csv", 4, "batch_idx", "30")
    set_cell(run / f"{STEPS}.parquet", 4, "batch_idx", 30)
    set_field(run / f"{STEPS}.csv", 9, "loss", "0.5")


def null_and_more(run: Path) -> None:
    """A row without a batch, with falling or differing rows before and after it."""
    for row, column, value in ((6, "batch_idx", ""), (9, "loss", "0.5"), (3, "loss", "0.5"), (11, "batch_idx", "20")):
        set_field(run / f"{STEPS}.csv", row, column, value)


def torn_events(run: Path) -> None:
    """After text with line feeds follow a field that is not a number, and an unfinished line."""
    path = run / EVENTS
    lines = path.read_text().replace("\n60,60,", "\n60,x,")
    path.write_text(f"{lines}70,70,0,20")


def short_beside_damaged(run: Path) -> None:
    """The CSV file ends where the damage of the Parquet file begins."""
    edit_lines(run / f"{STEPS}.csv", lambda lines: lines[:5])
    path = run / f"{STEPS}.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=4, write_page_checksum=True)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


def blank_lines(run: Path) -> None:
    """Blank lines do not count as rows."""
    edit_lines(run / f"{RATES}.csv", lambda lines: [*lines[:3], "", "", *lines[3:10], f"{lines[10]},7", *lines[11:]])


def blank_line_and_crlf(run: Path) -> None:
    """A line that ends in CRLF after a blank line."""
    edit_lines(run / f"{RATES}.csv", lambda lines: [*lines[:3], "", *lines[3:9], f"{lines[9]}\r", *lines[10:]])


@pytest.mark.parametrize(
    ("damage", "rule", "row"),
    [
        (both_doubled, "files.csv-parquet", 9),
        (null_and_more, "rows.order", 11),
        (torn_events, "values.dtype", 6),
        (torn_events, "files.torn-line", 7),
        (short_beside_damaged, "files.unreadable", None),
        (blank_lines, "files.line", 10),
        (blank_line_and_crlf, "files.line-end", 9),
    ],
)
def test_damage_in_two_places(
    damage: Callable[[Path], None], rule: str, row: int | None, valid_run: Path, tmp_path: Path
) -> None:
    """The findings of one window do not depend on other windows, and rows are numbered over the whole file."""
    run = shutil.copytree(valid_run, tmp_path / "run")
    damage(run)
    assert (rule, row) in {(one.id, one.row) for one in validated(run)}


def test_events_of_a_damaged_file_explain_nothing(tmp_path: Path) -> None:
    """Neither the events before the damage nor those after it."""
    events = [warning("gap", 30, 40), *(warning("non_finite", batch, batch) for batch in (50, 60, 70, 80))]
    run = RunBuilder(root=tmp_path / "run", batches=(10, 20, 50, 60, 70, 80), events=events).write()
    assert validated(run) == []
    (run / EVENTS).write_text((run / EVENTS).read_text().replace("\n80,80,", "\n80,x,"))
    assert "rows.spacing" in {one.id for one in validated(run)}


def resumed() -> dict[str, object]:
    """A killed attempt whose last rows the next attempt, with another spacing, moved to superseded/."""
    names = [f"{table.table.name}.{suffix}" for table in TABLES for suffix in ("csv", "parquet")]
    counters = [StepCounters(collected=number, written=number).model_dump() for number in (5, 3)]
    first = attempt(status="killed", rows=dict.fromkeys(names, 5), counters=counters[0])
    superseded, rows = dict.fromkeys(names, 2), dict.fromkeys(names, 3)
    second = attempt(2, every=20, resumed_from=35, set_aside=superseded, rows=rows, counters=counters[1])
    return {"batches": (10, 20, 30, 40, 60, 80), "attempts": [first, second]}


SOUND: dict[str, dict[str, object]] = {
    "deferred": {"batches": (12, 20, 32, 40, 52, 60), "attempts": [attempt(deferred=3)]},
    "too few deferred": {"batches": (12, 20, 32, 40, 52, 60), "attempts": [attempt(deferred=1)]},
    "a gap": {"batches": (10, 20, 50, 60, 70), "events": [warning("gap", 30, 40)]},
    "a gap without an event": {"batches": (10, 20, 50, 60, 70)},
    "a failed row": {"lost": {"gradient_norms": [30]}, "events": [warning("failed_row", 30, 30)]},
    "a lost row": {"lost": {"gradient_norms": [30, 40]}},
    "resumed": resumed(),
    "null and nan": {"norms": {30: {"backbone_layer4": None}, 40: {"overall": float("nan")}}},
    "running": {"status": "running"},
    "no rows": {"batches": ()},
}
CLEAN = ("deferred", "a gap", "a failed row", "resumed", "null and nan", "running", "no rows")


@pytest.mark.parametrize("name", SOUND)
def test_runs_are_judged_alike_in_windows(name: str, tmp_path: Path) -> None:
    """A run that is clean in one window is clean in many, and a run that is not stays so."""
    run = RunBuilder(root=tmp_path / "run", **SOUND[name]).write()  # type: ignore[arg-type]  # a table's own facts
    assert (validated(run) == []) == (name in CLEAN)


def test_the_open_tail_of_a_running_run(tmp_path: Path) -> None:
    """A growing run may have a torn line, a cut journal and a table behind the others."""
    run = RunBuilder(root=tmp_path / "run", status="running").write()
    edit_manifest(run, lambda manifest: manifest["attempts"][0].update(rows={}))
    cut(run / f"{RATES}.csv", 90)
    cut(run / f"{STEPS}.journal", 40)
    assert validated(run) == []
    path = run / f"{RATES}.csv"
    path.write_text(path.read_text().replace("\n50,1,", "\n50,0,"))
    assert [(one.id, one.row) for one in validated(run)] == [("files.csv-parquet", 5)]


WINDOWS = st.lists(st.lists(st.integers(1, 30), max_size=6), max_size=6)


def numbers(windows: Sequence[Sequence[int]]) -> BatchNumbers:
    """The batch numbers of several windows."""
    found = BatchNumbers()
    for window in windows:
        found.append(np.asarray(window, dtype=np.int64))
    return found


@settings(max_examples=150, deadline=None)
@given(windows=WINDOWS | WINDOWS.map(lambda windows: [sorted(set(window)) for window in windows]), others=WINDOWS)
def test_batch_numbers_are_a_list(windows: list[list[int]], others: list[list[int]]) -> None:
    """Stored compactly or not, they equal the numbers given; of a batch with two rows the first row is found."""
    found, rows = numbers(windows), list(chain(*windows))
    assert found.to_numpy().tolist() == rows
    assert np.concatenate([np.empty(0, np.int64), *found.arrays()]).tolist() == rows
    assert found.is_rising == (rows == sorted(set(rows)))
    assert (found.lowest, found.highest) == (min(rows, default=None), max(rows, default=0))
    asked = list(chain(*others))
    wanted = [rows.index(batch) if batch in rows else -1 for batch in asked]
    assert RowsByBatch(found).rows_of(np.asarray(asked, dtype=np.int64)).tolist() == wanted
    missing_rows, missing = RowsByBatch(found).missing(numbers(others))
    gone = [(row, batch) for row, batch in enumerate(asked) if batch not in rows]
    assert list(zip(missing_rows.tolist(), missing.tolist(), strict=True)) == gone


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 4), max_size=6),
    asked=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 9)), max_size=8),
)
def test_a_row_cursor_is_a_slice(sizes: list[int], asked: list[tuple[int, int]]) -> None:
    """Whether rows are read forwards or backwards, and in whatever parts they are stored."""
    schema = pa.schema([("row", pa.int64())])
    starts = np.cumsum([0, *sizes]).tolist()
    parts = [
        pa.table({"row": range(start, start + size)}, schema) for start, size in zip(starts[:-1], sizes, strict=True)
    ]
    cursor = RowCursor(lambda: iter(parts), schema)
    for start, num in asked:
        expected = list(range(starts[-1]))[start : start + num]
        assert cursor.rows(start, num).column("row").to_pylist() == expected
