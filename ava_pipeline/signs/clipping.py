"""Clipping that shortens nearly every step."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.signs.figures import Evidence
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import stretches
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "clipping-often"
_RATE = "clip_rate"


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The clip rate stays near 1, so that the bound and not the gradient decides how long a step is."""
    if _RATE not in run.steps.names:
        return
    rates = run.steps.values(_RATE)
    for stretch in stretches(rates >= limits.clip_share, least=2 * limits.least_rows, bridge=2):
        value = float(np.nanmean(rates[stretch.rows]))
        yield stretch.finding(
            run.steps,
            sign=SIGN,
            column=_RATE,
            value=value,
            message=f"clipping shortened {value:.0%} of the steps over {stretch.length} collected steps.",
            advice="Raise max_norm to what is usual for the overall norm, or lower the learning rate instead.",
        )
