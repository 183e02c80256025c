"""nan and inf among the measured values."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from ava_pipeline.contract.events import Event
from ava_pipeline.signs.figures import is_loss
from ava_pipeline.signs.finding import collected_steps


def non_finite_events(rows: Sequence[Mapping[str, object]], *, is_scaled: bool = False) -> Iterator[Event]:
    """One event for each stretch of neighbouring rows in which the same columns are not finite.

    Args:
        rows: of one table, in batch order, each with `batch_idx` and `epoch`.
        is_scaled: a GradScaler skips such steps and lowers its scale, so that only a loss is worth a warning; what
            lasts is told by the sign.
    """
    # One sum is finite where every value is, and costs less than looking at each.
    if math.isfinite(sum(value for row in rows for value in row.values() if type(value) is float)):
        return
    for columns, stretch in groupby(rows, _columns_not_finite):
        if not columns:
            continue
        first, *rest = list(stretch)
        last = rest[-1] if rest else first
        value = first[columns[0]]
        yield Event(
            event="non_finite",
            severity="info" if is_scaled and not any(map(is_loss, columns)) else "warning",
            batch_idx=_as_int(first["batch_idx"]),
            batch_idx_end=_as_int(last["batch_idx"]),
            epoch=_as_int(first["epoch"]),
            column=columns[0],
            value=value if isinstance(value, float) else None,
            message=f"{', '.join(columns)}: measured, and not finite, in {collected_steps(1 + len(rest))}.",
        )


def _columns_not_finite(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value))


def _as_int(value: object) -> int:
    return value if isinstance(value, int) else 0
