"""One table's rows to all of its files: check them, make an Arrow batch, hand it to every writer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.write.writers import Writer


@dataclass(slots=True)
class Outcome:
    """What became of new rows.

    Attributes:
        kept: the rows that keep the table's rules, in Arrow.
        findings: values that break a rule; `row` is the row's 1-based position among the new ones.
        failed: 0-based positions of the rows that a rule or a writer refused.
        errors: exceptions of writers, by file name.
    """

    kept: pa.RecordBatch
    findings: list[Finding]
    failed: set[int]
    errors: dict[str, Exception] = field(default_factory=dict)


class TableFiles:
    """The files of one table.

    If one writer refuses a batch, the others still get it: a row on the disk is not taken back because another file
    lacks it. Its step counts as failed, and the event names the file and the batches that it lacks.

    Args:
        run_table: the table with this run's columns.
        writers: one per file.

    Attributes:
        num_rows: rows written so far, by file name.
    """

    def __init__(self, run_table: RunTable, writers: Sequence[Writer]) -> None:
        self.num_rows: Counter[str] = Counter({writer.file_name: 0 for writer in writers})
        self._run_table = run_table
        self._writers = writers

    def write(self, columns: Mapping[str, Values], num_rows: int) -> Outcome:
        """Write the rows that keep the table's rules.

        Args:
            columns: as `RunTable.check` takes them.
            num_rows: how many rows there are.
        """
        kept, findings = self._run_table.check(columns, num_rows)
        outcome = Outcome(kept, findings, failed={finding.row - 1 for finding in findings if finding.row})
        if kept.num_rows:
            outcome.errors = self._for_each(lambda writer: writer.write(kept))
            self.num_rows.update(
                {one.file_name: kept.num_rows for one in self._writers if one.file_name not in outcome.errors}
            )
        if outcome.errors:
            outcome.failed = set(range(num_rows))
        return outcome

    def sync(self) -> dict[str, Exception]:
        """Wait until every row written survives a power loss.

        Returns:
            Exceptions of writers, by file name.
        """
        return self._for_each(lambda writer: writer.sync())

    def close(self) -> dict[str, Exception]:
        """Finish every file, even if another could not be finished.

        Returns:
            Exceptions of writers, by file name.
        """
        return self._for_each(lambda writer: writer.close())

    def abandon(self) -> None:
        """Release every file as it is."""
        self._for_each(lambda writer: writer.abandon())

    def _for_each(self, call: Callable[[Writer], None]) -> dict[str, Exception]:
        errors: dict[str, Exception] = {}
        for writer in self._writers:
            try:
                call(writer)
            except Exception as error:  # noqa: BLE001  # whatever breaks one file must not cost the others theirs
                errors[writer.file_name] = error
        return errors
