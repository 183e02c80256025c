"""One table's rows to all of its files: check, make an Arrow batch, hand it to every writer."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd  # noqa: F401  # Arrow imports it at the first batch, which fails where that is written at exit
import pyarrow as pa

from ava_pipeline.contract.tables import RowProblem, RunTable
from ava_pipeline.write.pending import Rows
from ava_pipeline.write.writers import Writer


@dataclass(slots=True)
class Outcome:
    """What became of some rows.

    Attributes:
        failed: positions of rows that a rule or a writer refused.
        problems: values that broke a rule.
        errors: what writers raised, by file name.
        rows: those that keep the table's rules, in Arrow.
    """

    failed: set[int] = field(default_factory=set)
    problems: list[RowProblem] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    rows: pa.RecordBatch | None = None


# An integer beyond int64, a text that is no UTF-8: kept by the row model, and not to be stored.
_NOT_IN_ARROW = (pa.ArrowException, OverflowError, UnicodeError)


class TableFiles:
    """The files of one table.

    A writer that refuses a batch does not cost the others theirs: a row on the disk is not taken back because another
    file lacks it. Its step counts as failed, and the event names the file and the batches that it lacks.

    Args:
        run_table: the table with this run's columns.
        writers: one a format.

    Attributes:
        num_rows: rows taken so far, by file name.
    """

    def __init__(self, run_table: RunTable, writers: Sequence[Writer]) -> None:
        self.run_table = run_table
        self.num_rows: Counter[str] = Counter({writer.file_name: 0 for writer in writers})
        self._writers = writers

    def write(self, rows: Rows) -> Outcome:
        """Write the rows that keep the table's rules."""
        outcome = Outcome(problems=self.run_table.problems(rows))
        outcome.failed = {problem.row for problem in outcome.problems}
        outcome.rows = batch = self._batch(rows, outcome)
        if batch.num_rows:
            self._hand_over(batch, outcome)
        if outcome.errors:
            outcome.failed = set(range(len(rows)))
        return outcome

    def sync(self) -> dict[str, Exception]:
        """Wait until every row taken survives a power loss.

        Returns:
            What writers raised, by file name.
        """
        return self._of_each(lambda writer: writer.sync())

    def close(self) -> dict[str, Exception]:
        """Finish every file, also when another could not be finished.

        Returns:
            What writers raised, by file name.
        """
        return self._of_each(lambda writer: writer.close())

    def abandon(self) -> None:
        """Let go of every file as it is."""
        for writer in self._writers:
            writer.abandon()

    def _batch(self, rows: Rows, outcome: Outcome) -> pa.RecordBatch:
        """The rows that did not fail; those that Arrow cannot hold fail here."""
        schema = self.run_table.arrow_schema
        good = [row for position, row in enumerate(rows) if position not in outcome.failed]
        try:
            return pa.RecordBatch.from_pylist(good, schema=schema)
        except _NOT_IN_ARROW as error:
            whole = error  # which row it was, Arrow does not say: each is tried by itself
        left = set(range(len(rows))) - outcome.failed
        for position in left:
            for name, value in rows[position].items():
                try:
                    pa.array([value], type=schema.field(name).type)
                except _NOT_IN_ARROW as error:
                    outcome.failed.add(position)
                    outcome.problems.append(
                        RowProblem(row=position, column=name, value=repr(value), message=str(error))
                    )
        if not left & outcome.failed:  # each value can be stored, and all of them cannot
            outcome.failed |= left
            outcome.problems += [
                RowProblem(row=row, column="batch_idx", value=str(rows[row]["batch_idx"]), message=str(whole))
                for row in left
            ]
        return self._batch(rows, outcome)

    def _of_each(self, do: Callable[[Writer], None]) -> dict[str, Exception]:
        errors: dict[str, Exception] = {}
        for writer in self._writers:
            try:
                do(writer)
            except Exception as error:  # noqa: BLE001  # whatever breaks one file must not cost the others
                errors[writer.file_name] = error
        return errors

    def _hand_over(self, batch: pa.RecordBatch, outcome: Outcome) -> None:
        for writer in self._writers:
            try:
                writer.write(batch)
                self.num_rows[writer.file_name] += batch.num_rows
            except Exception as error:  # noqa: BLE001  # a broken writer costs its rows, not the run
                outcome.errors[writer.file_name] = error
