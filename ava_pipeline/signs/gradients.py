"""Groups whose gradients are missing, negligible, dominating, vanishing or exploding for some time."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import Evidence, RowRange, Values, ranges_where
from ava_pipeline.signs.thresholds import Thresholds

BACKBONE_NOT_LEARNING = "backbone-not-learning"
_BACKBONE_ADVICE = (
    "Look for a detach(), a no_grad() or an inference_mode() between backbone and loss, and for activations of the "
    "head that saturate or died. If it is frozen on purpose, set requires_grad to False before the first step."
)


def backbone_not_learning(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Its norm is null where others are measured, or a negligible share of the overall norm."""
    overall = run.overall
    if overall is None:
        return
    for column in run.of_role("backbone_last"):
        share = run.share(column, overall)
        is_null = ~run.norms.is_measured(column) & run.norms.is_measured(overall)
        is_still = is_null | (share < limits.backbone_share)
        is_still[: run.trained_from(column)] = False
        for stretch in ranges_where(is_still, least=limits.least_rows, bridge=2):
            yield _backbone_finding(run, column, share, stretch)


def _backbone_finding(run: Evidence, column: str, share: Values, stretch: RowRange) -> Finding:
    seen = share[stretch.rows]
    measured = seen[np.isfinite(seen)]
    if len(measured):
        value = float(np.median(measured))
        what = f"its norm is {value:.2g} of the overall norm"
    else:
        value = None
        what = "it had no gradients at all"
    return stretch.finding(
        run.norms,
        sign=BACKBONE_NOT_LEARNING,
        column=column,
        value=value,
        message=f"{column} is not learning: {what} over {stretch.length} collected steps.",
        advice=_BACKBONE_ADVICE,
    )


DEAD_LAYER = "dead-layer"
_DEAD_ADVICE = (
    "Look at the activation behind it: ReLUs that are negative for every input pass nothing back. Lower the learning "
    "rate, begin with a bias of 0, or take LeakyReLU or GELU."
)


