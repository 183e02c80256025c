"""Timing work in turn within one run, and comparing the ratio of medians with a target."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from ava_pipeline.bench.results import Target
from ava_pipeline.bench.timing import Samples, Work, interleaved

AVA_ROWS = 255_530

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much each benchmark does.

    Attributes:
        is_tiny: the size only shows that everything runs; gates are not checked.
        model: the backbone whose gradients are measured.
        num_rounds: timed rounds.
        num_rows: rows per table that writers write.
        num_validated_rows: rows of the table that is validated.
        num_labels: lines of AVA.txt.
    """

    is_tiny: bool = False
    model: str = "resnet50"
    num_rounds: int = 50
    num_rows: int = 100_000
    num_validated_rows: int = 10_000_000
    num_labels: int = AVA_ROWS


class Bench:
    """One benchmark: times work in turn, and shows the first in pytest-benchmark's table.

    Args:
        benchmark: pytest-benchmark's fixture.
        sizes: how much to do.
    """

    def __init__(self, benchmark: BenchmarkFixture, sizes: Sizes) -> None:
        self._benchmark: Any = benchmark  # pytest-benchmark does not annotate its methods
        self._sizes = sizes

    @property
    def is_tiny(self) -> bool:
        """Whether this run only shows that everything runs."""
        return self._sizes.is_tiny

    def in_turn(self, works: Mapping[str, Work], num_rounds: int | None = None) -> dict[str, Samples]:
        """Time all work once per round; return name -> seconds per round."""
        num_rounds = self._sizes.num_rounds if num_rounds is None or self._sizes.is_tiny else num_rounds
        times_s = interleaved(works, range(num_rounds))
        self.show(next(iter(works.values())), num_rounds)
        self.note({f"{name}_s": float(np.median(of_it)) for name, of_it in times_s.items()})
        return times_s

    def show(self, work: Callable[[], Result], num_rounds: int = 1) -> Result:
        """Run work in pytest-benchmark's table and return its result."""
        result: Result = self._benchmark.pedantic(work, rounds=num_rounds)
        return result

    def ratio(self, above: Work, below: Work, num_rounds: int | None = None) -> float:
        """The ratio of the medians of two pieces of work."""
        times_s = self.in_turn({"above": above, "below": below}, num_rounds)
        return float(np.median(times_s["above"]) / np.median(times_s["below"]))

    def judge(self, value: float, target: Target | None = None, *, name: str = "figure") -> None:
        """Record and print a value; fail if it misses its target, except at tiny size."""
        self.note({name: value, f"{name}_limit": None if target is None else target.limit})
        limit = (
            "informational" if target is None else f"{'at least' if target.at_least else 'at most'} {target.limit:g}"
        )
        print(f"\n  {name}: {value:.4g} ({limit})")
        assert target is None or self._sizes.is_tiny or target.is_reached(value)

    def note(self, facts: Mapping[str, object]) -> None:
        """Record facts beside the timings."""
        self._benchmark.extra_info.update(facts)
