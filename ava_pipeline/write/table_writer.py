"""One measure's table: rows made of steps, written, and what is odd about them told."""

from collections import Counter
from collections.abc import Sequence

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
from ava_pipeline.write.pending import Numbers, PendingStep, Rows, RowSource, rows_of_each
from ava_pipeline.write.table_files import Outcome, TableFiles


class TableWriter:
    """A table's files and the measure that fills them.

    Args:
        source: makes the rows.
        index: the measure's place in every step's numbers and layouts.
        files: take the rows.
        log: where to tell what happens.
        watch: looks at the rows for warning signs.
    """

    def __init__(
        self, source: RowSource, index: int, files: TableFiles, log: EventLog, watch: OnlineSigns | None = None
    ) -> None:
        self._source = source
        self._index = index
        self._files = files
        self._log = log
        self._watch = watch
        self._name = source.run_table.table.name

    @property
    def num_rows(self) -> Counter[str]:
        """Rows taken so far, by file name."""
        return self._files.num_rows

    def write(self, steps: Sequence[PendingStep], numbers: Sequence[list[Numbers]]) -> set[int]:
        """Write a row a step.

        Returns:
            The batches of steps whose row some file lacks; the log tells why.
        """
        made, rows, refused = rows_of_each(self._source, self._index, steps, numbers)
        for step, error in refused:
            self._log.add(unmade_row_event(step, self._name, error))
        outcome = self._files.write(rows)
        self._tell(outcome, made)
        if self._watch is not None and outcome.rows is not None:
            self._watch.add_rows(self._name, outcome.rows)
        self._tell_of_rows(rows, made)
        return {step.batch_idx for step, _ in refused} | {made[row].batch_idx for row in outcome.failed}

    def sync(self, steps: Sequence[PendingStep]) -> bool:
        """Wait until the rows of these steps, taken just now, survive a power loss.

        Returns:
            Whether they do, in every file; if not, the log tells why.
        """
        errors = self._files.sync()
        for file, error in errors.items():
            self._log.add(unsynced_event(steps, in_words(error), file=file))
        return not errors

    def close(self) -> None:
        """Finish every file; trouble is told."""
        for name, error in self._files.close().items():
            self._log.fail(error, f"{name} could not be finished")

    def abandon(self) -> None:
        """Let go of every file as it is."""
        self._files.abandon()

    def _tell_of_rows(self, rows: Rows, steps: Sequence[PendingStep]) -> None:
        by_batch = {step.batch_idx: step for step in steps}
        try:
            for event in self._source.events(rows):
                self._log.add(with_samples(event, by_batch))
        except Exception as error:  # noqa: BLE001  # a measure is anyone's code: what it says costs no row
            self._log.fail(error, f"what is odd about rows of {self._name} could not be told")

    def _tell(self, outcome: Outcome, steps: Sequence[PendingStep]) -> None:
        for problem in outcome.problems:
            self._log.add(refused_row_event(steps[problem.row], self._name, problem))
        for file, error in outcome.errors.items():
            self._log.add(lost_event(steps, in_words(error), file=file))
