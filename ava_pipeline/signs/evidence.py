"""What the signs are told by: one table's rows as arrays, what is known of its columns, and ranges of rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.finding import Finding, Severity
from ava_pipeline.contract.lockless_cached_property import lockless_cached_property
from ava_pipeline.contract.manifest import Group, Role
from ava_pipeline.contract.tables import KEY_COLUMNS

Values = NDArray[np.float64]
Positions = NDArray[np.intp]

NUM_FIRST = 32
_KEYS = {column.name for column in KEY_COLUMNS}


@dataclass(frozen=True)
class TableValues:
    """Rows of one table, in batch order.

    Attributes:
        rows: with `batch_idx`, `epoch` and the table's columns.
    """

    rows: pa.Table

    def __len__(self) -> int:
        return self.rows.num_rows

    @lockless_cached_property
    def names(self) -> tuple[str, ...]:
        """The columns that hold numbers, the keys left out."""
        schema = self.rows.schema
        return tuple(field.name for field in schema if pa.types.is_floating(field.type) and field.name not in _KEYS)

    @lockless_cached_property
    def batch_idx(self) -> NDArray[np.int64]:
        """1-based batch of each row."""
        return self.rows.column("batch_idx").to_numpy()

    @lockless_cached_property
    def epoch(self) -> NDArray[np.int64]:
        """0-based epoch of each row."""
        return self.rows.column("epoch").to_numpy()

    @lockless_cached_property
    def _values(self) -> dict[str, Values]:
        return {}

    def values(self, name: str) -> Values:
        """A column as float64: nan where it is null, and where nan was measured."""
        if name not in self._values:
            self._values[name] = np.asarray(self.rows.column(name).to_numpy(), dtype=np.float64)
        return self._values[name]

    def is_measured(self, name: str) -> NDArray[np.bool_]:
        """Whether each row holds a number: nan and inf are such, null is none."""
        column = self.rows.column(name)
        if not column.null_count:
            return np.ones(len(self), dtype=np.bool_)
        return np.asarray(column.is_valid().to_numpy(), dtype=np.bool_)

    def finite(self, name: str) -> Positions:
        """Positions of the rows in which a column was measured and is finite."""
        return np.flatnonzero(np.isfinite(self.values(name)))


def is_loss(name: str) -> bool:
    """Whether a value is a loss, by its name."""
    return "loss" in name.lower() and name != "loss_scale"


NO_ROWS = pa.schema([("batch_idx", pa.int64()), ("epoch", pa.int64())]).empty_table()


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that the rules know of a run, or of its last rows.

    Attributes:
        norms: of `gradient_norms`.
        rates: of `learning_rates`.
        steps: of `steps`.
        groups: column of `norms` -> its role, its parent and its learning rates.
        first: of `gradient_norms`, the run's first rows, which later ones are held against; None: those of `norms`.
        highest_rates: column of `rates` -> its highest value before these rows.
    """

    norms: TableValues
    rates: TableValues
    steps: TableValues
    groups: Mapping[str, Group]
    first: TableValues | None = None
    highest_rates: Mapping[str, float] = field(default_factory=dict)

    def trained_from(self, column: str) -> int:
        """Position of the first row from which on a group is meant to be trained; the number of rows where none is.

        One that required no gradients at the first collected step is frozen until its first gradient.
        """
        if column not in self.groups or self.groups[column].trainable is not False:
            return 0
        measured = np.flatnonzero(self.norms.is_measured(column))
        return int(measured[0]) if len(measured) else len(self.norms)

    def is_frozen(self, column: str) -> bool:
        """Whether a group is not meant to be trained in any of these rows."""
        return self.groups[column].trainable is False and self.trained_from(column) == len(self.norms)

    def scales_of(self, rows: TableValues) -> Values:
        """The loss scale at each row of a table; nan where there is none."""
        scales = np.full(len(rows), np.nan)
        if "loss_scale" in self.steps.names and len(self.steps):
            places = np.minimum(np.searchsorted(self.steps.batch_idx, rows.batch_idx), len(self.steps) - 1)
            is_there = self.steps.batch_idx[places] == rows.batch_idx
            scales[is_there] = self.steps.values("loss_scale")[places[is_there]]
        return scales

    @lockless_cached_property
    def is_scaled(self) -> bool:
        """Whether a GradScaler scales the loss."""
        return "loss_scale" in self.steps.names and bool(self.steps.is_measured("loss_scale").any())

    def of_role(self, *roles: Role) -> tuple[str, ...]:
        """The columns of norms that play one of these roles."""
        return tuple(name for name in self.norms.names if name in self.groups and self.groups[name].role in roles)

    @property
    def losses(self) -> tuple[str, ...]:
        """The columns of steps that are losses, by their name."""
        return tuple(filter(is_loss, self.steps.names))

    @property
    def overall(self) -> str | None:
        """The column of all gradients; None where the run has none."""
        return next(iter(self.of_role("overall")), None)

    @property
    def beginning(self) -> Values:
        """The finite overall norms of the run's first rows."""
        rows = self.first or self.norms
        norms = rows.values(self.overall)[:NUM_FIRST] if self.overall else np.array([])
        finite: Values = norms[np.isfinite(norms)]
        return finite

    @property
    def reference(self) -> float:
        """The overall norm at the beginning of the run: the median of its first rows; 0 where none is finite."""
        return float(np.median(self.beginning)) if len(self.beginning) else 0.0

    def share(self, column: str, of: str) -> Values:
        """The ratio of two columns of norms; nan where it cannot be told."""
        part, whole = self.norms.values(column), self.norms.values(of)
        is_told = np.isfinite(part) & np.isfinite(whole) & (whole > 0)
        share: Values = np.divide(part, whole, out=np.full(len(part), np.nan), where=is_told)
        return share


class RowRange(NamedTuple):
    """Neighbouring rows: positions of the first and the last."""

    first: int
    last: int

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
        """A sign seen over these rows."""
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

    @property
    def rows(self) -> slice:
        """Of an array of the same table."""
        return slice(self.first, self.last + 1)

    @property
    def length(self) -> int:
        """How many rows."""
        return self.last - self.first + 1


def ranges_where(holds: NDArray[np.bool_], *, least: int = 1, bridge: int = 0) -> list[RowRange]:
    """Rows over which something holds.

    Args:
        holds: of each row.
        least: shorter stretches are left out.
        bridge: up to this many rows between two stretches make one of them.
    """
    positions = np.flatnonzero(holds)
    if not len(positions):
        return []
    breaks = np.flatnonzero(np.diff(positions) > bridge + 1)
    firsts = positions[np.concatenate(([0], breaks + 1))]
    lasts = positions[np.concatenate((breaks, [len(positions) - 1]))]
    return [
        RowRange(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True) if last - first + 1 >= least
    ]


def collected_steps(num: int) -> str:
    """`1 collected step`, `5 collected steps`."""
    return f"{num} collected step{'s' * (num != 1)}"
