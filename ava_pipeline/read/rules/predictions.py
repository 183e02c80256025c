"""One file of predictions: distributions and their means, a row an image."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.predictions import GT_COLUMNS, PRED_COLUMNS, SCORES
from ava_pipeline.read.arrays import floats, text
from ava_pipeline.read.rules.values import column_breaches
from ava_pipeline.read.violations import Breach, Cell, Rule
from ava_pipeline.read.window import Window

# What ten float32 shares, and shares rounded to four digits, are off by.
TOLERANCE = 1e-4

SUM = Rule("predictions.sum", "Ten shares add up to 1, to 1e-4.")
MEAN = Rule("predictions.mean", "A mean is the sum of k times the share of score k, to 1e-4.")
BOUNDS = Rule("predictions.bounds", "A mean lies between 1 and 10.")
UNIQUE = Rule("predictions.unique", "An image stands once in a file.")

RULES = (SUM, MEAN, BOUNDS, UNIQUE)

Floats = NDArray[np.float64]


def check(window: Window) -> Iterator[Breach]:
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
