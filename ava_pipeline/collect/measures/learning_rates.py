"""Learning rates: the rate that the step uses, one column per optimizer group."""

from collections.abc import Mapping, Sequence

from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.targets import TrainingTargets, rate_column
from ava_pipeline.contract.builtin_tables import LEARNING_RATES
from ava_pipeline.contract.columns import Values
from ava_pipeline.write.channel import Numbers


class LearningRates(Measure):
    """Reads one number per parameter group; a tensor if the optimizer keeps the rate as a tensor."""

    table = LEARNING_RATES

    def __init__(self, targets: TrainingTargets) -> None:
        super().__init__(targets)
        self._num_groups = len(self._rates())

    @property
    def run_columns(self) -> tuple[str, ...]:
        """`lr_group_0`, `lr_group_1`, ..."""
        return tuple(map(rate_column, range(self._num_groups)))

    def read(self, snapshot: StepSnapshot) -> Reading:  # noqa: ARG002  # the rates are in the optimizers
        """Read the rate of every group."""
        rates = self._rates()[: self._num_groups]
        return Reading(rates + [None] * (self._num_groups - len(rates)))

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:  # noqa: ARG002  # one layout
        """One column per group."""
        return dict(zip(self.run_table.run_column_names, zip(*numbers, strict=True), strict=True))

    def _rates(self) -> list[object]:
        return [group["lr"] for optimizer in self.targets.optimizers.values() for group in optimizer.param_groups]
