"""Rules of predictions: distributions and means, the same images every epoch, and the metrics of them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ava_pipeline.contract.builtin_tables import EPOCH_METRICS
from ava_pipeline.contract.layout import PredictionFile, RunLayout, prediction_files
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.contract.predictions import GT_COLUMNS, PRED_COLUMNS, PREDICTIONS, SCORES, predictions_schema
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.metrics import prediction_metrics
from ava_pipeline.read.arrays import differing, floats, integers, text
from ava_pipeline.validate.checked_run import CheckedRun
from ava_pipeline.validate.csv_windows import read_csv_rows
from ava_pipeline.validate.rules_files import UNREADABLE, Take, fitted, relative, without_path
from ava_pipeline.validate.rules_values import column_breaches
from ava_pipeline.validate.violations import Breach, Cell, Rule
from ava_pipeline.validate.windows import Window

_INTEGER_IDS = RunTable.of(PREDICTIONS)
_TEXT_IDS = RunTable.of(
    PREDICTIONS.model_copy(
        update={"columns": (PREDICTIONS.columns[0].model_copy(update={"dtype": "string"}), *PREDICTIONS.columns[1:])}
    )
)


def read_predictions(layout: RunLayout, file: PredictionFile, take: Take) -> Window | None:
    """Read a file of predictions; what makes it unusable is told to `take`."""
    name = relative(layout, file.path)
    try:
        rows = read_parquet(file.path)
    except DamagedFileError as error:
        take(UNREADABLE.found(name, without_path(error, file.path)))
        return None
    declaration = _TEXT_IDS if _has_text_ids(rows) else _INTEGER_IDS
    usable = fitted(rows, predictions_schema(integer_ids=declaration is _INTEGER_IDS), name, take)
    return None if usable is None else Window(name, declaration, usable)


def _has_text_ids(rows: pa.Table) -> bool:
    return "image_id" in rows.column_names and pa.types.is_string(rows.schema.field("image_id").type)


# What ten float32 shares, and shares rounded to four digits, are off by.
TOLERANCE = 1e-4

SUM = Rule("predictions.sum", "Ten shares add up to 1, to 1e-4.")
MEAN = Rule("predictions.mean", "A mean is the sum of k times the share of score k, to 1e-4.")
BOUNDS = Rule("predictions.bounds", "A mean lies between 1 and 10.")
UNIQUE = Rule("predictions.unique", "An image stands once in a file.")

PREDICTION_RULES = (SUM, MEAN, BOUNDS, UNIQUE)

Floats = NDArray[np.float64]


def check_predictions(window: Window) -> Iterator[Breach]:
    """The values of one file."""
    yield from column_breaches(window)
    yield from _distribution(window, "pred_mean", PRED_COLUMNS)
    yield from _distribution(window, "gt_mean", GT_COLUMNS)
    yield from _twice(window)


def _distribution(window: Window, mean_name: str, columns: Sequence[str]) -> Iterator[Breach]:
    shares = np.column_stack([floats(window.rows, name) for name in columns])
    total, expected, mean = shares.sum(axis=1), shares @ np.asarray(SCORES, np.float64), floats(window.rows, mean_name)
    not_one = ~(np.abs(total - 1) <= TOLERANCE)
    # Shares that do not add up to 1 have no mean to compare with.
    other_mean = ~not_one & ~(np.abs(mean - expected) <= TOLERANCE)
    whole = f"{columns[0]}..{columns[-1]}"
    yield from window.breaches(SUM, not_one, partial(_cell, "the shares add up to {:.9g}, not to 1.", whole, total))
    yield from window.breaches(MEAN, other_mean, partial(_mean_cell, mean_name, mean, expected))
    outside = ~((mean >= SCORES[0]) & (mean <= SCORES[-1]))
    yield from window.breaches(BOUNDS, outside, partial(_cell, "{:.9g} is no score from 1 to 10.", mean_name, mean))


def _cell(message: str, column: str, values: Floats, row: int) -> Cell:
    return Cell(message.format(values[row]), column, f"{values[row]:.9g}")


def _mean_cell(column: str, means: Floats, expected: Floats, row: int) -> Cell:
    message = f"{means[row]:.9g}, but its distribution's mean is {expected[row]:.9g}."
    return Cell(message, column, f"{means[row]:.9g}")


def _twice(window: Window) -> Iterator[Breach]:
    codes = window.rows.column("image_id").combine_chunks().dictionary_encode().indices
    _, first = np.unique(np.asarray(codes.fill_null(-1)), return_index=True)
    again = np.ones(window.rows.num_rows, dtype=np.bool_)
    again[first] = False
    yield from window.breaches(UNIQUE, again, partial(_again, window.rows))


def _again(rows: pa.Table, row: int) -> Cell:
    value = text(rows, "image_id", row)
    return Cell(f"image {value} stands in an earlier row already.", "image_id", value)


IDS = Rule("predictions.ids", "Every epoch of a set predicts the same images.")
TRUTH = Rule("predictions.truth", "An image's true votes are the same every epoch.")
EPOCH = Rule("predictions.epoch", "A set's epochs follow each other without one left out.", "warning")

EPOCH_RULES = (IDS, TRUTH, EPOCH)


def check_epochs(run: CheckedRun) -> Iterator[Breach]:
    """Read every file of predictions once; each is compared with its set's first."""
    for _, files in groupby(prediction_files(run.layout), key=lambda file: file.name):
        yield from _of_set(run.layout, list(files))


