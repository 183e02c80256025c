"""The background half alone: steps through the channel to the files, at full speed and over many rows."""

import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from ava_pipeline.bench.options import BenchContext
from ava_pipeline.bench.results import Estimate, Result, Target, median
from ava_pipeline.bench.timing import peak_bytes
from ava_pipeline.contract.builtin_tables import GRADIENT_NORMS, LEARNING_RATES, STEPS
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.manifest import Group
from ava_pipeline.contract.tables import KEY_COLUMNS, RunTable
from ava_pipeline.errors import WriteError
from ava_pipeline.signs.thresholds import Thresholds
from ava_pipeline.signs.values import non_finite_events
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import Channel, Numbers, PendingStep, TelemetryStats
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.online_signs import OnlineSigns
from ava_pipeline.write.run_writer import RunWriter
from ava_pipeline.write.worker import Worker

STEPS_PER_S = Target(50_000.0, at_least=True)
GROWTH_MB = Target(16.0)
NUM_PARTS = 10
_MB = 1e6

GROUPS = {
    "overall": Group(role="overall", parameters=("layer4.weight", "fc.0.weight", "fc.3.weight")),
    "backbone_layer4": Group(role="backbone_last", parameters=("layer4.weight",), parent="overall"),
    "mlp_head": Group(role="head", parameters=("fc.0.weight", "fc.3.weight"), parent="overall"),
    "mlp_layer_0": Group(role="head_layer", parameters=("fc.0.weight",), parent="mlp_head"),
    "mlp_layer_3": Group(role="head_layer", parameters=("fc.3.weight",), parent="mlp_head"),
}
# The tables of a run of the AVA model, with every column that its measures declare.
TABLES = (
    RunTable.of(GRADIENT_NORMS, tuple(GROUPS)),
    RunTable.of(LEARNING_RATES, ("lr_group_0", "lr_group_1")),
    RunTable.of(STEPS, ("loss",)),
)
MAX_PENDING = 1024
_NUM_DIFFERENT = 1024
_BLOCK_TIMEOUT_S = 600.0


class PlainSource:
    """A measure whose numbers are the table's values already."""

    def __init__(self, run_table: RunTable) -> None:
        self.run_table = run_table
        self._names = run_table.column_names[len(KEY_COLUMNS) :]

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Sequence[object]]:  # noqa: ARG002  # the numbers need no layout
        """Return the columns by name."""
        return dict(zip(self._names, zip(*numbers, strict=True), strict=True))

    def events(self, rows: pa.RecordBatch) -> Iterable[Event]:
        """Report values that are not finite, as every measure does."""
        return non_finite_events(rows)


class _HostNumbers:
    """Staged numbers that are already on the host."""

    def __init__(self, numbers: list[Numbers]) -> None:
        self._numbers = numbers

    def read(self) -> list[Numbers]:
        return self._numbers


class WrittenRun:
    """A run's files and its worker, fed through `offer`."""

    def __init__(self, root: Path, *, flush_interval_s: float = 1.0) -> None:
        log = EventLog(root)
        facts = RunFacts(groups=GROUPS, collect_every_n=1)
        signs = OnlineSigns(GROUPS, Thresholds(), log, lambda _: None)
        files = RunWriter(root, [PlainSource(table) for table in TABLES], facts, log, signs=signs)
        self._channel: Channel[PendingStep] = Channel(MAX_PENDING, on_full="block", block_timeout_s=_BLOCK_TIMEOUT_S)
        self._worker = Worker(self._channel, files, log, flush_interval_s=flush_interval_s)
        self._worker.start()
        self._staged = [_HostNumbers(_numbers(row)) for row in np.random.default_rng(0).random((_NUM_DIFFERENT, 6))]
        self._layouts = (None,) * len(TABLES)

    def offer(self, batches: Iterable[int]) -> None:
        """Hand over one step per batch; wait while the channel is full."""
        for batch in batches:
            row = PendingStep(batch, 0, self._staged[batch % _NUM_DIFFERENT], self._layouts)
            self._channel.offer(row, batch, 0)

    def flush(self) -> None:
        """Wait until every step is in the files."""
        self._channel.flush()

    def close(self) -> TelemetryStats:
        """Finish the files."""
        return self._worker.close(None, "finished")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _numbers(random: "np.typing.NDArray[np.float64]") -> list[Numbers]:
    """The numbers of a step under a GradScaler in a loop that clips sometimes, so that no column is empty."""
    backbone, *layers, first_rate, second_rate, loss = random.tolist()
    head = math.hypot(*layers)
    overall = math.hypot(backbone, head)
    norms = np.array([overall, backbone, head, *layers], dtype=np.float32).tolist()
    coefficient = min(1.0, 1.3 / (overall + 1e-6))
    return [
        norms,
        [first_rate, second_rate],
        [datetime.now(UTC), 7, 65536.0, coefficient, float(coefficient < 1), loss],
    ]


@dataclass(frozen=True, slots=True)
class Sustained:
    """Throughput and memory of one process that wrote many rows."""

    steps_per_s: list[float]  # of every part except the first, which warms up
    growth_bytes: int  # of peak memory after the first part
    growth_with_close_bytes: int  # the same, including the time while files are finished
    close_s: float  # how long finishing the files took
    stats: TelemetryStats


def write_rows(folder: Path, num_rows: int) -> Sustained:
    """Write rows in parts, as fast as the writer takes them, and finish the files."""
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


def _write_part(run: WrittenRun, batches: range) -> float:
    """Hand over as many steps as may be pending, then sleep until they are written; return steps per second."""
    start_s = perf_counter()
    for start in range(0, len(batches), MAX_PENDING):
        run.offer(batches[start : start + MAX_PENDING])
        run.flush()  # a training loop does not compete with the writer for the interpreter's lock either
    return len(batches) / (perf_counter() - start_s)


def measure_sustained(context: BenchContext) -> list[Result]:
    """Measure how fast validated rows are written to CSV and Parquet, and how memory grows."""
    (sustained,) = (
        write_rows_in_subprocess(context.folder / "sustained", context.options.rows)
        for _ in context.track(1, f"{context.options.rows:,} rows per table")
    )
    raw = {"num_steps": sustained.stats.written, "close_s": sustained.close_s}
    return [
        Result(
            name="writer_steps_per_s",
            title="sustained rate of writing, CSV + Parquet, validated",
            unit="steps/s",
            estimate=median(np.array(sustained.steps_per_s)),
            target=STEPS_PER_S,
            raw=raw,
        ),
        Result(
            name="memory_growth",
            title=f"memory growth over {sustained.stats.written:,} rows per table",
            unit="MB",
            estimate=Estimate.exactly(sustained.growth_bytes / _MB),
            target=GROWTH_MB,
            raw=raw,
        ),
        Result(
            name="memory_growth_with_close",
            title="memory growth including the time while files are finished",
            unit="MB",
            estimate=Estimate.exactly(sustained.growth_with_close_bytes / _MB),
            raw=raw,
        ),
    ]


def write_rows_in_subprocess(folder: Path, num_rows: int) -> Sustained:
    """Run `write_rows` in a new process, so that only its memory is counted; raise WriteError if a row is missing."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        sustained = pool.submit(write_rows, folder, num_rows).result()
    if sustained.stats.written != sustained.stats.collected:
        raise WriteError(
            f"Only {sustained.stats.written} of {sustained.stats.collected} steps were written, so their rate means "
            f"nothing. Check that {folder} has free space."
        )
    return sustained
