"""Rows: in order, and of the same batches in every table."""

from collections.abc import Iterator, Sequence

import numpy as np

from ava_pipeline.read.arrays import integers, nulls
from ava_pipeline.read.batch_numbers import Lookup
from ava_pipeline.read.inspected import Inspected, Part
from ava_pipeline.read.spans import Batches
from ava_pipeline.read.violations import MAX_LISTED, Breach, Cell, Rule
from ava_pipeline.read.window import Window

ORDER = Rule("rows.order", "batch_idx rises from row to row.")
EPOCH = Rule("rows.epoch", "epoch never falls from row to row.")
TABLES = Rule("rows.tables", "A batch with a row in one table has one in every table.")

RULES = (ORDER, EPOCH, TABLES)


def check_window(window: Window) -> Iterator[Breach]:
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


def check(run: Inspected) -> Iterator[Breach]:
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
        yield from (_told(part, lost) if len(lost) else ())


def _agree(parts: Sequence[Part]) -> bool:
    """Whether every file has the same batches, as nearly always."""
    first = parts[0].batches.to_numpy() if parts else ()
    return all(np.array_equal(part.batches.to_numpy(), first) for part in parts[1:])


def _lost(part: Part, parts: Sequence[Part]) -> Batches:
    """Batches that another file has."""
    own = Lookup(part.batches)
    return np.unique(np.concatenate([own.lost(other.batches)[1] for other in parts if other is not part]))


def _set_aside_up_to(run: Inspected, part: Part) -> int:
    """A file whose columns changed was set aside whole: it holds only later batches than the other tables."""
    attempts = run.manifest.attempts if run.manifest else []
    was_set_aside = any(part.name in attempt.set_aside for attempt in attempts)
    least = part.batches.least
    return (np.iinfo(np.int64).max if least is None else least) if was_set_aside else 0


def _told(part: Part, lost: Batches) -> Iterator[Breach]:
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
