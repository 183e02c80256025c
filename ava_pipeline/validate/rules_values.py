"""Rules of values: those of their columns, and those of the norms of groups."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import pyarrow as pa
from pydantic_core import PydanticCustomError

from ava_pipeline.contract.arrays import Bools, Floats, cell_text, float_columns, floats, null_mask
from ava_pipeline.contract.columns import Column, broken_values
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.manifest import Group, Manifest, attempt_spans, group_states, partitions
from ava_pipeline.validate.checked_run import Window
from ava_pipeline.validate.listing import Breach, Cell, Rule

NULL = Rule("values.null", "A value is only missing if its column allows it.")
RANGE = Rule("values.range", "A number is not below the minimum of its column.")
CHOICE = Rule("values.choice", "A text is one of those that its column allows.")
FINITE = Rule("rates.finite", "A learning rate is a finite number.")
ENDS = Rule("events.range", "An event ends at or after the batch at which it begins.")
HEAD_SUM = Rule("norms.head-sum", "The head's squared norm is the sum of its layers' squares, to 1e-5.")
PARTITION = Rule("norms.partition", "A group's squared norm is the sum of its children's squares, to 1e-5.")
OVERALL = Rule("norms.overall", "No group's norm is more than 1e-5 (relative) above the overall norm.")

_COLUMN_RULES = {rule.id: rule for rule in (NULL, RANGE, CHOICE)}

RELATIVE = 1e-5
# Below the least normal float32, its digits run out.
_LEAST_SQUARE = float(np.finfo(np.float32).tiny) ** 2


def check_rows(window: Window, manifest: Manifest | None) -> Iterator[Breach]:
    """Every value of a table's rows; norms of groups if the manifest declares the groups."""
    yield from check_columns(window)
    table = window.declaration.table
    if table.name == "learning_rates":
        yield from _infinite_rates(window)
    if table.name == EVENTS.name:
        yield from _backward_events(window)
    if table.l2_of_groups and manifest is not None:
        norms = float_columns(window.rows, window.declaration.run_column_names)
        yield from _sums(window, manifest, norms)
        yield from _above_overall(window, manifest.groups, norms)


def check_columns(window: Window) -> Iterator[Breach]:
    """Values that break a rule of their column."""
    for column, rule, is_broken in broken_values(window.declaration.columns, window.rows):
        yield from window.breaches(_COLUMN_RULES[rule], is_broken, partial(_explain_value, column, window.rows))


def _explain_value(column: Column, rows: pa.Table, row: int) -> Cell:
    """The sentence about a value of one column, in the words of the row model."""
    try:
        column.checked(rows.column(column.name)[row].as_py())
    except PydanticCustomError as error:
        return Cell(error.message(), column.name, cell_text(rows, column.name, row))
    raise AssertionError(f"the checks of a value and of a column disagree about {column.name} at row {row}")


def _infinite_rates(window: Window) -> Iterator[Breach]:
    for name, rates in float_columns(window.rows, window.declaration.run_column_names).items():
        if not np.isfinite(rates).all():
            is_broken = ~np.isfinite(rates) & ~null_mask(window.rows.column(name))
            yield from _broken_cells(FINITE, window, name, is_broken, "expected a finite learning rate, got {}.")


def _backward_events(window: Window) -> Iterator[Breach]:
    is_broken = floats(window.rows, "batch_idx_end") < floats(window.rows, "batch_idx")
    message = "expected batch_idx or a later batch, got {}."
    yield from _broken_cells(ENDS, window, "batch_idx_end", is_broken, message)


def _broken_cells(rule: Rule, window: Window, column: str, is_broken: Bools, message: str) -> Iterator[Breach]:
    def explain(row: int) -> Cell:
        value = cell_text(window.rows, column, row)
        return Cell(message.format(value), column, value)

    return window.breaches(rule, is_broken, explain)


def _sums(window: Window, manifest: Manifest, norms: Mapping[str, Floats]) -> Iterator[Breach]:
    states = group_states(manifest.groups)
    ends = [*(state.first_batch for state in states[1:]), np.inf]
    for state, end in zip(states, ends, strict=True):
        is_in_state = (window.batches >= state.first_batch) & (window.batches < end)
        for parent, children in partitions(state.groups).items() if is_in_state.any() else ():
            if not {parent, *children} <= set(norms):
                continue
            norm, total = norms[parent], _combined([norms[child] for child in children], window, children)
            with np.errstate(invalid="ignore"):  # an infinite norm is measured, and compared with nothing
                is_broken = np.abs(norm**2 - total**2) > RELATIVE * np.maximum(norm**2, total**2) + _LEAST_SQUARE
            is_broken &= is_in_state
            if is_broken.any():
                is_broken &= _is_measured(window, manifest, {parent, *children})
                rule = HEAD_SUM if state.groups[parent].role == "head" else PARTITION
                yield from window.breaches(rule, is_broken, partial(_explain_sum, parent, children, norm, total))


def _combined(norms: list[Floats], window: Window, children: tuple[str, ...]) -> Floats:
    """Root of the sum of squares [rows]; a child not measured had no gradients to add, one not finite makes nan."""
    squares = np.zeros(window.rows.num_rows)
    for name, norm in zip(children, norms, strict=True):
        column = window.rows.column(name)
        squares += (np.where(null_mask(column), 0.0, norm) if column.null_count else norm) ** 2
    squares[~np.isfinite(squares)] = np.nan
    return np.sqrt(squares)


def _is_measured(window: Window, manifest: Manifest, columns: set[str]) -> Bools:
    """Rows of attempts that measured all of these columns; a resumed run may have others than before."""
    is_measured = np.ones(window.rows.num_rows, dtype=np.bool_)
    table = window.declaration.table.name
    for span in attempt_spans(manifest):
        if table in span.attempt.columns and not columns <= set(span.attempt.columns[table]):
            is_measured &= (window.batches <= span.begin) | (window.batches > span.end)
    return is_measured


def _explain_sum(parent: str, children: tuple[str, ...], norm: Floats, total: Floats, row: int) -> Cell:
    """The sentence about a norm that is not the sum of its parts."""
    expected = f"expected {total[row]:.9g}, the root of the summed squares of {' and '.join(children)}"
    return Cell(f"{expected}, got {norm[row]:.9g}.", parent, f"{norm[row]:.9g}")


def _above_overall(window: Window, groups: Mapping[str, Group], norms: Mapping[str, Floats]) -> Iterator[Breach]:
    for overall in (name for name in norms if name in groups and groups[name].role == "overall"):
        whole = norms[overall]
        for name, norm in norms.items():
            with np.errstate(invalid="ignore"):
                is_broken = np.isfinite(whole) & np.isfinite(norm) & (norm > whole + RELATIVE * np.abs(whole))
            if name != overall and is_broken.any():
                yield from window.breaches(OVERALL, is_broken, partial(_explain_above, name, overall, norm, whole))


def _explain_above(name: str, overall: str, norm: Floats, whole: Floats, row: int) -> Cell:
    """The sentence about a norm that is larger than the overall norm."""
    message = f"expected at most {whole[row]:.9g}, the norm of {overall}, got {norm[row]:.9g}."
    return Cell(message, name, f"{norm[row]:.9g}")
