"""The gradient norms of every layer and batch, gathered into as many columns as a picture needs while rows come in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.arrays import BatchIndices, Floats, Integers, integers, null_mask, numpy_values
from ava_pipeline.contract.builtin_tables import PER_LAYER_STATS

LAYER_COLUMNS = ("batch_idx", PER_LAYER_STATS.row_key[0], "grad_norm")
MAX_LAYERS = 1000
MAX_COLUMNS = 256

_POSITIVE, _ZERO, _NOT_FINITE = range(3)  # what is counted of a cell


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorms:
    """The gradient norm of each layer over the batches, one column for one or several batches.

    A cell of several batches is the geometric mean of the norms above 0. It is 0 only if every norm that was measured
    there is 0, inf if any is nan or inf, and nan if none was measured.
    """

    layers: Sequence[str]  # in the order of the model
    num_left_out: int  # layers beyond `MAX_LAYERS`
    starts: BatchIndices  # [columns] the first batch of each column
    last_batch: int
    batches_per_column: int  # collected batches; the last column may have fewer
    sums: Floats  # [layers, columns] of the logarithms of the norms above 0
    counts: Integers  # [3, layers, columns] of norms above 0, norms that are 0, and norms that are not finite

    def norms(self) -> Floats:
        """The cells [layers, columns]."""
        positive, zero, not_finite = self.counts
        found = np.where(zero > 0, 0.0, np.nan)
        mean = np.exp(np.divide(self.sums, positive, out=np.zeros_like(self.sums), where=positive > 0))
        found = np.where(positive > 0, mean, found)
        return np.where(not_finite > 0, np.inf, found)

    def reduced(self, most: int) -> "LayerNorms":
        """The same with at most `most` columns, made of neighbouring ones."""
        found = self
        while len(found.starts) > max(1, most):
            found = LayerNorms(
                layers=found.layers,
                num_left_out=found.num_left_out,
                starts=found.starts[::2],
                last_batch=found.last_batch,
                batches_per_column=2 * found.batches_per_column,
                sums=_paired(found.sums),
                counts=_paired(found.counts),
            )
        return found


def layer_norms(parts: Iterable[pa.RecordBatch]) -> LayerNorms | None:
    """Gather the rows of `per_layer_stats`, with `LAYER_COLUMNS`; None if no gradient norm was measured.

    Rows of an earlier batch than the rows before are left out. Memory does not grow with the number of rows.
    """
    gathering = _Gathering()
    for part in parts:
        if part.num_rows:
            gathering.add(part)
    return gathering.result()


class _Gathering:
    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._left_out: set[str] = set()
        self._starts: list[int] = []  # the first batch of each column
        self._num_batches = 0
        self._last_batch = -1
        self._width = 1
        self._sums: Floats = np.zeros((0, MAX_COLUMNS))
        self._counts: Integers = np.zeros((3, 0, MAX_COLUMNS), dtype=np.int64)

    def add(self, rows: pa.RecordBatch) -> None:
        batches = integers(rows, "batch_idx")
        highest = np.maximum.accumulate(np.maximum(batches, self._last_batch))
        is_new = np.diff(highest, prepend=self._last_batch) > 0
        ordinals = self._num_batches - 1 + np.cumsum(is_new)
        self._add_columns(highest[is_new])
        layers = self._layers(rows.column(LAYER_COLUMNS[1]))
        norms = rows.column("grad_norm")
        values = numpy_values(norms).astype(np.float64)
        is_kept = ~null_mask(norms) & (batches == highest) & (layers >= 0)
        cells = layers[is_kept], ordinals[is_kept] // self._width
        self._count(cells, values[is_kept])

    def _add_columns(self, batches: BatchIndices) -> None:
        """Columns for batches that are new; while they are too many, two neighbours become one."""
        for batch_idx in batches.tolist():
            if self._num_batches % self._width == 0:
                self._starts.append(batch_idx)
            self._num_batches += 1
            self._last_batch = batch_idx
        while len(self._starts) > MAX_COLUMNS:
            self._width *= 2
            self._starts = self._starts[::2]
            self._sums, self._counts = (_widened(_paired(one)) for one in (self._sums, self._counts))

    def _layers(self, names: "pa.Array[Any]") -> NDArray[np.int64]:
        """The place of each row's layer [rows]; -1 if there are too many, or it has no name."""
        encoded: Any = names.dictionary_encode()
        known = [self._place(name) for name in encoded.dictionary.to_pylist()]
        if len(self._places) > len(self._sums):
            more = len(self._places) - len(self._sums)
            self._sums = np.concatenate([self._sums, np.zeros((more, MAX_COLUMNS))])
            self._counts = np.concatenate([self._counts, np.zeros((3, more, MAX_COLUMNS), dtype=np.int64)], axis=1)
        places = np.asarray([*known, -1], dtype=np.int64)
        indices = numpy_values(encoded.indices).astype(np.int64)
        return places[np.where(null_mask(encoded.indices), len(known), indices)]

    def _place(self, name: str) -> int:
        if name not in self._places:
            if len(self._places) >= MAX_LAYERS:
                if len(self._left_out) < MAX_LAYERS:
                    self._left_out.add(name)
                return -1
            self._places[name] = len(self._places)
        return self._places[name]

    def _count(self, cells: tuple[Integers, Integers], values: Floats) -> None:
        is_finite = np.isfinite(values)
        kinds = np.where(~is_finite, _NOT_FINITE, np.where(values > 0, _POSITIVE, _ZERO))
        np.add.at(self._counts, (kinds, *cells), 1)
        is_positive = kinds == _POSITIVE
        np.add.at(self._sums, tuple(one[is_positive] for one in cells), np.log(values[is_positive]))

    def result(self) -> LayerNorms | None:
        if not self._counts.any():
            return None
        num_columns = len(self._starts)
        return LayerNorms(
            layers=list(self._places),
            num_left_out=len(self._left_out),
            starts=np.asarray(self._starts, dtype=np.int64),
            last_batch=self._last_batch,
            batches_per_column=self._width,
            sums=self._sums[:, :num_columns],
            counts=self._counts[..., :num_columns],
        )


def _paired(cells: NDArray[Any]) -> NDArray[Any]:
    """Each two neighbouring columns added up; a last one without a neighbour stays."""
    return np.asarray(np.add.reduceat(cells, np.arange(0, cells.shape[-1], 2), axis=-1))


def _widened(cells: NDArray[Any]) -> NDArray[Any]:
    """With empty columns up to `MAX_COLUMNS`."""
    missing = MAX_COLUMNS - cells.shape[-1]
    return np.pad(cells, [(0, 0)] * (cells.ndim - 1) + [(0, missing)])
