"""Clipping that came before the gradients were recorded, and clipping that shortens nearly every step."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ava_pipeline.contract.arrays import Bools, Floats, Integers
from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import Evidence, LastingState, running
from ava_pipeline.signs.gradients import share
from ava_pipeline.signs.thresholds import Thresholds

_CLIPPED_BEFORE_STEP = LastingState(
    sign="clipped-before-step",
    message="gradients were clipped before step(): {column} is never above {value:.5g} over {num_rows} collected "
    "steps and often equal to it, so the norms before clipping are not known.",
    advice="Call telemetry.step() after backward() and before clipping. transformers' Trainer clips before "
    "on_pre_optimizer_step: call step() at the end of training_step() instead. With Accelerate, call it before "
    "accelerator.clip_grad_norm_().",
    average=np.nanmax,
)
# A row is at a bound if none of this many rows before it, or after it, has a higher norm.
_ROWS_AROUND = 64
# Where a smooth norm is at its highest, it changes by the square of what its parts change by. Parts that change by this
# many times the square root are those of clipped gradients.
_LEAST_DRIFT = 40.0
_LEAST_SPREAD = 1e-6  # float32 norms and their sums are no more exact than that
# The last digits of a norm that is clipped rise and fall at random; of a smooth curve, hardly ever.
_LEAST_TURNS = 1 / 6
# Gradients that vary slowly, as in training on a single batch, need more rows to show it. The last digits of the norm,
# which decide if there are neither groups nor losses, say little and need as many.
_TIMES_AS_LONG = 10


class _Precision(NamedTuple):
    """How exactly gradients were clipped.

    Attributes:
        tolerance: how far norms at one bound differ at most, as a share of it.
        ratio: the groups' shares of the squared norm jump by at least this many times what the norm varies.
        most_apart: there are fewer rows than this for each one at the bound.
    """

    tolerance: float
    ratio: float
    most_apart: float


# torch rounds the total of bfloat16 gradients, and then the factor, to 0.4 %.
_BFLOAT16 = _Precision(tolerance=0.02, ratio=6.0, most_apart=1.1)


def clipped_before_step(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm is never above a bound that it often reaches, while what it consists of varies.

    A norm can be constant without clipping, but then the norms of its groups are constant too. Only clipping lets the
    groups' shares vary while the norm stays the same. A run without groups is judged by its losses, and by the last
    digits of the norm, which rounding changes if the gradients before clipping vary.
    """
    if run.overall is None:
        return
    every_norm = run.norms.values[run.overall]
    rows = np.flatnonzero(np.isfinite(every_norm) & (every_norm > 0))
    norms, parts = every_norm[rows], _Parts(run, run.overall, rows)
    exact = _Precision(limits.clipped_tolerance, limits.clipped_ratio, most_apart=20.0)
    num_rows = max(limits.least_rows, 3)
    ways = [(exact, _TIMES_AS_LONG * num_rows)]
    ways += [(exact, num_rows)] if parts.groups or parts.losses else []
    ways += [(_BFLOAT16, num_rows)] if parts.groups else []
    highest = _highest_around(norms)
    is_clipped = np.zeros(len(every_norm), dtype=np.bool_)
    for precision, num in ways:
        at_bound = np.flatnonzero(norms >= (1 - precision.tolerance) * highest)
        is_clipped[rows] |= _is_clipped(norms, at_bound, parts, precision, num)
    yield from _CLIPPED_BEFORE_STEP.findings(run.norms, run.overall, is_clipped, every_norm, least_rows=1)


class _Parts:
    """What the overall norm consists of: the groups that are parts of the model, or if there are none, the losses.

    Most runs need no numbers of them, so these are computed when they are asked for.
    """

    def __init__(self, run: Evidence, whole: str, rows: Integers) -> None:
        self._run, self._whole, self._rows = run, whole, rows
        num_parameters = len(run.groups[whole].parameters)
        measured = [name for name in run.norms.values if name in run.groups and run.norms.is_measured[name].any()]
        self.groups = [name for name in measured if len(run.groups[name].parameters) < num_parameters]
        self.losses = [name for name in run.losses if run.steps.is_measured[name].any()]

    def at(self, positions: Integers) -> list[Floats]:
        """Each group's share of the overall norm's square, or each loss as a multiple of its median size."""
        rows = self._rows[positions]
        if self.groups:
            return [np.square(share(self._run, name, self._whole)[rows]) for name in self.groups]
        batches = self._run.norms.batch_idx[rows]
        return [_relative(self._run.steps.at_batches(name, batches)) for name in self.losses]


