"""Values that are not finite, losses that go the wrong way, and a loss scale that falls."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ava_pipeline.contract.columns import null_mask, numpy_values
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.finding import Finding, Severity
from ava_pipeline.signs.evidence import Evidence, RowRange, TableValues, Values, collected_steps, is_loss, ranges_where
from ava_pipeline.signs.stability import trend_of
from ava_pipeline.signs.thresholds import Thresholds

NON_FINITE = "non-finite"
LOSS_SCALE_COLLAPSE = "loss-scale-collapse"
_NON_FINITE_ADVICE = (
    "Look at the first batch of it: labels, decoding, a logarithm or a division of 0. After it every weight may be "
    "nan: go back to a checkpoint from before."
)
_LASTING = 3
_LEAST_SCALE = 1.0
# A share of fewer rows says nothing: one in twenty is one row.
_LEAST_JUDGED = 64


def non_finite(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """By table and stretch; overflows of a GradScaler that looks for its scale, or now and then, are information."""
    yield from _not_finite(run.norms, run.norms.names, run.scales_of(run.norms), limits)
    others = [name for name in run.steps.names if not is_loss(name)]
    yield from _not_finite(run.steps, others, run.scales_of(run.steps), limits)
    # A loss is multiplied by the scale after it was recorded: no scale makes it overflow, and none heals it.
    yield from _not_finite(run.steps, run.losses, np.full(len(run.steps), np.nan), limits)
    if run.is_scaled:
        yield from _collapse(run.steps)


def _not_finite(rows: TableValues, names: Sequence[str], scales: Values, limits: Thresholds) -> Iterator[Finding]:
    broken = {name: bad for name in names if (bad := _is_not_finite(rows, name)).any()}
    if not broken:
        return
    anywhere = np.logical_or.reduce(list(broken.values()))
    found = [(stretch, _is_search(anywhere, scales, stretch)) for stretch in ranges_where(anywhere, bridge=2)]
    num_other = sum(int(anywhere[stretch.rows].sum()) for stretch, is_search in found if not is_search)
    is_seldom = len(rows) < _LEAST_JUDGED or num_other <= limits.overflow_share * len(rows)
    is_seldom &= bool(np.isfinite(scales).any())
    for stretch, is_search in found:
        severity: Severity = "warning"
        if is_search or (is_seldom and stretch.length < _LASTING):
            severity = "info"
        elif stretch.last == len(rows) - 1 and stretch.length >= _LASTING:
            severity = "error"
        yield _non_finite_finding(rows, broken, stretch, severity)


def _is_search(bad: NDArray[np.bool_], scales: Values, stretch: RowRange) -> bool:
    """Whether a GradScaler lowers its scale here, step by step, to where it never was, as at the beginning of a run.

    What the last row of all led to is not seen yet, and is taken to be well.
    """
    end = min(stretch.last + 1, len(scales) - 1)
    rows = np.flatnonzero(bad[stretch.first : end]) + stretch.first
    reached, lowest_before = scales[end], np.fmin.reduce(scales[: stretch.first + 1])
    is_lower = reached < lowest_before or (stretch.length == 1 and end == stretch.last and reached == lowest_before)
    return bool(reached >= _LEAST_SCALE and is_lower and (scales[rows + 1] < scales[rows]).all())


def _non_finite_finding(
    rows: TableValues, broken: dict[str, NDArray[np.bool_]], stretch: RowRange, severity: Severity
) -> Finding:
    # Those of the first row first, so that the column stays the same while the stretch grows.
    columns = [name for name, bad in broken.items() if bad[stretch.rows].any()]
    columns.sort(key=lambda name: not broken[name][stretch.first])
    values = rows.values(columns[0])[stretch.rows]
    num = int(np.logical_or.reduce(list(broken.values()))[stretch.rows].sum())
    skipped = ", which a GradScaler skips" if severity == "info" else ""
    return stretch.finding(
        rows,
        sign=NON_FINITE,
        severity=severity,
        column=columns[0],
        value=float(values[~np.isfinite(values)][0]),
        message=f"{', '.join(columns)}: measured, and not finite, in {collected_steps(num)}{skipped}.",
        advice="" if skipped else _NON_FINITE_ADVICE,
    )


def _is_not_finite(rows: TableValues, name: str) -> NDArray[np.bool_]:
    bad = ~np.isfinite(rows.values(name))
    return bad & rows.is_measured(name) if bad.any() else bad


def _collapse(steps: TableValues) -> Iterator[Finding]:
    scales = steps.values("loss_scale")
    for stretch in ranges_where(scales < _LEAST_SCALE):
        value = float(scales[stretch.rows].min())
        yield stretch.finding(
            steps,
            sign=LOSS_SCALE_COLLAPSE,
            column="loss_scale",
            value=value,
            message=f"the loss scale fell to {value:.3g}: float16 overflows whatever the scale.",
            advice="Train in bfloat16, or find the layer whose outputs exceed 65504 and keep it in float32.",
        )


LOSS_NEGATIVE, LOSS_RISING = "loss-negative", "loss-rising"
_SIGN_OF_IT = "Look at the loss's sign. Where yours may be below 0, set signs.loss_floor to null."
_DIVERGES = "Lower the learning rate, and look at the loss's sign: it is to be minimised."


def loss(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Of every recorded value whose name holds `loss`: below its floor, or steadily rising."""
    for column in run.losses:
        losses = run.steps.values(column)
        yield from _negative_loss(run, column, losses, limits)
        yield from _rising_loss(run, column, losses, limits)


