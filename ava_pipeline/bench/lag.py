"""How long after `step()` returned a row can be read in its file."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import torch
from torch import nn

from ava_pipeline.bench.figures import Figure
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.statistics import percentile
from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.contract.layout import RunLayout

_BETWEEN_STEPS_S = 0.02
_BETWEEN_LOOKS_S = 0.002


def measure_lag(setting: Setting) -> list[Figure]:
    """Step a small model fifty times a second at the default flush interval, and watch the file."""
    folder = setting.folder / "lag"
    rounds = setting.track(3 * setting.options.steps, "lag from step() to file")
    with _watched(RunLayout(folder).csv("gradient_norms")) as seen_s:
        stepped_s = _step_all(folder, rounds)
    lag_s = np.array(seen_s) - np.array(stepped_s)
    return [
        Figure(
            name=f"lag_p{percent}",
            title=f"lag from step() to file, flush_interval_s=1, p{percent}",
            unit="s",
            estimate=percentile(lag_s, percent),
            raw={"num_rows": len(lag_s)},
        )
        for percent in (50, 99)
    ]


def _step_all(folder: Path, rounds: Iterable[int]) -> list[float]:
    """Step once a round; returns when each `step()` returned."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    stepped_s = []
    with TelemetryCollector(model, optimizer, folder, collect_every_n=1, groups={"mlp_head": model}) as telemetry:
        for _ in rounds:
            telemetry.step(0)
            stepped_s.append(time.perf_counter())
            optimizer.step()
            time.sleep(_BETWEEN_STEPS_S)
    return stepped_s


@contextmanager
def _watched(csv: Path) -> Iterator[list[float]]:
    """Look at a CSV file again and again; the list holds when each of its rows was there."""
    seen_s: list[float] = []
    is_over = Event()
    watcher = Thread(target=_watch, args=(csv, seen_s, is_over))
    watcher.start()
    try:
        yield seen_s
    finally:
        is_over.set()
        watcher.join()


def _watch(csv: Path, seen_s: list[float], is_over: Event) -> None:
    num_lines, is_last = 0, False
    while not is_last:
        is_last = is_over.is_set()
        if csv.exists():
            with csv.open("rb") as file:
                num_lines = sum(1 for _ in file)
        seen_s += [time.perf_counter()] * (num_lines - 1 - len(seen_s))
        is_over.wait(_BETWEEN_LOOKS_S)
