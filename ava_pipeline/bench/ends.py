"""What a run pays once: the import, the first step, and closing."""

import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np

from ava_pipeline.bench.figures import Figure, Target
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.statistics import median
from ava_pipeline.bench.timing import Work, host_s, interleaved
from ava_pipeline.bench.workload import Workload, collector

IMPORT_S = Target(0.1)
_MOST_ROUNDS = 11


def works_import() -> dict[str, Work]:
    """A fresh interpreter that imports the package, and one that does nothing."""
    return {name: _Interpreter(code) for name, code in (("import", "import ava_pipeline"), ("bare", "pass"))}


def measure_import(setting: Setting) -> list[Figure]:
    """Start both in turn."""
    num_rounds = min(setting.options.steps, _MOST_ROUNDS)
    times_s = interleaved(works_import(), setting.track(num_rounds, "import ava_pipeline"))
    return [
        Figure(
            name="import",
            title="import ava_pipeline, beyond the interpreter",
            unit="s",
            estimate=median(times_s["import"] - times_s["bare"]),
            target=IMPORT_S,
            raw={f"{name}_s": float(np.median(of_it)) for name, of_it in times_s.items()},
        )
    ]


def measure_ends(setting: Setting) -> list[Figure]:
    """Open and close a run of one row several times, each in a folder of its own."""
    workload = Workload(setting.options)
    workload.backward()
    num_rounds = min(setting.options.steps, _MOST_ROUNDS)
    rows = [
        _one_run(workload, setting.folder / f"ends_{one}") for one in setting.track(num_rounds, "start-up and close")
    ]
    titles = {
        "start_up": "start-up: constructor to the end of the first collected step()",
        "first_rows": "until its rows are in the files",
        "close": "close()",
    }
    return [
        Figure(name=name, title=title, unit="ms", estimate=median(np.array(of_it)).times(1e3))
        for (name, title), of_it in zip(titles.items(), zip(*rows, strict=True), strict=True)
    ]


def _one_run(workload: Workload, folder: Path) -> tuple[float, float, float]:
    optimizer = workload.optimizer()
    start_s = perf_counter()
    telemetry = collector(workload, optimizer, folder, 1)
    telemetry.step(0)
    return perf_counter() - start_s, host_s(telemetry.flush), host_s(telemetry.close)


class _Interpreter:
    def __init__(self, code: str) -> None:
        self._command = [sys.executable, "-c", code]

    def __call__(self) -> None:
        subprocess.run(self._command, check=True)  # noqa: S603  # this interpreter, and code from above
