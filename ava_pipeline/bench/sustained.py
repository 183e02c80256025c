"""Steps a second that the writer sustains, and the memory it takes, in a process of its own without torch."""

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np

from ava_pipeline.bench.figures import Figure, Target
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.rows import WrittenRun
from ava_pipeline.bench.statistics import Estimate, median
from ava_pipeline.errors import WriteError
from ava_pipeline.write.channel import TelemetryStats

STEPS_PER_S = Target(50_000.0, at_least=True)
GROWTH_MB = Target(16.0)
NUM_PARTS = 10
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Sustained:
    """What one process measured.

    Attributes:
        steps_per_s: of every part but the first, which warms up.
        growth_bytes: how far the peak of memory rose behind the first part.
        growth_with_close_bytes: the same, finishing the files included.
        close_s: how long that took.
        stats: what became of the steps.
    """

    steps_per_s: list[float]
    growth_bytes: int
    growth_with_close_bytes: int
    close_s: float
    stats: TelemetryStats


def measure_sustained(setting: Setting) -> list[Figure]:
    """Write CSV and Parquet, validated, as fast as it goes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for _ in setting.track(1, f"{setting.options.rows:,} rows a table"):
            found = pool.submit(write_rows, setting.folder / "sustained", setting.options.rows).result()
    if found.stats.written != found.stats.collected:
        raise WriteError(
            f"The writer took {found.stats.written} of {found.stats.collected} steps, so its speed tells nothing. "
            f"Look whether {setting.folder} has room."
        )
    raw = {"num_steps": found.stats.written, "close_s": found.close_s}
    return [
        Figure(
            name="writer_steps_per_s",
            title="steps the writer sustains, CSV + Parquet, validated",
            unit="steps/s",
            estimate=median(np.array(found.steps_per_s)),
            target=STEPS_PER_S,
            raw=raw,
        ),
        Figure(
            name="memory_growth",
            title=f"memory growth over {found.stats.written:,} rows a table",
            unit="MB",
            estimate=Estimate.exactly(found.growth_bytes / _MB),
            target=GROWTH_MB,
            raw=raw,
        ),
        Figure(
            name="memory_growth_with_close",
            title="the same, finishing the files included",
            unit="MB",
            estimate=Estimate.exactly(found.growth_with_close_bytes / _MB),
            raw=raw,
        ),
    ]


def write_rows(folder: Path, num_rows: int) -> Sustained:
    """Feed a writer from this thread as fast as it takes rows, in parts, and finish the files."""
    run, part = WrittenRun(folder), max(1, num_rows // NUM_PARTS)
    _write_part(run, range(1, part + 1))
    warm_bytes = peak_bytes()
    speeds = [_write_part(run, range(start, start + part)) for start in range(part + 1, NUM_PARTS * part, part)]
    written_bytes, start_s = peak_bytes(), perf_counter()
    stats = run.close()
    return Sustained(
        steps_per_s=speeds,
        growth_bytes=written_bytes - warm_bytes,
        growth_with_close_bytes=peak_bytes() - warm_bytes,
        close_s=perf_counter() - start_s,
        stats=stats,
    )


def peak_bytes() -> int:
    """The most memory this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage also counts the process that started this one
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _write_part(run: WrittenRun, batches: range) -> float:
    start_s = perf_counter()
    run.offer(batches)
    run.flush()
    return len(batches) / (perf_counter() - start_s)