def dead_layer(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Its norm is null or a negligible share of its head's."""
    for column in run.of_role("head_layer"):
        parent = run.groups[column].parent
        if parent not in run.norms.names:
            continue
        is_null = ~run.norms.is_measured(column) & run.norms.is_measured(parent)
        share = run.share(column, parent)
        is_dead = is_null | (share < limits.dead_share)
        is_dead[: run.trained_from(column)] = False
        for stretch in ranges_where(is_dead, least=limits.least_rows, bridge=2):
            seen = share[stretch.rows]
            value = float(np.nanmedian(seen)) if np.isfinite(seen).any() else None
            what = "it had no gradients" if value is None else f"its norm is {value:.2g} of {parent}'s"
            yield stretch.finding(
                run.norms,
                sign=DEAD_LAYER,
                column=column,
                value=value,
                message=f"{column} is dead: {what} over {stretch.length} collected steps.",
                advice=_DEAD_ADVICE,
            )


HEAD_DOMINATING = "head-dominating"
_HEAD_ADVICE = (
    "Lower the head's initial weights or its learning rate, warm the rates up, or normalise the features; where the "
    "backbone should hardly learn, freeze it and say so with requires_grad."
)


def head_dominating(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """Its norm is many times that of all other parameters together, and these are not frozen."""
    overall = run.overall
    backbones = run.of_role("backbone_last")
    if overall is None or not backbones:
        return
    begin = max(map(run.trained_from, backbones))
    for column in run.of_role("head"):
        share = np.minimum(run.share(column, overall), 1.0)
        # Norms are float32: what is left beside a share of 1 - 1e-7 cannot be told from nothing.
        ratio = share / np.sqrt(np.maximum(1.0 - share**2, 1e-7))
        ratio[:begin] = 0.0
        for stretch in ranges_where(ratio > limits.head_ratio, least=limits.least_rows, bridge=2):
            value = float(np.nanmedian(ratio[stretch.rows]))
            yield stretch.finding(
                run.norms,
                sign=HEAD_DOMINATING,
                column=column,
                value=value,
                message=f"{column} dominates: its norm is {value:.3g} times that of all the rest over "
                f"{stretch.length} collected steps.",
                advice=_HEAD_ADVICE,
            )


VANISHING, EXPLODING = "vanishing", "exploding"
_VANISHING_ADVICE = (
    "Look at the loss's scale, at saturated outputs and dead activations, and at the learning rate of the steps before."
)
_EXPLODING_ADVICE = (
    "Lower the learning rate, warm it up, normalise the inputs, clip the gradients, and look at the loss's scale and "
    "at the initial weights."
)


def magnitude(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """By the norm itself, and against the norm of the run's first rows."""
    if run.overall is None:
        return
    norms, reference = run.norms.values(run.overall), run.reference
    below = max(limits.vanishing_below, reference * limits.vanishing_ratio)
    # A sum in place of a mean is large from its first row on, and steady.
    grown = limits.rising_factor * float(run.beginning.min()) if len(run.beginning) else 0.0
    above = max(limits.exploding_above, grown)
    above = min(above, reference * limits.exploding_ratio or above)
    for stretch in ranges_where(norms < below, least=limits.least_rows, bridge=2):
        yield _magnitude_finding(run, VANISHING, norms, stretch, f"vanish: below {below:.2g}", _VANISHING_ADVICE)
    if run.is_scaled:
        norms = np.where(np.isinf(norms), np.nan, norms)  # what the scale made too large, and the scaler skipped
    # What is inf has else outgrown every bound; what is nan is told as not finite.
    for stretch in ranges_where(norms > above, least=max(2, limits.least_rows // 4), bridge=2):
        yield _magnitude_finding(run, EXPLODING, norms, stretch, f"explode: above {above:.2g}", _EXPLODING_ADVICE)


def _magnitude_finding(run: Evidence, sign: str, norms: Values, stretch: RowRange, what: str, advice: str) -> Finding:
    value = float(np.nanmedian(norms[stretch.rows]))
    return stretch.finding(
        run.norms,
        sign=sign,
        column=run.overall,
        value=value,
        message=f"gradients {what}, {value:.3g} in the middle of {stretch.length} collected steps, after "
        f"{run.reference:.3g} at the beginning.",
        advice=advice,
    )


NOT_MEASURED = "not-measured"
_NOT_MEASURED_ADVICE = (
    "Call step() after backward() and before zero_grad(), with the model that is trained; events.csv says where "
    "gradients are sharded, or multiplied by a loss scale that could not be read."
)


def not_measured(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm is null, though not everything is frozen."""
    overall = run.overall
    if overall is None:
        return
    is_null = ~run.norms.is_measured(overall)
    is_null[: run.trained_from(overall)] = False
    for stretch in ranges_where(is_null, least=limits.least_rows):
        yield stretch.finding(
            run.norms,
            sign=NOT_MEASURED,
            column=overall,
            value=None,
            message=f"{overall} was not measured over {stretch.length} collected steps: there was no gradient, or none "
            "that could be measured.",
            advice=_NOT_MEASURED_ADVICE,
        )


NOT_OPTIMIZED = "not-optimized"


def not_optimized(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """A group has gradients, and none of its parameters was in an optimizer at the first collected step."""
    for column in run.norms.names:
        # Groups are described once, at the first collected step.
        group = run.groups.get(column)
        if group is None or group.trainable is not True or group.learning_rates or len(run.norms) < limits.least_rows:
            continue
        yield RowRange(0, len(run.norms) - 1).finding(
            run.norms,
            sign=NOT_OPTIMIZED,
            column=column,
            value=None,
            message=f"{column} was in no optimizer at the first collected step: unless it was added since, none of its "
            f"{len(group.parameters)} parameters is ever changed.",
            advice="Give its parameters to the optimizer, or set their requires_grad to False to say that they stay.",
        )


FROZEN = "frozen"


def frozen(run: Evidence, limits: Thresholds) -> Iterator[Finding]:  # noqa: ARG001  # every rule is called alike
    """None of a group's parameters requires gradients at the first collected step, and none ever had any."""
    if not len(run.norms):
        return
    for column in run.norms.names:
        if column in run.groups and run.is_frozen(column):
            yield RowRange(0, len(run.norms) - 1).finding(
                run.norms,
                sign=FROZEN,
                severity="info",
                column=column,
                value=None,
                message=f"{column} is frozen: none of its {len(run.groups[column].parameters)} parameters requires "
                "gradients.",
            )
