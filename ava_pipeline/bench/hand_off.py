"""A step that is not collected, beside a method that does nothing."""

from pathlib import Path

import numpy as np

from ava_pipeline.bench.figures import TIMES, Figure, Target
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.statistics import ratio
from ava_pipeline.bench.timing import Work, interleaved
from ava_pipeline.bench.workload import Workload, collector

OF_EMPTY_CALL = Target(5.0)
NUM_CALLS = 10_000
_NEVER = 10**12


class Empty:
    """What calling a method costs by itself."""

    def step(self, epoch: int) -> None:
        """Do nothing."""


def works_not_collected(workload: Workload, folder: Path) -> dict[str, Work]:
    """Many calls of a collector that has nothing to collect, and as many of a method that does nothing."""
    telemetry, empty = collector(workload, workload.optimizer(), folder, _NEVER), Empty()

    def call_step() -> None:
        for _ in range(NUM_CALLS):
            telemetry.step(0)

    def call_empty() -> None:
        for _ in range(NUM_CALLS):
            empty.step(0)

    return {"step": call_step, "empty": call_empty}


def measure_hand_off(setting: Setting) -> list[Figure]:
    """Call both in turn."""
    works = works_not_collected(Workload(setting.options), setting.folder / "never")
    times_s = interleaved(works, setting.track(setting.options.steps, "steps not collected"))
    return [
        Figure(
            name="step_of_empty_call",
            title="step() not collected over an empty method call",
            unit=TIMES,
            estimate=ratio(times_s["step"], times_s["empty"]),
            target=OF_EMPTY_CALL,
            raw={f"{name}_call_s": float(np.median(of_it)) / NUM_CALLS for name, of_it in times_s.items()},
        )
    ]
