"""Rules of metrics.csv: the order of its rows, and in runs of `ava-pipeline train` the predictions behind its values.

The columns of a run of `ava-pipeline train` are known, and so are the predictions that they are computed from. A loop
of the user's own may log whatever it measures.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import Integers, float_columns, integers
from ava_pipeline.contract.builtin_tables import GT_COLUMNS, PRED_COLUMNS, TRAIN_METRICS, metrics_table
from ava_pipeline.contract.layout import Moment, prediction_files
from ava_pipeline.contract.tables import BATCH, RunTable
from ava_pipeline.errors import MisuseError
from ava_pipeline.read.csv import first_columns
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun, Window
from ava_pipeline.validate.listing import Breach, Listing, Rule, relative
from ava_pipeline.validate.rules_files import COLUMNS, nullable
from ava_pipeline.validate.rules_values import check_columns
from ava_pipeline.validate.table_reader import CsvFile, read_through

ORDER = Rule("metrics.order", "metrics.csv has one row per epoch, each one epoch after the row before.")
ROWS = Rule("metrics.rows", "The epochs and batches of metrics.csv never go back, and no two rows have the same.")
MISMATCH = Rule("metrics.mismatch", "A value of metrics.csv is that of the epoch's predictions, to 1e-6.")
PREDICTIONS = Rule("metrics.predictions", "If predictions are saved, each epoch of metrics.csv has its file.")

# A correlation near 0 has no digits to compare.
RELATIVE = 1e-6
ABSOLUTE = 1e-9


def read_metrics(path: Path, listing: Listing, *, is_open: bool, is_of_train: bool) -> Window | None:
    """Read metrics.csv, and check its values and the order of its rows; None if it cannot be used, which is listed.

    If the run is open, the last line may be unfinished.
    """
    name, columns = path.name, first_columns(path)
    try:
        declaration = RunTable.of(TRAIN_METRICS) if is_of_train else metrics_table(columns)
    except MisuseError as error:
        listing.line_numbers(name)  # the header is line 1
        listing.add(COLUMNS.broken(name, str(error), row=0))
        return None
    tables = [pa.Table.from_batches([], nullable(declaration.arrow_schema))]
    reader = CsvFile(name, path, declaration, listing, is_open=is_open)

    def keep(window: Window) -> Iterable[Breach]:
        tables.append(window.rows)
        return ()

    checks = [check_columns, _RowOrder(is_of_train=is_of_train).check, keep]
    checked = read_through(CheckedFile(name, declaration), path, reader.tables(), checks, listing)
    return None if checked is None else CheckedFile(name, declaration).append(pa.concat_tables(tables))


def check_run(run: CheckedRun) -> Iterator[Breach]:
    """Epochs of metrics.csv without predictions, if a run of `ava-pipeline train` has any."""
    present = {file.epoch for file in prediction_files(run.layout) if file.name == "val" and file.is_of_epoch}
    if not run.is_of_train or run.metrics is None or not present:
        return
    for row, epoch in enumerate(epochs_of(run.metrics).tolist(), start=1):
        if epoch not in present:
            message = f"expected {relative(run.layout, run.layout.epoch_predictions(epoch))}, which is missing."
            yield PREDICTIONS.broken(run.metrics.file, message, row=row, column="epoch", value=str(epoch))


def epochs_of(metrics: Window | None) -> Integers:
    """The epochs of metrics.csv [rows]; none if it cannot be read or one of them is null, which other rules report."""
    if metrics is None or metrics.rows.column("epoch").null_count:
        return np.empty(0, np.int64)
    return integers(metrics.rows, "epoch")


class _RowOrder:
    """Checks the order of the rows of one metrics.csv, window by window."""

    def __init__(self, *, is_of_train: bool) -> None:
        self._is_of_train = is_of_train
        self._last: Moment | None = None
        self._last_batch = 0

    def check(self, window: Window) -> Iterator[Breach]:
        """Rows that do not follow the row before; a row without an epoch breaks another rule."""
        epochs = window.rows.column("epoch").to_pylist()
        has_batches = BATCH in window.rows.column_names
        batches = window.rows.column(BATCH).to_pylist() if has_batches else [None] * len(epochs)
        for row, (epoch, batch_idx) in enumerate(zip(epochs, batches, strict=True), window.start + 1):
            if epoch is None:
                self._last = None  # the next row has nothing to follow
                continue
            moment = Moment(epoch, batch_idx)
            if self._last is not None:
                yield from self._check(window.file, row, moment, self._last)
            self._last, self._last_batch = moment, max(self._last_batch, moment.batch_idx or 0)

    def _check(self, file: str, row: int, moment: Moment, last: Moment) -> Iterator[Breach]:
        if self._is_of_train:
            if moment.epoch != last.epoch + 1:
                message = f"expected epoch {last.epoch + 1}, got {moment.epoch}."
                yield ORDER.broken(file, message, row=row, column="epoch", value=str(moment.epoch))
        elif moment.order <= last.order:
            message = f"expected a row after {last}, got {moment}."
            yield ROWS.broken(file, message, row=row, column="epoch", value=str(moment.epoch))
        elif moment.batch_idx is not None and moment.batch_idx <= self._last_batch:
            message = f"expected a batch after {self._last_batch}, which an earlier row has, got {moment.batch_idx}."
            yield ROWS.broken(file, message, row=row, column=BATCH, value=str(moment.batch_idx))


def check_predictions(metrics: Window, predictions: Window, epoch: int) -> Iterator[Breach]:
    """The row of an epoch against the predictions at its end, in a run of `ava-pipeline train`."""
    if not predictions.rows.num_rows:
        return
    name = predictions.file.rpartition("/")[2]
    for row in np.flatnonzero(epochs_of(metrics) == epoch).tolist():
        for column, expected in _expected_metrics(predictions.rows).items():
            value = metrics.rows.column(column)[row].as_py()
            found = np.nan if value is None else float(value)
            if not np.isclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
                message = f"expected {expected:.9g}, computed from {name}, got {found:.9g}."
                yield MISMATCH.broken(metrics.file, message, row=row + 1, column=column, value=f"{found:.9g}")


def _expected_metrics(rows: pa.Table) -> dict[str, float]:
    from ava_pipeline.metrics import prediction_metrics  # noqa: PLC0415  # only runs of the training job come here

    values = float_columns(rows, ["pred_mean", "gt_mean", *PRED_COLUMNS, *GT_COLUMNS])
    pred, truth = (np.column_stack([values[name] for name in names]) for names in (PRED_COLUMNS, GT_COLUMNS))
    return asdict(prediction_metrics(pred, truth, values["pred_mean"], values["gt_mean"]))
