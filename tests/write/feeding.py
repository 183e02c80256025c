"""A run without torch: a measure of plain numbers, its files and its events."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Group
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.contract.tables import KEY_COLUMNS, RunTable, Table
from ava_pipeline.signs.values import non_finite_events
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import Channel, Numbers, PendingStep, TelemetryStats
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.metrics_log import MetricsLog
from ava_pipeline.write.run_writer import RunWriter
from ava_pipeline.write.worker import Worker

NORMS = Table(
    name="norms",
    description="Norms.",
    columns=KEY_COLUMNS,
    run_columns=Column(name="<group>", dtype="float32", description="A norm.", nullable=True, not_below=0),
)
LONG_NORMS = Table(
    name="norms",
    description="Norms of layers.",
    columns=(
        *KEY_COLUMNS,
        Column(name="layer", dtype="string", description="The layer."),
        Column(name="norm", dtype="float32", description="A norm.", nullable=True, not_below=0),
    ),
    row_key=("layer",),
)
NO_STEPS = TelemetryStats()


class PlainMeasure:
    """A measure whose numbers are the values of the row.

    Attributes:
        broken: first values of the batches on which it raises, like a measure with a bug.
    """

    def __init__(self, table: Table = NORMS, columns: Sequence[str] = ("overall", "head")) -> None:
        self.run_table = RunTable.of(table, columns)
        self.broken: set[object] = set()

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Sequence[object]]:  # noqa: ARG002  # these numbers need none
        """One column per name."""
        if any(one[0] in self.broken for one in numbers):
            raise ZeroDivisionError("a measure with a bug")
        return {name: [one[place] for one in numbers] for place, name in enumerate(self.run_table.run_column_names)}

    def events(self, rows: pa.RecordBatch) -> Iterable[Event]:
        """An event for values that are not finite, as built-in measures report them."""
        return non_finite_events(rows)


class LongMeasure(PlainMeasure):
    """A measure with three rows per step."""

    def __init__(self) -> None:
        super().__init__(LONG_NORMS, ())

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Sequence[object]]:  # noqa: ARG002  # as above
        """The batch's number for each layer."""
        return {"layer": ["a", "b", "c"] * len(numbers), "norm": [one[0] for one in numbers for _ in range(3)]}


@dataclass
class Staged:
    """Numbers that are already on the host, or the error of a failed device."""

    numbers: list[list[object]]
    error: Exception | None = None

    def read(self) -> list[Numbers]:
        """Return the numbers."""
        if self.error is not None:
            raise self.error
        return list(self.numbers)


def step(batch_idx: int, *values: object, sample_ids: Sequence[object] | None = None) -> PendingStep:
    """A collected step of one measure; by default, its first number is the batch."""
    numbers = list(values) or [float(batch_idx), 0.5]
    return PendingStep(batch_idx, 0, Staged([numbers]), (None,), sample_ids=sample_ids)


def steps(batches: Iterable[int]) -> list[PendingStep]:
    """One step per batch."""
    return [step(batch) for batch in batches]


@dataclass
class Room:
    """The channel, the worker and the files of one run directory."""

    root: Path
    resumed_from: int = 0
    measure: PlainMeasure = field(default_factory=PlainMeasure)
    retry_s: float = 0.0
    max_pending: int = 1024
    flush_interval_s: float = 0.01
    fsync: bool = False
    groups: Mapping[str, Group] = field(default_factory=dict)
    collect_every_n: int = 1

    def __post_init__(self) -> None:
        self.layout = RunLayout(self.root)
        self.log = EventLog(self.root)
        facts = RunFacts(groups=self.groups, collect_every_n=self.collect_every_n, resumed_from=self.resumed_from)
        self.metrics = MetricsLog(self.layout, fsync=self.fsync)
        self.files = RunWriter(
            self.root,
            [self.measure],
            facts,
            self.log,
            retry_s=self.retry_s,
            fsync=self.fsync,
            metrics=self.metrics,
        )
        self.channel: Channel[PendingStep] = Channel(self.max_pending)
        self.worker = Worker(self.channel, self.files, self.log, flush_interval_s=self.flush_interval_s)

    def write(self, batches: Iterable[int]) -> None:
        """Open the run and write one step per batch, one by one, without a thread."""
        self.files.open(NO_STEPS)
        for one in steps(batches):
            assert self.files.write([one]) == 0

    def close(self) -> None:
        """Finish the run, without a thread."""
        self.files.close(NO_STEPS, "finished", None)

    def offer(self, one: PendingStep) -> None:
        """Hand a step to the worker."""
        self.channel.offer(one, one.batch_idx, one.epoch)


def leave_as_killed(room: Room) -> None:
    """Close every file without finishing it, as SIGKILL does."""
    for table in room.files._tables:
        table.abandon()
    room.log.abandon()
    room.files._unlock()


def csv_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a CSV file as another program would read them."""
    options = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
    return csv.read_csv(path, convert_options=options).to_pylist()


def csv_batches(root: Path) -> list[object]:
    """The batches in the CSV file of norms."""
    return [row["batch_idx"] for row in csv_rows(RunLayout(root).csv("norms"))]


def parquet_batches(root: Path) -> list[object]:
    """The batches in the Parquet file of norms and its journal."""
    layout = RunLayout(root)
    stored = read_stored(layout.parquet("norms"), layout.journal("norms"))
    return [] if stored is None else stored.rows.column("batch_idx").to_pylist()


def event_rows(root: Path, name: str) -> list[dict[str, object]]:
    """The events with a name."""
    return [row for row in csv_rows(RunLayout(root).csv("events")) if row["event"] == name]


def batch_of(schema: pa.Schema, rows: Sequence[Mapping[str, object]]) -> pa.RecordBatch:
    """Rows as an Arrow batch, as writers take them."""
    return pa.RecordBatch.from_pylist(list(rows), schema=schema)
