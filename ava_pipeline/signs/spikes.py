"""Single batches whose gradients are far out of line."""

from collections.abc import Iterator

import numpy as np
import scipy  # which loads scipy.ndimage where it is first used
from numpy.typing import NDArray

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
# What stays saturated, or high, is no single batch: it is told by other signs.
_MAX_SATURATED = 3
# A momentum of 0.9 carries a third of a batch for so many steps.
_MAX_ROWS = 10
# MAD -> standard deviation of a normal distribution. Source: Rousseeuw & Croux (1993), doi:10.2307/2291267.
_CONSISTENT = 1.4826
# Norms vary by a few percent whatever the batch: a run that is steadier still is no reason for alarm.
_LEAST_DEVIATION = 0.02


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm or a loss is far above the median of the rows before it, in their median absolute deviations.

    Of the logarithm, since both vary by factors. Inputs beyond all bounds show the other way round too: the outputs
    saturate, so that the loss is high and the gradients are next to nothing.
    """
    low: NDArray[np.int64] = np.array([], dtype=np.int64)
    if run.overall is not None:
        norms = _times_before(run.norms.values(run.overall), limits.spike_window)
        low = run.norms.batch_idx[norms < limits.saturated_share]
        yield from _spikes(run.norms, run.overall, norms, limits)
    for column in run.losses:
        losses = _times_before(run.steps.values(column), limits.spike_window)
        if len(low):
            is_saturated = (losses > limits.saturated_loss) & np.isin(run.steps.batch_idx, low)
            yield from _saturated(run.steps, column, is_saturated)
        yield from _spikes(run.steps, column, losses, limits)


def _spikes(rows: Figures, column: str, factors: Values, limits: Thresholds) -> Iterator[Finding]:
    values = rows.values(column)
    for index in np.flatnonzero(factors > limits.spike_factor):
        if _deviations(values, int(index), limits.spike_window) < limits.spike_deviations:
            factors[index] = 0.0
    for stretch in stretches(factors > limits.spike_factor):
        if stretch.length > _MAX_ROWS:
            continue
        highest, factor = (float(np.nanmax(figures[stretch.rows])) for figures in (values, factors))
        yield stretch.finding(
            rows,
            sign=SIGN,
            column=column,
            value=highest,
            message=f"{column} spiked to {highest:.3g}, {factor:.3g} times the median of the {limits.spike_window} "
            "collected steps before.",
            advice=_ADVICE,
        )


def _saturated(rows: Figures, column: str, is_saturated: NDArray[np.bool_]) -> Iterator[Finding]:
    for stretch in stretches(is_saturated):
        if stretch.length <= _MAX_SATURATED:
            value = float(rows.values(column)[stretch.rows].max())
            yield stretch.finding(
                rows,
                sign=SIGN,
                column=column,
                value=value,
                message=f"{column} rose to {value:.3g} while the gradients fell to next to nothing: the outputs are "
                "saturated.",
                advice=_ADVICE,
            )


def _times_before(values: Values, window: int) -> Values:
    """Each value over the median of the positive ones before it, at most `window` of them; nan while they are few."""
    positions = np.flatnonzero(np.isfinite(values) & (values > 0))
    ratios = np.full(len(values), np.nan)
    if len(positions) <= _LEAST_BEFORE:
        return ratios
    # Of each positive value and those before it.
    medians = scipy.ndimage.median_filter(values[positions], window, origin=(window - 1) // 2, mode="nearest")
    num_before = np.searchsorted(positions, np.arange(len(values)))
    is_told = (num_before >= _LEAST_BEFORE) & np.isfinite(values)
    ratios[is_told] = values[is_told] / medians[num_before[is_told] - 1]
    return ratios


def _deviations(values: Values, index: int, window: int) -> float:
    """How many robust deviations a value's logarithm lies above the median of those before it."""
    before = values[max(0, index - window) : index]
    logs = np.log10(before[np.isfinite(before) & (before > 0)])
    middle = np.median(logs)
    deviation = max(_CONSISTENT * np.median(np.abs(logs - middle)), _LEAST_DEVIATION)
    return float((np.log10(values[index]) - middle) / deviation)
