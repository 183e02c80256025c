"""Values keep the rules of their columns: found by columns, explained by the row model."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.tables import Column, RunTable
from ava_pipeline.read.arrays import Bools, floats, nulls, text
from ava_pipeline.read.violations import Breach, Cell, Rule
from ava_pipeline.read.window import Window

NULL = Rule("values.null", "A value is only missing where its column allows it.")
RANGE = Rule("values.range", "A number is not below the least that its column allows.")
CHOICE = Rule("values.choice", "A word is one of those that its column allows.")
FINITE = Rule("rates.finite", "A learning rate is a finite number.")
ENDS = Rule("events.range", "An event ends at or behind the batch it begins at.")

RULES = (NULL, RANGE, CHOICE, FINITE, ENDS)


def check_window(window: Window) -> Iterator[Breach]:
    """Every value of a table's rows, whichever table it is."""
    yield from column_breaches(window)
    name = window.declaration.table.name
    if name == "learning_rates":
        yield from _not_finite(window)
    if name == EVENTS.name:
        yield from _backward_events(window)


def column_breaches(window: Window) -> Iterator[Breach]:
    """Values that break a rule of their column."""
    for column in window.declaration.columns:
        explain = _Explain(window.declaration, window.rows, column.name)
        for rule, broken in _broken(column, window.rows):
            yield from window.breaches(rule, broken, explain)
        if not column.nullable and window.rows.column(column.name).null_count:
            is_null = nulls(window.rows.column(column.name))
            yield from _told(NULL, window, column.name, is_null, "is missing; every row has a value here.")


def _broken(column: Column, rows: pa.Table) -> Iterator[tuple[Rule, Bools]]:
    values = rows.column(column.name)
    if column.not_below is not None:
        yield RANGE, floats(rows, column.name) < column.not_below
    if column.one_of is not None:
        known = pc.is_in(values, pa.array(column.one_of, values.type))
        yield CHOICE, ~np.asarray(known.to_numpy(), dtype=np.bool_) & ~nulls(values)


@dataclass(frozen=True, slots=True)
class _Explain:
    """What the row model says of one column of a row."""

    declaration: RunTable
    rows: pa.Table
    column: str

    def __call__(self, position: int) -> Cell:
        row = self.rows.slice(position, 1).to_pylist()
        told = [problem.message for problem in self.declaration.problems(row) if problem.column == self.column]
        return Cell(
            f"{told[0] if told else 'breaks a rule of its column'}.",
            self.column,
            text(self.rows, self.column, position),
        )


def _not_finite(window: Window) -> Iterator[Breach]:
    for name in window.declaration.run_column_names:
        broken = ~np.isfinite(floats(window.rows, name)) & ~nulls(window.rows.column(name))
        yield from _told(FINITE, window, name, broken, "a learning rate must be finite.")


def _backward_events(window: Window) -> Iterator[Breach]:
    broken = floats(window.rows, "batch_idx_end") < floats(window.rows, "batch_idx")
    yield from _told(ENDS, window, "batch_idx_end", broken, "the last batch lies before batch_idx, the first one.")


def _told(rule: Rule, window: Window, column: str, broken: Bools, message: str) -> Iterator[Breach]:
    return window.breaches(rule, broken, lambda row: Cell(message, column, text(window.rows, column, row)))
