"""What a benchmark reports: estimates with bootstrap intervals, results and their targets."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ava_pipeline.bench.timing import Samples

CONFIDENCE = 0.95
TIMES = "×"
_NUM_RESAMPLES = 2000
_RESAMPLES_AT_ONCE = 50
_SMALL = 10


class Estimate(NamedTuple):
    """A value and its 95 % bootstrap confidence interval; `low == high == value` if there is no interval."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Estimate":
        """A value that was counted, or measured once."""
        return cls(value, value, value)

    def times(self, factor: float) -> "Estimate":
        """The estimate converted to another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def median(samples: Samples) -> Estimate:
    """Estimate the median."""
    return bootstrap(np.median, samples)


def percentile(samples: Samples, percent: float) -> Estimate:
    """Estimate a percentile."""

    def statistic(values: Samples, axis: int = -1) -> Any:
        return np.percentile(values, percent, axis=axis)

    return bootstrap(statistic, samples)


def ratio(
    numerators: Samples, denominators: Samples, of: Callable[..., Any] = np.median, *, in_rounds: bool = True
) -> Estimate:
    """Estimate the ratio of two medians, or of `of`; `in_rounds` resamples the values of a round together."""

    def statistic(above: Samples, below: Samples, axis: int = -1) -> Any:
        return of(above, axis=axis) / of(below, axis=axis)

    return bootstrap(statistic, numerators, denominators, in_rounds=in_rounds)


def bootstrap(statistic: Callable[..., Any], *samples: Samples, in_rounds: bool = True) -> Estimate:
    """Estimate a statistic, which takes all samples and `axis`, with its percentile bootstrap interval."""
    value = float(statistic(*samples, axis=-1))
    if all(np.ptp(values) == 0 for values in samples):  # without spread there is no interval
        return Estimate.exactly(value)
    result = stats.bootstrap(
        # SciPy refuses to resample a single value.
        [np.repeat(values, 2) if len(values) == 1 else values for values in samples],
        statistic,
        paired=in_rounds and len(samples) > 1,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=_NUM_RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        method="percentile",
        rng=0,
    )
    return Estimate(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


@dataclass(frozen=True, slots=True)
class Target:
    """The limit that a result must not exceed, or must reach."""

    limit: float
    at_least: bool = False

    def is_reached(self, value: float) -> bool:
        """Whether `value` meets the target."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One measured value: a row of the table that a benchmark prints."""

    name: str  # in JSON, where it stays stable
    title: str  # in the table
    unit: str
    estimate: Estimate
    target: Target | None = None  # None if the result is informational
    raw: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is reached; None without a target."""
        return None if self.target is None else self.target.is_reached(self.estimate.value)

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            **self.estimate._asdict(),
            "target": None if self.target is None else asdict(self.target),
            "is_reached": self.is_reached,
            "raw": dict(self.raw),
        }


def three_digits(value: float) -> str:
    """Format three significant digits, with thousands separated."""
    size = abs(value)
    if size >= 10 * _SMALL:
        return f"{float(f'{value:.3g}'):,.0f}"
    if size >= _SMALL:
        return f"{value:.1f}"
    return f"{value:.3f}" if size >= 1 else f"{value:.3g}"
