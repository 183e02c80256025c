"""Columns of a run as lines over its batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.manifest import Manifest, Role
from ava_pipeline.read.arrays import Bools, floats, integers, nulls
from ava_pipeline.read.downsample import Floats, Points, Thinned, first_of_slices, thinned
from ava_pipeline.read.report.seen import Seen
from ava_pipeline.read.spans import Batches

NORMS, RATES, STEPS = "gradient_norms", "learning_rates", "steps"
_KEYS = {"batch_idx", "epoch"}


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """A column of a run over its batches.

    Attributes:
        run: name of the run.
        column: name of the column, or what the values are.
        batches: [rows].
        epochs: [rows].
        values: [rows]; nan, too, where nothing was measured.
        is_null: [rows] nothing was measured.
        breaks: [rows] rows are missing before this one.
        is_log: it is drawn on a logarithmic scale.
    """

    run: str
    column: str
    batches: Batches
    epochs: Batches
    values: Floats
    is_null: Bools
    breaks: Bools
    is_log: bool = True

    def line(self, num_slices: int) -> Thinned:
        """What can be drawn: on a logarithmic scale nought has no place."""
        shown = np.where(self.values > 0, self.values, np.nan) if self.is_log else self.values
        return thinned(self.batches, shown, self.breaks, num_slices)

    def zeros(self, num_slices: int) -> Points:
        """Where the value is 0 and cannot be drawn."""
        return first_of_slices(self.batches, self.values, (self.values == 0) & self.is_log, num_slices)

    def not_finite(self, num_slices: int) -> Points:
        """Where nan or inf was measured."""
        marked = ~np.isfinite(self.values) & ~self.is_null
        return first_of_slices(self.batches, self.values, marked, num_slices)


def columns_of(seen: Seen, table: str) -> list[Series]:
    """A series for each measured column of a table; none where it has no rows."""
    rows = seen.table(table)
    if rows is None:
        return []
    names = [field.name for field in rows.schema if field.name not in _KEYS and pa.types.is_floating(field.type)]
    breaks = _breaks(integers(rows, "batch_idx"), seen.manifest)
    return [_series(seen.name, name, rows, floats(rows, name), nulls(rows[name]), breaks) for name in names]


def ratio_of(seen: Seen) -> list[Series]:
    """The norm of the last backbone stage over that of the head, where the run has both."""
    rows = seen.table(NORMS)
    backbone, head = ratio_columns(seen)
    if rows is None or backbone is None or head is None:
        return []
    above, below = floats(rows, backbone), floats(rows, head)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(np.isfinite(below), above / below, np.nan)  # over inf it would be 0, as of a dead backbone
    is_null = nulls(rows[backbone]) | nulls(rows[head])
    breaks = _breaks(integers(rows, "batch_idx"), seen.manifest)
    return [_series(seen.name, f"{backbone} / {head}", rows, values, is_null, breaks)]


def values_of(seen: Seen) -> list[Series]:
    """The columns of `steps` that were measured at all; their scale is linear, since a loss may be below 0."""
    return [replace(one, is_log=False) for one in columns_of(seen, STEPS) if not one.is_null.all()]


def ratio_columns(seen: Seen) -> tuple[str | None, str | None]:
    """The last backbone stage and the head."""
    return _of_role(seen, "backbone_last"), _of_role(seen, "head")


def epoch_starts(series: Sequence[Series]) -> dict[int, int]:
    """The first batch of each epoch; empty where the runs differ in it, so that no mark is wrong for one of them."""
    starts: dict[int, int] = {}
    for one in series:
        for epoch, start in _starts(one):
            if starts.setdefault(epoch, start) != start:
                return {}
    return starts


def _starts(series: Series) -> Iterator[tuple[int, int]]:
    first = np.flatnonzero(np.diff(series.epochs, prepend=-1))
    return zip(series.epochs[first].tolist(), series.batches[first].tolist(), strict=True)


def _series(run: str, column: str, rows: pa.Table, values: Floats, is_null: Bools, breaks: Bools) -> Series:
    return Series(run, column, integers(rows, "batch_idx"), integers(rows, "epoch"), values, is_null, breaks)


def _of_role(seen: Seen, role: Role) -> str | None:
    """The first column whose group has a role."""
    rows = seen.table(NORMS)
    if seen.manifest is None or rows is None:
        return None
    return next(
        (name for name, group in seen.manifest.groups.items() if group.role == role and name in rows.column_names), None
    )


def _breaks(batches: Batches, manifest: Manifest | None) -> Bools:
    """Before which rows others are missing.

    A batch that only accumulates gradients defers a row, so that spacings differ a little; only one of twice the
    collected spacing, and above what is usual in the run, is a gap.
    """
    spacing = np.diff(batches)
    if not len(spacing):
        return np.zeros(len(batches), dtype=np.bool_)
    every = max((attempt.collect_every_n for attempt in manifest.attempts), default=1) if manifest else 1
    is_gap = (spacing >= 2 * every) & (spacing > 1.5 * np.median(spacing))
    return np.append(np.False_, is_gap)
