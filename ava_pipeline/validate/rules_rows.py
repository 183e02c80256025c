"""Rules of rows: in order, `collect_every_n` batches apart, and of the same batches in every table."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ava_pipeline.contract.manifest import AttemptSpan, attempt_spans
from ava_pipeline.read.arrays import BatchIndices, integers, nulls
from ava_pipeline.validate.batches import Lookup, Spans
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun
from ava_pipeline.validate.violations import MAX_LISTED, Breach, Cell, Rule
from ava_pipeline.validate.windows import Window

ORDER = Rule("rows.order", "batch_idx rises from row to row.")
EPOCH = Rule("rows.epoch", "epoch never falls from row to row.")
TABLES = Rule("rows.tables", "A batch with a row in one table has one in every table.")

ROW_RULES = (ORDER, EPOCH, TABLES)


def check_order(window: Window) -> Iterator[Breach]:
    """The order of the rows of a table that has a row a collected step."""
    if window.is_of_steps and window.rows.num_rows:
        batch_before, epoch_before = window.before
        yield from _falling(window, ORDER, "batch_idx", batch_before, 1, "must be above the row before, which has")
        yield from _falling(window, EPOCH, "epoch", epoch_before, 0, "must not be below the row before, which has")


def _falling(window: Window, rule: Rule, column: str, before: int | None, least: int, what: str) -> Iterator[Breach]:
    values = integers(window.rows, column)
    is_known = ~nulls(window.rows.column(column))
    befores = np.concatenate([[before or 0], values[:-1]])
    is_told = is_known & np.concatenate([[before is not None], is_known[:-1]])
    explain = lambda row: Cell(f"{values[row]} {what} {befores[row]}.", column, str(values[row]))  # noqa: E731  # used once
    yield from window.breaches(rule, is_told & (values - befores < least), explain)


def check_rows(run: CheckedRun) -> Iterator[Breach]:
    """The same batches in every table."""
    parts = list(run.keyed_parts())
    if any(not table.parts for table in run.tables.values()) or _agree(parts):
        return
    # While rows come, one table is written before the next; a kill leaves them so.
    ends = [part.batches.greatest for part in parts]
    end = min(ends, default=0) if run.is_open else max(ends, default=0)
    for part in parts:
        lost = _lost(part, parts)
        lost = lost[(lost <= end) & ~run.missing.overlap(lost, lost) & (lost > _set_aside_up_to(run, part))]
        yield from (_missing_batches(part, lost) if len(lost) else ())


def _agree(parts: Sequence[CheckedFile]) -> bool:
    """Whether every file has the same batches, as nearly always."""
    first = parts[0].batches.to_numpy() if parts else ()
    return all(np.array_equal(part.batches.to_numpy(), first) for part in parts[1:])


def _lost(part: CheckedFile, parts: Sequence[CheckedFile]) -> BatchIndices:
    """Batches that another file has."""
    own = Lookup(part.batches)
    return np.unique(np.concatenate([own.lost(other.batches)[1] for other in parts if other is not part]))


def _set_aside_up_to(run: CheckedRun, part: CheckedFile) -> int:
    """A file whose columns changed was set aside whole: it holds only later batches than the other tables."""
    attempts = run.manifest.attempts if run.manifest else []
    was_set_aside = any(part.name in attempt.set_aside for attempt in attempts)
    least = part.batches.least
    return (np.iinfo(np.int64).max if least is None else least) if was_set_aside else 0


def _missing_batches(part: CheckedFile, lost: BatchIndices) -> Iterator[Breach]:
    """Told at the first row behind each lost one, where it is to be looked for."""
    behind = np.searchsorted(part.batches.to_numpy(), lost[:MAX_LISTED])
    cells = [
        (
            row + 1,
            Cell(f"no row of batch {batch}, which other tables have and no event explains.", "batch_idx", str(batch)),
        )
        for row, batch in zip(behind.tolist(), lost.tolist(), strict=False)
    ]
    yield TABLES.some(part.file, cells, num=len(lost))


SPACING = Rule(
    "rows.spacing",
    "A row follows at the next multiple of collect_every_n, unless it was deferred or an event says what is missing.",
)

SPACING_RULES = (SPACING,)


def check_spacing(run: CheckedRun) -> Iterator[Breach]:
    """Every table that has a row a collected step."""
    found = sorted(attempt_spans(run.manifest), key=lambda stretch: stretch.begin) if run.manifest else []
    for part in run.keyed_parts() if found else ():
        if part.batches.is_rising:
            yield from _irregular(run, part, found)


def _irregular(run: CheckedRun, part: CheckedFile, found: Sequence[AttemptSpan]) -> Iterator[Breach]:
    irregular = [_Irregular(stretch, run.missing) for stretch in found]
    begins = [stretch.begin for stretch in found]
    start, last = 0, 0
    for batches in part.batches.stretches():
        before = np.concatenate([[last], batches[:-1]])
        which = np.searchsorted(begins, batches) - 1
        for index in np.unique(which[which >= 0]).tolist():
            of_it = slice(*np.searchsorted(which, [index, index + 1]).tolist())
            irregular[index].add(start + of_it.start, before[of_it], batches[of_it])
        start, last = start + len(batches), int(batches[-1])
    for one in irregular:
        yield from one.breaches(part.file)


class _Row(NamedTuple):
    """A row that did not come when it was due; those that are told first are the least."""

    rank: int
    due_after: int
    row: int
    due: int
    batch: int


class _Irregular:
    """Rows of one attempt that came early or late.

    Which of the late rows were deferred, nothing says, so the latest count as lost, those on the grid first.
    """

    def __init__(self, stretch: AttemptSpan, missing: Spans) -> None:
        self._stretch = stretch
        self._missing = missing
        self._num_early = 0
        self._num_late = 0
        self._likeliest: list[_Row] = []

    def add(self, start: int, before: BatchIndices, batches: BatchIndices) -> None:
        """Go on by rows behind `start`; `before` are the batches of the rows before each."""
        every = self._stretch.attempt.collect_every_n
        due = (np.maximum(before, self._stretch.begin) // every + 1) * every
        early, late = batches < due, batches > due
        late[late] = ~self._missing.overlap(due[late], batches[late])
        self._num_early += int(early.sum())
        self._num_late += int(late.sum())
        odd = np.flatnonzero(early | late)
        ranks = np.where(early, 0, np.where(batches % every == 0, 1, 2))[odd]
        due_after = np.where(early, 0, due - batches)[odd]
        told = np.lexsort((due_after, ranks))[:MAX_LISTED]
        columns = (ranks[told], due_after[told], odd[told] + start + 1, due[odd][told], batches[odd][told])
        rows = [_Row(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        self._likeliest = sorted([*self._likeliest, *rows])[:MAX_LISTED]

    def breaches(self, file: str) -> Iterator[Breach]:
        """Early rows, and late ones beyond those deferred.

        A running attempt counts its deferrals late, a killed one lost some of its counts and events.
        """
        attempt = self._stretch.attempt
        allowed = self._num_late if attempt.status in {"running", "killed"} else attempt.deferred
        num = self._num_early + max(0, self._num_late - allowed)
        told = sorted(self._likeliest[:num], key=lambda one: one.row)
        if told:
            yield SPACING.some(file, [(one.row, self._cell(one)) for one in told], num=num)

    def _cell(self, one: _Row) -> Cell:
        attempt = self._stretch.attempt
        message = f"batch {one.due} was due: every {attempt.collect_every_n} in attempt {attempt.number}."
        return Cell(message, "batch_idx", str(one.batch))
