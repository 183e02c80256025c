"""One layer of the head gets no gradients while the head does."""

from collections.abc import Iterator

import numpy as np

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
        if parent not in run.norms.names:
            continue
        is_null = ~run.norms.is_measured(column) & run.norms.is_measured(parent)
        share = run.share(column, parent)
        is_dead = is_null | (share < limits.dead_share)
        is_dead[: run.trained_from(column)] = False
        for stretch in stretches(is_dead, least=limits.least_rows, bridge=2):
            seen = share[stretch.rows]
            value = float(np.nanmedian(seen)) if np.isfinite(seen).any() else None
            what = "it had no gradients" if value is None else f"its norm is {value:.2g} of {parent}'s"
            yield stretch.finding(
                run.norms,
                sign=SIGN,
                column=column,
                value=value,
                message=f"{column} is dead: {what} over {stretch.length} collected steps.",
                advice=_ADVICE,
            )
