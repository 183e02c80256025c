"""Whole training steps while a writer in the same process takes a thousand rows a second."""

import time
from itertools import count
from threading import Event, Thread
from types import TracebackType
from typing import Self

import numpy as np

from ava_pipeline.bench.figures import TIMES, Figure
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.rows import WrittenRun
from ava_pipeline.bench.statistics import Estimate, ratio
from ava_pipeline.bench.timing import Samples
from ava_pipeline.bench.training import Trainer
from ava_pipeline.bench.workload import Workload

_ROWS_PER_S = 1000
_BURST = 20
_BLOCK = 5


class Feed:
    """Offers rows at a steady rate from a thread of its own, while it is entered."""

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


def measure_fed(setting: Setting) -> list[Figure]:
    """Train in blocks of a few steps, without telemetry and with it and the feed, in turn."""
    workload = Workload(setting.options)
    off, on = Trainer(workload), Trainer(workload, setting.folder / "fed_telemetry", 1)
    off_s: list[float] = []
    on_s: list[float] = []
    with WrittenRun(setting.folder / "fed", flush_interval_s=0.1) as run, on.running() as fed:
        off.step()
        fed.step()
        for _ in setting.track(-(-setting.options.steps // _BLOCK), "training while a writer is fed"):
            off_s += [workload.clock(off.step) for _ in range(_BLOCK)]
            with Feed(run):
                on_s += [workload.clock(fed.step) for _ in range(_BLOCK)]
    return [_figure(np.array(off_s), np.array(on_s), percent) for percent in (50, 99)]


def _figure(off_s: Samples, on_s: Samples, percent: int) -> Figure:
    def statistic(samples: Samples, axis: int = -1) -> object:
        return np.percentile(samples, percent, axis=axis)

    estimate: Estimate = ratio(on_s, off_s, of=statistic)
    return Figure(
        name=f"training_ratio_fed_p{percent}",
        title=f"whole training step on/off, writer fed 1,000 rows/s, p{percent}",
        unit=TIMES,
        estimate=estimate,
        raw={"off_s": float(np.percentile(off_s, percent)), "on_s": float(np.percentile(on_s, percent))},
    )
