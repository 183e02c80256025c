"""The healthy signs: a good run shows what is well, with figures."""

from collections.abc import Iterator, Sequence

import numpy as np

from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs.evidence import Evidence, RowRange, TableValues
from ava_pipeline.signs.gradients import share
from ava_pipeline.signs.thresholds import Thresholds

# No group learns if one of these warns,
_NOTHING_LEARNS = ("non-finite", "vanishing", "exploding", "not-measured")
# and a group does not learn if one of these names it.
_GROUP_DOES_NOT_LEARN = ("backbone-not-learning", "dead-layer", "head-dominating", "not-optimized")
# The same if one of these names it, or a group that it is part of.
_WEIGHTS_DO_NOT_LEARN = ("weights-not-moving", "update-ratio")


def healthy_signs(
    run: Evidence, findings: Sequence[Finding], limits: Thresholds, *, num_collected: int | None = None
) -> Iterator[Finding]:
    """Findings of severity info for what is as it should be; none if the rows are too few to judge.

    A group is judged by its last `least_rows` rows. `num_collected` is None if the number of steps is not known.
    """
    if is_enough(run, limits):
        health = _RunHealth(run, findings, limits, num_collected)
        yield from health.finite()
        yield from health.complete()
        yield from health.steady()
        yield from health.backbone()
        yield from health.head()
        yield from health.rates()
        yield from health.losses()
        yield from health.clipping()


def is_enough(run: Evidence, limits: Thresholds) -> bool:
    """Whether gradients were measured in `least_rows` rows, as a state must last to be a sign."""
    num_rows = int(run.norms.is_measured[run.overall].sum()) if run.overall else run.norms.num_rows
    return num_rows >= limits.least_rows


class _RunHealth:
    """One method for each healthy sign; none reports what a finding contradicts."""

    def __init__(
        self, run: Evidence, findings: Sequence[Finding], limits: Thresholds, num_collected: int | None
    ) -> None:
        self._run = run
        self._findings = findings
        self._num_collected = num_collected
        self._last_rows = slice(-limits.least_rows, None)

    def finite(self) -> Iterator[Finding]:
        if not self._has("non-finite", "loss-scale-collapse"):
            yield _healthy("all-finite", self._run.norms, "every measured norm and value is finite.")

    def complete(self) -> Iterator[Finding]:
        if not self._has("telemetry-gap"):
            num_rows = self._run.norms.num_rows
            rows = f"{num_rows} of " if self._num_collected is not None else ""
            message = f"rows exist for all {rows}{self._num_collected or num_rows} collected steps."
            yield _healthy("rows-complete", self._run.norms, message, value=float(num_rows))

    def steady(self) -> Iterator[Finding]:
        overall = self._run.overall
        if overall is None or self._warns(*_NOTHING_LEARNS, "spike", "rising", "clipped-before-step"):
            return
        norms = self._run.norms.values[overall]
        norms = norms[np.isfinite(norms)]
        if len(norms):
            low, high = np.quantile(norms, (0.05, 0.95))
            message = f"{overall} stays between {low:.3g} and {high:.3g} in 9 of 10 collected steps."
            yield _healthy("norms-steady", self._run.norms, message, overall, float(high))

    def backbone(self) -> Iterator[Finding]:
        run = self._run
        if run.overall is None or self._has("head-dominating"):
            return
        for column in filter(self._learns, run.columns["backbone_last"]):
            shares = share(run, column, run.overall)
            if np.isfinite(shares).any():
                value = float(np.nanmedian(shares))
                message = f"{column} learns: its norm is {value:.2g} of the overall norm (median)."
                yield _healthy("backbone-learning", run.norms, message, column, value)

    def head(self) -> Iterator[Finding]:
        layers = self._run.columns["head_layer"] or self._run.columns["head"]
        if layers and all(map(self._learns, layers)):
            message = f"{', '.join(layers)}: every layer of the head learns."
            yield _healthy("head-learning", self._run.norms, message, layers[0])

    def rates(self) -> Iterator[Finding]:
        rows = self._run.rates
        if not rows.values or not rows.num_rows:
            return
        # A rate that stays at 0 is not a finding if its groups are frozen.
        is_nonzero = all((rates != 0).any() for rates in rows.values.values())
        if is_nonzero and not self._has(
            "learning-rate-zero", "learning-rate-jump", "learning-rate-order", "not-optimized", "optimizer-replaced"
        ):
            yield _healthy("rates-in-order", rows, "no learning rate stays at 0 or jumps.")

    def losses(self) -> Iterator[Finding]:
        if self._warns("non-finite") or self._has("loss-negative", "loss-rising"):
            return
        for column in self._run.losses:
            losses = self._run.steps.values[column]
            losses = losses[np.isfinite(losses)]
            if not len(losses):
                continue
            first, last = (
                float(np.median(losses[: len(losses) // 4 + 1])),
                float(np.median(losses[-len(losses) // 4 :])),
            )
            if last < first:
                message = f"{column} fell from {first:.3g} to {last:.3g} (medians of the first and the last quarter)."
                yield _healthy("loss-falling", self._run.steps, message, column, last - first)

    def clipping(self) -> Iterator[Finding]:
        clip_rates = self._run.steps.values.get("clip_rate", np.array([]))
        if np.isfinite(clip_rates).any() and not self._has("clipping-often"):
            value = float(np.nanmean(clip_rates))
            message = f"clipping shortened {value:.0%} of the steps."
            yield _healthy("clipping-seldom", self._run.steps, message, "clip_rate", value)

    def _lineage(self, column: str) -> Iterator[str]:
        """A group, its parent, the parent of that, and so on."""
        parents: set[str] = set()
        name: str | None = column
        while name is not None and name not in parents:
            yield name
            parents.add(name)
            name = self._run.groups[name].parent if name in self._run.groups else None

    def _has(self, *signs: str, column: str | None = None) -> bool:
        """Whether any of these signs was found, at any severity; in one column, or in any."""
        return any(finding.id in signs and column in {None, finding.column} for finding in self._findings)

    def _warns(self, *signs: str) -> bool:
        return any(finding.id in signs and finding.severity != "info" for finding in self._findings)

    def _learns(self, column: str) -> bool:
        """Whether a group has finite gradients in its last rows, and an optimizer that changes it by them."""
        run, group = self._run, self._run.groups[column]
        if self._warns(*_NOTHING_LEARNS) or self._has(*_GROUP_DOES_NOT_LEARN, column=column) or column in run.frozen:
            return False
        if any(self._has(*_WEIGHTS_DO_NOT_LEARN, column=one) for one in self._lineage(column)):
            return False
        rates = [run.rates.values[name] for name in group.learning_rates if name in run.rates.values]
        is_changed = any((rate[self._last_rows] > 0).any() for rate in rates)
        # Manifests of older runs do not say which optimizer trains a group.
        is_changed |= group.trainable is None and not group.learning_rates
        return is_changed and bool(np.isfinite(run.norms.values[column][self._last_rows]).any())


def _healthy(
    sign: str, rows: TableValues, message: str, column: str | None = None, value: float | None = None
) -> Finding:
    every_row = RowRange(0, rows.num_rows - 1)
    return every_row.finding(rows, sign=sign, severity="info", column=column, value=value, message=message)
