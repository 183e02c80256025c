"""Open a run and read its tables, as data frames or as Arrow tables. pandas is imported when a frame is asked for.

Every reader goes through `Run`, which also reads the directories of other programs: see `old_run.py`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ava_pipeline.contract.arrays import bool_array, integers
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import Moment, RunLayout, prediction_files
from ava_pipeline.contract.manifest import Manifest, read_manifest
from ava_pipeline.contract.parquet import num_parquet_rows, parquet_schema, read_parquet
from ava_pipeline.contract.stored import read_stored
from ava_pipeline.contract.tables import BATCH, KEY_COLUMNS, RunTable
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import DamagedFileError, MisuseError, NotARunError
from ava_pipeline.read.csv import num_rows, read_csv
from ava_pipeline.read.eval_dump import PairFile, pair_files, read_pairs
from ava_pipeline.read.history import HISTORY, read_history
from ava_pipeline.read.metrics import has_our_form, is_foreign, read_metrics
from ava_pipeline.read.old_run import OldRun, find_old_run, placed
from ava_pipeline.read.settings import read_settings
from ava_pipeline.read.snapshots import WeightSnapshot, read_snapshots

if TYPE_CHECKING:
    import pandas as pd

_SIGNS_OF_A_RUN = (
    "telemetry/manifest.json, predictions/<name>_epoch_000.parquet, metrics.csv, or tables with batch_idx and epoch"
)

_KEYS = {column.name for column in KEY_COLUMNS}


def open_run(path: str | PathLike[str]) -> "Run":
    """Open a run directory, also while the run is being written and after a crash.

    Args:
        path: the directory given to the collector or to `ava-pipeline train`, e.g. `outputs/ava/my_run`; or a directory
            of another program's tables with the columns `batch_idx` and `epoch`, as CSV or Parquet.

    Raises:
        NotARunError: the directory does not exist or is not a run.
        DamagedFileError: a name in it leads out of the directory.

    Example:
        >>> run = open_run("outputs/ava/my_run")  # doctest: +SKIP
        >>> run.gradient_norms()["overall"].max()  # doctest: +SKIP
    """
    layout = RunLayout(Path(path))
    if not is_run(layout):
        others = [one for one in (layout.run_beside_metrics, layout.root.parent) if is_run(RunLayout(one))]
        remedy = f"open {others[0]} instead" if others else "check the path, or wait for the first step"
        problem = "is not a run" if layout.root.is_dir() else "is not a directory"
        raise NotARunError(f"{layout.root} {problem}: expected {_SIGNS_OF_A_RUN} in it; {remedy}.")
    check_inside(layout)
    return Run(layout)


def is_run(layout: RunLayout) -> bool:
    """Whether telemetry, training or another program's collector wrote files there."""
    tables = (path for suffix in ("csv", "parquet", "journal") for path in layout.telemetry.glob(f"*.{suffix}"))
    has_metrics = layout.metrics.exists() and not layout.run_beside_metrics.exists()
    has_ours = layout.manifest.exists() or has_metrics or any(tables) or bool(prediction_files(layout))
    return has_ours or find_old_run(layout) is not None


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory. Each call reads the files again, so that a live run shows its latest rows.

    Frames are Arrow-backed: nan means "measured and not finite", `pd.NA` means "not measured".

    Example:
        >>> run = open_run("outputs/ava/my_run")  # doctest: +SKIP
        >>> run.arrow("learning_rates", batches=(100, None)).num_rows  # doctest: +SKIP
    """

    layout: RunLayout

    @property
    def old(self) -> OldRun | None:
        """The run as another program wrote it, if it has no manifest; None for runs of this package."""
        return find_old_run(self.layout)

    @property
    def manifest(self) -> Manifest:
        """The tables of the run, the attempts that wrote them, and the rows they collected and wrote.

        Of a run that another program wrote, it is made from the files and lists no attempt.

        Raises:
            NotARunError: the run has no manifest, and is not another program's.
            DamagedFileError: the manifest cannot be read.
        """
        if (old := self.old) is not None:
            return old.manifest
        try:
            return read_manifest(self.layout.manifest)
        except FileNotFoundError as error:
            raise NotARunError(
                f"{self.layout.manifest} does not exist: the run recorded no telemetry, or the file was lost. "
                "Its CSV and Parquet files can be read with pandas as they are."
            ) from error

    def gradient_norms(self) -> "pd.DataFrame":
        """L2 norms, one row per collected step: batch_idx, epoch, overall and one float32 column per group."""
        return self.table("gradient_norms")

    def learning_rates(self) -> "pd.DataFrame":
        """Learning rates, one row per collected step: batch_idx, epoch, lr_group_N as float64."""
        return self.table("learning_rates")

    def steps(self) -> "pd.DataFrame":
        """The collected steps: batch_idx, epoch, time_utc, loss_scale and the values given to `step`."""
        return self.table("steps")

    def events(self) -> "pd.DataFrame":
        """What happened besides the rows; empty if nothing was recorded."""
        return frame(self.arrow_events())

    def arrow_events(self) -> pa.Table:
        """The events as Arrow; no rows if nothing was recorded, or if another program wrote the run."""
        if self.old is not None:
            return pa.Table.from_batches([], RunTable.of(EVENTS).arrow_schema)
        return read_table(self.layout, RunTable.of(EVENTS))

    def table(
        self, name: str, *, columns: Sequence[str] | None = None, batches: tuple[int, int | None] | None = None
    ) -> "pd.DataFrame":
        """Any table that the manifest declares; the arguments are those of `arrow`."""
        return frame(self.arrow(name, columns=columns, batches=batches))

    def arrow(
        self, name: str, *, columns: Sequence[str] | None = None, batches: tuple[int, int | None] | None = None
    ) -> pa.Table:
        """Any table that the manifest declares, as Arrow.

        Args:
            name: the table.
            columns: the columns to read, in this order; all if left out.
            batches: the first and the last `batch_idx` to read, both included; None as the last reads to the end.
                Of a Parquet file, only the row groups and columns needed are read.

        Raises:
            MisuseError: the run has no such table, or the table no such column.
            NotARunError: the run has no manifest.
            DamagedFileError: a file cannot be read.
        """
        return self._read(name, columns, batches, in_order=False)

    def ordered(
        self, name: str, *, columns: Sequence[str] | None = None, batches: tuple[int, int | None] | None = None
    ) -> pa.Table:
        """As `arrow`, with a `batch_idx` that rises over the run in every table, for plots and comparisons of rows.

        It differs from that of `arrow` only in a run of another program whose batches start again in each epoch, if no
        file says how many an epoch has: then it is a place, which `place_text` puts into words.
        """
        return self._read(name, columns, batches, in_order=True)

    def _read(
        self, name: str, columns: Sequence[str] | None, batches: tuple[int, int | None] | None, *, in_order: bool
    ) -> pa.Table:
        old = self.old
        manifest = self.manifest if old is None else old.manifest
        if name not in manifest.tables:
            known = ", ".join(sorted(manifest.tables)) or "none"
            raise MisuseError(f"{self.layout.root} has no table {name!r}; its tables: {known}.")
        if old is not None:
            rows = old.read(name, in_order=in_order)
            return _selected(rows, _known(columns, rows.schema, name), batches)
        if columns is None and batches is None:
            return read_table(self.layout, manifest.tables[name].declaration)
        return select_rows(self.layout, manifest, name, columns, batches)

    def files_of(self, name: str) -> tuple[Path, ...]:
        """The files, CSV of ours aside, whose changes bring new rows of a table."""
        old = self.old
        if old is None:
            return self.layout.parquet(name), self.layout.journal(name)
        return (old.tables[name].path,) if name in old.tables else ()

    def metrics_files(self) -> tuple[Path, ...]:
        """The files whose changes bring new metrics."""
        return self.layout.metrics, self.layout.root / HISTORY

    def place_text(self, batch_idx: int) -> str:
        """`batch 37`; or `epoch 2, batch 5` of a place in `ordered` that is no count of batches."""
        old = self.old
        return f"batch {batch_idx}" if old is None else old.count.text(batch_idx)

    def placed(self, findings: Sequence[Finding]) -> list[Finding]:
        """Findings about rows of `ordered`, with their places in words where batches are not counted over the run."""
        old = self.old
        return list(findings) if old is None else [placed(finding, old.count) for finding in findings]

    def notes(self) -> list[Finding]:
        """What is assumed about a run that another program wrote, as findings of severity info; none about ours."""
        old = self.old
        return [] if old is None else old.notes()

    def val_predictions(self, epoch: int, *, batch_idx: int | None = None, name: str = "val") -> "pd.DataFrame":
        """The predictions of the set `name` at the end of an epoch, one row per image.

        Args:
            epoch: 0-based.
            batch_idx: the batch after which the model was validated, if it was not the end of the epoch.
            name: the set.

        Raises:
            NotARunError: the file does not exist.
            DamagedFileError: the file cannot be read.
        """
        path = self.layout.epoch_predictions(epoch, name, batch_idx)
        if not path.exists():
            pairs = {file.epoch: file for file in self.pair_files() if file.name == name}
            if epoch in pairs and batch_idx is None:
                return frame(read_pairs(self.layout, pairs[epoch].path))
            files = [file for file in prediction_files(self.layout) if file.name == name]
            known = ", ".join([*map(str, pairs), *(_epoch_text(file.moment) for file in files)]) or "none"
            raise NotARunError(f"{path} does not exist; epochs with predictions of {name!r}: {known}.")
        return frame(read_parquet(path))

    def weight_snapshots(self) -> list[WeightSnapshot]:
        """The saved weights by batch, also those that are `.pt` files of an older collector; empty if there are none.

        Example:
            >>> for snapshot in open_run("outputs/ava/my_run").weight_snapshots():  # doctest: +SKIP
            ...     print(snapshot.batch_idx, dict(snapshot.tensors(["fc.bias"])))
        """
        return read_snapshots(self.layout)

    def pair_files(self) -> list[PairFile]:
        """The predictions of pairs that another program left, by set and epoch."""
        return pair_files(self.layout)

    def metrics(self) -> "pd.DataFrame":
        """The metrics that the training loop logged: epoch, batch_idx if a row has one, and a column for each metric.

        Raises:
            NotARunError: the file does not exist.
            DamagedFileError: the file cannot be read.
        """
        rows = self.arrow_metrics()
        if rows is None and self.layout.metrics.exists():
            return frame(read_metrics(self.layout))  # raises: it is not in the form of ours
        if rows is None:
            raise NotARunError(
                f"{self.layout.metrics} does not exist: log_metrics() and `ava-pipeline train` write it after an "
                f"epoch. `ava-pipeline evaluate {self.layout.root}` computes metrics of predictions."
            )
        return frame(rows)

    def arrow_metrics(self) -> pa.Table | None:
        """The metrics as Arrow: of metrics.csv, or else of another program's training_history.json; None without them.

        A metrics.csv that no attempt wrote, in a form that is not ours, is another program's: see `is_foreign`.

        Raises:
            DamagedFileError: the file cannot be read.
        """
        if self.layout.metrics.exists() and not self._has_foreign_metrics():
            return read_metrics(self.layout)
        return read_history(self.layout)

    def _has_foreign_metrics(self) -> bool:
        if has_our_form(self.layout) or (self.old is None and not self.layout.manifest.exists()):
            return False
        return is_foreign(self.layout, self.manifest)

    def settings(self) -> dict[str, Any]:
        """The settings as config.yaml gives them, also another program's; without the file, the manifest's `run_info`.

        Raises:
            DamagedFileError: the file cannot be read, or is a link that leads out of the run.
        """
        if (old := self.old) is not None:
            return old.settings
        if self.layout.config.exists():
            return read_settings(self.layout)
        return dict(self.manifest.run_info) if self.layout.manifest.exists() else {}


def _epoch_text(moment: Moment) -> str:
    return str(moment.epoch) if moment.batch_idx is None else f"{moment.epoch} after batch {moment.batch_idx}"


def read_table(layout: RunLayout, declaration: RunTable) -> pa.Table:
    """Read a table, also while it is being written and after a crash: every row that can be read, in order of writing.

    The rows are those of the Parquet file and its journal, or of the CSV file if that holds more. Raise
    DamagedFileError if a file cannot be read; warn if rows of the journal are lost.
    """
    name = declaration.table.name
    stored = read_stored(layout.parquet(name), layout.journal(name), declaration.arrow_schema)
    path = layout.csv(name)
    if path.exists() and num_rows(path) > (stored.rows.num_rows if stored else 0):
        return read_csv(path, declaration)
    if stored is None:
        return pa.Table.from_batches([], declaration.arrow_schema)
    for finding in stored.damage:
        if finding.severity == "error":
            warnings.warn(f"{layout.root}: {finding}", stacklevel=2)
    check_types(stored.rows.schema, declaration, layout.parquet(name))
    return stored.rows


def check_types(schema: pa.Schema, declaration: RunTable, path: Path) -> None:
    """Refuse columns that another program saved as another type than the declared numbers, texts or times."""
    for column in declaration.columns if schema.names else ():
        found = [schema.field(index).type for index in schema.get_all_field_indices(column.name)]
        if not found and column.name not in _KEYS:
            continue
        if [_family(dtype) for dtype in found] != [_family(column.arrow_field.type)]:
            given = " and ".join(map(str, found)) or "no such column"
            raise DamagedFileError(
                f"{path}: column {column.name}: expected {column.dtype}, got {given}. Restore the file from a backup."
            )


def _family(dtype: pa.DataType) -> str:
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return "number"
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "text"
    return "time" if pa.types.is_timestamp(dtype) else str(dtype)


def select_rows(
    layout: RunLayout,
    manifest: Manifest,
    name: str,
    columns: Sequence[str] | None = None,
    batches: tuple[int, int | None] | None = None,
) -> pa.Table:
    """Read some columns of some batches of a table; of a complete Parquet file, only what they need.

    The arguments are those of `Run.arrow`. Raise MisuseError if the table has no such column, and DamagedFileError if a
    file cannot be read.
    """
    declaration, path = manifest.tables[name].declaration, layout.parquet(name)
    if has_complete_parquet(layout, manifest, name):
        schema = parquet_schema(path)
        check_types(schema, declaration, path)
        wanted = _known(columns, schema, name)
        rows = read_parquet(path, None if wanted is None else list(dict.fromkeys([*wanted, BATCH])), batches)
    else:
        rows = read_table(layout, declaration)
        wanted = _known(columns, rows.schema, name)
    return _selected(rows, wanted, batches)


def _selected(rows: pa.Table, wanted: list[str] | None, batches: tuple[int, int | None] | None) -> pa.Table:
    if batches is not None:
        first, last = batches
        batch_idx = integers(rows, BATCH)
        rows = rows.filter(bool_array((batch_idx >= first) & (batch_idx <= (batch_idx if last is None else last))))
    return rows if wanted is None else rows.select(wanted)


def _known(columns: Sequence[str] | None, schema: pa.Schema, name: str) -> list[str] | None:
    unknown = [column for column in columns or () if column not in schema.names]
    if unknown:
        known = ", ".join(schema.names)
        raise MisuseError(f"Table {name!r} has no column {', '.join(unknown)}; its columns: {known}.")
    return None if columns is None else list(columns)


def has_complete_parquet(layout: RunLayout, manifest: Manifest, name: str) -> bool:
    """Whether the Parquet file alone holds every row that can be read. Raise DamagedFileError if a file is damaged."""
    path, csv = layout.parquet(name), layout.csv(name)
    if not path.exists() or layout.journal(name).exists():
        return False
    written = [[attempt.rows.get(file.name, 0) for file in (csv, path)] for attempt in manifest.attempts]
    if manifest.status != "running" and all(in_csv <= in_parquet for in_csv, in_parquet in written):
        return True  # without counting the lines of the CSV file
    return not (csv.exists() and num_rows(csv) > num_parquet_rows(path))


def frame(rows: pa.Table) -> "pd.DataFrame":
    """Arrow rows as an Arrow-backed frame, since pandas' own floats do not distinguish nan from null."""
    import pandas as pd  # noqa: PLC0415  # takes half a second, and most readers need only Arrow

    return rows.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
