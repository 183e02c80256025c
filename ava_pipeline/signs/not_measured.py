"""No gradient is there to be measured."""

from collections.abc import Iterator

from ava_pipeline.signs.figures import Evidence
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import stretches
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "not-measured"
_ADVICE = (
    "Call step() after backward() and before zero_grad(), with the model that is trained; events.csv says where "
    "gradients are sharded, or multiplied by a loss scale that could not be read."
)


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm is null, though not everything is frozen."""
    overall = run.overall
    if overall is None:
        return
    is_null = ~run.norms.is_measured(overall)
    is_null[: run.trained_from(overall)] = False
    for stretch in stretches(is_null, least=limits.least_rows):
        yield stretch.finding(
            run.norms,
            sign=SIGN,
            column=overall,
            value=None,
            message=f"{overall} was not measured over {stretch.length} collected steps: there was no gradient, or none "
            "that could be measured.",
            advice=_ADVICE,
        )
