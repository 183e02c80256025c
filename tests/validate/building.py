"""Run directories made without training: the real writers, given rows that are valid by construction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.builtin_tables import GT_COLUMNS, PRED_COLUMNS, SCORES, predictions_schema
from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.events import EVENTS, Event, event_columns
from ava_pipeline.contract.journal import JournalWriter
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt, Group, Manifest, Status, StepCounters, TableEntry, write_manifest
from ava_pipeline.contract.parquet import write_parquet
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.metrics import prediction_metrics
from ava_pipeline.write.writers import CsvWriter, ParquetWriter

Format = Literal["csv", "parquet"]
Row = dict[str, object]
MoreRows = tuple[RunTable, pa.Table]

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
BATCHES_PER_EPOCH = 40

_KEYS = (
    Column(name="batch_idx", dtype="int64", description="Batch.", not_below=1),
    Column(name="epoch", dtype="int64", description="Epoch.", not_below=0),
)
NORMS = RunTable.of(
    Table(
        name="gradient_norms",
        description="Norms.",
        columns=_KEYS,
        run_columns=Column(name="<group>", dtype="float32", description="Norm.", nullable=True, not_below=0),
        l2_of_groups=True,
    ),
    ("overall", "backbone_layer4", "mlp_head", "mlp_layer_0", "mlp_layer_3"),
)
RATES = RunTable.of(
    Table(
        name="learning_rates",
        description="Rates.",
        columns=_KEYS,
        run_columns=Column(name="lr_group_<N>", dtype="float64", description="Rate.", not_below=0),
    ),
    ("lr_group_0", "lr_group_1"),
)
STEPS = RunTable.of(
    Table(
        name="steps",
        description="Steps.",
        columns=(
            *_KEYS,
            Column(name="time_utc", dtype="timestamp", description="Time."),
            Column(name="loss_scale", dtype="float64", description="Scale.", nullable=True),
        ),
        run_columns=Column(name="<value>", dtype="float64", description="A value.", nullable=True),
    ),
    ("loss",),
)
TABLES = (NORMS, RATES, STEPS)

GROUPS = {
    "overall": Group(role="overall", parameters=("conv.weight", "layer4.weight", "head.0.weight", "head.3.weight")),
    "backbone_layer4": Group(role="backbone_last", parent="overall", parameters=("layer4.weight",)),
    "mlp_head": Group(role="head", parent="overall", parameters=("head.0.weight", "head.3.weight")),
    "mlp_layer_0": Group(role="head_layer", parent="mlp_head", parameters=("head.0.weight",)),
    "mlp_layer_3": Group(role="head_layer", parent="mlp_head", parameters=("head.3.weight",)),
}


@dataclass(kw_only=True)
class RunBuilder:
    """A run of three epochs, valid in every file; a test changes what it is about before `write`.

    Attributes:
        batches: of the rows; the rows of one attempt, unless `attempts` is given.
        formats: of the tables.
        status: a running run keeps its journals and has no metrics yet.
        lost: table -> batches that have no row in it.
        norms: batch -> columns to overwrite in the row of the norms.
        events: rows of events.csv.
        image_ids: of every epoch's predictions.
        without: names of tables that the run does not have.
        more: further tables with their rows.
    """

    root: Path
    batches: Sequence[int] = tuple(range(10, 121, 10))
    formats: tuple[Format, ...] = ("csv", "parquet")
    status: Status = "finished"
    attempts: list[Attempt] = field(default_factory=lambda: [Attempt(number=1, started_utc=NOW, collect_every_n=10)])
    lost: Mapping[str, Sequence[int]] = field(default_factory=dict)
    norms: Mapping[int, Row] = field(default_factory=dict)
    events: Sequence[Event] = ()
    image_ids: Sequence[int] | Sequence[str] = tuple(range(953_000, 953_030))
    without: Sequence[str] = ()
    more: Sequence[MoreRows] = ()
    heartbeat_utc: datetime = NOW

    @property
    def layout(self) -> RunLayout:
        """The paths of the run's files."""
        return RunLayout(self.root)

    def write(self) -> Path:
        """Write every file, and return the run directory."""
        self.layout.telemetry.mkdir(parents=True)
        for table in self._tables:
            self._write_table(table)
        for table, rows in self.more:
            self._write_rows(table, rows)
        if self.events:
            self._append(CsvWriter(self.layout.csv("events"), RunTable.of(EVENTS).arrow_schema), self._event_rows())
        self.write_predictions()
        self.write_manifest()
        return self.root

    def write_manifest(self) -> None:
        """Write the manifest, whose last attempt counts every row."""
        last = self.attempts[-1]
        last.status = self.status
        if not last.rows:
            self._count(last)
        declared = [*self._tables, *(table for table, _ in self.more)]
        tables = {
            table.table.name: TableEntry(declaration=table, formats=self._formats_of(table)) for table in declared
        }
        manifest = Manifest(
            heartbeat_utc=self.heartbeat_utc, status=self.status, tables=tables, groups=GROUPS, attempts=self.attempts
        )
        write_manifest(self.layout.manifest, manifest)

    @property
    def _tables(self) -> list[RunTable]:
        return [table for table in TABLES if table.table.name not in self.without]

    def _formats_of(self, table: RunTable) -> tuple[Format, ...]:
        return self.formats if table.table.in_csv else ("parquet",)

    def write_predictions(self, num_epochs: int = 3) -> None:
        """Write each epoch's predictions, and the metrics computed from them."""
        lines = ["epoch,train_loss,emd_r1,emd_r2,srcc,plcc,accuracy,mae,rmse"]
        for epoch in range(num_epochs):
            rows = prediction_rows(self.image_ids, seed=epoch)
            write_parquet(self.layout.epoch_predictions(epoch), rows)
            lines.append(f"{epoch},{0.1 / (epoch + 1)!r},{metrics_of(rows)}")
        if self.status != "running":
            self.layout.metrics.write_text("\n".join(lines) + "\n")

    def _count(self, last: Attempt) -> None:
        failed = {batch for batches in self.lost.values() for batch in batches}
        num_steps, num_failed = len(self.batches), len(failed)
        last.counters = StepCounters(collected=num_steps, written=num_steps - num_failed, failed=num_failed)
        for table, rows in self.more:
            last.rows |= {f"{table.table.name}.{suffix}": rows.num_rows for suffix in self._formats_of(table)}
        for table in self._tables:
            count = num_steps - len(self.lost.get(table.table.name, ()))
            last.rows |= {f"{table.table.name}.{suffix}": count for suffix in self.formats}
        if self.events:
            last.rows["events.csv"] = len(self.events)

    def _write_table(self, table: RunTable) -> None:
        name = table.table.name
        lost = self.lost.get(name, ())
        rows = [self._row(table, batch) for batch in self.batches if batch not in lost]
        if "csv" in self.formats:
            self._append(CsvWriter(self.layout.csv(name), table.arrow_schema), _batch(table, rows))
        if "parquet" in self.formats:
            self._append(self._parquet_writer(table), _batch(table, rows))

    def _write_rows(self, table: RunTable, rows: pa.Table) -> None:
        for suffix in self._formats_of(table):
            path = self.layout.csv(table.table.name)
            writer = CsvWriter(path, table.arrow_schema) if suffix == "csv" else self._parquet_writer(table)
            for batch in rows.to_batches(max_chunksize=10_000):
                writer.write(batch)
            writer.close()

    def _parquet_writer(self, table: RunTable) -> ParquetWriter | JournalWriter:
        """A process that is still running, or was killed, leaves its journal behind."""
        name = table.table.name
        if self.status == "running":
            return JournalWriter(self.layout.journal(name), table.arrow_schema)
        return ParquetWriter(self.layout.parquet(name), table.arrow_schema)

    def _append(self, writer: CsvWriter | ParquetWriter | JournalWriter, batch: pa.RecordBatch) -> None:
        for start in range(0, batch.num_rows, 5):
            writer.write(batch.slice(start, 5))
        writer.close()

    def _row(self, table: RunTable, batch: int) -> Row:
        keys: Row = {"batch_idx": batch, "epoch": (batch - 1) // BATCHES_PER_EPOCH}
        if table is RATES:
            return keys | {"lr_group_0": 1e-4 / batch, "lr_group_1": 1e-3 / batch}
        if table is STEPS:
            return keys | {"time_utc": NOW, "loss_scale": None, "loss": 0.3 / batch}
        return keys | norms_of(batch) | self.norms.get(batch, {})

    def _event_rows(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict(event_columns(self.events), schema=RunTable.of(EVENTS).arrow_schema)


def norms_of(batch: int) -> Row:
    """Norms of groups; the squares of the children add up to their parent's."""
    rng = np.random.default_rng(batch)
    first, last, backbone, other = (float(norm) for norm in rng.lognormal(size=4))
    head = (first**2 + last**2) ** 0.5
    overall = (head**2 + backbone**2 + other**2) ** 0.5
    return {
        "overall": overall,
        "backbone_layer4": backbone,
        "mlp_head": head,
        "mlp_layer_0": first,
        "mlp_layer_3": last,
    }


def prediction_rows(image_ids: Sequence[int] | Sequence[str], *, seed: int) -> pa.Table:
    """Predictions of one epoch; the true votes do not depend on the seed."""
    num_images = len(image_ids)
    votes = np.random.default_rng(1000).integers(1, 40, size=(num_images, 10))
    truth = votes / votes.sum(axis=1, keepdims=True)
    predicted = np.random.default_rng(seed).dirichlet(np.ones(10), size=num_images)
    scores = np.asarray(SCORES)
    columns = {
        "image_id": list(image_ids),
        "pred_mean": predicted @ scores,
        "gt_mean": votes @ scores / votes.sum(axis=1),
        **{name: predicted[:, index].astype(np.float32) for index, name in enumerate(PRED_COLUMNS)},
        **{name: truth[:, index].astype(np.float32) for index, name in enumerate(GT_COLUMNS)},
    }
    return pa.table(columns, schema=predictions_schema(integer_ids=isinstance(image_ids[0], int)))


def metrics_of(rows: pa.Table) -> str:
    """The metrics of these predictions, in the order of the columns of metrics.csv."""
    pred, truth = (np.column_stack([rows.column(name) for name in names]) for names in (PRED_COLUMNS, GT_COLUMNS))
    found = prediction_metrics(pred, truth, rows.column("pred_mean").to_numpy(), rows.column("gt_mean").to_numpy())
    names = ("emd_r1", "emd_r2", "srcc", "plcc", "accuracy", "mae", "rmse")
    return ",".join(repr(getattr(found, name)) for name in names)


def _batch(table: RunTable, rows: Sequence[Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows), schema=table.arrow_schema)
