"""One measure's table: rows made of collected steps and written, and events about the rows that were refused."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import Integers
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
        """Write the rows of steps; return the batches of which a file lacks a row, for which events say why."""
        if self._index is None:
            return set()
        made = make_rows(self._source, self._index, steps, numbers)
        for step, reason in made.refused:
            self._log.add(unmade_row_event(step, self.name, reason))
        outcome = self._files.write(made.columns, sum(made.num_rows))
        for finding in outcome.findings:
            self._log.add(refused_row_event(made.step_of((finding.row or 1) - 1), self.name, finding))
        for file, error in outcome.errors.items():
            self._log.add(lost_event(made.steps, in_words(error), file=file))
        if self._signs is not None:
            self._signs.add_rows(self.name, outcome.kept)
        self._add_events(outcome.every, made.steps)
        unmade = {step.batch_idx for step, _ in made.refused}
        return unmade | made.batches_of(outcome.failed)

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
    """Rows of one table, as columns, and the steps without rows, each with the reason.

    `num_rows` says for each of `steps` how many rows it has, which is 1 unless the table is long.
    """

    steps: list[PendingStep] = field(default_factory=list)
    num_rows: list[int] = field(default_factory=list)
    columns: dict[str, Values] = field(default_factory=dict)
    refused: list[tuple[PendingStep, str]] = field(default_factory=list)

    def step_of(self, row: int) -> PendingStep:
        """The step of a 0-based row."""
        return self.steps[int(np.searchsorted(np.cumsum(self.num_rows), row, side="right"))]

    def batches_of(self, rows: Collection[int]) -> set[int]:
        """The batches of 0-based rows, of which a long table has thousands."""
        ends = np.cumsum(self.num_rows)
        # Not `np.unique`, which imports a module: a forked child could find the lock of that held.
        places = set(np.searchsorted(ends, np.fromiter(rows, np.int64, len(rows)), side="right").tolist())
        return {self.steps[place].batch_idx for place in places}


def make_rows(
    source: RowSource, index: int, steps: Sequence[PendingStep], numbers: Sequence[list[Numbers]]
) -> MadeRows:
    """Make the rows of one table. A step that the measure fails on costs only its own rows.

    `index` is the measure's position in every step's layouts and in the step's entry of `numbers`.
    """
    made = MadeRows()
    parts: list[dict[str, Values]] = []
    for start, end in _ranges_of_one_layout(steps, index):
        parts += _make_part(source, [one[index] for one in numbers[start:end]], steps[start:end], index, made)
    made.columns = parts[0] if len(parts) == 1 else _joined(parts)
    made.columns["batch_idx"] = _of_each_row([step.batch_idx for step in made.steps], made)
    made.columns["epoch"] = _of_each_row([step.epoch for step in made.steps], made)
    return made


def _of_each_row(numbers: list[int], made: MadeRows) -> Integers:
    return np.repeat(np.array(numbers, dtype=np.int64), made.num_rows)


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
        part = {name: _as_vector(columns[name]) for name in source.run_table.column_names if name not in _KEYS}
        num_rows = _rows_per_step(part, len(steps), is_long=source.run_table.table.is_long)
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
    made.num_rows += [num_rows] * len(steps)
    return [part]


def _as_vector(values: Values) -> Values:
    is_vector = isinstance(values, pa.Array) or (isinstance(values, np.ndarray) and values.ndim == 1)
    return values if is_vector else list(values)


def _rows_per_step(part: Mapping[str, Values], num_steps: int, *, is_long: bool) -> int:
    """How many rows each step has; raise ValueError if the columns do not have as many values."""
    num_rows = 1
    if is_long:
        num_rows = len(next(iter(part.values()))) // num_steps
    for name, values in part.items():
        if len(values) != num_rows * num_steps:
            raise ValueError(f"column {name!r}: expected {num_rows * num_steps} values, got {len(values)}")
    return num_rows


def _joined(parts: Sequence[Mapping[str, Values]]) -> dict[str, Values]:
    return {name: _concatenated([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _concatenated(vectors: Sequence[Values]) -> Values:
    """Values one after the other; as a vector, if all of them are vectors of one type."""
    arrays = [vector for vector in vectors if isinstance(vector, pa.Array)]
    if len(arrays) == len(vectors) and len({array.type for array in arrays}) == 1:
        return pa.concat_arrays(arrays)
    numbers = [vector for vector in vectors if isinstance(vector, np.ndarray)]
    if len(numbers) == len(vectors) and len({one.dtype for one in numbers}) == 1:
        return np.concatenate(numbers)
    return [value for vector in vectors for value in _listed(vector)]


def _listed(values: Values) -> list[object]:
    if isinstance(values, pa.Array):
        return values.to_pylist()
    return values.tolist() if isinstance(values, np.ndarray) else list(values)
