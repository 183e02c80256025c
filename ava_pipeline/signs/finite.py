"""Norms, losses and other values that were measured and are not finite."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.signs.figures import Evidence, Figures
from ava_pipeline.signs.finding import Finding, Severity
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


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """By table and stretch; single overflows under a GradScaler, which skips them, are information."""
    for rows in (run.norms, run.steps):
        broken = {name: bad for name in rows.names if (bad := _not_finite(rows, name)).any()}
        if not broken:
            continue
        anywhere = np.logical_or.reduce(list(broken.values()))
        may_overflow = _is_scaled(run.steps) and anywhere.mean() <= limits.overflow_share
        for stretch in stretches(anywhere, bridge=2):
            columns = [name for name, bad in broken.items() if bad[stretch.rows].any()]
            yield _finding(rows, columns, stretch, may_overflow=may_overflow)
    yield from _collapse(run.steps)


def _finding(rows: Figures, columns: list[str], stretch: Stretch, *, may_overflow: bool) -> Finding:
    severity: Severity = "warning"
    if may_overflow and stretch.length < _LASTING:
        severity = "info"
    elif stretch.last == len(rows) - 1 and stretch.length >= _LASTING:
        severity = "error"
    values = rows.values(columns[0])[stretch.rows]
    return stretch.finding(
        rows,
        sign=SIGN,
        severity=severity,
        column=columns[0],
        value=float(values[~np.isfinite(values)][0]),
        message=f"{', '.join(columns)}: measured, and not finite, in {stretch.length} collected steps.",
        advice=_ADVICE,
    )


def _not_finite(rows: Figures, name: str) -> NDArray[np.bool_]:
    bad = ~np.isfinite(rows.values(name))
    return bad & rows.is_measured(name) if bad.any() else bad


def _is_scaled(steps: Figures) -> bool:
    return "loss_scale" in steps.names and bool(steps.is_measured("loss_scale").any())


def _collapse(steps: Figures) -> Iterator[Finding]:
    if not _is_scaled(steps):
        return
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
