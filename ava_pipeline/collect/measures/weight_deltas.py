"""Weight deltas: how far every group's parameters moved since the row before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.measures.weight_norms import groups_of, known_norms
from ava_pipeline.collect.norms import NormLayout
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.collect.weight_pass import WeightPass
from ava_pipeline.contract.builtin_tables import WEIGHT_DELTAS
from ava_pipeline.contract.columns import Values
from ava_pipeline.write.channel import Numbers


@dataclass(frozen=True, slots=True, eq=False)
class DeltaLayout:
    """What the norms of differences belong to, and over how many batches; None if there was no row before."""

    norms: NormLayout
    num_batches: int | None


class WeightDeltas(Measure):
    """Takes the norms of the differences from the pass over the weights.

    The row of batch n holds the optimizer steps of the batches from the row before up to n - 1.

    Args:
        targets: the parameters and groups.
        weights: the pass, which `WeightNorms` takes the norms from.
    """

    table = WEIGHT_DELTAS

    def __init__(self, targets: TrainingTargets, weights: WeightPass) -> None:
        super().__init__(targets)
        self._weights = weights
        self._groups = groups_of(targets)
        self._layout: DeltaLayout | None = None

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The groups, `overall` first."""
        return tuple(self.targets.groups)

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Take the norms of the differences of all pieces."""
        taken = self._weights.take(self.targets, snapshot.batch_idx)
        layout = self._layout
        # One layout object for neighbouring steps whose numbers mean the same, so that their rows are made together.
        if layout is None or layout.norms is not taken.delta_layout or layout.num_batches != taken.num_batches:
            layout = self._layout = DeltaLayout(taken.delta_layout, taken.num_batches)
        return Reading(taken.deltas, layout)

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Of a batch in which several optimizers step, take the weights before the first of them."""
        return readings[0]

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """Combine the norms of every group in float64."""
        if not isinstance(layout, DeltaLayout):
            raise TypeError(f"expected the DeltaLayout of weight deltas, got {layout!r}")
        norms = known_norms(numbers, layout.norms, self._groups)
        columns: dict[str, Values] = {"num_batches": [layout.num_batches] * len(numbers)}
        return columns | dict(zip(self.run_columns, norms, strict=True))
