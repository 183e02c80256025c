"""A whole benchmark: every part in order, with a progress bar."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import Progress

from ava_pipeline.bench.command import Options, Setting
from ava_pipeline.bench.ends import measure_ends, measure_import, measure_lag
from ava_pipeline.bench.peers import compare
from ava_pipeline.bench.report import Report, commit, machine
from ava_pipeline.bench.results import Result
from ava_pipeline.bench.steps import measure_gradients, measure_hand_off, measure_rest
from ava_pipeline.bench.training import measure_fed, measure_training
from ava_pipeline.bench.writing import measure_sustained
from ava_pipeline.train.optim import pick_device

PARTS: tuple[Callable[[Setting], list[Result]], ...] = (
    measure_gradients,
    measure_rest,
    measure_hand_off,
    measure_fed,
    measure_sustained,
    measure_lag,
    measure_ends,
    measure_import,
)
_SECONDS_BETWEEN_UPDATES = 0.5


def measure(options: Options, console: Console) -> Report:
    """Measure everything that the options ask for; raise ConfigError if the device does not exist."""
    where, version = machine(pick_device(options.device)), commit()  # before anything is measured
    # The bar is redrawn between rounds only: a thread that draws would take time from what is measured.
    with TemporaryDirectory(prefix="ava-bench-") as folder, Progress(console=console, auto_refresh=False) as progress:
        setting = Setting(options, Path(folder), _Tracker(progress))
        results, stats = measure_training(setting)
        for part in PARTS:
            results += part(setting)
        compared, peer_results = compare(setting) if options.peers else ([], [])
    return Report(
        options=options,
        machine=where,
        commit=version,
        results=[*results, *peer_results],
        compared=compared,
        stats=stats,
    )


class _Tracker:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._drawn_s = time.monotonic()

    def __call__(self, num_rounds: int, title: str) -> Iterator[int]:
        task = self._progress.add_task(title, total=num_rounds)
        self._progress.refresh()
        for one in range(num_rounds):
            yield one
            self._progress.advance(task)
            if time.monotonic() - self._drawn_s > _SECONDS_BETWEEN_UPDATES or one == num_rounds - 1:
                self._progress.refresh()
                self._drawn_s = time.monotonic()
