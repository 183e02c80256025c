"""The backbone's last stage gets no gradients, or next to none."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.signs.figures import Evidence, Values
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import Stretch, stretches
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "backbone-not-learning"
_ADVICE = (
    "Look for a detach(), a no_grad() or an inference_mode() between backbone and loss, and for activations of the "
    "head that saturate or died. If it is frozen on purpose, set requires_grad to False before the first step."
)


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Its norm is null where others are measured, or a negligible share of the overall norm."""
    overall = run.overall
    if overall is None:
        return
    for column in run.of_role("backbone_last"):
        share = run.share(column, overall)
        is_null = ~run.norms.is_measured(column) & run.norms.is_measured(overall)
        is_still = is_null | (share < limits.backbone_share)
        is_still[: run.trained_from(column)] = False
        for stretch in stretches(is_still, least=limits.least_rows, bridge=2):
            yield _finding(run, column, share, stretch)


def _finding(run: Evidence, column: str, share: Values, stretch: Stretch) -> Finding:
    seen = share[stretch.rows]
    measured = seen[np.isfinite(seen)]
    if len(measured):
        value = float(np.median(measured))
        what = f"its norm is {value:.2g} of the overall norm"
    else:
        value = None
        what = "it had no gradients at all"
    return stretch.finding(
        run.norms,
        sign=SIGN,
        column=column,
        value=value,
        message=f"{column} is not learning: {what} over {stretch.length} collected steps.",
        advice=_ADVICE,
    )
