"""The head gets nearly all of the gradient."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.signs.figures import Evidence
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import stretches
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "head-dominating"
_ADVICE = (
    "Lower the head's initial weights or its learning rate, warm the rates up, or normalise the features; where the "
    "backbone should hardly learn, freeze it and say so with requires_grad."
)


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Its norm is many times that of all other parameters together, and these are not frozen."""
    overall = run.overall
    backbones = run.of_role("backbone_last")
    if overall is None or not backbones:
        return
    begin = max(map(run.trained_from, backbones))
    for column in run.of_role("head"):
        share = np.minimum(run.share(column, overall), 1.0)
        # Norms are float32: what is left beside a share of 1 - 1e-7 cannot be told from nothing.
        ratio = share / np.sqrt(np.maximum(1.0 - share**2, 1e-7))
        ratio[:begin] = 0.0
        for stretch in stretches(ratio > limits.head_ratio, least=limits.least_rows, bridge=2):
            value = float(np.nanmedian(ratio[stretch.rows]))
            yield stretch.finding(
                run.norms,
                sign=SIGN,
                column=column,
                value=value,
                message=f"{column} dominates: its norm is {value:.3g} times that of all the rest over "
                f"{stretch.length} collected steps.",
                advice=_ADVICE,
            )
