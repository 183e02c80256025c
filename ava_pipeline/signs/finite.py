"""Norms, losses and other values that were measured and are not finite."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.signs.figures import Evidence, Figures, Values, is_loss
from ava_pipeline.signs.finding import Finding, Severity, collected_steps
from ava_pipeline.signs.stretches import Stretch, stretches
from ava_pipeline.signs.thresholds import Thresholds

SIGN = "non-finite"
OVERFLOW = "loss-scale-collapse"
_ADVICE = (
    "Look at the first batch of it: labels, decoding, a logarithm or a division of 0. After it every weight may be "
    "nan: go back to a checkpoint from before."
)
_LASTING = 3
_LEAST_SCALE = 1.0
# A share of fewer rows says nothing: one in twenty is one row.
_LEAST_JUDGED = 64


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """By table and stretch; overflows of a GradScaler that looks for its scale, or now and then, are information."""
    yield from _not_finite(run.norms, run.norms.names, run.scales_of(run.norms), limits)
    others = [name for name in run.steps.names if not is_loss(name)]
    yield from _not_finite(run.steps, others, run.scales_of(run.steps), limits)
    # A loss is multiplied by the scale after it was recorded: no scale makes it overflow, and none heals it.
    yield from _not_finite(run.steps, run.losses, np.full(len(run.steps), np.nan), limits)
    if run.is_scaled:
        yield from _collapse(run.steps)


def _not_finite(rows: Figures, names: Sequence[str], scales: Values, limits: Thresholds) -> Iterator[Finding]:
    broken = {name: bad for name in names if (bad := _is_broken(rows, name)).any()}
    if not broken:
        return
    anywhere = np.logical_or.reduce(list(broken.values()))
    found = [(stretch, _is_search(anywhere, scales, stretch)) for stretch in stretches(anywhere, bridge=2)]
    num_other = sum(int(anywhere[stretch.rows].sum()) for stretch, is_search in found if not is_search)
    is_seldom = len(rows) < _LEAST_JUDGED or num_other <= limits.overflow_share * len(rows)
    is_seldom &= bool(np.isfinite(scales).any())
    for stretch, is_search in found:
        severity: Severity = "warning"
        if is_search or (is_seldom and stretch.length < _LASTING):
            severity = "info"
        elif stretch.last == len(rows) - 1 and stretch.length >= _LASTING:
            severity = "error"
        yield _finding(rows, broken, stretch, severity)


def _is_search(bad: NDArray[np.bool_], scales: Values, stretch: Stretch) -> bool:
    """Whether a GradScaler lowers its scale here, step by step, to where it never was, as at the beginning of a run.

    What the last row of all led to is not seen yet, and is taken to be well.
    """
    end = min(stretch.last + 1, len(scales) - 1)
    rows = np.flatnonzero(bad[stretch.first : end]) + stretch.first
    reached, lowest_before = scales[end], np.fmin.reduce(scales[: stretch.first + 1])
    is_lower = reached < lowest_before or (stretch.length == 1 and end == stretch.last and reached == lowest_before)
    return bool(reached >= _LEAST_SCALE and is_lower and (scales[rows + 1] < scales[rows]).all())


def _finding(rows: Figures, broken: dict[str, NDArray[np.bool_]], stretch: Stretch, severity: Severity) -> Finding:
    # Those of the first row first, so that the column stays the same while the stretch grows.
    columns = [name for name, bad in broken.items() if bad[stretch.rows].any()]
    columns.sort(key=lambda name: not broken[name][stretch.first])
    values = rows.values(columns[0])[stretch.rows]
    num = int(np.logical_or.reduce(list(broken.values()))[stretch.rows].sum())
    skipped = ", which a GradScaler skips" if severity == "info" else ""
    return stretch.finding(
        rows,
        sign=SIGN,
        severity=severity,
        column=columns[0],
        value=float(values[~np.isfinite(values)][0]),
        message=f"{', '.join(columns)}: measured, and not finite, in {collected_steps(num)}{skipped}.",
        advice="" if skipped else _ADVICE,
    )


def _is_broken(rows: Figures, name: str) -> NDArray[np.bool_]:
    bad = ~np.isfinite(rows.values(name))
    return bad & rows.is_measured(name) if bad.any() else bad


def _collapse(steps: Figures) -> Iterator[Finding]:
    scales = steps.values("loss_scale")
    for stretch in stretches(scales < _LEAST_SCALE):
        value = float(scales[stretch.rows].min())
        yield stretch.finding(
            steps,
            sign=OVERFLOW,
            column="loss_scale",
            value=value,
            message=f"the loss scale fell to {value:.3g}: float16 overflows whatever the scale.",
            advice="Train in bfloat16, or find the layer whose outputs exceed 65504 and keep it in float32.",
        )
