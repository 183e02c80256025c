"""Groups that are frozen on purpose: information."""

from collections.abc import Iterator

from ava_pipeline.signs.figures import Evidence
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import Stretch
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "frozen"


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:  # noqa: ARG001  # every rule is called alike
    """None of a group's parameters requires gradients at the first collected step, and none ever had any."""
    if not len(run.norms):
        return
    for column in run.norms.names:
        if column in run.groups and run.is_frozen(column):
            yield Stretch(0, len(run.norms) - 1).finding(
                run.norms,
                sign=SIGN,
                severity="info",
                column=column,
                value=None,
                message=f"{column} is frozen: none of its {len(run.groups[column].parameters)} parameters requires "
                "gradients.",
            )
