"""What a bench measures: estimates with their intervals, results, some of them with a target."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

Samples: TypeAlias = NDArray[np.float64]
Work: TypeAlias = Callable[[], object]
Clock: TypeAlias = Callable[[Work], float]

NUM_WARMUP = 3


def clock_for(device: torch.device) -> Clock:
    """A clock that takes work on the device in full, in seconds."""
    return host_s if device.type == "cpu" else _DeviceClock(device)


def host_s(work: Work) -> float:
    """How long the calling thread is held up, in seconds."""
    start_s = perf_counter()
    work()
    return perf_counter() - start_s


def interleaved(works: Mapping[str, Work], rounds: Iterable[int], clock: Clock = host_s) -> dict[str, Samples]:
    """Time every work once a round, in an order drawn anew each round, so that other load hits all alike.

    Args:
        works: by name.
        rounds: one round each; a few more go before them, untimed.
        clock: takes the time.

    Returns:
        Seconds by name, a number a round: those at one place are of the same round.
    """
    draw = np.random.default_rng(0)
    for work in [*works.values()] * NUM_WARMUP:
        work()
    times_s: dict[str, list[float]] = {name: [] for name in works}
    for _ in rounds:
        for name in draw.permutation(list(works)):
            times_s[name].append(clock(works[name]))
    return {name: np.array(of_it) for name, of_it in times_s.items()}


class _DeviceClock:
    """Two events on the device's current stream around the work, with nothing else under way.

    Args:
        device: an accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self._module = torch.get_device_module(device)

    def __call__(self, work: Work) -> float:
        start, end = (self._module.Event(enable_timing=True) for _ in range(2))
        self._module.synchronize()
        start.record()
        work()
        end.record()
        self._module.synchronize()
        return float(start.elapsed_time(end)) / 1e3


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


TIMES = "×"
_SMALL = 10


@dataclass(frozen=True, slots=True)
class Target:
    """How large a figure may be at most, or must be at least."""

    limit: float
    at_least: bool = False

    def is_reached(self, value: float) -> bool:
        """Whether the value keeps it."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One row of the table.

    Attributes:
        name: in JSON, stable.
        title: for people.
        unit: of the estimate.
        estimate: the figure and its interval.
        target: None for a figure that is informational.
        raw: what the figure was made of, with units in the names.
    """

    name: str
    title: str
    unit: str
    estimate: Estimate
    target: Target | None = None
    raw: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is; None where there is none."""
        return None if self.target is None else self.target.is_reached(self.estimate.value)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            **self.estimate._asdict(),
            "target": None if self.target is None else asdict(self.target),
            "is_reached": self.is_reached,
            "raw": dict(self.raw),
        }


def shown(value: float) -> str:
    """Digits that count, and thousands set apart."""
    size = abs(value)
    if size >= 10 * _SMALL:
        return f"{float(f'{value:.3g}'):,.0f}"
    if size >= _SMALL:
        return f"{value:.1f}"
    return f"{value:.3f}" if size >= 1 else f"{value:.3g}"
