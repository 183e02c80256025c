"""Single batches whose gradients are far out of line."""

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import median_filter

from ava_pipeline.signs.figures import Evidence, Figures, Values
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
    """The overall norm or a loss is far above the median of the rows before it, in their median absolute deviations.

    Of the logarithm, since both vary by factors.
    """
    if run.overall is not None:
        yield from _spikes(run.norms, run.overall, limits)
    for column in run.losses:
        yield from _spikes(run.steps, column, limits)


def _spikes(rows: Figures, column: str, limits: Thresholds) -> Iterator[Finding]:
    values = rows.values(column)
    positions = np.flatnonzero(np.isfinite(values) & (values > 0))
    factors = np.ones(len(values))
    factors[positions] = _factors(np.log10(values[positions]), limits)
    for stretch in stretches(factors > 1.0):
        highest, factor = (float(figures[stretch.rows].max()) for figures in (values, factors))
        yield stretch.finding(
            rows,
            sign=SIGN,
            column=column,
            value=highest,
            message=f"{column} spiked to {highest:.3g}, {factor:.3g} times the median of the {limits.spike_window} "
            "collected steps before.",
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
