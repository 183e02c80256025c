"""Norms and losses that spike, and norms that rise steadily."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy  # which loads scipy.ndimage where it is first used
from numpy.typing import NDArray

from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import Evidence, RowRange, TableValues, Values, ranges_where
from ava_pipeline.signs.thresholds import Thresholds

SPIKE = "spike"
_SPIKE_ADVICE = (
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


def spikes(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
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


def _spikes(rows: TableValues, column: str, factors: Values, limits: Thresholds) -> Iterator[Finding]:
    values = rows.values(column)
    for index in np.flatnonzero(factors > limits.spike_factor):
        if _deviations(values, int(index), limits.spike_window) < limits.spike_deviations:
            factors[index] = 0.0
    for stretch in ranges_where(factors > limits.spike_factor):
        if stretch.length > _MAX_ROWS:
            continue
        highest, factor = (float(np.nanmax(figures[stretch.rows])) for figures in (values, factors))
        yield stretch.finding(
            rows,
            sign=SPIKE,
            column=column,
            value=highest,
            message=f"{column} spiked to {highest:.3g}, {factor:.3g} times the median of the {limits.spike_window} "
            "collected steps before.",
            advice=_SPIKE_ADVICE,
        )


def _saturated(rows: TableValues, column: str, is_saturated: NDArray[np.bool_]) -> Iterator[Finding]:
    for stretch in ranges_where(is_saturated):
        if stretch.length <= _MAX_SATURATED:
            value = float(rows.values(column)[stretch.rows].max())
            yield stretch.finding(
                rows,
                sign=SPIKE,
                column=column,
                value=value,
                message=f"{column} rose to {value:.3g} while the gradients fell to next to nothing: the outputs are "
                "saturated.",
                advice=_SPIKE_ADVICE,
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


_NUM_BLOCKS = 32
_LEAST_ROWS = 4 * _NUM_BLOCKS


class Trend(NamedTuple):
    """How steadily something changed, and by how much.

    Attributes:
        tau: Kendall's tau of value and time, -1..1; as in Mann's test of trend (1945), doi:10.2307/1907187.
        change: from the first row to the last, by the slope of Theil and Sen (1968),
            doi:10.1080/01621459.1968.10480934.
    """

    tau: float
    change: float


def trend_of(values: Values, least_rise: float) -> Trend | None:
    """The trend of finite values; None where they are too few, or do not rise.

    Medians of 32 blocks stand for the rows, so that single batches weigh little and a million rows cost little.

    Args:
        values: in the order of time.
        least_rise: smaller rises are not looked at closely: half of it must lie between the first and last quarter.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < _LEAST_ROWS:
        return None
    length = len(finite) // _NUM_BLOCKS
    blocks = np.median(finite[-length * _NUM_BLOCKS :].reshape(_NUM_BLOCKS, length), axis=1)
    quarter = _NUM_BLOCKS // 4
    if np.median(blocks[-quarter:]) - np.median(blocks[:quarter]) <= least_rise / 2:
        return None
    time = np.arange(_NUM_BLOCKS, dtype=np.float64)
    slope = float(scipy.stats.theilslopes(blocks, time).slope)
    return Trend(float(scipy.stats.kendalltau(time, blocks).statistic), slope * (_NUM_BLOCKS - 1))


RISING = "rising"
_RISING_ADVICE = (
    "Lower the learning rate or decay it, add weight decay or clipping, and look at the validation metrics: training "
    "may be about to diverge."
)


def rising(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm's logarithm has a steady upward trend."""
    if run.overall is None:
        return
    norms = run.norms.values(run.overall)
    positions = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    trend = trend_of(np.log10(norms[positions]), np.log10(limits.rising_factor))
    if trend is None or trend.tau < limits.rising_tau or 10**trend.change < limits.rising_factor:
        return
    value = float(10**trend.change)
    yield RowRange(int(positions[0]), int(positions[-1])).finding(
        run.norms,
        sign=RISING,
        column=run.overall,
        value=value,
        message=f"{run.overall} rises steadily: {value:.3g} times over {len(positions)} collected steps "
        f"(Kendall's tau {trend.tau:.2f}).",
        advice=_RISING_ADVICE,
    )
