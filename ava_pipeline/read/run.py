"""Open a run: what lies in its directory, as data frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import pandas as pd
import pyarrow as pa

from ava_pipeline.contract.builtin_tables import EPOCH_METRICS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.layout import RunLayout, prediction_files
from ava_pipeline.contract.manifest import Manifest, read_manifest
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import check_inside
from ava_pipeline.errors import MisuseError, NotARunError
from ava_pipeline.read.csv import read_csv
from ava_pipeline.read.dataset import dataset_of, read_selected, table_part
from ava_pipeline.read.table import read_table

_LOOKS_LIKE = "a run directory holds telemetry/manifest.json, predictions/<name>_epoch_000.parquet or metrics.csv"


def open_run(path: str | PathLike[str]) -> "Run":
    """Open a run directory, also while the run is being written and after a crash.

    Args:
        path: the directory given to the collector or to `ava-pipeline train`, e.g. `outputs/ava/my_run`.

    Raises:
        NotARunError: there is no run.
        DamagedFileError: a name in it leads out of the directory.
    """
    layout = RunLayout(Path(path))
    if not is_run(layout):
        inner = RunLayout(layout.root.parent)
        remedy = f"open {inner.root} instead" if is_run(inner) else "check the path, or wait for the first step"
        what = "is no directory" if not layout.root.is_dir() else "is no run"
        raise NotARunError(f"{layout.root} {what}: {_LOOKS_LIKE}; {remedy}.")
    check_inside(layout)
    return Run(layout)


def is_run(layout: RunLayout) -> bool:
    """Whether telemetry or training wrote anything there."""
    tables = (path for kind in ("csv", "parquet", "journal") for path in layout.telemetry.glob(f"*.{kind}"))
    known = layout.manifest.exists() or layout.metrics.exists()
    return known or bool(prediction_files(layout)) or any(tables)


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory. Each call reads the files anew, so that a run that goes on shows its latest rows.

    Frames are Arrow-backed: nan is measured and not finite, `pd.NA` is not measured.
    """

    layout: RunLayout

    @property
    def manifest(self) -> Manifest:
        """What the tables are, who wrote them, and how much of what was collected.

        Raises:
            NotARunError: there is none.
            DamagedFileError: it cannot be read.
        """
        try:
            return read_manifest(self.layout.manifest)
        except FileNotFoundError as error:
            raise NotARunError(
                f"{self.layout.manifest} does not exist: the run recorded no telemetry, or the file was lost. "
                "Its CSV and Parquet files can be read with pandas as they are."
            ) from error

    def gradient_norms(self) -> pd.DataFrame:
        """L2 norms, a row a collected step: batch_idx, epoch, overall and a float32 column a group."""
        return self.table("gradient_norms")

    def learning_rates(self) -> pd.DataFrame:
        """Learning rates, a row a collected step: batch_idx, epoch, lr_group_N as float64."""
        return self.table("learning_rates")

    def steps(self) -> pd.DataFrame:
        """The collected steps: batch_idx, epoch, time_utc, loss_scale and the user's values."""
        return self.table("steps")

    def events(self) -> pd.DataFrame:
        """What happened beside the rows; no rows where nothing did."""
        return frame(read_table(self.layout, RunTable.of(EVENTS)))

    def table(
        self, name: str, *, columns: Sequence[str] | None = None, batches: tuple[int, int | None] | None = None
    ) -> pd.DataFrame:
        """Any table that the manifest declares; see `arrow`, which has the same arguments."""
        return frame(self.arrow(name, columns=columns, batches=batches))

    def arrow(
        self, name: str, *, columns: Sequence[str] | None = None, batches: tuple[int, int | None] | None = None
    ) -> pa.Table:
        """Any table that the manifest declares, as Arrow.

        Args:
            name: of the table.
            columns: the ones to read, in this order; left out, all.
            batches: the first and the last `batch_idx` to read, both included; None for the last reads to the end.
                Of a Parquet file only the row groups and columns asked for are read.

        Raises:
            MisuseError: the run has no such table, or the table no such column.
            NotARunError: there is no manifest.
            DamagedFileError: a file cannot be read.
        """
        manifest = self.manifest
        if name not in manifest.tables:
            known = ", ".join(sorted(manifest.tables)) or "none"
            raise MisuseError(f"{self.layout.root} has no table {name!r}; its tables: {known}.")
        if columns is None and batches is None:
            return read_table(self.layout, manifest.tables[name].declaration)
        return read_selected(dataset_of([table_part(self.layout, manifest, name)]), columns, batches)

    def val_predictions(self, epoch: int, *, name: str = "val") -> pd.DataFrame:
        """One epoch's predictions of the set `name`, a row an image.

        Raises:
            NotARunError: there is no such file.
            DamagedFileError: the file cannot be read.
        """
        path = self.layout.epoch_predictions(epoch, name)
        if not path.exists():
            known = ", ".join(str(file.epoch) for file in prediction_files(self.layout) if file.name == name) or "none"
            raise NotARunError(f"{path} does not exist; epochs with predictions of {name!r}: {known}.")
        return frame(read_parquet(path))

    def metrics(self) -> pd.DataFrame:
        """Validation metrics, a row an epoch; runs of `ava-pipeline train`.

        Raises:
            NotARunError: there are none.
            DamagedFileError: the file cannot be read.
        """
        if not self.layout.metrics.exists():
            raise NotARunError(
                f"{self.layout.metrics} does not exist: `ava-pipeline train` writes it after an epoch. "
                f"For other runs, `ava-pipeline evaluate {self.layout.root}` computes the metrics."
            )
        return frame(read_csv(self.layout.metrics, RunTable.of(EPOCH_METRICS)))


def frame(rows: pa.Table) -> pd.DataFrame:
    """Arrow rows as an Arrow-backed frame: pandas' own floats could not tell nan from null."""
    return rows.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
