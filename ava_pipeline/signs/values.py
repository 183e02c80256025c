"""Floats that are not finite, losses below their floor, and a loss scale that falls."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import Bools, Floats, null_mask, number_columns, numpy_values
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.finding import Finding, Severity
from ava_pipeline.signs.evidence import (
    Evidence,
    LastingState,
    RowRange,
    TableValues,
    collected_steps,
    is_loss,
    ranges_where,
)
from ava_pipeline.signs.thresholds import Thresholds

_NON_FINITE_ADVICE = (
    "Check the first of these batches: labels, decoding, a logarithm of 0 or a division by 0. Every weight may be nan "
    "after it: go back to an earlier checkpoint."
)
# Floats that are not finite over fewer rows can be a single batch.
_LASTING_ROWS = 3
_LEAST_SCALE = 1.0
# Among fewer rows a share means nothing: one in twenty is a single row.
_LEAST_ROWS_FOR_SHARE = 64


def non_finite(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Floats that are nan or inf, by table and range of rows.

    Overflows of a GradScaler are information while it searches for its scale, and if they are rare.
    """
    others = [column for column in run.steps.values if column not in run.losses]
    yield from _non_finite(run, run.norms, list(run.norms.values), limits, is_scaled=run.is_scaled)
    yield from _non_finite(run, run.steps, others, limits, is_scaled=run.is_scaled)
    # A loss is recorded before it is multiplied by the scale: no scale makes it overflow, and none repairs it.
    yield from _non_finite(run, run.steps, run.losses, limits, is_scaled=False)


def _non_finite(
    run: Evidence, rows: TableValues, columns: Sequence[str], limits: Thresholds, *, is_scaled: bool
) -> Iterator[Finding]:
    broken = {column: bad for column in columns if (bad := ~np.isfinite(rows.values[column])).any()}
    broken = {column: bad & rows.is_measured[column] for column, bad in broken.items()}
    broken = {column: bad for column, bad in broken.items() if bad.any()}
    if not broken:
        return
    anywhere: Bools = np.logical_or.reduce(list(broken.values()))
    scales = np.full(rows.num_rows, np.nan)
    if is_scaled:
        scales = run.steps.at_batches("loss_scale", rows.batch_idx)
    ranges = {span: _is_scale_search(anywhere, scales, span) for span in ranges_where(anywhere, bridge=2)}
    num_other = sum(int(anywhere[span.rows].sum()) for span, is_search in ranges.items() if not is_search)
    is_rare = rows.num_rows < _LEAST_ROWS_FOR_SHARE or num_other <= limits.overflow_share * rows.num_rows
    is_rare &= bool(np.isfinite(scales).any())
    for span, is_search in ranges.items():
        severity: Severity = "warning"
        if is_search or (is_rare and span.num_rows < _LASTING_ROWS):
            severity = "info"
        elif span.last == rows.num_rows - 1 and span.num_rows >= _LASTING_ROWS:
            severity = "error"
        yield _non_finite_finding(rows, broken, span, severity)


def _is_scale_search(is_bad: Bools, scales: Floats, span: RowRange) -> bool:
    """Whether a GradScaler lowers its scale here, step by step, below any before, as at the beginning of a run.

    The effect of the table's last row is not known yet, and is assumed to be as it should.
    """
    end = min(span.last + 1, len(scales) - 1)
    rows = np.flatnonzero(is_bad[span.first : end]) + span.first
    reached, lowest_before = scales[end], np.fmin.reduce(scales[: span.first + 1])
    is_lower = reached < lowest_before or (span.num_rows == 1 and end == span.last and reached == lowest_before)
    return bool(reached >= _LEAST_SCALE and is_lower and (scales[rows + 1] < scales[rows]).all())


def _non_finite_finding(rows: TableValues, broken: Mapping[str, Bools], span: RowRange, severity: Severity) -> Finding:
    # The columns of the first row come first, so that the finding's column stays the same while the range grows.
    columns = [column for column, is_bad in broken.items() if is_bad[span.rows].any()]
    columns.sort(key=lambda column: not broken[column][span.first])
    values = rows.values[columns[0]][span.rows]
    num_rows = int(np.logical_or.reduce(list(broken.values()))[span.rows].sum())
    skipped = ", which a GradScaler skips" if severity == "info" else ""
    return span.finding(
        rows,
        sign="non-finite",
        severity=severity,
        column=columns[0],
        value=float(values[~np.isfinite(values)][0]),
        message=f"{', '.join(columns)}: not finite in {collected_steps(num_rows)}{skipped}.",
        advice="" if skipped else _NON_FINITE_ADVICE,
    )


