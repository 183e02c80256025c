"""All gradients are far too small, or far too large."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.signs.figures import Evidence, Values
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import Stretch, stretches
from ava_pipeline.signs.thresholds import Thresholds

VANISHING, EXPLODING = "vanishing", "exploding"
_MORE = (
    "Look at the loss's scale, at saturated outputs and dead activations, and at the learning rate of the steps before."
)
_LESS = (
    "Lower the learning rate, warm it up, normalise the inputs, clip the gradients, and look at the loss's scale and "
    "at the initial weights."
)


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """By the norm itself, and against the norm of the run's first rows."""
    if run.overall is None:
        return
    norms, reference = run.norms.values(run.overall), run.reference
    below = max(limits.vanishing_below, reference * limits.vanishing_ratio)
    # A sum in place of a mean is large from its first row on, and steady.
    grown = limits.rising_factor * float(run.beginning.min()) if len(run.beginning) else 0.0
    above = max(limits.exploding_above, grown)
    above = min(above, reference * limits.exploding_ratio or above)
    for stretch in stretches(norms < below, least=limits.least_rows, bridge=2):
        yield _finding(run, VANISHING, norms, stretch, f"vanish: below {below:.2g}", _MORE)
    if run.is_scaled:
        norms = np.where(np.isinf(norms), np.nan, norms)  # what the scale made too large, and the scaler skipped
    # What is inf has else outgrown every bound; what is nan is told as not finite.
    for stretch in stretches(norms > above, least=max(2, limits.least_rows // 4), bridge=2):
        yield _finding(run, EXPLODING, norms, stretch, f"explode: above {above:.2g}", _LESS)


def _finding(run: Evidence, sign: str, norms: Values, stretch: Stretch, what: str, advice: str) -> Finding:
    value = float(np.nanmedian(norms[stretch.rows]))
    return stretch.finding(
        run.norms,
        sign=sign,
        column=run.overall,
        value=value,
        message=f"gradients {what}, {value:.3g} in the middle of {stretch.length} collected steps, after "
        f"{run.reference:.3g} at the beginning.",
        advice=advice,
    )
