"""Open a run and read its tables, as data frames or as Arrow tables. pandas is imported when a frame is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

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
from ava_pipeline.read.table import read_table, select_rows

if TYPE_CHECKING:
    import pandas as pd

_SIGNS_OF_A_RUN = "telemetry/manifest.json, predictions/<name>_epoch_000.parquet or metrics.csv"


def open_run(path: str | PathLike[str]) -> "Run":
    """Open a run directory, also while the run is being written and after a crash.

    Args:
        path: the directory given to the collector or to `ava-pipeline train`, e.g. `outputs/ava/my_run`.

    Raises:
        NotARunError: the directory does not exist or is not a run.
        DamagedFileError: a name in it leads out of the directory.

    Example:
        >>> run = open_run("outputs/ava/my_run")  # doctest: +SKIP
        >>> run.gradient_norms()["overall"].max()  # doctest: +SKIP
    """
    layout = RunLayout(Path(path))
    if not is_run(layout):
        parent = RunLayout(layout.root.parent)
        remedy = f"open {parent.root} instead" if is_run(parent) else "check the path, or wait for the first step"
        problem = "is not a run" if layout.root.is_dir() else "is not a directory"
        raise NotARunError(f"{layout.root} {problem}: expected {_SIGNS_OF_A_RUN} in it; {remedy}.")
    check_inside(layout)
    return Run(layout)


def is_run(layout: RunLayout) -> bool:
    """Whether telemetry or training wrote files there."""
    tables = (path for suffix in ("csv", "parquet", "journal") for path in layout.telemetry.glob(f"*.{suffix}"))
    return layout.manifest.exists() or layout.metrics.exists() or any(tables) or bool(prediction_files(layout))


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory. Each call reads the files again, so that a live run shows its latest rows.

    Frames are Arrow-backed: nan means "measured and not finite", `pd.NA` means "not measured".

    Example:
        >>> run = Run(RunLayout(Path("outputs/ava/my_run")))
        >>> run.arrow("learning_rates", batches=(100, None)).num_rows  # doctest: +SKIP
    """

    layout: RunLayout

    @property
    def manifest(self) -> Manifest:
        """The tables of the run, the attempts that wrote them, and the rows they collected and wrote.

        Raises:
            NotARunError: the run has no manifest.
            DamagedFileError: the manifest cannot be read.
        """
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
        """What happened beside the rows; empty if nothing did."""
        return frame(read_table(self.layout, RunTable.of(EVENTS)))

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
            name: of the table.
            columns: the columns to read, in this order; all if left out.
            batches: the first and the last `batch_idx` to read, both included; None as the last reads to the end.
                Of a Parquet file, only the row groups and columns needed are read.

        Raises:
            MisuseError: the run has no such table, or the table no such column.
            NotARunError: the run has no manifest.
            DamagedFileError: a file cannot be read.
        """
        manifest = self.manifest
        if name not in manifest.tables:
            known = ", ".join(sorted(manifest.tables)) or "none"
            raise MisuseError(f"{self.layout.root} has no table {name!r}; its tables: {known}.")
        if columns is None and batches is None:
            return read_table(self.layout, manifest.tables[name].declaration)
        return select_rows(self.layout, manifest, name, columns, batches)

    def val_predictions(self, epoch: int, *, name: str = "val") -> "pd.DataFrame":
        """One epoch's predictions of the set `name`, one row per image.

        Raises:
            NotARunError: the file does not exist.
            DamagedFileError: the file cannot be read.
        """
        path = self.layout.epoch_predictions(epoch, name)
        if not path.exists():
            known = ", ".join(str(file.epoch) for file in prediction_files(self.layout) if file.name == name) or "none"
            raise NotARunError(f"{path} does not exist; epochs with predictions of {name!r}: {known}.")
        return frame(read_parquet(path))

    def metrics(self) -> "pd.DataFrame":
        """Validation metrics, one row per epoch, which `ava-pipeline train` writes.

        Raises:
            NotARunError: the file does not exist.
            DamagedFileError: the file cannot be read.
        """
        if not self.layout.metrics.exists():
            raise NotARunError(
                f"{self.layout.metrics} does not exist: `ava-pipeline train` writes it after an epoch. "
                f"For other runs, `ava-pipeline evaluate {self.layout.root}` computes the metrics."
            )
        return frame(read_csv(self.layout.metrics, RunTable.of(EPOCH_METRICS)))


def frame(rows: pa.Table) -> "pd.DataFrame":
    """Arrow rows as an Arrow-backed frame, since pandas' own floats do not tell nan from null."""
    import pandas as pd  # noqa: PLC0415  # takes half a second, and most readers need only Arrow

    return rows.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)
