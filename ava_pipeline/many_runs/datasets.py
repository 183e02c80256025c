"""The tables of many runs, each as one dataset."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.dataset as ds

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import prediction_files
from ava_pipeline.contract.tables import BATCH, RunTable
from ava_pipeline.errors import MisuseError, RunError
from ava_pipeline.many_runs.find import Pattern, find_runs
from ava_pipeline.read.dataset import DatasetPart, dataset_of, parquet_part, table_part
from ava_pipeline.read.run import Run, open_run

_log = logging.getLogger("ava_pipeline")

Keys: TypeAlias = Mapping[str, str | int]
RUN, EPOCH, IMAGE = "run", "epoch", "image_id"


def runs(patterns: Pattern | Iterable[Pattern]) -> "Runs":
    """Open many runs, whether running, finished or crashed; each table is one dataset with a column `run`.

        from ava_pipeline import runs
        norms = runs("outputs/ava/*").gradient_norms()      # a pyarrow.dataset.Dataset
        duckdb.sql("SELECT run, max(overall) FROM norms GROUP BY run")

    A run that cannot be opened is skipped, with a warning that names it.

    Args:
        patterns: a run directory, a pattern such as `outputs/ava/*`, or several of them.

    Raises:
        NotARunError: nothing that matches is a run.
    """
    opened: dict[str, Run] = {}
    for name, layout in find_runs(patterns).items():
        with _skip_if_broken(f"Run {name!r}"):
            opened[name] = open_run(layout.root)
    return Runs(opened)


@dataclass(frozen=True, slots=True)
class Runs:
    """Run directories by name, and their tables as datasets.

    Each table is a `pyarrow.dataset.Dataset`: DuckDB, Polars (`scan_pyarrow_dataset`) and pandas (`to_table`) read
    only the columns, rows and runs that a query asks for. Rows that are still in a journal are included; the journal of
    a run is read into memory while it is scanned. Columns that a run lacks are null in its rows. Nothing is written.

    Each call reads the current files. A run whose files cannot be read is skipped, with a warning that names it; if the
    damage is only found while a query runs, the warning is logged.

    Attributes:
        runs: the opened runs by name.
    """

    runs: Mapping[str, Run]

    def gradient_norms(self) -> ds.Dataset:
        """L2 norms: a row for each run and collected step."""
        return self.table("gradient_norms")

    def learning_rates(self) -> ds.Dataset:
        """Learning rates: a row for each run and collected step."""
        return self.table("learning_rates")

    def steps(self) -> ds.Dataset:
        """The collected steps: time, loss scale, clipping and the user's values."""
        return self.table("steps")

    def events(self) -> ds.Dataset:
        """The events of each run: gaps, skipped steps, values that are not finite, findings."""
        declaration = RunTable.of(EVENTS)
        return self._combined(lambda run, keys: DatasetPart(run.arrow_events, declaration.arrow_schema, keys))

    def table(self, name: str) -> ds.Dataset:
        """Any table that a manifest declares; a run without this table contributes no rows.

        Raises:
            MisuseError: no run has such a table.
            DamagedFileError: a column has types in two runs that cannot be combined.
        """
        known: set[str] = set()

        def part_of(run: Run, keys: Keys) -> DatasetPart | None:
            manifest = run.manifest if run.layout.telemetry.is_dir() or run.old is not None else None
            known.update(manifest.tables if manifest else ())
            return table_part(run, manifest, name, keys) if manifest and name in manifest.tables else None

        dataset = self._combined(part_of)
        if name not in known:
            raise MisuseError(f"No run has a table {name!r}; known tables: {', '.join(sorted(known)) or 'none'}.")
        return dataset

    def metrics(self) -> ds.Dataset:
        """The metrics of log_metrics() and `ava-pipeline train`: a row for each run and epoch, or batch."""

        def part_of(run: Run, keys: Keys) -> DatasetPart | None:
            rows = run.arrow_metrics()
            return None if rows is None else DatasetPart(partial(_metrics_of, run, rows.schema), rows.schema, keys)

        return self._combined(part_of)

    def val_predictions(self, *, name: str = "val") -> ds.Dataset:
        """The predictions of the set `name`: a row for each run, epoch and image.

        If models were also validated after single batches, a column `batch_idx` names them; it is null for the end of
        an epoch. Image ids are strings if those of any run are.
        """
        parts: list[DatasetPart] = []
        for run_name, run in self.runs.items():
            for file in prediction_files(run.layout):
                with _skip_if_broken(f"A file of run {run_name!r}"):
                    if file.name == name:
                        batch = {} if file.moment.batch_idx is None else {BATCH: file.moment.batch_idx}
                        part = parquet_part(file.path, {RUN: run_name, EPOCH: file.epoch, **batch})
                        parts.append(_skip_if_unreadable(run_name, part))
        has_batches = any(BATCH in part.keys for part in parts)
        return dataset_of(_with_same_id_type(parts), (RUN, EPOCH, *([BATCH] if has_batches else [])))

    def _combined(self, part_of: Callable[[Run, Keys], DatasetPart | None]) -> ds.Dataset:
        parts: list[DatasetPart] = []
        for name, run in self.runs.items():
            with _skip_if_broken(f"Run {name!r}"):
                part = part_of(run, {RUN: name})
                parts += [] if part is None else [_skip_if_unreadable(name, part)]
        return dataset_of(parts, (RUN,))


def _metrics_of(run: Run, schema: pa.Schema) -> pa.Table:
    """The metrics as they are when a query needs them."""
    rows = run.arrow_metrics()
    return schema.empty_table() if rows is None else rows


@contextmanager
def _skip_if_broken(what: str) -> Iterator[None]:
    try:
        yield
    except (RunError, OSError) as error:
        warnings.warn(f"{what} is skipped: {error}", stacklevel=4)


def _skip_if_unreadable(name: str, part: DatasetPart) -> DatasetPart:
    """Log an error in rows that are read during a query, and give no rows.

    Arrow calls `source` in a thread of its own. An exception there is not caught by a query of DuckDB and ends the
    process.
    """
    if isinstance(part.source, Path):
        return part  # a file that Arrow reads itself
    read = part.source

    def rows() -> pa.Table:
        try:
            return read()
        except (RunError, OSError) as error:
            _log.warning("Run %r is skipped: %s", name, error)
            return part.schema.empty_table()

    return replace(part, source=rows)


def _with_same_id_type(parts: Sequence[DatasetPart]) -> list[DatasetPart]:
    """Read integer ids as strings if the ids of any part are strings."""
    fields = [part.schema.field(IMAGE) for part in parts if IMAGE in part.schema.names]
    if not any(pa.types.is_string(field.type) for field in fields):
        return list(parts)
    return [replace(part, schema=_with_string_ids(part.schema)) for part in parts]


def _with_string_ids(schema: pa.Schema) -> pa.Schema:
    index = schema.get_field_index(IMAGE)
    return schema if index < 0 else schema.set(index, pa.field(IMAGE, pa.string()))
