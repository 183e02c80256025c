"""Learning rates: the rate that the step uses, one column per optimizer group."""

from collections.abc import Mapping, Sequence

from ava_pipeline.collect.measures.measure import Measure, Reading, StepSnapshot
from ava_pipeline.collect.targets import rate_column
from ava_pipeline.contract.builtin_tables import LEARNING_RATES
from ava_pipeline.contract.columns import Values
from ava_pipeline.write.channel import Numbers


class LearningRates(Measure):
    """Reads one number per parameter group; a tensor if the optimizer keeps the rate as a tensor."""

    table = LEARNING_RATES

    @property
    def run_columns(self) -> tuple[str, ...]:
        """`lr_group_0`, `lr_group_1`, ..."""
        return tuple(map(rate_column, range(len(self.targets.rate_places))))

    def read(self, snapshot: StepSnapshot) -> Reading:
        """Read the rate of every group; None if another optimizer took over, whose rates are not known."""
        if snapshot.is_optimizer_replaced:
            return Reading([None] * len(self.targets.rate_places))
        return Reading([None if group is None else group["lr"] for group in self.targets.rate_groups()])

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:  # noqa: ARG002  # one layout
        """One column per group."""
        return dict(zip(self.run_table.run_column_names, zip(*numbers, strict=True), strict=True))
