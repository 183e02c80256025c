"""Collected steps on their way from the training thread to rows: numbers that are read, then columns made of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.tables import KEY_COLUMNS, RunTable
from ava_pipeline.errors import in_words

Numbers: TypeAlias = NDArray[np.floating] | list[object]

_KEYS = frozenset(column.name for column in KEY_COLUMNS)


class StagedNumbers(Protocol):
    """One step's numbers while they are copied from the device to the host."""

    def read(self) -> list[Numbers]:
        """Wait for the copy and return the numbers of each measure. The worker calls it once."""


class RowSource(Protocol):
    """The background half of a measure: makes a table's columns of the numbers that were read."""

    @property
    def run_table(self) -> RunTable:
        """The table with the columns of this run."""

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """Make the columns beside `batch_idx` and `epoch`.

        Args:
            numbers: one entry per step, all of them read under one layout.
            layout: what the measure returned with these numbers.

        Returns:
            Every other column of the table, with one value per step as `contract.columns.to_arrow` takes them.
        """

    def events(self, rows: pa.RecordBatch) -> Iterable[Event]:
        """Report what neighbouring rows of the table show; rows are given once, in order."""


@dataclass(frozen=True, slots=True)
class PendingStep:
    """One collected step.

    Attributes:
        batch_idx: 1-based count of the run's batches.
        epoch: 0-based.
        staged: the numbers of every measure.
        layouts: what each measure returned with its numbers; a `FailedReading` if it raised.
        is_deferred: collected later than due, as after batches that only accumulated gradients.
        sample_ids: the samples of the batch, as the user gave them.
    """

    batch_idx: int
    epoch: int
    staged: StagedNumbers
    layouts: tuple[object, ...]
    is_deferred: bool = False
    sample_ids: Sequence[object] | None = None


@dataclass(frozen=True, slots=True)
class FailedReading:
    """The layout of a measure that raised in the training thread, so that its table has no row of the step.

    Attributes:
        reason: the exception in words; the exception itself would keep tensors alive.
    """

    reason: str


def read_steps(
    steps: Sequence[PendingStep],
) -> tuple[list[PendingStep], list[list[Numbers]], list[tuple[PendingStep, Exception]]]:
    """Wait for the steps' numbers.

    Returns:
        The steps whose numbers arrived, their numbers, and the other steps with the exception of each.
    """
    read: list[PendingStep] = []
    numbers: list[list[Numbers]] = []
    refused: list[tuple[PendingStep, Exception]] = []
    for step in steps:
        try:
            numbers.append(step.staged.read())
            read.append(step)
        except Exception as error:  # noqa: BLE001  # a device can fail in any way: it costs this step only
            refused.append((step, error))
    return read, numbers, refused


@dataclass(slots=True)
class MadeRows:
    """Rows of one table, as columns.

    Attributes:
        steps: the steps that have a row, in order.
        columns: one value per step.
        refused: the other steps, each with the reason why it has no row.
    """

    steps: list[PendingStep] = field(default_factory=list)
    columns: dict[str, Values] = field(default_factory=dict)
    refused: list[tuple[PendingStep, str]] = field(default_factory=list)


def make_rows(
    source: RowSource, index: int, steps: Sequence[PendingStep], numbers: Sequence[list[Numbers]]
) -> MadeRows:
    """Make the rows of one table. A step that the measure fails on costs only its own row.

    Args:
        source: the table's measure.
        index: the measure's position in `numbers` and in every step's layouts.
        steps: the collected steps.
        numbers: what `staged.read()` returned for each of them.
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
    """The rows of several parts behind each other."""
    names = parts[0] if parts else ()
    return {name: [value for part in parts for value in _listed(part[name])] for name in names}


def _listed(values: Values) -> list[object]:
    return values.tolist() if isinstance(values, np.ndarray) else list(values)
