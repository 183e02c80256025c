"""What a measure is: one table, filled from a few numbers a step."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import Tensor

from ava_pipeline.collect import measures
from ava_pipeline.collect.amp import ScalerState
from ava_pipeline.collect.clipping import ClipFacts
from ava_pipeline.collect.norms import NormPlan
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.signs.values import non_finite_events
from ava_pipeline.write.pending import Numbers, Rows

Value: TypeAlias = Tensor | float | None


@dataclass(frozen=True, slots=True)
class StepSnapshot:
    """One collected step as the training thread sees it. Nothing of it may be kept.

    Attributes:
        gradients: one a parameter of `Watched.parameters`; None where there is none.
        norms: float32 vector on the device, as `plan` measures the gradients there are; None where there is none.
        plan: which gradient each of them is a norm of.
        scaler: what the gradients are multiplied by.
        clipping: what came of clipping.
        values: what the user gave to `step`.
        time_s: time of day, in seconds since 1970 UTC.
    """

    gradients: Sequence[Tensor | None]
    norms: Tensor | None
    plan: NormPlan
    scaler: ScalerState
    clipping: ClipFacts
    values: Mapping[str, Value]
    time_s: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The numbers that a measure took of one step.

    Attributes:
        numbers: a new one-dimensional float32 tensor on the device, or a list of scalars: Python numbers, None for
            "not measured", and scalar tensors.
        layout: whatever `columns` needs to know of them; neighbouring steps with the same object are made rows of
            together.
    """

    numbers: Tensor | Sequence[object]
    layout: object = None


class Measure(ABC):
    """A table declaration, a reading in the training thread, and the rows made of it in the background.

    A subclass in a module of `ava_pipeline.collect.measures` is found by itself. It is made once, at the first
    collected step.

    Attributes:
        table: what is recorded.
        watched: parameters, groups and optimizers.
    """

    table: ClassVar[Table]

    def __init__(self, watched: TrainingTargets) -> None:
        self.watched = watched

    @property
    @abstractmethod
    def run_columns(self) -> tuple[str, ...]:
        """Names of the columns that the run decides, in file order."""

    @abstractmethod
    def read(self, moment: StepSnapshot) -> Reading:
        """Take the numbers, in the training thread: no `.item()`, no `.cpu()`, nothing that waits for the device."""

    @abstractmethod
    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Sequence[object]]:
        """Make the table's columns beside `batch_idx` and `epoch`, in the background.

        Args:
            numbers: one entry a step, as `read` returned them: a NumPy vector, or a list of Python numbers.
            layout: the reading's, the same object for all of them.
        """

    def events(self, rows: Rows) -> Iterator[Event]:
        """What neighbouring rows tell, in the background: here, that values are not finite."""
        yield from non_finite_events(rows)

    @property
    def run_table(self) -> RunTable:
        """The table with this run's columns."""
        return RunTable.of(self.table, self.run_columns)


def find_measures() -> Iterator[type[Measure]]:
    """Every measure: the subclasses of `Measure` that the modules of `ava_pipeline.collect.measures` define."""
    for module in sorted(pkgutil.iter_modules(measures.__path__), key=lambda found: found.name):
        name = f"{measures.__name__}.{module.name}"
        for value in vars(importlib.import_module(name)).values():
            if (
                isinstance(value, type)
                and issubclass(value, Measure)
                and value is not Measure
                and value.__module__ == name
            ):
                yield value
