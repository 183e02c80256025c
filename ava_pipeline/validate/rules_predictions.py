"""Rules of predictions: distributions and means, and the same images and votes every epoch."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ava_pipeline.contract.arrays import (
    Floats,
    bools,
    cell_text,
    differing,
    float_columns,
    null_mask,
    numpy_values,
    take_rows,
)
from ava_pipeline.contract.builtin_tables import GT_COLUMNS, PRED_COLUMNS, PREDICTIONS, SCORES
from ava_pipeline.contract.layout import PredictionFile, RunLayout, prediction_files
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.validate import rules_metrics
from ava_pipeline.validate.checked_run import CheckedFile, CheckedRun, Window
from ava_pipeline.validate.listing import AddBreach, Breach, Cell, Rule, relative, without_path
from ava_pipeline.validate.rules_files import UNREADABLE, cast_rows
from ava_pipeline.validate.rules_values import check_columns

SUM = Rule("predictions.sum", "Ten shares add up to 1, to 1e-4.")
MEAN = Rule("predictions.mean", "A mean is the sum of k times the share of score k, to 1e-4.")
BOUNDS = Rule("predictions.bounds", "A mean is between 1 and 10.")
UNIQUE = Rule("predictions.unique", "An image has one row in a file.")
IDS = Rule("predictions.ids", "Every epoch of a set predicts the same images, and so do the batches of a set.")
TRUTH = Rule("predictions.truth", "An image's true votes are the same in every epoch, and after every batch.")
EPOCH = Rule(
    "predictions.epoch",
    "In a run of ava-pipeline train, the epochs of a set follow each other without a gap.",
    "warning",
)

# The error of ten float32 shares, and of shares rounded to four digits.
TOLERANCE = 1e-4

_INTEGER_IDS = RunTable.of(PREDICTIONS)
_TEXT_IDS = RunTable.of(
    PREDICTIONS.model_copy(
        update={"columns": (PREDICTIONS.columns[0].model_copy(update={"dtype": "string"}), *PREDICTIONS.columns[1:])}
    )
)


def check_run(run: CheckedRun) -> Iterator[Breach]:
    """Every file of predictions, which is read once; those of the set `val` also against metrics.csv.

    A model may be validated after single batches on other images than at the end of an epoch.
    """
    for _, group in groupby(prediction_files(run.layout), key=lambda file: file.name):
        files = list(group)
        of_epochs = [file for file in files if file.is_of_epoch]
        if run.is_of_train and of_epochs:
            yield from _skipped_epochs(run.layout, of_epochs)
        yield from _check_set(run, of_epochs)
        yield from _check_set(run, [file for file in files if not file.is_of_epoch])


def read_predictions(layout: RunLayout, file: PredictionFile, add: AddBreach) -> Window | None:
    """Read a file of predictions; None if it cannot be used, which is reported."""
    name = relative(layout, file.path)
    try:
        rows = read_parquet(file.path)
    except DamagedFileError as error:
        add(UNREADABLE.broken(name, without_path(error, file.path)))
        return None
    has_text_ids = "image_id" in rows.column_names and pa.types.is_string(rows.schema.field("image_id").type)
    declaration = _TEXT_IDS if has_text_ids else _INTEGER_IDS
    cast = cast_rows(rows, declaration, name, add)
    return None if cast is None else CheckedFile(name, declaration).append(cast)


def check_rows(window: Window) -> Iterator[Breach]:
    """The values of one file."""
    yield from check_columns(window)
    values = float_columns(window.rows, ["pred_mean", "gt_mean", *PRED_COLUMNS, *GT_COLUMNS])
    for mean, shares in (("pred_mean", PRED_COLUMNS), ("gt_mean", GT_COLUMNS)):
        yield from check_distribution(
            window, mean, values[mean], shares, np.column_stack([values[name] for name in shares])
        )
    yield from check_unique(window)


def check_distribution(
    window: Window, mean_column: str, mean: Floats, columns: Sequence[str], shares: Floats
) -> Iterator[Breach]:
    """Shares [rows, 10] that do not add up to 1, and means [rows] that are not theirs or not scores."""
    total, expected = shares.sum(axis=1), shares @ np.asarray(SCORES, np.float64)
    has_other_sum = ~(np.abs(total - 1) <= TOLERANCE)
    # Shares that do not add up to 1 have no mean to compare with.
    has_other_mean = ~has_other_sum & ~(np.abs(mean - expected) <= TOLERANCE)
    is_outside = ~((mean >= SCORES[0]) & (mean <= SCORES[-1]))
    if not (has_other_sum | has_other_mean | is_outside).any():
        return
    all_columns = f"{columns[0]}..{columns[-1]}"

    def explain_sum(row: int) -> Cell:
        return Cell(f"expected shares that add up to 1, got {total[row]:.9g}.", all_columns, f"{total[row]:.9g}")

    def explain_mean(row: int) -> Cell:
        message = f"expected {expected[row]:.9g}, the mean of the distribution, got {mean[row]:.9g}."
        return Cell(message, mean_column, f"{mean[row]:.9g}")

    def explain_bounds(row: int) -> Cell:
        return Cell(f"expected a score from 1 to 10, got {mean[row]:.9g}.", mean_column, f"{mean[row]:.9g}")

    yield from window.breaches(SUM, has_other_sum, explain_sum)
    yield from window.breaches(MEAN, has_other_mean, explain_mean)
    yield from window.breaches(BOUNDS, is_outside, explain_bounds)


def check_unique(window: Window) -> Iterator[Breach]:
    """Images that have more than one row."""
    codes = window.rows.column("image_id").combine_chunks().dictionary_encode("encode").indices
    _, first = np.unique(numpy_values(codes), return_index=True)
    is_repeated = np.ones(window.rows.num_rows, dtype=np.bool_)
    is_repeated[first] = False
    if is_repeated.any():
        explain = partial(_image_cell, window, message="image {} has an earlier row already.")
        yield from window.breaches(UNIQUE, is_repeated, explain)


def _image_cell(window: Window, row: int, message: str, column: str = "image_id") -> Cell:
    return Cell(message.format(cell_text(window.rows, "image_id", row)), column, cell_text(window.rows, column, row))


def _skipped_epochs(layout: RunLayout, files: Sequence[PredictionFile]) -> Iterator[Breach]:
    present = {file.epoch for file in files}
    for epoch in sorted(set(range(max(present))) - present):
        path = layout.epoch_predictions(epoch, files[0].name)
        yield EPOCH.broken(relative(layout, path), "the file is missing, although a later epoch has one.")


def _check_set(run: CheckedRun, files: Sequence[PredictionFile]) -> Iterator[Breach]:
    """Each file alone, against the set's first readable file, and against metrics.csv."""
    first: Window | None = None
    for file in files:
        problems: list[Breach] = []
        window = read_predictions(run.layout, file, problems.append)
        yield from problems
        if window is None:
            continue
        yield from check_rows(window)
        if first is not None:
            yield from _compare(window, first)
        if run.is_of_train and run.metrics is not None and file.name == "val" and file.is_of_epoch:
            yield from rules_metrics.check_predictions(run.metrics, window, file.epoch)
        first = first or window


