"""Medians, percentiles and ratios of samples, each with a confidence interval."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ava_pipeline.bench.timing import Samples

CONFIDENCE = 0.95
_NUM_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 50


class Estimate(NamedTuple):
    """A figure and the interval that holds it with 95 % confidence, by bootstrap; without one, both ends are it."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Estimate":
        """A figure that was counted, or measured once."""
        return cls(value, value, value)

    def times(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def median(samples: Samples) -> Estimate:
    """The median."""
    return bootstrap(np.median, samples)


def percentile(samples: Samples, percent: float) -> Estimate:
    """The value that `percent` of the samples do not exceed."""

    def statistic(values: Samples, axis: int = -1) -> Any:
        return np.percentile(values, percent, axis=axis)

    return bootstrap(statistic, samples)


def ratio(
    numerators: Samples, denominators: Samples, of: Callable[..., Any] = np.median, *, in_rounds: bool = True
) -> Estimate:
    """The ratio of two medians, or of whatever `of` makes of samples.

    Args:
        numerators: a number a round.
        denominators: the same.
        of: what is made of each, along an axis.
        in_rounds: those at one place are of the same round, and stay together; else each are drawn by themselves.
    """

    def statistic(above: Samples, below: Samples, axis: int = -1) -> Any:
        return of(above, axis=axis) / of(below, axis=axis)

    return bootstrap(statistic, numerators, denominators, in_rounds=in_rounds)


def bootstrap(statistic: Callable[..., Any], *samples: Samples, in_rounds: bool = True) -> Estimate:
    """Whatever is made of samples.

    Args:
        statistic: takes all samples, and `axis`.
        samples: each of one kind; of the same length where they are in rounds.
        in_rounds: as in `ratio`.
    """
    value = float(statistic(*samples, axis=-1))
    if all(np.ptp(of_it) == 0 for of_it in samples):  # no spread, so no interval to draw
        return Estimate.exactly(value)
    found = stats.bootstrap(
        [np.repeat(of_it, 2) if len(of_it) == 1 else of_it for of_it in samples],  # scipy refuses to draw from one
        statistic,
        paired=in_rounds and len(samples) > 1,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=_NUM_RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        method="percentile",
        rng=0,
    )
    return Estimate(value, float(found.confidence_interval.low), float(found.confidence_interval.high))
