"""Costs that a run pays once (import, first step, close), and the lag between `step()` and the file."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import numpy as np
import torch
from torch import nn

from ava_pipeline.bench.options import BenchContext
from ava_pipeline.bench.results import Result, Target, median, percentile
from ava_pipeline.bench.timing import Work, host_s, interleaved
from ava_pipeline.bench.workload import Workload, collector
from ava_pipeline.collect.collector import TelemetryCollector
from ava_pipeline.contract.layout import RunLayout

IMPORT_S = Target(0.1)
_MOST_ROUNDS = 11
_STEP_INTERVAL_S = 0.02
_POLL_INTERVAL_S = 0.002


def import_works() -> dict[str, Work]:
    """Work that starts an interpreter which imports the package, and work that starts one which does nothing."""
    return {name: _Interpreter(code) for name, code in (("import", "import ava_pipeline"), ("bare", "pass"))}


def measure_import(context: BenchContext) -> list[Result]:
    """Measure `import ava_pipeline` beyond the start of the interpreter."""
    num_rounds = min(context.options.steps, _MOST_ROUNDS)
    times_s = interleaved(import_works(), context.track(num_rounds, "import ava_pipeline"))
    return [
        Result(
            name="import",
            title="import ava_pipeline, beyond the interpreter",
            unit="s",
            estimate=median(times_s["import"] - times_s["bare"]),
            target=IMPORT_S,
            raw={f"{name}_s": float(np.median(samples)) for name, samples in times_s.items()},
        )
    ]


def measure_ends(context: BenchContext) -> list[Result]:
    """Start and close a run of one row several times, each in a new folder."""
    workload = Workload(context.options)
    workload.backward()
    num_rounds = min(context.options.steps, _MOST_ROUNDS)
    rows = [
        _time_one_run(workload, context.folder / f"ends_{number}")
        for number in context.track(num_rounds, "start-up and close")
    ]
    titles = {
        "start_up": "start-up: constructor to the end of the first collected step()",
        "first_rows": "start-up: until its rows are in the files",
        "close": "close()",
    }
    return [
        Result(name=name, title=title, unit="ms", estimate=median(np.array(samples)).times(1e3))
        for (name, title), samples in zip(titles.items(), zip(*rows, strict=True), strict=True)
    ]


def _time_one_run(workload: Workload, folder: Path) -> tuple[float, float, float]:
    optimizer = workload.optimizer()
    start_s = perf_counter()
    telemetry = collector(workload, optimizer, folder, 1)
    telemetry.step(0)
    return perf_counter() - start_s, host_s(telemetry.flush), host_s(telemetry.close)


class _Interpreter:
    def __init__(self, code: str) -> None:
        self._command = [sys.executable, "-c", code]

    def __call__(self) -> None:
        subprocess.run(self._command, check=True)  # noqa: S603  # this interpreter and constant code


def measure_lag(context: BenchContext) -> list[Result]:
    """Step a small model fifty times a second at the default flush interval, and poll its CSV file."""
    folder = context.folder / "lag"
    rounds = context.track(3 * context.options.steps, "lag from step() to file")
    with _polled(RunLayout(folder).csv("gradient_norms")) as appeared_s:
        returned_s = _run_steps(folder, rounds)
    lag_s = np.array(appeared_s) - np.array(returned_s)
    return [
        Result(
            name=f"lag_p{percent}",
            title=f"lag from step() to file, flush_interval_s=1, p{percent}",
            unit="s",
            estimate=percentile(lag_s, percent),
            raw={"num_rows": len(lag_s)},
        )
        for percent in (50, 99)
    ]


def _run_steps(folder: Path, rounds: Iterable[int]) -> list[float]:
    """Step once per round and return the time at which each `step()` returned."""
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    returned_s = []
    with TelemetryCollector(model, optimizer, folder, collect_every_n=1, groups={"mlp_head": model}) as telemetry:
        for _ in rounds:
            telemetry.step(0)
            returned_s.append(time.perf_counter())
            optimizer.step()
            time.sleep(_STEP_INTERVAL_S)
    return returned_s


@contextmanager
def _polled(csv: Path) -> Iterator[list[float]]:
    """Poll a CSV file in a thread; yield the list of times at which its rows appeared."""
    appeared_s: list[float] = []
    is_over = Event()
    thread = Thread(target=_poll, args=(csv, appeared_s, is_over))
    thread.start()
    try:
        yield appeared_s
    finally:
        is_over.set()
        thread.join()


def _poll(csv: Path, appeared_s: list[float], is_over: Event) -> None:
    num_lines, is_last = 0, False
    while not is_last:
        is_last = is_over.is_set()
        if csv.exists():
            with csv.open("rb") as file:
                num_lines = sum(1 for _ in file)
        appeared_s += [time.perf_counter()] * (num_lines - 1 - len(appeared_s))
        is_over.wait(_POLL_INTERVAL_S)