def _compare(window: Window, first: Window) -> Iterator[Breach]:
    """The images and true values of a file against those of the set's first file."""
    other = first.file.rpartition("/")[2]
    ids, first_ids = window.rows.column("image_id"), first.rows.column("image_id")
    if ids.type != first_ids.type:
        message = f"expected {first_ids.type}, as in {other}, got {ids.type}."
        yield IDS.broken(window.file, message, column="image_id", value=str(ids.type))
        return
    is_known = bools(pc.is_in(ids, first_ids))
    explain = partial(_image_cell, window, message=f"expected the images of {other}, which has no image {{}}.")
    yield from window.breaches(IDS, ~is_known, explain)
    missing = np.flatnonzero(~bools(pc.is_in(first_ids, ids)))
    if len(missing):
        image = cell_text(first.rows, "image_id", int(missing[0]))
        message = f"expected the images of {other}; {len(missing)} are missing, such as {image}."
        yield IDS.broken(window.file, message, column="image_id", value=image)
    yield from _compare_truth(window, first, other)


def _compare_truth(window: Window, first: Window, other: str) -> Iterator[Breach]:
    positions = pc.index_in(window.rows.column("image_id"), first.rows.column("image_id").combine_chunks())
    there = np.where(null_mask(positions), -1, numpy_values(positions))
    here = np.flatnonzero(there >= 0)
    names = ["gt_mean", *GT_COLUMNS]
    rows, others = (take_rows(part.rows.select(names), found) for part, found in ((window, here), (first, there[here])))
    message = f"expected the true value that image {{}} has in {other}, got another one."
    for name, is_different in differing(rows, others).items():
        is_broken = np.zeros(window.rows.num_rows, dtype=np.bool_)
        is_broken[here] = is_different
        if is_different.any():
            explain = partial(_image_cell, window, message=message, column=name)
            yield from window.breaches(TRUTH, is_broken, explain)