def _negative_loss(run: Evidence, column: str, losses: Values, limits: Thresholds) -> Iterator[Finding]:
    if limits.loss_floor is None:
        return
    for stretch in ranges_where(losses < limits.loss_floor, least=limits.least_rows, bridge=2):
        value = float(np.nanmedian(losses[stretch.rows]))
        yield stretch.finding(
            run.steps,
            sign=LOSS_NEGATIVE,
            column=column,
            value=value,
            message=f"{column} is below {limits.loss_floor:g}, {value:.3g} in the middle of {stretch.length} collected "
            "steps, which no distance and no cross-entropy is.",
            advice=_SIGN_OF_IT,
        )


def _rising_loss(run: Evidence, column: str, losses: Values, limits: Thresholds) -> Iterator[Finding]:
    positions = run.steps.finite(column)
    if not len(positions):
        return
    begin = float(np.median(losses[positions[: limits.least_rows]]))
    least = (limits.loss_rise - 1.0) * abs(begin)
    trend = trend_of(losses, least)
    if trend is None or trend.tau < limits.rising_tau or trend.change < least:
        return
    yield RowRange(int(positions[0]), int(positions[-1])).finding(
        run.steps,
        sign=LOSS_RISING,
        column=column,
        value=trend.change,
        message=f"{column} rises steadily, by {trend.change:.3g} from {begin:.3g} (Kendall's tau {trend.tau:.2f}).",
        advice=_DIVERGES,
    )


def non_finite_events(rows: pa.RecordBatch, *, is_scaled: bool = False) -> Iterator[Event]:
    """Report values that are not finite: one event for each range of neighbouring rows with the same such columns.

    Args:
        rows: rows of one table in batch order, with `batch_idx` and `epoch`.
        is_scaled: a GradScaler skips such steps and lowers its scale, so only a loss that is not finite is a warning;
            the sign reports what lasts.
    """
    not_finite = {}
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if pa.types.is_floating(field.type):
            is_bad = ~np.isfinite(numpy_values(column))
            if column.null_count:
                is_bad &= ~null_mask(column)
            if is_bad.any():
                not_finite[field.name] = is_bad
    if not not_finite:
        return
    batches, epochs = numpy_values(rows.column("batch_idx")), numpy_values(rows.column("epoch"))
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
                value=float(numpy_values(rows.column(columns[0]))[start]),
                message=f"{', '.join(columns)}: measured, and not finite, in {collected_steps(int(end - start))}.",
            )


def scale_drop_events(rows: pa.RecordBatch, scale_before: float | None, batch_before: int) -> Iterator[Event]:
    """Report each row whose loss scale is lower than in the row before it.

    `torch.amp.GradScaler` lowers its scale only after a step whose gradients were not finite, which it skips. So the
    skipped step is the step of the row before, or a step between the two rows. If the scale also grew there, a drop
    can go unnoticed.

    Args:
        rows: rows of `steps` in batch order.
        scale_before: the scale of the row before the first; None if it is not known.
        batch_before: the batch of that row, or the first batch of the attempt.
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
