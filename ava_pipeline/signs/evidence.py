"""What the signs are judged by: rows as arrays, the columns of each role, and states that last over many rows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import BatchIndices, Bools, Floats, number_columns
from ava_pipeline.contract.finding import Finding, Severity
from ava_pipeline.contract.manifest import Group, Role

NUM_FIRST_ROWS = 32
# Not `schema.empty_table()`, which makes pyarrow load pandas.
NO_ROWS = pa.Table.from_batches([], schema=pa.schema([("batch_idx", pa.int64()), ("epoch", pa.int64())]))


class TableValues:
    """Rows of one table as arrays, in the order of their batches.

    `batch_idx` (1-based) and `epoch` (0-based) are int64 [rows]. Each column of numbers has float64 [rows] in `values`,
    nan if the cell is null or nan was measured, and bool [rows] in `is_measured`, False only if the cell is null.
    """

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows
        self.num_rows: int = rows.num_rows
        self.batch_idx, self.epoch, floats = number_columns(rows)
        self.values: dict[str, Floats] = {}
        self.is_measured: dict[str, Bools] = {}
        every_row = np.ones(rows.num_rows, dtype=np.bool_)
        for name, (values, is_null) in floats.items():
            self.values[name] = values.astype(np.float64, copy=False)
            self.is_measured[name] = every_row if is_null is None else ~is_null

    def at_batches(self, column: str, batches: BatchIndices) -> Floats:
        """A column at the rows of some batches, float64 [batches]; nan if a batch has no row."""
        found = np.full(len(batches), np.nan)
        if self.num_rows:
            places = np.minimum(np.searchsorted(self.batch_idx, batches), self.num_rows - 1)
            is_same = self.batch_idx[places] == batches
            found[is_same] = self.values[column][places[is_same]]
        return found


class Evidence:
    """All that the signs know of a run, or of its latest rows.

    Args:
        first_norms: the first rows of `gradient_norms` in this run; None if `norms` begins with them.
        highest_rates: column of `learning_rates` -> its highest value before these rows.
        labels: the rows of `batch_stats`; None if there are none.
        weight_norms: the rows of that table; None if there are none.
        weight_deltas: as above.

    Attributes:
        columns: role -> the columns of `norms` whose groups have it.
        is_trained: column of `norms` -> bool [rows], whether its group is trained. A group that required no gradients
            counts as frozen until the manifest says otherwise, or until its first gradient.
        frozen: the groups that are not trained in any of these rows.
        early_norms: finite overall norms in the run's first rows, at most 32.
        early_median: their median; 0 if none is finite.
    """

    def __init__(  # noqa: PLR0913  # six tables and further facts, each with its name
        self,
        *,
        norms: TableValues,
        rates: TableValues,
        steps: TableValues,
        groups: Mapping[str, Group],
        first_norms: TableValues | None = None,
        highest_rates: Mapping[str, float] | None = None,
        labels: TableValues | None = None,
        weight_norms: TableValues | None = None,
        weight_deltas: TableValues | None = None,
    ) -> None:
        self.norms = norms
        self.rates = rates
        self.steps = steps
        self.labels, self.weight_norms, self.weight_deltas = (
            TableValues(NO_ROWS) if rows is None else rows for rows in (labels, weight_norms, weight_deltas)
        )
        self.groups = groups
        self.highest_rates = highest_rates or {}
        self.columns: dict[Role, list[str]] = {role: [] for role in get_args(Role)}
        for column in norms.values:
            if column in groups:
                self.columns[groups[column].role].append(column)
        self.overall = self.columns["overall"][0] if self.columns["overall"] else None
        self.losses = [column for column in steps.values if is_loss(column)]
        self.is_scaled = bool(steps.is_measured.get("loss_scale", np.zeros(0, dtype=np.bool_)).any())
        self.is_trained = {column: _is_trained(norms, column, groups.get(column)) for column in norms.values}
        self.frozen = frozenset(
            name
            for name, group in groups.items()
            if group.trainable is False and not self.is_trained.get(name, np.zeros(0, dtype=np.bool_)).any()
        )
        first = norms if first_norms is None else first_norms
        early = first.values[self.overall][:NUM_FIRST_ROWS] if self.overall else np.array([])
        self.early_norms: Floats = early[np.isfinite(early)]
        self.early_median = float(np.median(self.early_norms)) if len(self.early_norms) else 0.0


def _is_trained(norms: TableValues, column: str, group: Group | None) -> Bools:
    is_trained = np.ones(norms.num_rows, dtype=np.bool_)
    if group is None:
        return is_trained
    is_measured = norms.is_measured[column]
    for span, end in zip(group.spans, [*(span.first_batch for span in group.spans[1:]), np.inf], strict=False):
        is_in_span = (norms.batch_idx >= span.first_batch) & (norms.batch_idx < end)
        if span.trainable is False:
            is_trained &= ~is_in_span | np.logical_or.accumulate(is_measured & is_in_span)
    if not group.spans and group.trainable is False:
        is_trained = np.logical_or.accumulate(is_measured)
    return is_trained


def is_loss(column: str) -> bool:
    """Whether a column of `steps` is a loss, by its name."""
    return "loss" in column.lower() and column != "loss_scale"


class RowRange(NamedTuple):
    """Neighbouring rows of a table: the positions of the first and of the last."""

    first: int
    last: int

    @property
    def rows(self) -> slice:
        """Selects them from an array of the table."""
        return slice(self.first, self.last + 1)

    @property
    def num_rows(self) -> int:
        """How many they are."""
        return self.last - self.first + 1

    def finding(  # noqa: PLR0913  # a finding's own fields, each with its name
        self,
        rows: TableValues,
        *,
        sign: str,
        column: str | None,
        value: float | None,
        message: str,
        advice: str = "",
        severity: Severity = "warning",
    ) -> Finding:
        """The finding that a sign was found in these rows."""
        return Finding(
            id=sign,
            severity=severity,
            column=column,
            batch_idx=int(rows.batch_idx[self.first]),
            batch_idx_end=int(rows.batch_idx[self.last]),
            epoch=int(rows.epoch[self.first]),
            value=value,
            message=message,
            advice=advice,
        )


def ranges_where(holds: Bools, *, least_rows: int = 1, bridge: int = 0) -> list[RowRange]:
    """Ranges of at least `least_rows` rows in which a condition holds; up to `bridge` rows between two join them."""
    positions = np.flatnonzero(holds)
    if not len(positions):
        return []
    breaks = np.flatnonzero(np.diff(positions) > bridge + 1)
    firsts = positions[np.concatenate(([0], breaks + 1))]
    lasts = positions[np.concatenate((breaks, [len(positions) - 1]))]
    ranges = (RowRange(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True))
    return [one for one in ranges if one.num_rows >= least_rows]


def running(extreme: np.ufunc, values: Floats, window: int) -> Floats:
    """The minimum or maximum of each `window` neighbouring values, by windows of 1, 2, 4, ... values."""
    length = 1
    while length < window:
        step = min(length, window - length)
        values = extreme(values[:-step], values[step:])
        length += step
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class LastingState:
    """A sign that something holds over many rows, and the words for it.

    `message` is a template of `{column}`, `{value}`, `{num_rows}` and the words given to `findings`; `message_if_null`,
    unless empty, replaces it if none of the rows has a value. Up to `bridge` other rows in between do not end the
    state. `average` makes the finding's value from the values of its rows.
    """

    sign: str
    message: str
    message_if_null: str = ""
    advice: str
    bridge: int = 2
    average: Callable[[Floats], float] = np.nanmedian

    def findings(
        self,
        rows: TableValues,
        column: str,
        holds: Bools,
        values: Floats | None = None,
        *,
        least_rows: int,
        **words: object,
    ) -> Iterator[Finding]:
        """A finding for each range of at least `least_rows` rows in which the state lasts.

        `values`, float64 [..., rows], are averaged over the range; None if the state has none. `words` fill the
        templates.
        """
        for lasting in ranges_where(holds, least_rows=least_rows, bridge=self.bridge):
            chosen = np.array(np.nan) if values is None else values[..., lasting.rows]
            value = None if np.isnan(chosen).all() else float(self.average(chosen))
            template = self.message_if_null if value is None and self.message_if_null else self.message
            message = template.format(column=column, value=value, num_rows=lasting.num_rows, **words)
            yield lasting.finding(rows, sign=self.sign, column=column, value=value, message=message, advice=self.advice)


def collected_steps(num: int) -> str:
    """`1 collected step`, `5 collected steps`."""
    return f"{num} collected step{'s' * (num != 1)}"
