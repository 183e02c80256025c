"""Norms and losses that spike, and norms and losses that rise steadily."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ava_pipeline.contract.arrays import Bools, Floats
from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import Evidence, RowRange, TableValues, ranges_where, running
from ava_pipeline.signs.thresholds import Thresholds

_SPIKE_ADVICE = (
    "Check the samples of this batch: labels, decoding, normalisation. Give sample_ids to step() so that findings "
    "name them; clip the gradients to limit the effect of such batches."
)
_LEAST_ROWS_BEFORE = 16
# Outputs or norms that stay like this do so for more than a single batch, and other signs report it.
_MAX_SATURATED_ROWS = 3
# A momentum of 0.9 still carries a third of a batch after ten steps.
_MAX_SPIKE_ROWS = 10
# MAD -> standard deviation of a normal distribution. Source: Rousseeuw & Croux (1993), doi:10.2307/2291267.
_MAD_TO_DEVIATION = 1.4826
# Norms vary by a few percent from batch to batch; in a run that is steadier, smaller deviations mean nothing.
_LEAST_DEVIATION = 0.02


def spikes(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm or a loss is far above the median of the rows before, also in their median absolute deviations.

    Deviations are those of the logarithm, since norms and losses vary by factors. Inputs beyond all bounds can show
    the opposite: the outputs saturate, so that the loss is high while the gradients are next to nothing.
    """
    low_batches = np.zeros(0, dtype=np.int64)
    if run.overall is not None:
        ratios = ratios_to_median(
            run.norms.values[run.overall], limits.spike_window, below=limits.saturated_share, above=limits.spike_factor
        )
        low_batches = run.norms.batch_idx[ratios < limits.saturated_share]
        yield from _spikes(run.norms, run.overall, ratios, limits)
    for column in run.losses:
        above = min(limits.spike_factor, limits.saturated_loss)
        ratios = ratios_to_median(run.steps.values[column], limits.spike_window, above=above)
        if len(low_batches):
            is_saturated = (ratios > limits.saturated_loss) & np.isin(run.steps.batch_idx, low_batches)
            yield from _saturated(run.steps, column, is_saturated)
        yield from _spikes(run.steps, column, ratios, limits)


def _spikes(rows: TableValues, column: str, ratios: Floats, limits: Thresholds) -> Iterator[Finding]:
    values = rows.values[column]
    for index in np.flatnonzero(ratios > limits.spike_factor):
        if _deviations(values, int(index), limits.spike_window) < limits.spike_deviations:
            ratios[index] = 0.0
    for spike in ranges_where(ratios > limits.spike_factor):
        if spike.num_rows > _MAX_SPIKE_ROWS:
            continue
        highest, ratio = float(np.nanmax(values[spike.rows])), float(np.nanmax(ratios[spike.rows]))
        yield spike.finding(
            rows,
            sign="spike",
            column=column,
            value=highest,
            message=f"{column} spiked to {highest:.3g}, {ratio:.3g} times the median of the {limits.spike_window} "
            "collected steps before.",
            advice=_SPIKE_ADVICE,
        )


def _deviations(values: Floats, index: int, window: int) -> float:
    """How many robust deviations a value's logarithm is above the median of those before it."""
    before = values[max(0, index - window) : index]
    logs = np.log10(before[np.isfinite(before) & (before > 0)])
    median = np.median(logs)
    deviation = max(_MAD_TO_DEVIATION * np.median(np.abs(logs - median)), _LEAST_DEVIATION)
    return float((np.log10(values[index]) - median) / deviation)


def _saturated(rows: TableValues, column: str, is_saturated: Bools) -> Iterator[Finding]:
    for saturation in ranges_where(is_saturated):
        if saturation.num_rows <= _MAX_SATURATED_ROWS:
            value = float(rows.values[column][saturation.rows].max())
            yield saturation.finding(
                rows,
                sign="spike",
                column=column,
                value=value,
                message=f"{column} rose to {value:.3g} while the gradients fell to next to nothing: the outputs are "
                "saturated.",
                advice=_SPIKE_ADVICE,
            )


_RISING_ADVICE = (
    "Lower the learning rate or decay it, add weight decay or clipping, and check the validation metrics: training "
    "may be about to diverge."
)


