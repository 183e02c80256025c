"""The tables with one row per batch that two runs have, matched by batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ava_pipeline.compare.columns import ColumnComparison, compare_column
from ava_pipeline.compare.rows import Matched, match_rows
from ava_pipeline.contract.arrays import bool_array, integers, take_rows
from ava_pipeline.contract.builtin_tables import LEARNING_RATES, STEPS, WEIGHT_DELTAS
from ava_pipeline.contract.tables import BATCH

_EPOCH = "epoch"
_DISTANCE = "num_batches"  # of weight_deltas: over how many batches the weights moved
_EXACT_COLUMNS: Mapping[str, frozenset[str]] = {STEPS.name: frozenset({"loss_scale"})}
_ORDER = (LEARNING_RATES.name, STEPS.name)  # causes before effects; other tables follow by name


@dataclass(frozen=True, slots=True, kw_only=True)
class TableComparison:
    """A table with one row per batch.

    Attributes:
        name: the table.
        num_batches: batches that both runs recorded; only these are compared.
        first_batch: the first of them; None if there is none.
        last_batch: the last of them.
        num_only_a: batches that only run A recorded.
        num_only_b: batches that only run B recorded.
        num_other_distance: of `weight_deltas`, shared batches that are not compared, because the weights moved over
            another number of batches in each run.
        columns: the shared columns.
        columns_only_a: columns that only run A has.
        columns_only_b: columns that only run B has.
    """

    name: str
    num_batches: int
    first_batch: int | None
    last_batch: int | None
    num_only_a: int
    num_only_b: int
    num_other_distance: int = 0
    columns: tuple[ColumnComparison, ...]
    columns_only_a: tuple[str, ...]
    columns_only_b: tuple[str, ...]


def in_order(names: set[str]) -> list[str]:
    """Names of tables, causes before effects: the learning rates first."""
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def compare_table(name: str, a: pa.Table, b: pa.Table, *, with_epoch: bool) -> tuple[TableComparison, Matched]:
    """Compare a table of two runs, batch by batch.

    Args:
        name: the table.
        a: the rows of run A.
        b: the rows of run B.
        with_epoch: whether to compare the epoch of each batch too, which is the same in every table of a run.
    """
    matched = match_rows(a, b)
    rows_a, rows_b, batches = take_rows(a, matched.in_a), take_rows(b, matched.in_b), matched.batches
    num_other_distance = 0
    if name == WEIGHT_DELTAS.name and all(_DISTANCE in rows.column_names for rows in (a, b)):
        is_same = integers(rows_a, _DISTANCE) == integers(rows_b, _DISTANCE)
        num_other_distance = int(np.sum(~is_same))
        mask = bool_array(is_same)
        rows_a, rows_b, batches = rows_a.filter(mask), rows_b.filter(mask), batches[is_same]
    left_out = {BATCH} if with_epoch else {BATCH, _EPOCH}
    columns_a, columns_b = _comparable(a.schema, left_out), _comparable(b.schema, left_out)
    exact = _EXACT_COLUMNS.get(name, frozenset())
    comparisons = tuple(
        compare_column(
            column,
            batches,
            rows_a.column(column),
            rows_b.column(column),
            is_exact=name == LEARNING_RATES.name or column in exact,
        )
        for column in columns_a
        if column in columns_b
    )
    table = TableComparison(
        name=name,
        num_batches=matched.num_rows,
        first_batch=int(matched.batches[0]) if matched.num_rows else None,
        last_batch=int(matched.batches[-1]) if matched.num_rows else None,
        num_only_a=len(np.unique(integers(a, BATCH))) - matched.num_rows,
        num_only_b=len(np.unique(integers(b, BATCH))) - matched.num_rows,
        num_other_distance=num_other_distance,
        columns=comparisons,
        columns_only_a=tuple(column for column in columns_a if column not in columns_b),
        columns_only_b=tuple(column for column in columns_b if column not in columns_a),
    )
    return table, matched


def _comparable(schema: pa.Schema, left_out: set[str]) -> list[str]:
    """Every column but the batch and the times, which differ between any two runs."""
    return [field.name for field in schema if field.name not in left_out and not pa.types.is_timestamp(field.type)]
