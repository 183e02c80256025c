"""Many runs as one table each: what `ava_pipeline.runs` returns."""

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

from ava_pipeline.contract.builtin_tables import EPOCH_METRICS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import prediction_files
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import MisuseError, RunError
from ava_pipeline.many_runs.find import Pattern, find_runs
from ava_pipeline.read.csv import read_csv
from ava_pipeline.read.dataset import DatasetPart, dataset_of, parquet_part, read_part, table_part
from ava_pipeline.read.run import Run, open_run

_log = logging.getLogger("ava_pipeline")

Keys: TypeAlias = Mapping[str, str | int]
RUN, EPOCH, IMAGE = "run", "epoch", "image_id"


def runs(patterns: Pattern | Iterable[Pattern]) -> "Runs":
    """Many runs, alive, finished or crashed, as one table each with a column `run`.

        from ava_pipeline import runs
        norms = runs("outputs/ava/*").gradient_norms()      # a pyarrow.dataset.Dataset
        duckdb.sql("SELECT run, max(overall) FROM norms GROUP BY run")

    A run that cannot be opened is left out, with a warning that names it.

    Args:
        patterns: run directories, or patterns such as `outputs/ava/*`; one of them, or many.

    Raises:
        NotARunError: nothing that matches is a run.
    """
    opened: dict[str, Run] = {}
    for name, layout in find_runs(patterns).items():
        with _left_out_if_broken(f"Run {name!r}"):
            opened[name] = open_run(layout.root)
    return Runs(opened)


@dataclass(frozen=True, slots=True)
class Runs:
    """Run directories by name, and their tables put together.

    Each table is a `pyarrow.dataset.Dataset`: DuckDB, Polars (`scan_pyarrow_dataset`) and pandas (`to_table`) read
    the columns, rows and runs that a query asks for. Rows that wait in a journal are there too; those of one run are
    read into memory while they are scanned. Columns that a run has not are null in its rows. Nothing is written.

    Each call looks at the files anew. A run whose files cannot be read is left out, with a warning that names it; where
    that is only seen while a query runs, the warning is in the log.
    """

    runs: Mapping[str, Run]

    def gradient_norms(self) -> ds.Dataset:
        """L2 norms, a row a run and collected step."""
        return self.table("gradient_norms")

    def learning_rates(self) -> ds.Dataset:
        """Learning rates, a row a run and collected step."""
        return self.table("learning_rates")

    def steps(self) -> ds.Dataset:
        """The collected steps: time, loss scale, clipping and the user's values."""
        return self.table("steps")

    def events(self) -> ds.Dataset:
        """What happened beside the rows."""
        declaration = RunTable.of(EVENTS)
        return self._of_each(lambda run, keys: read_part(run.layout, declaration, keys))

    def table(self, name: str) -> ds.Dataset:
        """Any table that a run's manifest declares; a run without it has no rows there.

        Raises:
            MisuseError: no run has such a table.
            DamagedFileError: runs contradict each other in a column's type.
        """
        known: set[str] = set()

        def part(run: Run, keys: Keys) -> DatasetPart | None:
            manifest = run.manifest if run.layout.telemetry.is_dir() else None
            known.update(manifest.tables if manifest else ())
            return table_part(run.layout, manifest, name, keys) if manifest and name in manifest.tables else None

        found = self._of_each(part)
        if name not in known:
            raise MisuseError(f"No run has a table {name!r}; their tables: {', '.join(sorted(known)) or 'none'}.")
        return found

    def metrics(self) -> ds.Dataset:
        """Validation metrics, a row a run and epoch; of runs of `ava-pipeline train`."""
        declaration = RunTable.of(EPOCH_METRICS)

        def part(run: Run, keys: Keys) -> DatasetPart | None:
            path = run.layout.metrics
            read = partial(read_csv, path, declaration)
            return DatasetPart(read, declaration.arrow_schema, keys) if path.exists() else None

        return self._of_each(part)

    def val_predictions(self, *, name: str = "val") -> ds.Dataset:
        """The predictions of the set `name`, a row a run, epoch and image; image ids are text where any run's are."""
        parts: list[DatasetPart] = []
        for run_name, run in self.runs.items():
            for file in prediction_files(run.layout):
                with _left_out_if_broken(f"A file of run {run_name!r}"):
                    if file.name == name:
                        part = parquet_part(file.path, {RUN: run_name, EPOCH: file.epoch})
                        parts.append(_left_out_if_unreadable(run_name, part))
        return dataset_of(_ids_alike(parts), (RUN, EPOCH))

    def _of_each(self, part: Callable[[Run, Keys], DatasetPart | None]) -> ds.Dataset:
        found: list[DatasetPart] = []
        for name, run in self.runs.items():
            with _left_out_if_broken(f"Run {name!r}"):
                one = part(run, {RUN: name})
                found += [] if one is None else [_left_out_if_unreadable(name, one)]
        return dataset_of(found, (RUN,))


@contextmanager
def _left_out_if_broken(what: str) -> Iterator[None]:
    try:
        yield
    except (RunError, OSError) as error:
        warnings.warn(f"{what} is left out: {error}", stacklevel=4)


def _left_out_if_unreadable(name: str, part: DatasetPart) -> DatasetPart:
    """Rows that are read while they are scanned, in a thread of Arrow's, through which no exception may go.

    There is nobody to catch it in a query of DuckDB, which ends the process; so it is logged, and the run has no rows.
    """
    if isinstance(part.source, Path):
        return part  # Arrow reads it by itself
    read = part.source

    def rows() -> pa.Table:
        try:
            return read()
        except (RunError, OSError) as error:
            _log.warning("Run %r is left out: %s", name, error)
            return part.schema.empty_table()

    return replace(part, source=rows)


def _ids_alike(parts: Sequence[DatasetPart]) -> list[DatasetPart]:
    """Integers are read as text where any part's ids are text."""
    fields = [part.schema.field(IMAGE) for part in parts if IMAGE in part.schema.names]
    if not any(pa.types.is_string(field.type) for field in fields):
        return list(parts)
    return [replace(part, schema=_with_text_ids(part.schema)) for part in parts]


def _with_text_ids(schema: pa.Schema) -> pa.Schema:
    index = schema.get_field_index(IMAGE)
    return schema if index < 0 else schema.set(index, pa.field(IMAGE, pa.string()))
