"""Rows of two runs that belong together: those of the same batch, and of the same ids in it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import Integers, integers, numpy_values
from ava_pipeline.contract.tables import BATCH


class Matched(NamedTuple):
    """The rows that both runs have, by batch.

    Attributes:
        batches: [rows] the shared batches, in order; one of a long table is repeated for each of its rows.
        keys: [rows] which of `names` each row belongs to; zeros if rows are matched by batch alone.
        names: the ids of each key, as texts.
        in_a: [rows] positions in the table of A.
        in_b: [rows] positions in the table of B.
        num_twice_in_a: rows of A whose batch and ids an earlier row of A has; they are left out.
        num_twice_in_b: those of B.
    """

    batches: Integers
    keys: Integers
    names: tuple[tuple[str, ...], ...]
    in_a: Integers
    in_b: Integers
    num_twice_in_a: int
    num_twice_in_b: int

    @property
    def num_rows(self) -> int:
        """The rows that both have."""
        return len(self.batches)


def match_rows(a: pa.Table, b: pa.Table, key: Sequence[str] = ()) -> Matched:
    """Match the rows of two tables by batch, and by the texts of the columns `key`."""
    names, keys_a, keys_b = _keys(a, b, key)
    batches = np.concatenate([integers(a, BATCH), integers(b, BATCH)])
    known, places = np.unique(batches, return_inverse=True)
    num_names = max(1, len(names))
    rows = places.reshape(-1) * num_names + np.concatenate([keys_a, keys_b])
    rows_a, rows_b = rows[: a.num_rows], rows[a.num_rows :]
    shared, in_a, in_b = np.intersect1d(rows_a, rows_b, return_indices=True)
    return Matched(
        batches=known[shared // num_names] if len(shared) else np.zeros(0, np.int64),
        keys=shared % num_names,
        names=names,
        in_a=in_a,
        in_b=in_b,
        num_twice_in_a=len(rows_a) - len(np.unique(rows_a)),
        num_twice_in_b=len(rows_b) - len(np.unique(rows_b)),
    )


def _keys(a: pa.Table, b: pa.Table, key: Sequence[str]) -> tuple[tuple[tuple[str, ...], ...], Integers, Integers]:
    """The distinct keys of both tables, and the key of each row of A and of B."""
    num_rows = a.num_rows + b.num_rows
    codes: Integers = np.zeros(num_rows, np.int64)
    parts: list[list[str]] = []
    for name in key:
        both = pa.chunked_array([*_texts(a, name).chunks, *_texts(b, name).chunks], pa.string())
        encoded: Any = both.combine_chunks().dictionary_encode(null_encoding="encode")
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        texts = [str(text) for text in encoded.dictionary.to_pylist()]
        indices = numpy_values(encoded.indices).astype(np.int64)
        parts.append(texts)
        codes = codes * max(1, len(texts)) + indices
    if not parts:
        return (), codes[: a.num_rows], codes[a.num_rows :]
    distinct, places = np.unique(codes, return_inverse=True)
    places = places.reshape(-1)
    names = tuple(_name(int(code), parts) for code in distinct)
    return names, places[: a.num_rows], places[a.num_rows :]


def _name(code: int, parts: Sequence[Sequence[str]]) -> tuple[str, ...]:
    name = []
    for texts in reversed(parts):
        code, place = divmod(code, len(texts))
        name.append(texts[place])
    return tuple(reversed(name))


def _texts(rows: pa.Table, name: str) -> "pa.ChunkedArray[Any]":
    """Ids as texts, so that 953619 and "953619" are the same image."""
    column: pa.ChunkedArray[Any] = rows.column(name).cast(pa.string())
    return column
