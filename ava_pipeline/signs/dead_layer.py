"""One layer of the head gets no gradients while the head does."""

from collections.abc import Iterator

from ava_pipeline.signs.figures import Evidence
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import stretches
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "dead-layer"
_ADVICE = (
    "Look at the activation behind it: ReLUs that are negative for every input pass nothing back. Lower the learning "
    "rate, begin with a bias of 0, or take LeakyReLU or GELU."
)


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Its norm is null or a negligible share of its head's."""
    for column in run.of_role("head_layer"):
        parent = run.groups[column].parent
        if run.groups[column].trainable is False or parent not in run.norms.names:
            continue
        is_null = ~run.norms.is_measured(column) & run.norms.is_measured(parent)
        is_dead = is_null | (run.share(column, parent) < limits.dead_share)
        for stretch in stretches(is_dead, least=limits.least_rows, bridge=2):
            yield stretch.finding(
                run.norms,
                sign=SIGN,
                column=column,
                value=0.0,
                message=f"{column} is dead: it had no gradients, or less than {limits.dead_share:g} of {parent}'s, "
                f"over {stretch.length} collected steps.",
                advice=_ADVICE,
            )
