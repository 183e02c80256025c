"""The data of a report: everything that can be read of a run, and the problems with the rest."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import compress
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from ava_pipeline.contract.builtin_tables import HOLDOUT, PER_LAYER_STATS
from ava_pipeline.contract.layout import Moment, PredictionFile, RunLayout, prediction_files
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import BATCH
from ava_pipeline.diagnose.diagnose import Diagnosis, diagnose_run
from ava_pipeline.errors import RunError
from ava_pipeline.metrics import Metrics
from ava_pipeline.read.holdout import HoldoutByBatch, holdout_by_batch, holdout_columns
from ava_pipeline.read.old_run import ORIGIN
from ava_pipeline.read.predictions import Predicted, is_generated, read_predicted
from ava_pipeline.read.run import Run, open_run
from ava_pipeline.read.stream import stream_rows
from ava_pipeline.report.layer_norms import LAYER_COLUMNS, LayerNorms, layer_norms

T = TypeVar("T")
VALIDATION = "val"
NUM_FIRST_ROWS = 5


@dataclass(frozen=True, slots=True, eq=False)
class MetricHistory:
    """Metrics at the moments at which a model was validated, in the order of time."""

    moments: list[Moment]
    values: dict[str, list[float | None]]  # metric -> [moments]; every metric that was measured at one of them

    def select(self, *, of_epochs: bool) -> "MetricHistory":
        """Only the moments at the end of an epoch, or only those after single batches."""
        is_selected = [(moment.batch_idx is None) == of_epochs for moment in self.moments]
        columns = {name: list(compress(values, is_selected)) for name, values in self.values.items()}
        measured = {name: values for name, values in columns.items() if any(value is not None for value in values)}
        return MetricHistory(list(compress(self.moments, is_selected)), measured)


@dataclass(slots=True, eq=False)
class RunData:
    """One run as far as it can be read; the report of a damaged run names the damage and shows the rest."""

    name: str
    layout: RunLayout
    manifest: Manifest | None = None
    tables: dict[str, pa.Table] = field(default_factory=dict)  # with the events, without long ones; rows with a batch
    long_tables: dict[str, pa.Table] = field(default_factory=dict)  # of a table with several rows per batch, the first
    layers: LayerNorms | None = None  # the gradient norms of per_layer_stats, if any was measured
    holdout: HoldoutByBatch | None = None
    metrics: MetricHistory | None = None
    predictions: tuple[PredictionFile, Predicted] | None = None  # the latest
    diagnosis: Diagnosis | None = None
    is_generated: bool = False
    origin: str = ""  # `no manifest` if another program wrote the run
    problems: list[str] = field(default_factory=list)  # a sentence for each file that cannot be read

    def table(self, name: str) -> pa.Table | None:
        """A table; None if it is missing or has no rows."""
        rows = self.tables.get(name)
        return rows if rows is not None and rows.num_rows else None

    def try_read(self, read: Callable[[], T]) -> T | None:
        """Call `read`; if it fails, record the problem and return None."""
        try:
            return read()
        except RunError as error:
            self.problems.append(str(error))
            return None


def read_run_data(name: str, layout: RunLayout) -> RunData:
    """Read a running, crashed or finished run. Raise NotARunError if the directory is not a run."""
    opened = open_run(layout.root)
    run = RunData(name, layout, origin=ORIGIN if opened.old is not None else "")
    run.manifest = run.try_read(lambda: opened.manifest)
    if run.manifest is not None:
        for table, entry in run.manifest.tables.items():
            add = _add_long_table if entry.declaration.table.is_long else _add_table
            add(run, opened, table)
        run.diagnosis = run.try_read(lambda: diagnose_run(opened))
    run.is_generated = bool(run.try_read(lambda: is_generated(layout.root)))
    events = run.try_read(opened.arrow_events)
    if events is not None:
        run.tables["events"] = events
    files = [file for file in prediction_files(layout) if file.name == VALIDATION]
    run.metrics = run.try_read(lambda: _metrics(opened, files))
    if files:
        predicted = run.try_read(lambda: read_predicted(files[-1].path))
        run.predictions = (files[-1], predicted) if predicted is not None and predicted.num_images else None
    return run


def _add_table(run: RunData, opened: Run, name: str) -> None:
    rows = run.try_read(lambda: opened.ordered(name))
    if rows is not None and "batch_idx" in rows.column_names:
        has_keys = pc.and_(pc.is_valid(rows["batch_idx"]), pc.is_valid(rows["epoch"]))
        run.tables[name] = rows if _is_in_order(rows) else rows.filter(has_keys).sort_by("batch_idx")


def _add_long_table(run: RunData, opened: Run, name: str) -> None:
    """The first rows, and what figures show of the rest, which is read a part at a time."""
    columns = opened.manifest.tables[name].declaration.column_names
    first = run.try_read(lambda: next(stream_rows(opened, name, columns), None))
    if first is not None:
        run.long_tables[name] = pa.Table.from_batches([first.slice(0, NUM_FIRST_ROWS)])
    if name == PER_LAYER_STATS.name and set(LAYER_COLUMNS) <= set(columns):
        run.layers = run.try_read(lambda: layer_norms(stream_rows(opened, name, LAYER_COLUMNS)))
    elif name == HOLDOUT and (wanted := holdout_columns(columns)):
        run.holdout = run.try_read(lambda: holdout_by_batch(stream_rows(opened, name, wanted)))


def _is_in_order(rows: pa.Table) -> bool:
    """Whether every row has a batch and an epoch, and the batches never fall."""
    if rows["batch_idx"].null_count or rows["epoch"].null_count:
        return False
    batches = rows["batch_idx"].combine_chunks()
    return rows.num_rows <= 1 or bool(pc.all(pc.greater_equal(batches[1:], batches[:-1])).as_py())


def _metrics(opened: Run, files: list[PredictionFile]) -> MetricHistory | None:
    """The rows of metrics.csv or a history; without such a file, the metrics of the predictions."""
    rows = opened.arrow_metrics()
    if rows is not None:
        columns = rows.to_pydict()
        epochs = columns.pop("epoch")
        batches = columns.pop(BATCH, [None] * len(epochs))
        return MetricHistory(list(map(Moment, epochs, batches)), columns)
    metrics = [read_predicted(file.path).metrics().to_json() for file in files]
    if not metrics:
        return None
    names = [field.name for field in fields(Metrics)]
    return MetricHistory([file.moment for file in files], {name: [epoch[name] for epoch in metrics] for name in names})
