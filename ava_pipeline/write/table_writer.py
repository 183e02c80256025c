"""One measure's table: rows made of collected steps and written, and events about the rows that were refused."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.tables import KEY_COLUMNS
from ava_pipeline.errors import in_words
from ava_pipeline.write.channel import FailedReading, Numbers, PendingStep
from ava_pipeline.write.event_log import (
    EventLog,
    lost_event,
    refused_row_event,
    unmade_row_event,
    unsynced_event,
    with_samples,
)
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.setup import RowSource, Setup
from ava_pipeline.write.writers import TableFiles

_KEYS = frozenset(column.name for column in KEY_COLUMNS)


class TableWriter:
    """The files of one table and the measure that fills them.

    `index` is the measure's position in every step's numbers and layouts. Without `signs`, the rows are not searched
    for warning signs.
    """

    def __init__(
        self, source: RowSource, index: int, files: TableFiles, log: EventLog, signs: OnlineSigns | None = None
    ) -> None:
        self._source = source
        self._index: int | None = index
        self._files = files
        self._log = log
        self._signs = signs
        self.name = source.run_table.table.name

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns of the files."""
        return self._files.column_names

    def adopt(self, setup: Setup) -> None:
        """Take the rows of further steps from the setup's measure of this table; none if it has no such measure."""
        names = [source.run_table.table.name for source in setup.sources]
        self._index = names.index(self.name) if self.name in names else None
        if self._index is not None:
            self._source = setup.sources[self._index]

    def replace_files(self, files: TableFiles) -> None:
        """Write further rows to these files, which hold the older rows too."""
        files.num_rows.update({name: self._files.num_rows[name] for name in files.num_rows})
        self._files = files

    @property
    def num_rows(self) -> Counter[str]:
        """Rows written so far, by file name."""
        return self._files.num_rows

    def write(self, steps: Sequence[PendingStep], numbers: Sequence[list[Numbers]]) -> set[int]:
        """Write one row per step; return the batches whose row is missing from a file, for which events say why."""
        if self._index is None:
            return set()
        made = make_rows(self._source, self._index, steps, numbers)
        for step, reason in made.refused:
            self._log.add(unmade_row_event(step, self.name, reason))
        outcome = self._files.write(made.columns, len(made.steps))
        for finding in outcome.findings:
            self._log.add(refused_row_event(made.steps[(finding.row or 1) - 1], self.name, finding))
        for file, error in outcome.errors.items():
            self._log.add(lost_event(made.steps, in_words(error), file=file))
        if self._signs is not None:
            self._signs.add_rows(self.name, outcome.kept)
        self._add_events(outcome.every, made.steps)
        return {step.batch_idx for step, _ in made.refused} | {made.steps[row].batch_idx for row in outcome.failed}

    def sync(self, steps: Sequence[PendingStep]) -> bool:
        """Wait until the rows of these steps, which were just written, survive a power loss in every file.

        If a file fails, an event says why and the result is False.
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
        """Release every file as it is; a file that cannot be released is logged."""
        for name, error in self._files.abandon().items():
            self._log.fail(error, f"{name} could not be released")

    def _add_events(self, rows: pa.RecordBatch, steps: Sequence[PendingStep]) -> None:
        try:
            for event in self._source.events(rows):
                self._log.add(with_samples(event, {step.batch_idx: step for step in steps}))
        except Exception as error:  # noqa: BLE001  # a measure is user code: its events cost no row
            self._log.fail(error, f"the measure of {self.name} could not report its events")


@dataclass(slots=True)
class MadeRows:
    """Rows of one table, as columns with one value per step, and the steps without a row, each with the reason."""

    steps: list[PendingStep] = field(default_factory=list)
    columns: dict[str, Values] = field(default_factory=dict)
    refused: list[tuple[PendingStep, str]] = field(default_factory=list)


def make_rows(
    source: RowSource, index: int, steps: Sequence[PendingStep], numbers: Sequence[list[Numbers]]
) -> MadeRows:
    """Make the rows of one table. A step that the measure fails on costs only its own row.

    `index` is the measure's position in every step's layouts and in the step's entry of `numbers`.
    """
    made = MadeRows()
    parts: list[dict[str, Values]] = []
    for start, end in _ranges_of_one_layout(steps, index):
        parts += _make_part(source, [one[index] for one in numbers[start:end]], steps[start:end], index, made)
    made.columns = parts[0] if len(parts) == 1 else _joined(parts)
    made.columns["batch_idx"] = [step.batch_idx for step in made.steps]
    made.columns["epoch"] = [step.epoch for step in made.steps]
    return made


def _ranges_of_one_layout(steps: Sequence[PendingStep], index: int) -> list[tuple[int, int]]:
    """Ranges of neighbouring steps whose numbers mean the same."""
    starts = [
        step
        for step in range(len(steps))
        if step == 0 or steps[step].layouts[index] is not steps[step - 1].layouts[index]
    ]
    return list(zip(starts, [*starts[1:], len(steps)], strict=True))


def _make_part(
    source: RowSource, numbers: Sequence[Numbers], steps: Sequence[PendingStep], index: int, made: MadeRows
) -> list[dict[str, Values]]:
    """The columns of steps of one layout: all at once, or step by step if the measure fails on one of them."""
    layout = steps[0].layouts[index]
    if isinstance(layout, FailedReading):
        made.refused += [(step, layout.reason) for step in steps]
        return []
    try:
        columns = source.columns(numbers, layout)
        part = {
            name: _checked(name, columns[name], len(steps))
            for name in source.run_table.column_names
            if name not in _KEYS
        }
    except Exception as error:  # noqa: BLE001  # a measure is user code: whatever it raises costs rows only
        if len(steps) > 1:
            alone = (
                _make_part(source, [its_numbers], [step], index, made)
                for step, its_numbers in zip(steps, numbers, strict=True)
            )
            return [part for parts in alone for part in parts]
        made.refused.append((steps[0], in_words(error)))
        return []
    made.steps += steps
    return [part]


def _checked(name: str, values: Values, num_rows: int) -> Values:
    """A column that is a vector, with one value per row."""
    vector = values if isinstance(values, np.ndarray) and values.ndim == 1 else list(values)
    if len(vector) != num_rows:
        raise ValueError(f"column {name!r}: expected {num_rows} values, got {len(vector)}")
    return vector


def _joined(parts: Sequence[Mapping[str, Values]]) -> dict[str, Values]:
    names = parts[0] if parts else ()
    return {name: [value for part in parts for value in _listed(part[name])] for name in names}


def _listed(values: Values) -> list[object]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)
