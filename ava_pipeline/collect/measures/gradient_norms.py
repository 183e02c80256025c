"""Gradient norms: the L2 norm of every group's gradients."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ava_pipeline.collect.measures.gradient_readings import GradientReadings, as_joined
from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.norms import combine
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.builtin_tables import GRADIENT_NORMS
from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.events import Event
from ava_pipeline.signs.values import non_finite_events
from ava_pipeline.write.channel import Numbers


class GradientNorms(Measure):
    """Reads one vector of norms per step, and combines them by group in the background thread."""

    table = GRADIENT_NORMS

    def __init__(self, targets: TrainingTargets) -> None:
        super().__init__(targets)
        self._groups = [np.array(positions) for positions in targets.positions().values()]
        self._readings = GradientReadings(targets)
        self._has_scale = False

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The groups, `overall` first."""
        return tuple(self.targets.groups)

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Take the norm of every gradient, followed by the loss scale if there is one."""
        return self._readings.read(snapshot)

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Put the norms of the parameters of several optimizers behind each other."""
        return self._readings.join(readings)

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """Combine the norms of every group in float64; null if the group has no gradient, or not all are known."""
        joined = as_joined(layout, len(numbers[0]))
        vectors = np.array(numbers, dtype=np.float64)
        squares = np.zeros((len(numbers), len(self._groups)))
        start = 0
        for part, length in joined.parts:
            squares += np.square(combine(vectors[:, start : start + length], part, self._groups))
            start += length
        norms = np.sqrt(squares)
        self._has_scale = joined.has_scale
        present, unknown = joined.present, joined.unknown
        return {
            column: norms[:, index] if present[group].any() and not unknown[group].any() else [None] * len(numbers)
            for index, (column, group) in enumerate(zip(self.run_columns, self._groups, strict=True))
        }

    def events(self, rows: pa.RecordBatch) -> Iterable[Event]:
        """Report norms that are not finite: as information under a loss scale, which is too high now and then."""
        return non_finite_events(rows, is_scaled=self._has_scale)
