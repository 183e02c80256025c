"""Whole training steps, with and without telemetry, and beside a writer that is kept busy."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from ava_pipeline.bench.options import BenchContext, Options
from ava_pipeline.bench.results import TIMES, Estimate, Result, Target, bootstrap, median, percentile, ratio
from ava_pipeline.bench.timing import NUM_WARMUP, Samples, interleaved
from ava_pipeline.bench.workload import Workload, collector
from ava_pipeline.bench.writing import WrittenRun
from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.write.channel import TelemetryStats

SHARE_PCT = {1: Target(1.0), 10: Target(0.1)}
_ROWS_PER_S = 1000
_BURST = 20
_BLOCK = 5


class Trainer:
    """A training loop with a new optimizer, with or without telemetry."""

    def __init__(self, workload: Workload, folder: Path | None = None, every: int = 1) -> None:
        self._workload = workload
        self._optimizer = workload.optimizer()
        self.telemetry: TelemetryCollector | None = None
        if folder is not None:
            self.telemetry = collector(workload, self._optimizer, folder, every)
        self.held_s: list[float] = []  # how long each call of `step()` blocked the training thread
        self.is_collected: list[bool] = []  # whether that call collected a row

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Close the telemetry when the block ends."""
        with nullcontext() if self.telemetry is None else self.telemetry:
            yield self

    def step(self) -> None:
        """Run one training step."""
        self._optimizer.zero_grad()
        loss = self._workload.backward()
        if self.telemetry is not None:
            self._observe(self.telemetry, loss)
        self._optimizer.step()

    def stats(self) -> TelemetryStats:
        """The collector's counters."""
        return TelemetryStats() if self.telemetry is None else self.telemetry.stats()

    def _observe(self, telemetry: TelemetryCollector, loss: Tensor) -> None:
        start_s = perf_counter()
        is_collected = telemetry.step(0, values={"loss": loss})
        self.held_s.append(perf_counter() - start_s)
        self.is_collected.append(is_collected)


def measure_training(context: BenchContext) -> tuple[list[Result], list[TelemetryStats]]:
    """Train without telemetry and with each `collect_every_n`; return the results and each collector's counters."""
    options, workload = context.options, Workload(context.options)
    trainers = {f"every_{n}": Trainer(workload, context.folder / f"every_{n}", n) for n in options.every}
    with ExitStack() as opened:
        for trainer in trainers.values():
            opened.enter_context(trainer.running())
        works = {"off": Trainer(workload).step, **{name: trainer.step for name, trainer in trainers.items()}}
        rounds = context.track(options.steps, f"training steps of {options.model}")
        times_s = interleaved(works, rounds, workload.clock)
    is_judged = workload.device.type == "cpu" and options.is_like(Options())
    results = [
        result
        for n in options.every
        for result in _spacing_results(n, trainers[f"every_{n}"], times_s, is_judged=is_judged)
    ]
    return [*results, *_call_results(trainers.values())], [trainer.stats() for trainer in trainers.values()]


def _spacing_results(every: int, trainer: Trainer, times_s: dict[str, Samples], *, is_judged: bool) -> list[Result]:
    off_s, on_s = times_s["off"], times_s[f"every_{every}"]
    spacing = f"collect_every_n={every}"
    raw = {"off_s": float(np.median(off_s)), "on_s": float(np.median(on_s))}
    target = SHARE_PCT.get(every) if is_judged else None
    return [
        *_share_result(every, trainer, on_s, target),
        Result(
            name=f"training_ratio_every_{every}",
            title=f"whole training step on/off, {spacing}",
            unit=TIMES,
            estimate=ratio(on_s, off_s),
            raw=raw,
        ),
        Result(
            name=f"added_every_{every}",
            title=f"added time per training step, {spacing}",
            unit="ms",
            estimate=median(on_s - off_s).times(1e3),
            raw=raw,
        ),
    ]


