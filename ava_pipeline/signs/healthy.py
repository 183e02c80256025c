"""The healthy signs, so that a good run says so."""

from collections.abc import Collection, Iterator

import numpy as np

from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs import (
    gaps,
    gradients,
    rates,
    stability,
    values,
)
from ava_pipeline.signs.evidence import Evidence, RowRange, TableValues
from ava_pipeline.signs.thresholds import Thresholds

_NOTHING_LEARNS = (values.NON_FINITE, gradients.VANISHING, gradients.EXPLODING, gradients.NOT_MEASURED)
_GROUP_STILL = (
    gradients.BACKBONE_NOT_LEARNING,
    gradients.DEAD_LAYER,
    gradients.HEAD_DOMINATING,
    gradients.NOT_OPTIMIZED,
)


class _RunHealth:
    """What a run shows, and what is amiss with it.

    Args:
        run: all that is known.
        found: its findings.
        limits: a group learns where its last `least_rows` rows say so.
        num_collected: how many steps were; None where it is not known.
    """

    def __init__(
        self, run: Evidence, found: Collection[Finding], limits: Thresholds, num_collected: int | None
    ) -> None:
        self.run = run
        self.num_collected = num_collected
        self._found = found
        self._last = slice(-limits.least_rows, None)

    def has(self, *signs: str, column: str | None = None) -> bool:
        """Whether any of these signs was found, information included; of one column, or of any."""
        return any(one.sign in signs and column in {None, one.column} for one in self._found)

    def warns(self, *signs: str) -> bool:
        """Whether any of these signs was found that is a warning or worse."""
        return any(one.sign in signs and one.severity != "info" for one in self._found)

    def learns(self, column: str) -> bool:
        """Whether a group has gradients to the end, and something changes it by them."""
        run, group = self.run, self.run.groups[column]
        if self.warns(*_NOTHING_LEARNS) or self.has(*_GROUP_STILL, column=column) or run.is_frozen(column):
            return False
        held = [name for name in group.learning_rates if name in run.rates.names]
        is_moved = any((run.rates.values(name)[self._last] > 0).any() for name in held)
        # Who trains a group is not known of older runs.
        is_moved |= group.trainable is None and not group.learning_rates
        return is_moved and bool(np.isfinite(run.norms.values(column)[self._last]).any())


def healthy_signs(
    run: Evidence, found: Collection[Finding], limits: Thresholds, *, num_collected: int | None = None
) -> Iterator[Finding]:
    """What is as it should be, with its figures; nothing while the rows are too few to tell."""
    if is_enough(run, limits):
        seen = _RunHealth(run, found, limits, num_collected)
        for sign in (_finite, _complete, _steady, _backbone, _head, _rates, _losses, _clipping):
            yield from sign(seen)


def is_enough(run: Evidence, limits: Thresholds) -> bool:
    """Whether gradients were measured in as many rows as a sign must last."""
    num = int(run.norms.is_measured(run.overall).sum()) if run.overall else len(run.norms)
    return num >= limits.least_rows


def _healthy(
    sign: str, rows: TableValues, message: str, column: str | None = None, value: float | None = None
) -> Finding:
    return RowRange(0, len(rows) - 1).finding(
        rows, sign=sign, severity="info", column=column, value=value, message=message
    )


def _finite(seen: _RunHealth) -> Iterator[Finding]:
    if not seen.has(values.NON_FINITE, values.LOSS_SCALE_COLLAPSE):
        yield _healthy("all-finite", seen.run.norms, "every measured norm and value is finite.")


def _complete(seen: _RunHealth) -> Iterator[Finding]:
    num = len(seen.run.norms)
    if not seen.has(gaps.TELEMETRY_GAP):
        of = "" if seen.num_collected is None else f"{num} of "
        message = f"all {of}{seen.num_collected or num} collected steps are there."
        yield _healthy("rows-complete", seen.run.norms, message, value=float(num))


def _steady(seen: _RunHealth) -> Iterator[Finding]:
    run, overall = seen.run, seen.run.overall
    if overall is None or seen.warns(*_NOTHING_LEARNS, stability.SPIKE, stability.RISING):
        return
    norms = run.norms.values(overall)[run.norms.finite(overall)]
    if len(norms):
        low, high = np.quantile(norms, (0.05, 0.95))
        message = f"{overall} stays between {low:.3g} and {high:.3g} in 9 of 10 collected steps."
        yield _healthy("norms-steady", run.norms, message, overall, float(high))


def _backbone(seen: _RunHealth) -> Iterator[Finding]:
    overall = seen.run.overall
    if overall is None or seen.has(gradients.HEAD_DOMINATING):
        return
    for column in filter(seen.learns, seen.run.of_role("backbone_last")):
        shares = seen.run.share(column, overall)
        if np.isfinite(shares).any():
            share = float(np.nanmedian(shares))
            message = f"{column} learns: its norm is {share:.2g} of the overall norm (median)."
            yield _healthy("backbone-learning", seen.run.norms, message, column, share)


def _head(seen: _RunHealth) -> Iterator[Finding]:
    layers = seen.run.of_role("head_layer") or seen.run.of_role("head")
    if layers and all(map(seen.learns, layers)):
        message = f"{', '.join(layers)}: every layer of the head learns."
        yield _healthy("head-learning", seen.run.norms, message, layers[0])


def _rates(seen: _RunHealth) -> Iterator[Finding]:
    rows = seen.run.rates
    if (
        not rows.names
        or not len(rows)
        or seen.has(rates.RATE_ZERO, rates.RATE_JUMP, rates.RATE_ORDER, gradients.NOT_OPTIMIZED)
    ):
        return
    # That of a frozen group may, without a warning.
    if all((rows.values(name) != 0).any() for name in rows.names):
        yield _healthy("rates-in-order", rows, "no learning rate stays at 0 or leaps.")


def _losses(seen: _RunHealth) -> Iterator[Finding]:
    steps = seen.run.steps
    if seen.warns(values.NON_FINITE) or seen.has(values.LOSS_NEGATIVE, values.LOSS_RISING):
        return
    for column in seen.run.losses:
        losses = steps.values(column)[steps.finite(column)]
        if not len(losses):
            continue
        first, last = (float(np.median(part)) for part in (losses[: len(losses) // 4 + 1], losses[-len(losses) // 4 :]))
        if last < first:
            message = f"{column} fell from {first:.3g} to {last:.3g} (medians of the first and the last quarter)."
            yield _healthy("loss-falling", steps, message, column, last - first)


def _clipping(seen: _RunHealth) -> Iterator[Finding]:
    steps = seen.run.steps
    shares = steps.values("clip_rate") if "clip_rate" in steps.names else np.array([])
    if np.isfinite(shares).any() and not seen.has(rates.CLIPPING_OFTEN):
        share = float(np.nanmean(shares))
        yield _healthy("clipping-seldom", steps, f"clipping shortened {share:.0%} of the steps.", "clip_rate", share)
