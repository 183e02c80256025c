"""Rules of rows: in order, at the right distances, and the same in every table and in both formats."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.arrays import (
    BatchIndices,
    Bools,
    cell_text,
    differing,
    null_mask,
    numpy_values,
    take_rows,
)
from ava_pipeline.contract.manifest import AttemptSpan, attempt_spans
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun, ExplainedBatches, RowsByBatch, Window
from ava_pipeline.validate.listing import MAX_LISTED, Breach, Cell, Rule

ORDER = Rule("rows.order", "batch_idx rises from row to row; in a long table it never falls.")
KEY = Rule("rows.key", "A long table has one row for each layer, or each held-out sample, of a batch.")
EPOCH = Rule("rows.epoch", "epoch never falls from row to row.")
TABLES = Rule("rows.tables", "A batch with a row in one table has one in every table.")
SPACING = Rule(
    "rows.spacing",
    "A row follows at the next multiple of collect_every_n, unless it was deferred or an event says what is missing.",
)
SAME = Rule("files.csv-parquet", "CSV and Parquet hold the same rows: floats bit for bit, nan and null kept apart.")


def check_rows(window: Window) -> Iterator[Breach]:
    """The order of the rows of a table of collected steps."""
    if window.has_key_columns and window.rows.num_rows:
        is_long = window.declaration.table.is_long
        expected = "not below" if is_long else "above"
        yield from _falling(window, ORDER, "batch_idx", window.batches, window.before.batch_idx, expected)
        if is_long:
            yield from _repeated(window)
        yield from _falling(window, EPOCH, "epoch", window.epochs, window.before.epoch, "not below")


def _repeated(window: Window) -> Iterator[Breach]:
    """Rows of a long table whose batch and key a row before them has."""
    key = window.declaration.table.row_key
    columns = [window.rows.column(name).combine_chunks().dictionary_encode().indices for name in key]
    order = np.lexsort([*map(numpy_values, columns), window.batches])
    same = np.ones(len(order) - 1, dtype=np.bool_)
    for values in (window.batches, *map(numpy_values, columns)):
        same &= values[order][1:] == values[order][:-1]
    is_broken = np.zeros(len(order), dtype=np.bool_)
    is_broken[order[1:][same]] = True

    def explain(row: int) -> Cell:
        text = ", ".join(cell_text(window.rows, name, row) for name in key)
        return Cell(f"expected one row of {text} in batch {window.batches[row]}, got another one.", key[0], text)

    yield from window.breaches(KEY, is_broken, explain)


def _falling(
    window: Window, rule: Rule, column: str, values: BatchIndices, before: int | None, expected: str
) -> Iterator[Breach]:
    least_step = 1 if expected == "above" else 0
    previous = np.concatenate([[before or 0], values[:-1]])
    is_broken = values - previous < least_step
    if before is None:
        is_broken[0] = False
    if not is_broken.any():
        return
    is_known = ~null_mask(window.rows.column(column))
    is_broken &= is_known
    is_broken[1:] &= is_known[:-1]
    message = f"expected a value {expected} that of the row before, which is {{}}, got {{}}."
    yield from window.breaches(
        rule, is_broken, lambda row: Cell(message.format(previous[row], values[row]), column, str(values[row]))
    )


def check_run(run: CheckedRun) -> Iterator[Breach]:
    """The batches of every file: the same in both formats and in all tables, and at the right distances."""
    yield from _in_one_format(run)
    files = run.keyed_files()
    if all(table.csv or table.parquet for table in run.tables.values()):
        first = files[0].batches.to_numpy() if files else np.empty(0, np.int64)
        if not all(np.array_equal(file.batches.to_numpy(), first) for file in files[1:]):
            yield from _missing_batches(run, files)
    if run.manifest is not None:
        spans = sorted(attempt_spans(run.manifest), key=lambda span: span.begin)
        for file in files if spans else ():
            if file.batches.is_rising:
                yield from _irregular_batches(run, file, spans)


def _missing_batches(run: CheckedRun, files: Sequence[CheckedFile]) -> Iterator[Breach]:
    # While rows come, one table is written before the next; a kill leaves them like that.
    last = run.manifest.attempts[-1].columns if run.manifest and run.manifest.attempts else {}
    ends = [file.batches.highest for file in files if not last or file.declaration.table.name in last] or [0]
    end = min(ends) if run.is_open else max(ends)
    for file in files:
        by_batch = RowsByBatch(file.batches)
        missing = np.unique(
            np.concatenate([by_batch.missing(other.batches)[1] for other in files if other is not file])
        )
        missing = missing[(missing <= end) & (missing > _superseded_up_to(run, file))]
        missing = missing[_is_expected(run, file, missing)]
        missing = missing[~run.explained.overlap(missing, missing)]
        if len(missing):
            # A finding names the row before which the missing one belongs.
            rows = file.first_rows(np.searchsorted(file.batches.to_numpy(), missing[:MAX_LISTED])) + 1
            yield TABLES.broken_rows(file.file, rows, partial(_explain_missing, missing), num=len(missing))


def _is_expected(run: CheckedRun, file: CheckedFile, batches: BatchIndices) -> Bools:
    """Whether the table should have rows of these batches: their attempt measured it, and if it is long, it has begun.

    The holdout begins when it is set, which may be after the first batch.
    """
    table = file.declaration.table
    is_expected = np.ones(len(batches), dtype=np.bool_)
    if table.is_long:
        is_expected &= batches > (np.iinfo(np.int64).max if file.batches.lowest is None else file.batches.lowest)
    for span in attempt_spans(run.manifest) if run.manifest is not None else ():
        first: float = span.attempt.first_batches.get(table.name, 0)
        if span.attempt.columns and table.name not in span.attempt.columns:
            first = span.end + 1
        is_expected &= (batches <= span.begin) | (batches > span.end) | (batches >= first)
    return is_expected


def _superseded_up_to(run: CheckedRun, file: CheckedFile) -> int:
    """The last batch that this file cannot have: a file whose columns changed was moved to superseded/ whole."""
    attempts = run.manifest.attempts if run.manifest else []
    if not any(file.name in attempt.set_aside for attempt in attempts):
        return 0
    lowest = file.batches.lowest
    return np.iinfo(np.int64).max if lowest is None else lowest


def _explain_missing(batches: BatchIndices, index: int) -> Cell:
    message = f"expected a row of batch {batches[index]}, as in other tables; no event explains why it is missing."
    return Cell(message, "batch_idx", str(batches[index]))


def _irregular_batches(run: CheckedRun, file: CheckedFile, spans: Sequence[AttemptSpan]) -> Iterator[Breach]:
    attempts = [_IrregularRows(span, run.explained, file.declaration.table.name) for span in spans]
    begins = [span.begin for span in spans]
    start, last = 0, 0
    for batches in file.batches.arrays():
        before = np.concatenate([[last], batches[:-1]])
        which = np.searchsorted(begins, batches) - 1
        for index in np.unique(which[which >= 0]).tolist():
            rows = slice(*np.searchsorted(which, [index, index + 1]).tolist())
            attempts[index].append(start + rows.start, before[rows], batches[rows])
        start, last = start + len(batches), int(batches[-1])
    for attempt in attempts:
        yield from attempt.breaches(file)


class _IrregularRow(NamedTuple):
    """A row that came early or late, by its place among the batches of the file; the lowest ranks are listed."""

    rank: int
    num_batches_late: int
    place: int
    due: int
    batch: int


class _IrregularRows:
    """Rows of one attempt that came early or late.

    The manifest counts deferred rows but does not name them: the latest rows count as following a missing one, and
    those at multiples of `collect_every_n` first. The first row of a table that was added while the attempt ran may be
    any.
    """

    def __init__(self, span: AttemptSpan, explained: ExplainedBatches, table: str) -> None:
        self._span = span
        self._first_batch = span.attempt.first_batches.get(table)
        self._explained = explained
        self._num_early = 0
        self._num_late = 0
        self._likeliest: list[_IrregularRow] = []

    def append(self, start: int, before: BatchIndices, batches: BatchIndices) -> None:
        """Add the batches after `start` others; `before` are the batches before each of them."""
        every = self._span.attempt.collect_every_n
        due = (np.maximum(before, self._span.begin) // every + 1) * every
        is_first = batches == (0 if self._first_batch is None else self._first_batch)
        early, late = (batches < due) & ~is_first, (batches > due) & ~is_first
        if late.any():
            late[late] = ~self._explained.overlap(due[late], batches[late])
        self._num_early += int(early.sum())
        self._num_late += int(late.sum())
        rows = np.flatnonzero(early | late)
        ranks = np.where(early, 0, np.where(batches % every == 0, 1, 2))[rows]
        num_late = np.where(early, 0, due - batches)[rows]  # negative, so that the latest sorts first
        first = np.lexsort((num_late, ranks))[:MAX_LISTED]
        columns = (ranks[first], num_late[first], rows[first] + start, due[rows][first], batches[rows][first])
        found = [_IrregularRow(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        self._likeliest = sorted([*self._likeliest, *found])[:MAX_LISTED]

    def breaches(self, file: CheckedFile) -> Iterator[Breach]:
        """Early rows, and late rows beyond the number deferred.

        A running attempt counts its deferrals late; a killed one lost some of its counts and events.
        """
        attempt = self._span.attempt
        num_allowed = self._num_late if attempt.status in {"running", "killed"} else attempt.deferred
        num = self._num_early + max(0, self._num_late - num_allowed)
        found = sorted(self._likeliest[:num], key=lambda irregular: irregular.place)

        def explain(index: int) -> Cell:
            due, batch = found[index].due, found[index].batch
            message = f"expected batch {due}, got {batch}: attempt {attempt.number} collects every {{}}."
            return Cell(message.format(_nth(attempt.collect_every_n)), "batch_idx", str(batch))

        if found:
            rows = file.first_rows(np.array([irregular.place for irregular in found])) + 1
            yield SPACING.broken_rows(file.file, rows, explain, num=num)


def _nth(every: int) -> str:
    return "batch" if every == 1 else f"{every} batches"


def _in_one_format(run: CheckedRun) -> Iterator[Breach]:
    """Rows that are in one file of a table only; `ParquetComparison` compares the values of rows in both."""
    for table in run.tables.values():
        csv, parquet = table.csv, table.parquet
        if csv and parquet and not table.is_same and csv.has_keys and parquet.has_keys:
            yield from _only_in(run, csv, parquet)
            yield from _only_in(run, parquet, csv)


def _only_in(run: CheckedRun, file: CheckedFile, other: CheckedFile) -> Iterator[Breach]:
    rows, batches = RowsByBatch(other.batches).missing(file.batches)
    is_broken = ~run.explained.overlap(batches, batches)
    if run.is_open:  # the other file may lag behind
        is_broken &= batches <= other.batches.highest
    rows, batches = rows[is_broken], batches[is_broken]

    def explain(index: int) -> Cell:
        message = (
            f"expected the row of batch {batches[index]} in {other.name} too; no event explains why it is missing."
        )
        return Cell(message, "batch_idx", str(batches[index]))

    if len(rows):
        yield SAME.broken_rows(file.file, file.first_rows(rows) + 1, explain)


class ParquetComparison:
    """Compares the rows of a CSV file, window by window, with those of the table's Parquet file.

    Each call of `read` yields the Parquet rows, with `schema`, from the first one on. `checked` reads the whole Parquet
    file, or returns None if it cannot be used; it is called at the first difference. `is_same` holds while all rows
    compared are equal.
    """

    def __init__(
        self, read: Callable[[], Iterator[pa.Table]], schema: pa.Schema, checked: Callable[[], CheckedFile | None]
    ) -> None:
        self.is_same = True
        self._rows = RowCursor(read, schema)
        self._checked = checked
        self._by_batch: RowsByBatch | None = None

    def check(self, window: Window) -> Iterator[Breach]:
        """Values that differ in the Parquet file; rows are matched by position, and after a difference by batch."""
        num_same = self._num_same(window) if self.is_same else 0
        if num_same == window.rows.num_rows:
            return
        self.is_same = False
        parquet = self._checked()
        if parquet is not None and parquet.has_keys and window.has_key_columns:
            self._by_batch = self._by_batch or RowsByBatch(parquet.batches)
            parquet_rows = _rows_of(window, parquet, self._by_batch)
            parquet_rows[:num_same] = -1
            yield from self._different_values(window, parquet.name, parquet_rows)

    def has_rows_after(self, num_rows: int) -> bool:
        """Whether the Parquet file has more than `num_rows` rows, even if they cannot be read."""
        try:
            return self._rows.rows(num_rows, 1).num_rows > 0
        except DamagedFileError:
            return True  # reported when the file is read to its end

    def _num_same(self, window: Window) -> int:
        """How many rows, from the first on, are the same at the same position of the Parquet file."""
        try:
            others = self._rows.rows(window.start, window.rows.num_rows)
        except DamagedFileError:
            return 0  # reported when the file is read to its end
        rows = window.rows.slice(0, others.num_rows)
        different = np.flatnonzero(np.any(list(differing(rows, others).values()), axis=0))
        return int(different[0]) if len(different) else others.num_rows

    def _different_values(self, window: Window, other: str, parquet_rows: NDArray[np.intp]) -> Iterator[Breach]:
        found = parquet_rows[parquet_rows >= 0]
        if not len(found):
            return
        first = int(found.min())
        held = self._rows.rows(first, int(found.max()) - first + 1)
        # While rows come, the file may have grown since this reading of it began.
        here = np.flatnonzero((parquet_rows >= 0) & (parquet_rows < first + held.num_rows))
        there = parquet_rows[here]
        rows, others = take_rows(window.rows, here), take_rows(held, there - first)
        for name, is_different in differing(rows, others).items():
            broken = np.flatnonzero(is_different)[:MAX_LISTED]
            values = [(cell_text(rows, name, int(at)), cell_text(others, name, int(at))) for at in broken]
            cells = [
                Cell(
                    f"expected equal values, got {ours} here and {theirs} in row {there[at] + 1} of {other}.",
                    name,
                    ours,
                )
                for at, (ours, theirs) in zip(broken, values, strict=True)
            ]
            if cells:
                file_rows = here[broken] + window.start + 1
                num = int(is_different.sum())
                yield SAME.broken_rows(window.file, file_rows, cells.__getitem__, num=num)


def _rows_of(window: Window, file: CheckedFile, by_batch: RowsByBatch) -> NDArray[np.intp]:
    """The 0-based rows of another file of the table that are those of a window; -1 if it has none.

    In a long table, the rows of a batch have the same order; those of a batch that began before the window have none.
    """
    places = by_batch.rows_of(window.batches)
    if not window.declaration.table.is_long:
        return places
    begins = np.diff(window.batches, prepend=window.before.batch_idx or 0) != 0
    number = np.arange(len(begins)) - np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))
    is_known = (places >= 0) & np.logical_or.accumulate(begins)
    rows, ends = file.first_rows(places) + number, file.first_rows(places + 1)
    return np.where(is_known & (rows < ends), rows, -1)


class RowCursor:
    """Rows by their position; asking for ever later rows reads the file once. Each call of `read` starts over."""

    def __init__(self, read: Callable[[], Iterator[pa.Table]], schema: pa.Schema) -> None:
        self._read = read
        self._empty = pa.Table.from_batches([], schema)
        self._start = 0
        self._tables = read()
        self._held = self._empty

    def rows(self, start: int, num: int) -> pa.Table:
        """`num` rows from the 0-based row `start` on, or fewer at the end; raise DamagedFileError if unreadable."""
        if start < self._start:
            self._start, self._tables, self._held = 0, self._read(), self._empty
        while self._start + self._held.num_rows < start + num:
            table = next(self._tables, None)
            if table is None:
                break
            self._drop_before(start)
            self._held = pa.concat_tables([self._held, table])
        self._drop_before(start)
        return self._held.slice(0, num)

    def _drop_before(self, start: int) -> None:
        num = min(max(0, start - self._start), self._held.num_rows)
        self._held = self._held.slice(num)
        self._start += num
