"""Rows lie `collect_every_n` batches apart, but for deferrals and what events explain."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ava_pipeline.read.inspected import Inspected, Part
from ava_pipeline.read.spans import Batches, Spans
from ava_pipeline.read.stretches import Stretch, stretches
from ava_pipeline.read.violations import MAX_LISTED, Breach, Cell, Rule

SPACING = Rule(
    "rows.spacing",
    "A row follows at the next multiple of collect_every_n, unless it was deferred or an event says what is missing.",
)

RULES = (SPACING,)


def check(run: Inspected) -> Iterator[Breach]:
    """Every table that has a row a collected step."""
    found = sorted(stretches(run.manifest), key=lambda stretch: stretch.begin) if run.manifest else []
    for part in run.keyed_parts() if found else ():
        if part.batches.is_rising:
            yield from _irregular(run, part, found)


def _irregular(run: Inspected, part: Part, found: Sequence[Stretch]) -> Iterator[Breach]:
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

    def __init__(self, stretch: Stretch, missing: Spans) -> None:
        self._stretch = stretch
        self._missing = missing
        self._num_early = 0
        self._num_late = 0
        self._likeliest: list[_Row] = []

    def add(self, start: int, before: Batches, batches: Batches) -> None:
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
