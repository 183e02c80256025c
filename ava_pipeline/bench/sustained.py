"""Steps a second that the writer sustains, and the memory it takes."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ava_pipeline.bench.figures import Figure, Target
from ava_pipeline.bench.options import Setting
from ava_pipeline.bench.statistics import Estimate, median
from ava_pipeline.bench.writing import Sustained, write_rows
from ava_pipeline.errors import WriteError

STEPS_PER_S = Target(50_000.0, at_least=True)
GROWTH_MB = Target(16.0)
_MB = 1e6


def measure_sustained(setting: Setting) -> list[Figure]:
    """Write CSV and Parquet, validated, as fast as it goes."""
    (found,) = (
        write_rows_elsewhere(setting.folder / "sustained", setting.options.rows)
        for _ in setting.track(1, f"{setting.options.rows:,} rows a table")
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


def write_rows_elsewhere(folder: Path, num_rows: int) -> Sustained:
    """Write them in a process of its own, so that nobody else's memory is counted.

    Raises:
        WriteError: not every row was written.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(write_rows, folder, num_rows).result()
    if found.stats.written != found.stats.collected:
        raise WriteError(
            f"The writer took {found.stats.written} of {found.stats.collected} steps, so its speed tells nothing. "
            f"Look whether {folder} has room."
        )
    return found
