"""Weight norms: the L2 norm of every group's parameters."""

from collections.abc import Mapping, Sequence

import numpy as np

from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.norms import NormLayout, combine
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.collect.weight_pass import WeightPass
from ava_pipeline.contract.arrays import Integers
from ava_pipeline.contract.builtin_tables import WEIGHT_NORMS
from ava_pipeline.contract.columns import Values
from ava_pipeline.write.channel import Numbers


class WeightNorms(Measure):
    """Takes the norms of the weights that a batch was computed with from the pass over the weights.

    Args:
        targets: the parameters and groups.
        weights: the pass, which `WeightDeltas` takes the differences from.
    """

    table = WEIGHT_NORMS

    def __init__(self, targets: TrainingTargets, weights: WeightPass) -> None:
        super().__init__(targets)
        self._weights = weights
        self._groups = groups_of(targets)

    @property
    def run_columns(self) -> tuple[str, ...]:
        """The groups, `overall` first."""
        return tuple(self.targets.groups)

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Take the norms of all pieces."""
        taken = self._weights.take(self.targets, snapshot.batch_idx)
        return Reading(taken.norms, taken.layout)

    def join(self, readings: Sequence[Reading]) -> Reading:
        """Of a batch in which several optimizers step, take the weights before the first of them."""
        return readings[0]

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """Combine the norms of every group in float64."""
        if not isinstance(layout, NormLayout):
            raise TypeError(f"expected the NormLayout of weight norms, got {layout!r}")
        return dict(zip(self.run_columns, known_norms(numbers, layout, self._groups), strict=True))


def groups_of(targets: TrainingTargets) -> list[Integers]:
    """The positions of each group's parameters."""
    return [np.array(positions) for positions in targets.positions().values()]


def known_norms(numbers: Sequence[Numbers], layout: NormLayout, groups: Sequence[Integers]) -> list[Values]:
    """The norm of every group, one per step; null if any of its parameters is unknown, since the rest is not it."""
    norms = combine(np.array(numbers, dtype=np.float64), layout, groups)
    return [
        [None] * len(numbers) if layout.unknown[group].any() else norms[:, index] for index, group in enumerate(groups)
    ]
