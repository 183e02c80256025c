"""Writing rows as fast as the writer takes them: for a process of its own, which loads no torch."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from ava_pipeline.bench.rows import MAX_PENDING, WrittenRun
from ava_pipeline.write.channel import TelemetryStats

NUM_PARTS = 10


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
    """Hand over as many steps as may be pending, and sleep until they are written.

    A training loop, which this stands for, does not compete with the writer for the interpreter's lock either.
    """
    start_s = perf_counter()
    for start in range(0, len(batches), MAX_PENDING):
        run.offer(batches[start : start + MAX_PENDING])
        run.flush()
    return len(batches) / (perf_counter() - start_s)
