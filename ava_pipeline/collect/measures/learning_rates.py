"""Learning rates: the rate that this step uses, a column an optimizer group."""

from collections.abc import Sequence

from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.targets import TrainingTargets, rate_column
from ava_pipeline.contract.builtin_tables import LEARNING_RATES
from ava_pipeline.write.pending import Numbers


class LearningRates(Measure):
    """A number a parameter group, tensors where the rates are held as tensors."""

    table = LEARNING_RATES

    def __init__(self, watched: TrainingTargets) -> None:
        super().__init__(watched)
        self._num_groups = len(self._rates())

    @property
    def run_columns(self) -> tuple[str, ...]:
        """`lr_group_0`, `lr_group_1`, ..."""
        return tuple(map(rate_column, range(self._num_groups)))

    def read(self, moment: StepSnapshot) -> Reading:  # noqa: ARG002  # rates stand in the optimizers
        """Take every group's rate."""
        rates = self._rates()[: self._num_groups]
        return Reading(rates + [None] * (self._num_groups - len(rates)))

    def columns(self, numbers: Sequence[Numbers], layout: object) -> dict[str, Sequence[object]]:  # noqa: ARG002  # one layout
        """Rates by group."""
        return dict(zip(self.run_columns, map(list, zip(*numbers, strict=True)), strict=True))

    def _rates(self) -> list[object]:
        return [group["lr"] for optimizer in self.watched.optimizers.values() for group in optimizer.param_groups]
