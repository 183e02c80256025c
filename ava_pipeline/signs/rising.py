"""Gradient norms that rise steadily."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.signs.figures import Evidence
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import Stretch
from ava_pipeline.signs.thresholds import Thresholds
from ava_pipeline.signs.trend import trend_of

SIGN = "rising"
_ADVICE = (
    "Lower the learning rate or decay it, add weight decay or clipping, and look at the validation metrics: training "
    "may be about to diverge."
)


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm's logarithm has a steady upward trend."""
    if run.overall is None:
        return
    norms = run.norms.values(run.overall)
    positions = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    trend = trend_of(np.log10(norms[positions]), np.log10(limits.rising_factor))
    if trend is None or trend.tau < limits.rising_tau or 10**trend.change < limits.rising_factor:
        return
    value = float(10**trend.change)
    yield Stretch(int(positions[0]), int(positions[-1])).finding(
        run.norms,
        sign=SIGN,
        column=run.overall,
        value=value,
        message=f"{run.overall} rises steadily: {value:.3g} times over {len(positions)} collected steps "
        f"(Kendall's tau {trend.tau:.2f}).",
        advice=_ADVICE,
    )