def _relative(losses: Floats) -> Floats:
    """Losses as multiples of the median of their sizes; nan if they are not finite, or if that is 0."""
    sizes = np.abs(losses[np.isfinite(losses)])
    unit = float(np.median(sizes)) if len(sizes) else 0.0
    relative: Floats = np.divide(losses, unit, out=np.full(len(losses), np.nan), where=np.isfinite(losses) & (unit > 0))
    return relative


def _highest_around(norms: Floats) -> Floats:
    """The highest norm of each row and the rows around it."""
    padding = np.zeros(_ROWS_AROUND)
    return running(np.maximum, np.concatenate((padding, norms, padding)), 2 * _ROWS_AROUND + 1)


def _is_clipped(norms: Floats, at_bound: Integers, parts: _Parts, precision: _Precision, num: int) -> Bools:
    """Where `num` rows at a bound, one after the other, have the same norm while its parts vary, bool [rows].

    Holds for the rows between them too, and after them as long as no row there can be higher.

    Args:
        norms: finite and above 0, float64 [rows].
        at_bound: positions of the rows at a bound.
        parts: what the norms consist of.
        precision: how exactly gradients were clipped.
        num: how many rows at a bound make the sign, at least 3.
    """
    num_open = np.zeros(len(norms) + 1, dtype=np.int64)  # at each row, how many ranges begin there, less those that end
    if len(at_bound) >= num:
        bounded = norms[at_bound]
        spread = 1 - running(np.minimum, bounded, num) / running(np.maximum, bounded, num)
        firsts, lasts = at_bound[: len(spread)], at_bound[num - 1 :]
        holds = (spread <= precision.tolerance) & (lasts - firsts < precision.most_apart * num)
        if not parts.groups:
            holds &= _running_mean(_turns(bounded), num - 2) >= _LEAST_TURNS
        if holds.any() and (parts.groups or parts.losses):
            holds &= _vary(parts.at(at_bound), spread, precision, num)
        np.add.at(num_open, firsts[holds], 1)
        np.add.at(num_open, np.minimum(lasts[holds] + _ROWS_AROUND + 1, len(norms)), -1)
    is_clipped: Bools = np.cumsum(num_open[:-1]) > 0
    return is_clipped


def _vary(parts: Sequence[Floats], spread: Floats, precision: _Precision, num: int) -> Bools:
    """Whether any part jumps, or drifts, by far more in `num` neighbouring values than the norm, by its `spread`."""
    exact = np.maximum(spread, _LEAST_SPREAD)
    varies = np.zeros(len(spread), dtype=np.bool_)
    for part in parts:
        jumps = np.nan_to_num(np.abs(np.diff(part, n=2)))  # a smooth curve has none, however steep it is
        drift = running(np.maximum, part, num) - running(np.minimum, part, num)
        varies |= _running_mean(jumps, num - 2) >= precision.ratio * exact
        varies |= drift >= _LEAST_DRIFT * np.sqrt(exact)
    return varies


def _turns(values: Floats) -> Bools:
    """Whether values rise and fall, or fall and rise, in each triple of neighbours."""
    steps = np.sign(np.diff(values))
    turns: Bools = steps[:-1] * steps[1:] < 0
    return turns


def _running_mean(values: Bools | Floats, window: int) -> Floats:
    """The mean of each `window` neighbouring values."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    means: Floats = (sums[window:] - sums[:-window]) / window
    return means


_CLIPPING_OFTEN = LastingState(
    sign="clipping-often",
    message="clipping shortened {value:.0%} of the steps over {num_rows} collected steps.",
    advice="Raise max_norm to a usual overall norm of this run, or lower the learning rate instead.",
    average=np.nanmean,
)


def clipping_often(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The clip rate stays near 1, so that the bound and not the gradient decides the length of each step."""
    clip_rates = run.steps.values.get("clip_rate")
    if clip_rates is not None:
        is_often = clip_rates >= limits.clip_share
        yield from _CLIPPING_OFTEN.findings(
            run.steps, "clip_rate", is_often, clip_rates, least_rows=2 * limits.least_rows
        )
