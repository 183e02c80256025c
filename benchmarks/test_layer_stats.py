"""Statistics of every parameter tensor: the pass over the weights, the rate of writing rows, and their size."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch

from ava_pipeline.bench.results import Target
from ava_pipeline.bench.workload import Workload, collector
from ava_pipeline.collect.clipping import Clipping
from ava_pipeline.collect.gradient_pass import GradientPass
from ava_pipeline.collect.groups import find_groups
from ava_pipeline.collect.measures.layer_stats import LayerStats
from ava_pipeline.collect.stale_gradients import StaleGradients
from ava_pipeline.collect.targets import TrainingTargets
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import Numbers, PendingStep, TelemetryStats
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.run_writer import RunWriter
from benchmarks.judging import Bench

ADDED = Target(6.0)
ROWS_PER_S = Target(500_000.0, at_least=True)
PARQUET_MB = Target(40.0)
_LAYERS_STEPS = 161 * 10_000
_STEPS_AT_ONCE = 128  # as many as the worker writes at once


@pytest.mark.gate
def test_what_a_collected_step_adds_over_reading_the_weights(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """The sum of all weights in one vector reads each of them once."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in workload.model.parameters()])
    with (
        collector(workload, workload.optimizer(), tmp_path / "off", 1) as off,
        collector(workload, workload.optimizer(), tmp_path / "on", 1, track_per_layer_stats=True) as on,
    ):
        works: dict[str, Callable[[], object]] = {"on": lambda: on.step(0), "off": lambda: off.step(0), "sum": flat.sum}
        times_s = bench.in_turn(works)
    bench.judge(float(np.median(times_s["on"] - times_s["off"]) / np.median(times_s["sum"])), ADDED)


@dataclass
class _Read:
    """Numbers that are already on the host."""

    numbers: Numbers

    def read(self) -> list[Numbers]:
        return [self.numbers]


def _steps(measure: LayerStats, num_steps: int) -> Iterator[list[PendingStep]]:
    """Steps whose numbers drift as weights do while training, and whose gradient norms are new in each."""
    targets = measure.targets
    stale = StaleGradients(targets, lambda _: [])
    snapshot = GradientPass(targets, None, Clipping(targets.parameters), stale).take({}, 1, changes=None)
    reading = measure.read(snapshot)
    assert isinstance(reading.numbers, torch.Tensor)
    numbers, rng = reading.numbers.numpy(), np.random.default_rng(0)
    num_of_weights = len(numbers) - len(snapshot.plan.owners)
    for start in range(1, num_steps + 1, _STEPS_AT_ONCE):
        batches = range(start, min(start + _STEPS_AT_ONCE, num_steps + 1))
        drift = rng.normal(1.0, 1e-3, (len(batches), len(numbers))).astype(np.float32)
        drift[:, num_of_weights:] = rng.lognormal(size=(len(batches), len(numbers) - num_of_weights))
        yield [
            PendingStep(batch, batch // 1000, _Read(row), (reading.layout,))
            for batch, row in zip(batches, numbers * drift, strict=True)
        ]


def _write(root: Path, measure: LayerStats, steps: Iterable[list[PendingStep]]) -> float:
    """Write and check rows, finish the files, and return the seconds it took."""
    files = RunWriter(root, [measure], RunFacts(groups=measure.targets.groups, collect_every_n=1), EventLog(root))
    start_s = perf_counter()
    files.open(TelemetryStats())
    for some in steps:
        assert files.write(some) == 0
    files.close(TelemetryStats(), "finished", None)
    return perf_counter() - start_s


def _measure(workload: Workload) -> LayerStats:
    model = workload.model
    return LayerStats(TrainingTargets.of(model, find_groups(model), {"optimizer": workload.optimizer()}))


@pytest.mark.gate
def test_rows_written_to_parquet_and_checked(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """From the numbers of the pass to the finished file, which is read back."""
    measure = _measure(workload)
    num_steps = 20 if bench.is_tiny else 2_000
    steps = list(_steps(measure, num_steps))
    seconds = [_write(tmp_path / str(number), measure, steps) for number in range(1 if bench.is_tiny else 3)]
    bench.show(lambda: None)
    num_rows = num_steps * len(measure.targets.parameters)
    bench.judge(num_rows / float(np.median(seconds)), ROWS_PER_S, name="rows_per_s")


@pytest.mark.gate
def test_the_size_of_ten_thousand_steps(bench: Bench, workload: Workload, tmp_path: Path) -> None:
    """Of 161 layers; in proportion if there are more."""
    measure = _measure(workload)
    num_steps = 20 if bench.is_tiny else 10_000
    bench.show(lambda: _write(tmp_path, measure, _steps(measure, num_steps)))
    size = RunLayout(tmp_path).parquet("per_layer_stats").stat().st_size
    num_rows = num_steps * len(measure.targets.parameters)
    bench.judge(size * _LAYERS_STEPS / num_rows / 1e6, PARQUET_MB, name="parquet_mb")
