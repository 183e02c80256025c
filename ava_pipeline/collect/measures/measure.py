"""Measures: what the training thread reads of a step, and the table columns that the background thread makes of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, TypeAlias

import pyarrow as pa
import torch
from torch import Tensor

from ava_pipeline.collect.amp import ScalerState
from ava_pipeline.collect.clipping import ClipFacts
from ava_pipeline.collect.norms import NormPlan
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.errors import in_words
from ava_pipeline.interrupts import is_from_signal
from ava_pipeline.signs.values import non_finite_events
from ava_pipeline.write.channel import FailedReading, Numbers

Value: TypeAlias = Tensor | float | None


@dataclass(frozen=True, slots=True)
class StepSnapshot:
    """One collected step as the training thread finds it. A measure must not keep it.

    Attributes:
        gradients: one per parameter of `TrainingTargets.parameters`; None for a parameter without a gradient.
        norms: float32 vector on the device, the norms that `plan` describes; None if no parameter has a gradient.
        plan: which gradient each of the norms belongs to.
        scaler: the loss scale, and whose gradients are still multiplied by it.
        clipping: what clipping did.
        values: the values that the user gave to `step`; None for one that is not a number.
        labels: the labels that the user gave to `step`, by name.
        batch_idx: 1-based; counts every batch of the run.
        time_s: time of day, in seconds since 1970 UTC.
        global_step: the optimizer steps of the run before this one; None if unknown.
        optimizer: the name of the optimizer that steps next, if `step` was given one. Gradients of parameters of other
            optimizers are None then.
        is_optimizer_replaced: whether parameters change, but not by the optimizers that the collector knows.
    """

    gradients: Sequence[Tensor | None]
    norms: Tensor | None
    plan: NormPlan
    scaler: ScalerState
    clipping: ClipFacts
    values: Mapping[str, Value]
    time_s: float
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    batch_idx: int = 0
    global_step: int | None = None
    optimizer: str | None = None
    is_optimizer_replaced: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """The numbers that a measure read of one step.

    Attributes:
        numbers: a new one-dimensional float32 tensor on any device, or a list of scalars: Python numbers, None for
            "not measured", and one-element tensors.
        layout: whatever `Measure.columns` needs to know about the numbers. Neighbouring steps with the same layout
            object are given to it together.

    Raises:
        TypeError: the numbers have another type, dtype or shape.
    """

    numbers: Tensor | Sequence[object]
    layout: object = None

    def __post_init__(self) -> None:
        if isinstance(self.numbers, Tensor):
            if self.numbers.dim() != 1 or self.numbers.dtype != torch.float32:
                raise TypeError(f"a reading's tensor: expected a float32 vector, got {_described(self.numbers)}")
            return
        for number in self.numbers:
            if isinstance(number, Tensor) and (number.numel() != 1 or number.is_complex()):
                raise TypeError(f"a reading's list: expected scalars, got {_described(number)}")


def _described(tensor: Tensor) -> str:
    return f"a {tensor.dtype} tensor of shape {tuple(tensor.shape)}"


class Measure(ABC):
    """Fills one table, with one row per collected step.

    Subclass it and give the class to `TelemetryCollector(..., measures=[MyMeasure])`. The collector makes one object
    of the class at the first collected step, and another one whenever something else is measured from then on, because
    a parameter group or a value was added, or `rebind` was called. If it raises, rows are missing from its own table
    only.

    Args:
        targets: the parameters, groups and optimizers that are measured.

    Attributes:
        table: declares what is recorded. Its columns begin with `KEY_COLUMNS`.
        targets: as given.

    Example:
        class WeightMean(Measure):
            table = Table(
                name="weight_mean",
                description="Mean of all weights.",
                columns=(*KEY_COLUMNS, Column(name="mean", dtype="float64", description="Mean of all weights.")),
            )

            def read(self, snapshot):
                weights = self.targets.parameters
                return Reading([sum(weight.detach().sum() for weight in weights), sum(map(torch.numel, weights))])

            def columns(self, numbers, layout):
                return {"mean": [total / count for total, count in numbers]}
    """

    table: ClassVar[Table]
    _run_table: RunTable | None = None  # made when first read: a subclass's `run_columns` need its own attributes

    def __init__(self, targets: TrainingTargets) -> None:
        self.targets = targets

    @property
    def run_columns(self) -> tuple[str, ...]:
        """Names of the columns that the run decides, in file order; `Table.run_columns` declares them."""
        return ()

    @abstractmethod
    def read(self, snapshot: StepSnapshot) -> Reading:
        """Read a step's numbers, in the training thread.

        Nothing here may wait for the device: no `.item()`, no `.cpu()`, no `.tolist()`, no `bool(tensor)`.
        """

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Make one reading of those of a batch in which several optimizers step, in order; by default, the last."""
        return readings[-1]

    @abstractmethod
    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """Make the table's columns other than `batch_idx` and `epoch`, in the background thread.

        Args:
            numbers: one entry per step, as `read` returned them: a NumPy vector, or a list of Python numbers.
            layout: the layout that `read` returned, the same object for all of these steps.

        Returns:
            Each column's values, one per step: a list, in which None means "not measured", or a NumPy vector.
        """

    def events(self, rows: pa.RecordBatch) -> Iterable[Event]:
        """Report what new rows show, in the background thread; here, the values that are not finite.

        Args:
            rows: every new row in batch order, also rows that break a rule of the table; each row is given once.
        """
        return non_finite_events(rows)

    @property
    def run_table(self) -> RunTable:
        """The table with this run's columns."""
        self._run_table = self._run_table or RunTable.of(self.table, self.run_columns)
        return self._run_table


def read_measures(measures: Sequence[Measure], snapshot: StepSnapshot, *, is_strict: bool) -> list[Reading]:
    """Read a step's numbers; a measure that raises costs only its own row, unless `is_strict`."""
    return [_reading(measure, partial(measure.read, snapshot), is_strict) for measure in measures]


def join_readings(measures: Sequence[Measure], parts: Sequence[list[Reading]], *, is_strict: bool) -> list[Reading]:
    """Make one row's readings of those of several optimizers, as `read_measures` gives them for each."""
    if len(parts) == 1:
        return parts[0]
    joined = []
    for measure, *readings in zip(measures, *parts, strict=True):
        failed = [reading for reading in readings if isinstance(reading.layout, FailedReading)]
        joined.append(failed[0] if failed else _reading(measure, partial(measure.join, readings), is_strict))
    return joined


def _reading(measure: Measure, make: Callable[[], Reading], is_strict: bool) -> Reading:  # noqa: FBT001  # passed on
    try:
        reading = make()
        if not isinstance(reading, Reading):
            raise TypeError(f"{type(measure).__name__}: expected a Reading, got {reading!r}")  # noqa: TRY301  # as any failure
    except Exception as error:
        if is_strict or is_from_signal(error):
            raise
        return Reading([], FailedReading(in_words(error)))
    return reading