def _of_set(layout: RunLayout, files: Sequence[PredictionFile]) -> Iterator[Breach]:
    yield from _left_out(layout, files)
    first: Window | None = None
    for file in files:
        told: list[Breach] = []
        part = read_predictions(layout, file, told.append)
        yield from told
        if part is not None:
            yield from check_predictions(part)
            yield from _compared(part, first) if first is not None else ()
            first = first or part


def _left_out(layout: RunLayout, files: Sequence[PredictionFile]) -> Iterator[Breach]:
    present = {file.epoch for file in files}
    for epoch in sorted(set(range(max(present))) - present):
        path = layout.epoch_predictions(epoch, files[0].name)
        yield EPOCH.found(relative(layout, path), "the file is not there, though a later epoch's is.")


def _compared(part: Window, first: Window) -> Iterator[Breach]:
    ids, first_ids = part.rows.column("image_id"), first.rows.column("image_id")
    if ids.type != first_ids.type:
        yield IDS.found(part.file, Cell(f"ids are {ids.type}, in {first.name} {first_ids.type}.", "image_id"))
        return
    yield from _strange(part, first)
    lost = np.flatnonzero(np.asarray(pc.is_in(first_ids, ids)) == 0)
    if len(lost):
        one = text(first.rows, "image_id", int(lost[0]))
        message = f"{len(lost)} images of {first.name} are missing, such as {one}."
        yield IDS.found(part.file, Cell(message, "image_id", one))
    yield from _other_truth(part, first)


def _strange(part: Window, first: Window) -> Iterator[Breach]:
    known = np.asarray(pc.is_in(part.rows.column("image_id"), first.rows.column("image_id")))
    if not known.all():
        yield IDS.at(part.file, np.flatnonzero(~known), _Image(f"image {{}} is not in {first.name}.", part))


@dataclass(frozen=True, slots=True)
class _Image:
    """A sentence about a row's image."""

    message: str
    part: Window
    column: str = "image_id"

    def __call__(self, row: int) -> Cell:
        value = text(self.part.rows, self.column, row)
        return Cell(self.message.format(text(self.part.rows, "image_id", row)), self.column, value)


def _other_truth(part: Window, first: Window) -> Iterator[Breach]:
    here, there = _shared(part, first)
    rows, others = part.rows.take(here), first.rows.take(there)
    for name in ("gt_mean", *GT_COLUMNS):
        other = np.flatnonzero(differing(rows.column(name), others.column(name)))
        if len(other):
            message = f"image {{}} has another true value in {first.name}."
            yield TRUTH.at(part.file, here[other], _Image(message, part, name))


def _shared(part: Window, first: Window) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the images that both files hold."""
    found = pc.index_in(part.rows.column("image_id"), first.rows.column("image_id").combine_chunks())
    positions = np.asarray(found.fill_null(-1).to_numpy(), dtype=np.intp)
    here = np.flatnonzero(positions >= 0)
    return here, positions[here]


METRICS = RunTable.of(EPOCH_METRICS)

RELATIVE = 1e-6
# A correlation of about nothing has no digits to compare.
ABSOLUTE = 1e-9

METRIC_ORDER = Rule("metrics.order", "metrics.csv has a row an epoch, from one row to the next an epoch more.")
METRIC_MISMATCH = Rule("metrics.mismatch", "A figure of metrics.csv is what that epoch's predictions give, to 1e-6.")
PREDICTIONS_MISSING = Rule(
    "metrics.predictions", "Where predictions are saved, each epoch of metrics.csv has its file."
)

METRIC_RULES = (METRIC_ORDER, METRIC_MISMATCH, PREDICTIONS_MISSING)


def check_metrics(run: CheckedRun) -> Iterator[Breach]:
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
        yield METRIC_ORDER.found(part.file, Cell(message, "epoch", str(epochs[row])), row=row + 1)
    for row, epoch in enumerate(epochs.tolist()):
        yield from _of_epoch(layout, part, row, PredictionFile("val", epoch, layout.epoch_predictions(epoch)))


def _of_epoch(layout: RunLayout, part: Window, row: int, file: PredictionFile) -> Iterator[Breach]:
    if not file.path.exists():
        if any(other.name == file.name for other in prediction_files(layout)):
            message = f"{relative(layout, file.path)} is not there."
            yield PREDICTIONS_MISSING.found(part.file, Cell(message, "epoch", str(file.epoch)), row=row + 1)
        return
    # What is wrong with the file itself is told by its own rules.
    predicted = read_predictions(layout, file, lambda _: None)
    if predicted is None:
        return
    for name, expected in _expected_metrics(predicted.rows).items():
        found = floats(part.rows, name)[row]
        if not np.isclose(found, expected, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            message = f"{found:.9g}, but {predicted.name} gives {expected:.9g}."
            yield METRIC_MISMATCH.found(part.file, Cell(message, name, f"{found:.9g}"), row=row + 1)


def _expected_metrics(rows: pa.Table) -> dict[str, float]:
    if not rows.num_rows:
        return {}
    pred, truth = (np.column_stack([floats(rows, name) for name in names]) for names in (PRED_COLUMNS, GT_COLUMNS))
    return asdict(prediction_metrics(pred, truth, floats(rows, "pred_mean"), floats(rows, "gt_mean")))
