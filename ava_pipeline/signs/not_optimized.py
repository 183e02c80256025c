"""Groups that no optimizer steps."""

from collections.abc import Iterator

from ava_pipeline.signs.figures import Evidence
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import Stretch
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "not-optimized"


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """A group has gradients, and none of its parameters was in an optimizer at the first collected step."""
    for column in run.norms.names:
        # Groups are described once, at the first collected step.
        group = run.groups.get(column)
        if group is None or group.trainable is not True or group.learning_rates or len(run.norms) < limits.least_rows:
            continue
        yield Stretch(0, len(run.norms) - 1).finding(
            run.norms,
            sign=SIGN,
            column=column,
            value=None,
            message=f"{column} was in no optimizer at the first collected step: unless it was added since, none of its "
            f"{len(group.parameters)} parameters is ever changed.",
            advice="Give its parameters to the optimizer, or set their requires_grad to False to say that they stay.",
        )
