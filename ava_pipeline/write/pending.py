"""What the training thread hands over, and what the background thread makes a table's columns of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.events import Event
from ava_pipeline.contract.tables import RunTable

Numbers: TypeAlias = NDArray[np.floating] | list[object]
Rows: TypeAlias = list[dict[str, object]]


class StagedNumbers(Protocol):
    """One step's numbers on their way from the device to the host."""

    def read(self) -> list[Numbers]:
        """Wait until they are there; one entry a measure. Called once, by the worker."""


class RowSource(Protocol):
    """The background half of a measure: makes a table's columns of the numbers that were read."""

    @property
    def run_table(self) -> RunTable:
        """The table and the columns that this run gives it."""

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Sequence[object]]:
        """Make the columns beside `batch_idx` and `epoch`.

        Args:
            numbers: one entry a step; all were read under one layout.
            layout: what the measure said of these numbers when it read them.

        Returns:
            Every other column of the table, a Python value a step; None is "not measured".
        """

    def events(self, rows: Rows) -> Iterable[Event]:
        """What neighbouring rows of the table tell; rows are given once, in order."""


@dataclass(frozen=True, slots=True)
class PendingStep:
    """One collected step.

    Attributes:
        batch_idx: 1-based, of the run.
        epoch: 0-based.
        staged: the measures' numbers.
        layouts: what each measure said of its numbers.
        is_deferred: collected later than due, as after batches that only accumulated gradients.
        sample_ids: what the user said the batch consisted of.
    """

    batch_idx: int
    epoch: int
    staged: StagedNumbers
    layouts: tuple[object, ...]
    is_deferred: bool = False
    sample_ids: Sequence[object] | None = None


def read_steps(
    steps: Sequence[PendingStep],
) -> tuple[list[PendingStep], list[list[Numbers]], list[tuple[PendingStep, Exception]]]:
    """Wait for the steps' numbers.

    Returns:
        The steps whose numbers came, their numbers, and the other steps with what went wrong.
    """
    read: list[PendingStep] = []
    numbers: list[list[Numbers]] = []
    refused: list[tuple[PendingStep, Exception]] = []
    for step in steps:
        try:
            numbers.append(step.staged.read())
            read.append(step)
        except Exception as error:  # noqa: BLE001  # a device can fail in any way: it costs the step only
            refused.append((step, error))
    return read, numbers, refused


def rows_of_each(
    source: RowSource, index: int, steps: Sequence[PendingStep], numbers: Sequence[list[Numbers]]
) -> tuple[list[PendingStep], Rows, list[tuple[PendingStep, Exception]]]:
    """The rows of one table, where a step of which none can be made costs only itself.

    Returns:
        The steps that have a row, their rows, and the other steps with what its measure raised.
    """
    try:
        return list(steps), rows_of(source, index, steps, numbers), []
    except Exception as error:  # noqa: BLE001  # a measure is anyone's code: whatever it raises costs rows only
        if len(steps) == 1:
            return [], [], [(steps[0], error)]
    made: list[PendingStep] = []
    rows: Rows = []
    refused: list[tuple[PendingStep, Exception]] = []
    for one, its_numbers in zip(steps, numbers, strict=True):
        its_step, its_row, its_error = rows_of_each(source, index, [one], [its_numbers])
        made, rows, refused = made + its_step, rows + its_row, refused + its_error
    return made, rows, refused


def rows_of(source: RowSource, index: int, steps: Sequence[PendingStep], numbers: Sequence[list[Numbers]]) -> Rows:
    """The rows of one table.

    Args:
        source: the table's measure.
        index: the measure's place in `numbers` and `layouts`.
        steps: the collected steps.
        numbers: what `staged.read()` gave for each of them.
    """
    names = source.run_table.column_names
    rows: Rows = []
    for start, end in _runs_of_one_layout(steps, index):
        made = source.columns([numbers[step][index] for step in range(start, end)], steps[start].layouts[index])
        keys = {
            "batch_idx": [step.batch_idx for step in steps[start:end]],
            "epoch": [step.epoch for step in steps[start:end]],
        }
        every = {**keys, **made}
        rows += [dict(zip(names, row, strict=True)) for row in zip(*(every[name] for name in names), strict=True)]
    return rows


def _runs_of_one_layout(steps: Sequence[PendingStep], index: int) -> list[tuple[int, int]]:
    """Ranges of neighbouring steps whose numbers mean the same."""
    starts = [
        step
        for step in range(len(steps))
        if step == 0 or steps[step].layouts[index] is not steps[step - 1].layouts[index]
    ]
    return list(zip(starts, [*starts[1:], len(steps)], strict=True))
