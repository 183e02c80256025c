"""metrics.csv: its columns, its epochs, and its figures against the predictions."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.epoch_metrics import EPOCH_METRICS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.predictions import GT_COLUMNS, PRED_COLUMNS
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.metrics import prediction_metrics
from ava_pipeline.read.arrays import floats, integers
from ava_pipeline.read.inspected import Inspected
from ava_pipeline.read.prediction_files import PredictionFile, prediction_files
from ava_pipeline.read.prediction_rows import read_predictions
from ava_pipeline.read.rules.csv_file import read_csv_rows
from ava_pipeline.read.rules.files import relative
from ava_pipeline.read.rules.values import column_breaches
from ava_pipeline.read.violations import Breach, Cell, Rule
from ava_pipeline.read.window import Window

METRICS = RunTable.of(EPOCH_METRICS)

RELATIVE = 1e-6
# A correlation of about nothing has no digits to compare.
ABSOLUTE = 1e-9

ORDER = Rule("metrics.order", "metrics.csv has a row an epoch, from one row to the next an epoch more.")
MISMATCH = Rule("metrics.mismatch", "A figure of metrics.csv is what that epoch's predictions give, to 1e-6.")
PREDICTIONS = Rule("metrics.predictions", "Where predictions are saved, each epoch of metrics.csv has its file.")

RULES = (ORDER, MISMATCH, PREDICTIONS)


def check(run: Inspected) -> Iterator[Breach]:
    """Compare metrics.csv with its declaration and with the predictions."""
    if run.layout.metrics.exists():
        told: list[Breach] = []
        part = read_csv_rows(run.layout, run.layout.metrics, METRICS, is_open=run.is_open, take=told.append)
        yield from told
        yield from _of_rows(run.layout, part) if part is not None else ()


def _of_rows(layout: RunLayout, part: Window) -> Iterator[Breach]:
    yield from column_breaches(part)
    if part.rows.column("epoch").null_count:
        return
    epochs = integers(part.rows, "epoch")
    for row in (np.flatnonzero(np.diff(epochs) != 1) + 1).tolist():
        message = f"{epochs[row]} follows {epochs[row - 1]}."
        yield ORDER.found(part.file, Cell(message, "epoch", str(epochs[row])), row=row + 1)
    for row, epoch in enumerate(epochs.tolist()):
        yield from _of_epoch(layout, part, row, PredictionFile("val", epoch, layout.epoch_predictions(epoch)))


def _of_epoch(layout: RunLayout, part: Window, row: int, file: PredictionFile) -> Iterator[Breach]:
    if not file.path.exists():
        if any(other.name == file.name for other in prediction_files(layout)):
            message = f"{relative(layout, file.path)} is not there."
            yield PREDICTIONS.found(part.file, Cell(message, "epoch", str(file.epoch)), row=row + 1)
        return
    # What is wrong with the file itself is told by its own rules.
    predicted = read_predictions(layout, file, lambda _: None)
    if predicted is None:
        return
    for name, expected in _figures(predicted.rows).items():
        found = floats(part.rows, name)[row]
        if not np.isclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            message = f"{found:.9g}, but {predicted.name} gives {expected:.9g}."
            yield MISMATCH.found(part.file, Cell(message, name, f"{found:.9g}"), row=row + 1)


def _figures(rows: pa.Table) -> dict[str, float]:
    if not rows.num_rows:
        return {}
    pred, truth = (np.column_stack([floats(rows, name) for name in names]) for names in (PRED_COLUMNS, GT_COLUMNS))
    return asdict(prediction_metrics(pred, truth, floats(rows, "pred_mean"), floats(rows, "gt_mean")))
