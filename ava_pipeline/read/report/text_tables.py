"""Tables of text: the same as a plot in numbers, and what stands in the run's tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ava_pipeline.read.downsample import Floats
from ava_pipeline.read.report.drawn import TextTable, number
from ava_pipeline.read.report.seen import Seen
from ava_pipeline.read.report.series import Series

_MAX_ROWS = 20
_NUM_FIRST = 5
_MAX_TEXT = 200


def by_epoch(series: Sequence[Series]) -> TextTable:
    """Median, lowest and highest value of each series in each epoch, or in some epochs together where they are many."""
    columns = list(dict.fromkeys(one.column for one in series))
    runs = list(dict.fromkeys(one.run for one in series))
    rows = [row for run in runs for row in _rows_of([one for one in series if one.run == run], columns)]
    header = ["epochs", "batches", *(f"{column}: median (lowest to highest)" for column in columns)]
    return TextTable(["run", *header], rows) if len(runs) > 1 else TextTable(header, [row[1:] for row in rows])


def _rows_of(series: Sequence[Series], columns: Sequence[str]) -> list[list[str]]:
    """Rows of one run, whose series have the same batches in the same table."""
    found = {one.column: one for one in series}
    any_of_them = series[0]
    rows = []
    for part in _parts(any_of_them):
        epochs, batches = any_of_them.epochs[part], any_of_them.batches[part]
        told = [_told(found[column].values[part]) if column in found else "" for column in columns]
        rows.append([any_of_them.run, _range(epochs[0], epochs[-1]), _range(batches[0], batches[-1]), *told])
    return rows


def _parts(series: Series) -> list[slice]:
    """Rows of an epoch each; of several where there would be too many."""
    starts = np.flatnonzero(np.diff(series.epochs, prepend=-1))
    starts = starts[:: -(-len(starts) // _MAX_ROWS)]
    ends = [*starts[1:], len(series.epochs)]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def _told(values: Floats) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "–"  # noqa: RUF001  # a dash, on purpose
    return f"{number(np.median(finite))} ({number(finite.min())} to {number(finite.max())})"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def first_rows(seen: Seen) -> dict[str, TextTable]:
    """The first rows of each table, as its files have them, and of the predictions; null is empty."""
    found = {name: _first(rows) for name, rows in seen.tables.items()}
    if seen.predictions is not None:
        file, predicted = seen.predictions
        columns = {"image_id": predicted.image_ids, "pred_mean": predicted.pred_mean, "gt_mean": predicted.gt_mean}
        given: dict[str, Any] = {name: values for name, values in columns.items() if values is not None}
        found[file.path.name] = _first(pa.table(given))
    return found


def _first(rows: pa.Table) -> TextTable:
    columns = [[_text(value) for value in column.to_pylist()] for column in rows.slice(0, _NUM_FIRST).columns]
    return TextTable(rows.column_names, list(map(list, zip(*columns, strict=True))))


def _text(value: object) -> str:
    if value is None:
        return ""
    text = number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
