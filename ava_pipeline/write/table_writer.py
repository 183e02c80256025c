"""One measure's table: rows made of collected steps and written, and events about the rows that were refused."""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from ava_pipeline.errors import in_words
from ava_pipeline.write.event_log import (
    EventLog,
    lost_event,
    refused_row_event,
    unmade_row_event,
    unsynced_event,
    with_samples,
)
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.pending import Numbers, PendingStep, RowSource, make_rows
from ava_pipeline.write.writers import TableFiles


class TableWriter:
    """The files of one table and the measure that fills them.

    Args:
        source: makes the rows.
        index: the measure's position in every step's numbers and layouts.
        files: take the rows.
        log: takes the events.
        signs: searches the rows for warning signs; None searches for none.
    """

    def __init__(
        self, source: RowSource, index: int, files: TableFiles, log: EventLog, signs: OnlineSigns | None = None
    ) -> None:
        self._source = source
        self._index = index
        self._files = files
        self._log = log
        self._signs = signs
        self._name = source.run_table.table.name

    @property
    def num_rows(self) -> Counter[str]:
        """Rows written so far, by file name."""
        return self._files.num_rows

    def write(self, steps: Sequence[PendingStep], numbers: Sequence[list[Numbers]]) -> set[int]:
        """Write one row per step.

        Returns:
            The batches of steps whose row is missing from a file; events say why.
        """
        made = make_rows(self._source, self._index, steps, numbers)
        for step, reason in made.refused:
            self._log.add(unmade_row_event(step, self._name, reason))
        outcome = self._files.write(made.columns, len(made.steps))
        for finding in outcome.findings:
            self._log.add(refused_row_event(made.steps[(finding.row or 1) - 1], self._name, finding))
        for file, error in outcome.errors.items():
            self._log.add(lost_event(made.steps, in_words(error), file=file))
        if self._signs is not None:
            self._signs.add_rows(self._name, outcome.kept)
        self._add_events(outcome.kept, made.steps)
        return {step.batch_idx for step, _ in made.refused} | {made.steps[row].batch_idx for row in outcome.failed}

    def sync(self, steps: Sequence[PendingStep]) -> bool:
        """Wait until the rows of these steps, which were just written, survive a power loss.

        Returns:
            Whether they do, in every file; if not, events say why.
        """
        errors = self._files.sync()
        for file, error in errors.items():
            self._log.add(unsynced_event(steps, in_words(error), file=file))
        return not errors

    def close(self) -> None:
        """Finish every file; a file that cannot be finished is logged."""
        for name, error in self._files.close().items():
            self._log.fail(error, f"{name} could not be finished")

    def abandon(self) -> None:
        """Release every file as it is."""
        self._files.abandon()

    def _add_events(self, rows: pa.RecordBatch, steps: Sequence[PendingStep]) -> None:
        """Add the events that the measure reports about its rows."""
        try:
            for event in self._source.events(rows):
                self._log.add(with_samples(event, {step.batch_idx: step for step in steps}))
        except Exception as error:  # noqa: BLE001  # a measure is user code: its events cost no row
            self._log.fail(error, f"the measure of {self._name} could not report its events")
