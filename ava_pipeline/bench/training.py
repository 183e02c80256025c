"""Whole training steps, without telemetry and with it, in turn within one process."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
from torch import Tensor

from ava_pipeline.bench.figures import TIMES, Figure, Target
from ava_pipeline.bench.options import Options, Setting
from ava_pipeline.bench.statistics import Estimate, bootstrap, median, percentile, ratio
from ava_pipeline.bench.timing import NUM_WARMUP, Samples, interleaved
from ava_pipeline.bench.workload import Workload, collector
from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.write.channel import TelemetryStats

SHARE_PCT = {1: Target(1.0), 10: Target(0.1)}


class Trainer:
    """One kind of training step, with an optimizer of its own.

    Attributes:
        held_s: how long each `step()` held the training thread up.
        is_collected: whether it collected a row.
    """

    def __init__(self, workload: Workload, folder: Path | None = None, every: int = 1) -> None:
        self._workload = workload
        self._optimizer = workload.optimizer()
        self.telemetry: TelemetryCollector | None = None
        if folder is not None:
            self.telemetry = collector(workload, self._optimizer, folder, every)
        self.held_s: list[float] = []
        self.is_collected: list[bool] = []

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Close the telemetry in the end."""
        with nullcontext() if self.telemetry is None else self.telemetry:
            yield self

    def step(self) -> None:
        """One training step."""
        self._optimizer.zero_grad()
        loss = self._workload.backward()
        if self.telemetry is not None:
            self._observe(self.telemetry, loss)
        self._optimizer.step()

    def stats(self) -> TelemetryStats:
        """What became of the collected steps."""
        return TelemetryStats() if self.telemetry is None else self.telemetry.stats()

    def _observe(self, telemetry: TelemetryCollector, loss: Tensor) -> None:
        start_s = perf_counter()
        is_collected = telemetry.step(0, values={"loss": loss})
        self.held_s.append(perf_counter() - start_s)
        self.is_collected.append(is_collected)


def measure_training(setting: Setting) -> tuple[list[Figure], list[TelemetryStats]]:
    """Train with no telemetry and with each spacing of collected steps.

    Returns:
        The figures, and for each spacing what became of the collected steps.
    """
    options, workload = setting.options, Workload(setting.options)
    trainers = {f"every_{n}": Trainer(workload, setting.folder / f"every_{n}", n) for n in options.every}
    with ExitStack() as opened:
        for trainer in trainers.values():
            opened.enter_context(trainer.running())
        works = {"off": Trainer(workload).step, **{name: trainer.step for name, trainer in trainers.items()}}
        rounds = setting.track(options.steps, f"training steps of {options.model}")
        times_s = interleaved(works, rounds, workload.clock)
    is_judged = workload.device.type == "cpu" and options.is_like(Options())
    figures = [
        one for n in options.every for one in _of_spacing(n, trainers[f"every_{n}"], times_s, is_judged=is_judged)
    ]
    return [*figures, *_of_calls(trainers.values())], [trainer.stats() for trainer in trainers.values()]


def _of_spacing(every: int, trainer: Trainer, times_s: dict[str, Samples], *, is_judged: bool) -> list[Figure]:
    off_s, on_s = times_s["off"], times_s[f"every_{every}"]
    of = f"collect_every_n={every}"
    raw = {"off_s": float(np.median(off_s)), "on_s": float(np.median(on_s))}
    target = SHARE_PCT.get(every) if is_judged else None
    return [
        *_share(every, trainer, on_s, target),
        Figure(
            name=f"training_ratio_every_{every}",
            title=f"whole training step on/off, {of}",
            unit=TIMES,
            estimate=ratio(on_s, off_s),
            raw=raw,
        ),
        Figure(
            name=f"added_every_{every}",
            title=f"added time per training step, {of}",
            unit="ms",
            estimate=median(on_s - off_s).times(1e3),
            raw=raw,
        ),
    ]


def _share(every: int, trainer: Trainer, on_s: Samples, target: Target | None) -> list[Figure]:
    held_s, is_collected = (np.array(of_it[-len(on_s) :]) for of_it in (trainer.held_s, trainer.is_collected))
    kinds = {"collected": held_s[is_collected], "not_collected": held_s[~is_collected], "training_step": on_s}
    if not is_collected.any():
        return []
    return [
        Figure(
            name=f"share_every_{every}",
            title=f"time inside step() over the training step's, of medians, collect_every_n={every}",
            unit="%",
            estimate=share(*kinds.values(), every=every).times(100),
            target=target,
            raw={f"{kind}_s": float(np.median(of_it)) for kind, of_it in kinds.items() if len(of_it)},
        )
    ]


def share(collected_s: Samples, not_collected_s: Samples, step_s: Samples, *, every: int) -> Estimate:
    """What share of n training steps is spent inside `step()`, one of whose calls collects a row.

    (median of collected + (n - 1) × median of not collected) / (n × median of the training step): the means that it
    stands for hang on a few long calls of many, whose number in one run is chance.

    Args:
        collected_s: how long calls of `step()` that collected a row took, at least one.
        not_collected_s: how long the others took; none where n is 1.
        step_s: how long a whole training step took.
        every: n.
    """

    def statistic(collected: Samples, others: Samples, steps: Samples, axis: int = -1) -> Any:
        inside = np.median(collected, axis=axis) + (every - 1) * np.median(others, axis=axis)
        return inside / (every * np.median(steps, axis=axis))

    others_s = not_collected_s if every > 1 else np.zeros(1)
    return bootstrap(statistic, collected_s, others_s, step_s, in_rounds=False)


def _of_calls(trainers: Iterable[Trainer]) -> list[Figure]:
    held_s = np.array([one for trainer in trainers for one in trainer.held_s[NUM_WARMUP:]])
    is_collected = np.array([one for trainer in trainers for one in trainer.is_collected[NUM_WARMUP:]])
    kinds = {"collected": held_s[is_collected], "not_collected": held_s[~is_collected]}
    return [
        Figure(
            name=f"step_{kind}_p{percent}",
            title=f"step() {kind.replace('_', ' ')}, p{percent}",
            unit="µs",
            estimate=percentile(samples, percent).times(1e6),
            raw={"num_calls": len(samples)},
        )
        for kind, samples in kinds.items()
        for percent in (50, 99)
        if len(samples)
    ]