_LOSS_SCALE_COLLAPSE = LastingState(
    sign="loss-scale-collapse",
    message="the loss scale fell to {value:.3g}: float16 overflows at any scale.",
    advice="Train in bfloat16, or find the layer whose outputs exceed 65504 and keep it in float32.",
    bridge=0,
    average=np.min,
)


def loss_scale_collapse(run: Evidence, limits: Thresholds) -> Iterator[Finding]:  # noqa: ARG001  # every sign is called alike
    """A GradScaler's loss scale is below 1."""
    if run.is_scaled:
        scales = run.steps.values["loss_scale"]
        yield from _LOSS_SCALE_COLLAPSE.findings(run.steps, "loss_scale", scales < _LEAST_SCALE, scales, least_rows=1)


_LOSS_NEGATIVE = LastingState(
    sign="loss-negative",
    message="{column} is {value:.3g} (median of {num_rows} collected steps), below {floor:g}; distances and "
    "cross-entropies are not.",
    advice="Check the sign of the loss. If yours may be below 0, set signs.loss_floor to null.",
)


def loss_negative(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """A recorded value whose name contains `loss` is below its floor."""
    floor = limits.loss_floor
    if floor is None:
        return
    for column in run.losses:
        losses = run.steps.values[column]
        yield from _LOSS_NEGATIVE.findings(
            run.steps, column, losses < floor, losses, least_rows=limits.least_rows, floor=floor
        )


def non_finite_events(rows: pa.RecordBatch, *, is_scaled: bool = False) -> Iterator[Event]:
    """Report values that are not finite: one event for each range of neighbouring rows with the same such columns.

    The rows are in batch order. A GradScaler (`is_scaled`) skips such steps and lowers its scale, so only a loss that
    is not finite is a warning then; the sign reports what lasts.
    """
    batches, epochs, numbers = number_columns(rows)
    not_finite = {}
    for name, (values, is_null) in numbers.items():
        is_bad = ~np.isfinite(values) if is_null is None else ~(np.isfinite(values) | is_null)
        if is_bad.any():
            not_finite[name] = is_bad
    if not not_finite:
        return
    same = np.stack(list(not_finite.values()))
    starts = np.flatnonzero(np.any(same[:, 1:] != same[:, :-1], axis=0)) + 1
    for start, end in zip([0, *starts], [*starts, rows.num_rows], strict=True):
        columns = [name for name, is_bad in not_finite.items() if is_bad[start]]
        if columns:
            yield Event(
                event="non_finite",
                severity="info" if is_scaled and not any(map(is_loss, columns)) else "warning",
                batch_idx=int(batches[start]),
                batch_idx_end=int(batches[end - 1]),
                epoch=int(epochs[start]),
                column=columns[0],
                value=float(numbers[columns[0]][0][start]),
                message=f"{', '.join(columns)}: measured, and not finite, in {collected_steps(int(end - start))}.",
            )


def scale_drop_events(rows: pa.RecordBatch, scale_before: float | None, batch_before: int) -> Iterator[Event]:
    """Report each row whose loss scale is lower than in the row before it; the rows are in batch order.

    `torch.amp.GradScaler` lowers its scale only after a step whose gradients were not finite, which it skips. So the
    skipped step is the step of the row before, or a step between the two rows. If the scale also grew there, a drop can
    go unnoticed. `batch_before` is the batch of the row before the first, or the first batch of the attempt.
    """
    is_known = ~null_mask(rows.column("loss_scale"))
    columns = (numpy_values(rows.column(name))[is_known] for name in ("loss_scale", "batch_idx", "epoch"))
    for scale, batch_idx, epoch in zip(*(column.tolist() for column in columns), strict=True):
        # A drop before an attempt's first batch belongs to another attempt.
        if scale_before is not None and scale < scale_before and batch_before < batch_idx:
            yield Event(
                event="skipped_step",
                severity="info",
                batch_idx=batch_before,
                batch_idx_end=batch_idx - 1,
                epoch=epoch,
                column="loss_scale",
                value=scale,
                message=f"the loss scale fell from {scale_before:g} to {scale:g}: at least one step was skipped.",
            )
        scale_before, batch_before = scale, batch_idx
