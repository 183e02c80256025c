"""A loss that goes the wrong way."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.signs.figures import Evidence, Values
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import Stretch, stretches
from ava_pipeline.signs.thresholds import Thresholds
from ava_pipeline.signs.trend import trend_of

NEGATIVE, RISING = "loss-negative", "loss-rising"
_SIGN_OF_IT = "Look at the loss's sign. Where yours may be below 0, set signs.loss_floor to null."
_DIVERGES = "Lower the learning rate, and look at the loss's sign: it is to be minimised."


def check(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Of every recorded value whose name holds `loss`: below its floor, or steadily rising."""
    for column in run.losses:
        losses = run.steps.values(column)
        yield from _negative(run, column, losses, limits)
        yield from _rising(run, column, losses, limits)


def _negative(run: Evidence, column: str, losses: Values, limits: Thresholds) -> Iterator[Finding]:
    if limits.loss_floor is None:
        return
    for stretch in stretches(losses < limits.loss_floor, least=limits.least_rows, bridge=2):
        value = float(np.nanmedian(losses[stretch.rows]))
        yield stretch.finding(
            run.steps,
            sign=NEGATIVE,
            column=column,
            value=value,
            message=f"{column} is below {limits.loss_floor:g}, {value:.3g} in the middle of {stretch.length} collected "
            "steps, which no distance and no cross-entropy is.",
            advice=_SIGN_OF_IT,
        )


def _rising(run: Evidence, column: str, losses: Values, limits: Thresholds) -> Iterator[Finding]:
    positions = run.steps.finite(column)
    if not len(positions):
        return
    begin = float(np.median(losses[positions[: limits.least_rows]]))
    least = (limits.loss_rise - 1.0) * abs(begin)
    trend = trend_of(losses, least)
    if trend is None or trend.tau < limits.rising_tau or trend.change < least:
        return
    yield Stretch(int(positions[0]), int(positions[-1])).finding(
        run.steps,
        sign=RISING,
        column=column,
        value=trend.change,
        message=f"{column} rises steadily, by {trend.change:.3g} from {begin:.3g} (Kendall's tau {trend.tau:.2f}).",
        advice=_DIVERGES,
    )
