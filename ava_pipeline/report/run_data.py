"""What a report is made of: everything of a run that can be read, and what could not."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from ava_pipeline.contract.builtin_tables import EPOCH_METRICS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import PredictionFile, RunLayout, prediction_files
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.diagnose.diagnose import Diagnosis, diagnose_run
from ava_pipeline.errors import RunError
from ava_pipeline.metrics import Metrics
from ava_pipeline.read.csv import read_csv
from ava_pipeline.read.predictions import Predicted, is_generated, read_predicted
from ava_pipeline.read.run import Run, open_run
from ava_pipeline.read.table import read_table

Read = TypeVar("Read")
VALIDATION = "val"


@dataclass(frozen=True, slots=True, eq=False)
class EpochMetrics:
    """Validation metrics, by name: [epochs] each, a float or None."""

    epochs: list[int]
    figures: dict[str, list[float | None]]


@dataclass(slots=True, eq=False)
class RunData:
    """One run as far as it can be read; a report of a damaged run says what is damaged and shows the rest.

    Attributes:
        name: of the run.
        layout: where it lies.
        manifest: None where there is none to be had.
        tables: the measured tables and the events, by name, rows with a batch only.
        metrics: of its epochs; None where there are none.
        predictions: of the last epoch, and which one it is.
        diagnosis: what the numbers say; None where they cannot be judged.
        is_generated: it was trained on generated data.
        troubles: a sentence for everything that could not be read.
    """

    name: str
    layout: RunLayout
    manifest: Manifest | None = None
    tables: dict[str, pa.Table] = field(default_factory=dict)
    metrics: EpochMetrics | None = None
    predictions: tuple[PredictionFile, Predicted] | None = None
    diagnosis: Diagnosis | None = None
    is_generated: bool = False
    troubles: list[str] = field(default_factory=list)

    def table(self, name: str) -> pa.Table | None:
        """A table that has rows."""
        rows = self.tables.get(name)
        return rows if rows is not None and rows.num_rows else None

    def attempt(self, read: Callable[[], Read]) -> Read | None:
        """Read something; where that fails, note why."""
        try:
            return read()
        except RunError as error:
            self.troubles.append(str(error))
            return None


def read_run_data(name: str, layout: RunLayout) -> RunData:
    """Read a run, alive, crashed or finished.

    Raises:
        NotARunError: there is no run.
    """
    run = open_run(layout.root)
    seen = RunData(name, layout)
    seen.manifest = seen.attempt(lambda: run.manifest)
    if seen.manifest is not None:
        for table in seen.manifest.tables:
            _add_table(seen, run, table)
        seen.diagnosis = seen.attempt(lambda: diagnose_run(run))
    seen.is_generated = bool(seen.attempt(lambda: is_generated(layout.root)))
    events = seen.attempt(lambda: read_table(layout, RunTable.of(EVENTS)))
    if events is not None:
        seen.tables["events"] = events
    files = [file for file in prediction_files(layout) if file.name == VALIDATION]
    seen.metrics = seen.attempt(lambda: _metrics(run, files))
    if files:
        read = seen.attempt(lambda: read_predicted(files[-1].path))
        seen.predictions = (files[-1], read) if read is not None and read.num_images else None
    return seen


def _add_table(seen: RunData, run: Run, name: str) -> None:
    rows = seen.attempt(lambda: run.arrow(name))
    if rows is not None and "batch_idx" in rows.column_names:
        has_keys = pc.and_(pc.is_valid(rows["batch_idx"]), pc.is_valid(rows["epoch"]))
        seen.tables[name] = rows.filter(has_keys).sort_by("batch_idx") if _is_unruly(rows) else rows


def _is_unruly(rows: pa.Table) -> bool:
    """Whether rows have no batch, or stand in another order than the batches'."""
    batches = rows["batch_idx"].combine_chunks()
    if rows["batch_idx"].null_count or rows["epoch"].null_count:
        return True
    return rows.num_rows > 1 and not bool(pc.all(pc.greater_equal(batches[1:], batches[:-1])).as_py())


def _metrics(run: Run, files: list[PredictionFile]) -> EpochMetrics | None:
    """Those of metrics.csv; of a foreign training loop, those that its predictions give."""
    if run.layout.metrics.exists():
        columns = read_csv(run.layout.metrics, RunTable.of(EPOCH_METRICS)).to_pydict()
        return EpochMetrics(columns.pop("epoch"), columns)
    found = [(file.epoch, read_predicted(file.path).metrics().to_json()) for file in files]
    if not found:
        return None
    names = [figure.name for figure in fields(Metrics)]
    return EpochMetrics([epoch for epoch, _ in found], {name: [one[name] for _, one in found] for name in names})
