"""Rules of values: those of their columns, and those of the norms of groups."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic_core import PydanticCustomError

from ava_pipeline.contract.columns import Column, broken_values
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.manifest import Group, Manifest, attempt_spans, partitions
from ava_pipeline.read.arrays import Bools, floats, nulls, text
from ava_pipeline.validate.violations import Breach, Cell, Rule
from ava_pipeline.validate.windows import Window

NULL = Rule("values.null", "A value is only missing where its column allows it.")
RANGE = Rule("values.range", "A number is not below the least that its column allows.")
CHOICE = Rule("values.choice", "A word is one of those that its column allows.")
FINITE = Rule("rates.finite", "A learning rate is a finite number.")
ENDS = Rule("events.range", "An event ends at or behind the batch it begins at.")

_COLUMN_RULES = {rule.id: rule for rule in (NULL, RANGE, CHOICE)}
VALUE_RULES = (NULL, RANGE, CHOICE, FINITE, ENDS)


def check_values(window: Window) -> Iterator[Breach]:
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
        for rule, is_broken in broken_values(column, window.rows.column(column.name)):
            yield from window.breaches(_COLUMN_RULES[rule], is_broken, _Explain(column, window.rows))


@dataclass(frozen=True, slots=True)
class _Explain:
    """What is wrong with a value of one column, in the words of the row model."""

    column: Column
    rows: pa.Table

    def __call__(self, position: int) -> Cell:
        name = self.column.name
        try:
            self.column.checked(self.rows.column(name)[position].as_py())
        except PydanticCustomError as error:
            return Cell(error.message(), name, text(self.rows, name, position))
        raise AssertionError(f"the checks of a value and of a column disagree about {name} at row {position}")


def _not_finite(window: Window) -> Iterator[Breach]:
    for name in window.declaration.run_column_names:
        broken = ~np.isfinite(floats(window.rows, name)) & ~nulls(window.rows.column(name))
        yield from _broken_cells(FINITE, window, name, broken, "a learning rate must be finite.")


def _backward_events(window: Window) -> Iterator[Breach]:
    broken = floats(window.rows, "batch_idx_end") < floats(window.rows, "batch_idx")
    yield from _broken_cells(
        ENDS, window, "batch_idx_end", broken, "the last batch lies before batch_idx, the first one."
    )


def _broken_cells(rule: Rule, window: Window, column: str, broken: Bools, message: str) -> Iterator[Breach]:
    return window.breaches(rule, broken, lambda row: Cell(message, column, text(window.rows, column, row)))


RELATIVE = 1e-5
# Below the least normal float32, its digits run out.
_LEAST_SQUARE = float(np.finfo(np.float32).tiny) ** 2

HEAD_SUM = Rule("norms.head-sum", "The head's squared norm is the sum of its layers' squares, to 1e-5.")
PARTITION = Rule("norms.partition", "A group's squared norm is the sum of its children's squares, to 1e-5.")
OVERALL = Rule("norms.overall", "No group's norm is above the overall norm, by more than 1e-5 of it.")

NORM_RULES = (HEAD_SUM, PARTITION, OVERALL)

Norms = NDArray[np.float64]


def check_norms(window: Window, manifest: Manifest) -> Iterator[Breach]:
    """Rows of a table whose run columns are norms of the manifest's groups."""
    if window.declaration.table.l2_of_groups:
        yield from _sums(window, manifest)
        yield from _above_overall(window, manifest.groups)


def _sums(window: Window, manifest: Manifest) -> Iterator[Breach]:
    groups = manifest.groups
    present = set(window.declaration.run_column_names)
    for parent, children in partitions(groups).items():
        if not {parent, *children} <= present:
            continue
        norm = floats(window.rows, parent)
        total = _combined(window.rows, children)
        with np.errstate(invalid="ignore"):  # an infinite norm is measured, and compared with nothing
            broken = np.abs(norm**2 - total**2) > RELATIVE * np.maximum(norm**2, total**2) + _LEAST_SQUARE
        broken &= _measured(window, manifest, {parent, *children})
        rule = HEAD_SUM if groups[parent].role == "head" else PARTITION
        yield from window.breaches(rule, broken, _Sum(parent, children, norm, total))


def _measured(window: Window, manifest: Manifest, columns: set[str]) -> Bools:
    """Rows of attempts that measured all of these columns; a resumed run may have others than before."""
    is_measured = np.ones(window.rows.num_rows, dtype=np.bool_)
    batches, table = floats(window.rows, "batch_idx"), window.declaration.table.name
    for stretch in attempt_spans(manifest):
        if table in stretch.attempt.columns and not columns <= set(stretch.attempt.columns[table]):
            is_measured &= (batches <= stretch.begin) | (batches > stretch.end)
    return is_measured


def _combined(rows: pa.Table, children: tuple[str, ...]) -> Norms:
    """Root of the sum of squares [rows]; a child not measured had no gradients to add, one not finite makes nan."""
    squares = np.zeros(rows.num_rows)
    for child in children:
        squares += np.where(nulls(rows.column(child)), 0.0, floats(rows, child)) ** 2
    squares[~np.isfinite(squares)] = np.nan
    return np.sqrt(squares)


@dataclass(frozen=True, slots=True)
class _Sum:
    """What a parent's norm should have been."""

    parent: str
    children: tuple[str, ...]
    norm: Norms
    total: Norms

    def __call__(self, row: int) -> Cell:
        what = f"{self.norm[row]:.9g}, but the root of the squares of {' and '.join(self.children)} added up"
        return Cell(f"{what} is {self.total[row]:.9g}.", self.parent, f"{self.norm[row]:.9g}")


def _above_overall(window: Window, groups: Mapping[str, Group]) -> Iterator[Breach]:
    names = window.declaration.run_column_names
    for overall in (name for name in names if name in groups and groups[name].role == "overall"):
        whole = floats(window.rows, overall)
        for name in (name for name in names if name != overall):
            norm = floats(window.rows, name)
            broken = np.isfinite(whole) & np.isfinite(norm) & (norm > whole + RELATIVE * np.abs(whole))
            yield from window.breaches(OVERALL, broken, _Above(name, overall, norm, whole))


@dataclass(frozen=True, slots=True)
class _Above:
    """Which norm is larger than the whole."""

    name: str
    overall: str
    norm: Norms
    whole: Norms

    def __call__(self, row: int) -> Cell:
        message = f"{self.norm[row]:.9g} is above {self.overall}, which is {self.whole[row]:.9g}."
        return Cell(message, self.name, f"{self.norm[row]:.9g}")
