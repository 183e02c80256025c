"""What a bench finds out: figures, some of them with a target."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ava_pipeline.bench.statistics import Estimate

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
class Figure:
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
