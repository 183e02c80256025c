"""Groups whose gradients are missing, negligible, dominating, vanishing or exploding."""

from collections.abc import Iterator

import numpy as np

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import Evidence, LastingState, RowRange, ranges_where
from ava_pipeline.signs.thresholds import Thresholds

_BACKBONE_NOT_LEARNING = LastingState(
    sign="backbone-not-learning",
    message="{column} is not learning: its norm is {value:.2g} of the overall norm over {num_rows} collected steps.",
    message_if_null="{column} is not learning: it had no gradients over {num_rows} collected steps.",
    advice="Check for a detach(), no_grad() or inference_mode() between backbone and loss, and for activations of the "
    "head that saturate or died. If the backbone is frozen on purpose, set requires_grad to False before the first "
    "step.",
)


def backbone_not_learning(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The norm of the backbone's last stage is null while others are measured, or a negligible share of the overall."""
    if run.overall is None:
        return
    for column in run.columns["backbone_last"]:
        yield from _negligible(run, column, run.overall, limits.backbone_share, _BACKBONE_NOT_LEARNING, limits)


_DEAD_LAYER = LastingState(
    sign="dead-layer",
    message="{column} is dead: its norm is {value:.2g} of {whole}'s over {num_rows} collected steps.",
    message_if_null="{column} is dead: it had no gradients over {num_rows} collected steps.",
    advice="Check the activation after this layer: ReLUs that are negative for every input pass no gradient back. "
    "Lower the learning rate, start with a bias of 0, or use LeakyReLU or GELU.",
)


def dead_layer(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The norm of a layer of the head is null while the head's is measured, or a negligible share of the head's."""
    for column in run.columns["head_layer"]:
        parent = run.groups[column].parent
        if parent in run.norms.values:
            yield from _negligible(run, column, parent, limits.dead_share, _DEAD_LAYER, limits)


def _negligible(
    run: Evidence, column: str, whole: str, least_share: float, state: LastingState, limits: Thresholds
) -> Iterator[Finding]:
    ratio = share(run, column, whole)
    is_null = ~run.norms.is_measured[column] & run.norms.is_measured[whole]
    is_negligible = is_null | (ratio < least_share)
    is_negligible &= run.is_trained[column]
    return state.findings(run.norms, column, is_negligible, ratio, least_rows=limits.least_rows, whole=whole)


def share(run: Evidence, column: str, whole: str) -> Floats:
    """The ratio of two columns of `norms`; nan if either is not finite, or the second is 0."""
    part, total = run.norms.values[column], run.norms.values[whole]
    is_known = np.isfinite(part) & np.isfinite(total) & (total > 0)
    ratio: Floats = np.divide(part, total, out=np.full(len(part), np.nan), where=is_known)
    return ratio


_HEAD_DOMINATING = LastingState(
    sign="head-dominating",
    message="{column} dominates: its norm is {value:.3g} times that of all other parameters over {num_rows} collected "
    "steps.",
    advice="Lower the head's initial weights or its learning rate, use warm-up, or normalise the features. If "
    "the backbone should hardly learn, freeze it with requires_grad.",
)


def head_dominating(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The head's norm is many times that of all other parameters together, and the backbone is trained."""
    backbones = run.columns["backbone_last"]
    if run.overall is None or not backbones:
        return
    is_trained = np.all([run.is_trained[column] for column in backbones], axis=0)
    for column in run.columns["head"]:
        of_overall = np.minimum(share(run, column, run.overall), 1.0)
        # Norms are float32: from a share of 1 - 1e-7 on, rounding hides the norm of the others.
        ratio = of_overall / np.sqrt(np.maximum(1.0 - of_overall**2, 1e-7))
        ratio[~is_trained] = 0.0
        is_dominating = ratio > limits.head_ratio
        yield from _HEAD_DOMINATING.findings(run.norms, column, is_dominating, ratio, least_rows=limits.least_rows)


_VANISHING = LastingState(
    sign="vanishing",
    message="gradients vanish: {column} is {value:.3g} (median of {num_rows} collected steps), below {limit:.2g}; it "
    "was {early:.3g} at the beginning of the run.",
    advice="Check the loss's scale, the outputs for saturation, the activations for dead units, and the learning rate "
    "of the steps before.",
)
_EXPLODING = LastingState(
    sign="exploding",
    message="gradients explode: {column} is {value:.3g} (median of {num_rows} collected steps), above {limit:.2g}; it "
    "was {early:.3g} at the beginning of the run.",
    advice="Lower the learning rate, warm it up, normalise the inputs, clip the gradients, and check the loss's scale "
    "and the initial weights.",
)


def magnitude(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm is tiny or huge, in itself or compared with the run's first rows."""
    if run.overall is None:
        return
    norms, early = run.norms.values[run.overall], run.early_median
    below = max(limits.vanishing_below, early * limits.vanishing_ratio)
    yield from _VANISHING.findings(
        run.norms, run.overall, norms < below, norms, least_rows=limits.least_rows, limit=below, early=early
    )
    # The sum of a loss in place of its mean is large from the first row on, and steady.
    grown = limits.rising_factor * float(run.early_norms.min()) if len(run.early_norms) else 0.0
    above = max(limits.exploding_above, grown)
    above = min(above, early * limits.exploding_ratio or above)
    if run.is_scaled:
        norms = np.where(np.isinf(norms), np.nan, norms)  # overflows of the loss scale, which a GradScaler skips
    least_rows = max(2, limits.least_rows // 4)
    yield from _EXPLODING.findings(
        run.norms, run.overall, norms > above, norms, least_rows=least_rows, limit=above, early=early
    )


_NOT_MEASURED = LastingState(
    sign="not-measured",
    message="{column} was not measured over {num_rows} collected steps: gradients were missing, or could not be "
    "measured.",
    advice="Call step() after backward() and before zero_grad(), with the model that is trained. events.csv says if "
    "gradients are sharded, or multiplied by a loss scale that could not be read.",
    bridge=0,
)


def not_measured(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """The overall norm is null, though some group is trained; or gradients were not recorded at all."""
    if not run.norms.values and run.steps.num_rows:
        yield RowRange(0, run.steps.num_rows - 1).finding(
            run.steps,
            sign="not-measured",
            column=None,
            value=None,
            message="gradients were not recorded (track_gradients is off), so nothing is known about them.",
            severity="info",
        )
    if run.overall is not None:
        is_null = ~run.norms.is_measured[run.overall]
        is_null &= run.is_trained[run.overall]
        yield from _NOT_MEASURED.findings(run.norms, run.overall, is_null, least_rows=limits.least_rows)


def not_optimized(run: Evidence, limits: Thresholds) -> Iterator[Finding]:
    """A group requires gradients, but no optimizer holds any of its parameters."""
    for column in run.norms.values:
        group = run.groups.get(column)
        if group is None or group.trainable is not True or group.learning_rates:
            continue
        since = group.spans[-1].first_batch if group.spans else 0
        for rows in ranges_where(run.norms.batch_idx >= since, least_rows=limits.least_rows):
            yield rows.finding(
                run.norms,
                sign="not-optimized",
                column=column,
                value=None,
                message=f"{column} is in no optimizer, so none of its {len(group.parameters)} parameters changes.",
                advice="Give its parameters to the optimizer, or set their requires_grad to False to freeze them.",
            )


def frozen(run: Evidence, limits: Thresholds) -> Iterator[Finding]:  # noqa: ARG001  # every sign is called alike
    """Information: the batches in which no parameter of a group requires gradients."""
    for column in run.norms.values:
        group = run.groups.get(column)
        if group is None or not (group.trainable is False or any(span.trainable is False for span in group.spans)):
            continue
        for rows in ranges_where(~run.is_trained[column]):
            is_end = rows.last == run.norms.num_rows - 1
            until = "" if is_end else f"; it is trained from batch {run.norms.batch_idx[rows.last + 1]} on"
            yield rows.finding(
                run.norms,
                sign="frozen",
                severity="info",
                column=column,
                value=None,
                message=f"{column} is frozen: none of its {len(group.parameters)} parameters requires "
                f"gradients{until}.",
            )