def rising(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The logarithm of the overall norm has a steady upward trend."""
    if run.overall is None:
        return
    norms = run.norms.values[run.overall]
    positions = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    trend = trend_of(np.log10(norms[positions]), least_rise=np.log10(limits.rising_factor))
    if trend is None or trend.tau < limits.rising_tau or 10**trend.change < limits.rising_factor:
        return
    value = float(10**trend.change)
    yield RowRange(int(positions[0]), int(positions[-1])).finding(
        run.norms,
        sign="rising",
        column=run.overall,
        value=value,
        message=f"{run.overall} rises steadily: {value:.3g} times over {len(positions)} collected steps "
        f"(Kendall's tau {trend.tau:.2f}).",
        advice=_RISING_ADVICE,
    )


def loss_rising(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """A loss has a steady upward trend."""
    for column in run.losses:
        losses = run.steps.values[column]
        positions = np.flatnonzero(np.isfinite(losses))
        if not len(positions):
            continue
        early = float(np.median(losses[positions[: limits.least_rows]]))
        least_rise = (limits.loss_rise - 1.0) * abs(early)
        trend = trend_of(losses, least_rise=least_rise)
        if trend is None or trend.tau < limits.rising_tau or trend.change < least_rise:
            continue
        yield RowRange(int(positions[0]), int(positions[-1])).finding(
            run.steps,
            sign="loss-rising",
            column=column,
            value=trend.change,
            message=f"{column} rises steadily, by {trend.change:.3g} from {early:.3g} (Kendall's tau {trend.tau:.2f}).",
            advice="Lower the learning rate, and check the sign of the loss: training minimises it.",
        )


_MAX_CELLS = 2**18


def ratios_to_median(values: Floats, window: int, *, below: float = -np.inf, above: float) -> Floats:
    """Each value divided by the median of the at most `window` positive values before it, as float64 [rows].

    A median costs more than a minimum, so a row gets its ratio only if it could be below or above the given bounds: the
    median is not above the largest value of its window, and not below `_lower_bounds`. Values before the first row are
    replaced by the first positive value, as with `mode="nearest"` of `scipy.ndimage.median_filter`. Other rows are nan,
    and so are values that are not finite, or have fewer than 16 values before them.
    """
    ratios = np.full(len(values), np.nan)
    positions = np.flatnonzero(np.isfinite(values) & (values > 0))
    if len(positions) <= _LEAST_ROWS_BEFORE:
        return ratios
    positive = values[positions]
    padded = np.concatenate((np.full(window - 1, positive[0]), positive))
    num_before = np.searchsorted(positions, np.arange(len(values)))
    rows = np.flatnonzero((num_before >= _LEAST_ROWS_BEFORE) & np.isfinite(values))
    ends = num_before[rows] - 1
    is_unusual = values[rows] / _lower_bounds(padded, window)[ends] > above
    is_unusual |= values[rows] / running(np.maximum, padded, window)[ends] < below
    rows, ends = rows[is_unusual], ends[is_unusual]
    windows = sliding_window_view(padded, window)
    # Of an even number of values, the upper one of the two in the middle.
    middle, num_rows = window // 2, max(1, _MAX_CELLS // window)
    for start in range(0, len(rows), num_rows):
        part = slice(start, start + num_rows)
        medians = np.partition(windows[ends[part]], middle, axis=1)[:, middle]
        ratios[rows[part]] = values[rows[part]] / medians
    return ratios


def _lower_bounds(values: Floats, window: int) -> Floats:
    """A number that the median of each `window` neighbouring values is not below; the upper one of two in the middle.

    More than half of the values are at most the median. So if each value of the first half is paired with one of the
    second, both values of some pair are, and the smallest of the pairs' larger values is a bound.
    """
    half = window // 2
    pairs = np.maximum(values[:-half], values[half:])
    bounds = running(np.minimum, pairs, half)[: len(values) - window + 1]
    # In an odd window, the value without a partner may be among those that are at most the median.
    return np.minimum(bounds, values[window - 1 :]) if window % 2 else bounds


_NUM_BLOCKS = 32
_LEAST_TREND_ROWS = 4 * _NUM_BLOCKS


class Trend(NamedTuple):
    """How steadily values changed, and by how much.

    Attributes:
        tau: Kendall's tau-b of values and time, -1..1, as in Mann's test of trend (1945), doi:10.2307/1907187.
        change: from the first row to the last, by the slope of Theil and Sen (1968),
            doi:10.1080/01621459.1968.10480934.
    """

    tau: float
    change: float


def trend_of(values: Floats, *, least_rise: float) -> Trend | None:
    """The trend of the finite values in time; None if they are fewer than 128, or hardly rise.

    The rows are reduced to medians of 32 blocks, so that single batches weigh little and a million rows cost little.
    The medians of the first and of the last quarter must differ by half of `least_rise`.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < _LEAST_TREND_ROWS:
        return None
    length = len(finite) // _NUM_BLOCKS
    blocks = np.median(finite[-length * _NUM_BLOCKS :].reshape(_NUM_BLOCKS, length), axis=1)
    quarter = _NUM_BLOCKS // 4
    if np.median(blocks[-quarter:]) - np.median(blocks[:quarter]) <= least_rise / 2:
        return None
    return Trend(kendall_tau(blocks), theil_sen_slope(blocks) * (_NUM_BLOCKS - 1))


def kendall_tau(values: Floats) -> float:
    """Kendall's tau-b of values and their positions: concordant less discordant pairs, over the pairs without ties.

    Source: Kendall (1945), doi:10.1093/biomet/33.3.239; the same as `scipy.stats.kendalltau`. No value may be nan; the
    result is nan if all are equal.
    """
    first, second = np.triu_indices(len(values), k=1)
    num_rises = int((values[second] > values[first]).sum())
    num_falls = int((values[second] < values[first]).sum())
    num_untied = num_rises + num_falls
    if not num_untied:
        return float("nan")
    tau = (num_rises - num_falls) / np.sqrt(len(first)) / np.sqrt(num_untied)
    return float(np.clip(tau, -1.0, 1.0))


def theil_sen_slope(values: Floats) -> float:
    """The median slope of all pairs of at least two values, per row.

    Source: Sen (1968), doi:10.1080/01621459.1968.10480934; the same as `scipy.stats.theilslopes`.
    """
    first, second = np.triu_indices(len(values), k=1)
    return float(np.median((values[second] - values[first]) / (second - first)))
