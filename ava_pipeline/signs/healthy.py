"""The healthy signs, so that a good run says so."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ava_pipeline.signs import (
    backbone,
    clipping,
    dead_layer,
    finite,
    gaps,
    head,
    loss,
    magnitude,
    rates,
    rising,
    spikes,
)
from ava_pipeline.signs.figures import Evidence, Figures
from ava_pipeline.signs.finding import Finding
from ava_pipeline.signs.stretches import Stretch
from ava_pipeline.signs.thresholds import Thresholds


class _Told(NamedTuple):
    sign: str
    rows: Figures
    column: str | None
    value: float | None
    message: str


# Each healthy sign is said only where none of these was found.
_UNLESS = {
    "backbone-learning": (backbone.SIGN, head.SIGN, "frozen"),
    "head-learning": (dead_layer.SIGN,),
    "norms-steady": (spikes.SIGN, rising.SIGN, magnitude.VANISHING, magnitude.EXPLODING),
    "all-finite": (finite.SIGN, finite.OVERFLOW),
    "rates-in-order": (rates.ZERO, rates.JUMP, rates.ORDER, "not-optimized"),
    "loss-falling": (loss.NEGATIVE, loss.RISING),
    "clipping-seldom": (clipping.SIGN,),
    "rows-complete": (gaps.SIGN,),
}


def healthy_signs(run: Evidence, found: Iterable[Finding], limits: Thresholds) -> Iterator[Finding]:
    """What is as it should be, with its figures; nothing while the rows are too few to tell."""
    if len(run.norms) < limits.least_rows:
        return
    amiss = {finding.sign for finding in found}
    for told in _told(run):
        if amiss.isdisjoint(_UNLESS[told.sign]) and len(told.rows):
            yield Stretch(0, len(told.rows) - 1).finding(
                told.rows,
                sign=told.sign,
                severity="info",
                column=told.column,
                value=told.value,
                message=told.message,
            )


def _told(run: Evidence) -> Iterator[_Told]:
    yield _Told("all-finite", run.norms, None, None, "every measured norm and value is finite.")
    yield _Told(
        "rows-complete", run.norms, None, float(len(run.norms)), f"all {len(run.norms)} collected steps are there."
    )
    if run.overall is not None:
        yield from _norms(run, run.overall)
    if run.rates.names:
        yield _Told("rates-in-order", run.rates, None, None, "no learning rate stays at 0 or leaps.")
    yield from _steps(run)


def _norms(run: Evidence, overall: str) -> Iterator[_Told]:
    norms = run.norms.values(overall)[run.norms.finite(overall)]
    if not len(norms):
        return
    low, high = np.quantile(norms, (0.05, 0.95))
    steady = f"{overall} stays between {low:.3g} and {high:.3g} in 9 of 10 collected steps."
    yield _Told("norms-steady", run.norms, overall, float(high), steady)
    for column in run.of_role("backbone_last"):
        shares = run.share(column, overall)
        if np.isfinite(shares).any():
            share = float(np.nanmedian(shares))
            message = f"{column} learns: its norm is {share:.2g} of the overall norm (median)."
            yield _Told("backbone-learning", run.norms, column, share, message)
    layers = run.of_role("head_layer") or run.of_role("head")
    if layers:
        yield _Told(
            "head-learning", run.norms, layers[0], None, f"{', '.join(layers)}: every layer of the head learns."
        )


def _steps(run: Evidence) -> Iterator[_Told]:
    steps = run.steps
    for column in run.losses:
        if not len(steps.finite(column)):
            continue
        losses = steps.values(column)[steps.finite(column)]
        first, last = (float(np.median(part)) for part in (losses[: len(losses) // 4 + 1], losses[-len(losses) // 4 :]))
        if last < first:
            message = f"{column} fell from {first:.3g} to {last:.3g} (medians of the first and the last quarter)."
            yield _Told("loss-falling", steps, column, last - first, message)
    rates = steps.values("clip_rate") if "clip_rate" in steps.names else np.array([])
    if np.isfinite(rates).any():
        share = float(np.nanmean(rates))
        yield _Told("clipping-seldom", steps, "clip_rate", share, f"clipping shortened {share:.0%} of the steps.")
