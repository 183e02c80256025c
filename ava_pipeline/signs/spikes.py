"""Single batches whose gradients are far out of line."""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import median_filter

from ava_pipeline.signs.figures import Evidence, Values
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import stretches
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "spike"
_ADVICE = (
    "Look at the samples of this batch: labels, decoding, normalisation. Give sample_ids to step() to have them named; "
    "clip the gradients to blunt such batches."
)
_LEAST_BEFORE = 16
# MAD -> standard deviation of a normal distribution. Source: Rousseeuw & Croux (1993), doi:10.2307/2291267.
_CONSISTENT = 1.4826
# Norms vary by a few percent whatever the batch: a run that is steadier still is no reason for alarm.
_LEAST_DEVIATION = 0.02


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The norm's logarithm is far above the median of the rows before it, in their median absolute deviations."""
    if run.overall is None:
        return
    norms = run.norms.values(run.overall)
    positions = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    factors = np.ones(len(norms))
    factors[positions] = _factors(np.log10(norms[positions]), limits)
    for stretch in stretches(factors > 1.0):
        highest = float(factors[stretch.rows].max())
        yield stretch.finding(
            run.norms,
            sign=SIGN,
            column=run.overall,
            value=float(norms[stretch.rows].max()),
            message=f"{run.overall} spiked to {norms[stretch.rows].max():.3g}, {highest:.3g} times the median of the "
            f"{limits.spike_window} collected steps before.",
            advice=_ADVICE,
        )


def _factors(logs: Values, limits: Thresholds) -> Values:
    """How many times the median before it each spike is; 1 where there is none."""
    factors, window = np.ones(len(logs)), limits.spike_window
    if len(logs) <= _LEAST_BEFORE:
        return factors
    # Of each row and those before it; moved on by one, of those before it.
    medians = median_filter(logs, window, origin=(window - 1) // 2, mode="nearest")
    above = logs[_LEAST_BEFORE:] - medians[_LEAST_BEFORE - 1 : -1]
    for index in np.flatnonzero(above > np.log10(limits.spike_factor)) + _LEAST_BEFORE:
        before = logs[max(0, index - window) : index]
        middle = np.median(before)
        deviation = max(_CONSISTENT * np.median(np.abs(before - middle)), _LEAST_DEVIATION)
        if logs[index] - middle > max(np.log10(limits.spike_factor), limits.spike_deviations * deviation):
            factors[index] = 10 ** (logs[index] - middle)
    return factors