def _share_result(every: int, trainer: Trainer, on_s: Samples, target: Target | None) -> list[Result]:
    held_s, is_collected = (np.array(samples[-len(on_s) :]) for samples in (trainer.held_s, trainer.is_collected))
    kinds = {"collected": held_s[is_collected], "not_collected": held_s[~is_collected], "training_step": on_s}
    if not is_collected.any():
        return []
    return [
        Result(
            name=f"share_every_{every}",
            title=f"share of the training step inside step(), by medians, collect_every_n={every}",
            unit="%",
            estimate=share(*kinds.values(), every=every).times(100),
            target=target,
            raw={f"{kind}_s": float(np.median(samples)) for kind, samples in kinds.items() if len(samples)},
        )
    ]


def share(collected_s: Samples, not_collected_s: Samples, step_s: Samples, *, every: int) -> Estimate:
    """Estimate the share of n = `every` training steps that is spent inside `step()`, if one of n calls collects a row.

    (median of collected + (n - 1) × median of not collected) / (n × median of the training step). Medians replace means
    because means depend on a few long calls, whose number in one run is chance. `not_collected_s` may be empty if n is
    1.
    """

    def statistic(collected: Samples, others: Samples, steps: Samples, axis: int = -1) -> Any:
        inside = np.median(collected, axis=axis) + (every - 1) * np.median(others, axis=axis)
        return inside / (every * np.median(steps, axis=axis))

    others_s = not_collected_s if every > 1 else np.zeros(1)
    return bootstrap(statistic, collected_s, others_s, step_s, in_rounds=False)


def _call_results(trainers: Iterable[Trainer]) -> list[Result]:
    held_s = np.array([held for trainer in trainers for held in trainer.held_s[NUM_WARMUP:]])
    is_collected = np.array([flag for trainer in trainers for flag in trainer.is_collected[NUM_WARMUP:]])
    kinds = {"collected": held_s[is_collected], "not_collected": held_s[~is_collected]}
    return [
        Result(
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


class Feed:
    """Offers rows at a steady rate from its own thread inside a `with` block."""

    def __init__(self, run: WrittenRun) -> None:
        self._run = run
        self._batches = count(1)
        self._is_over = Event()

    def __enter__(self) -> Self:
        self._is_over.clear()
        self._thread = Thread(target=self._feed)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()
        self._run.flush()

    def _feed(self) -> None:
        due_s = time.perf_counter()
        while not self._is_over.is_set():
            self._run.offer(next(self._batches) for _ in range(_BURST))
            due_s += _BURST / _ROWS_PER_S
            time.sleep(max(0.0, due_s - time.perf_counter()))


def measure_fed(context: BenchContext) -> list[Result]:
    """Alternate blocks of a few training steps: without telemetry, and with telemetry and a busy writer."""
    workload = Workload(context.options)
    off, on = Trainer(workload), Trainer(workload, context.folder / "fed_telemetry", 1)
    off_s: list[float] = []
    on_s: list[float] = []
    with WrittenRun(context.folder / "fed", flush_interval_s=0.1) as run, on.running() as fed:
        off.step()
        fed.step()
        for _ in context.track(-(-context.options.steps // _BLOCK), "training while a writer is fed"):
            off_s += [workload.clock(off.step) for _ in range(_BLOCK)]
            with Feed(run):
                on_s += [workload.clock(fed.step) for _ in range(_BLOCK)]
    return [_fed_result(np.array(off_s), np.array(on_s), percent) for percent in (50, 99)]


def _fed_result(off_s: Samples, on_s: Samples, percent: int) -> Result:
    def statistic(samples: Samples, axis: int = -1) -> object:
        return np.percentile(samples, percent, axis=axis)

    estimate: Estimate = ratio(on_s, off_s, of=statistic)
    return Result(
        name=f"training_ratio_fed_p{percent}",
        title=f"whole training step on/off, writer fed 1,000 rows/s, p{percent}",
        unit=TIMES,
        estimate=estimate,
        raw={"off_s": float(np.percentile(off_s, percent)), "on_s": float(np.percentile(on_s, percent))},
    )
