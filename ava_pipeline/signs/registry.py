"""Every sign, and the findings of all of them in some rows."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs import clipping, gradients, labels, rates, stability, values, weights
from ava_pipeline.signs.evidence import Evidence
from ava_pipeline.signs.thresholds import Thresholds

Sign = Callable[[Evidence, Thresholds], Iterator[Finding]]

SIGNS: tuple[Sign, ...] = (
    gradients.backbone_not_learning,
    clipping.clipped_before_step,
    clipping.clipping_often,
    gradients.dead_layer,
    values.non_finite,
    values.loss_scale_collapse,
    gradients.frozen,
    gradients.head_dominating,
    labels.label_bias,
    labels.labels_alike,
    values.loss_negative,
    stability.loss_rising,
    gradients.magnitude,
    gradients.not_measured,
    gradients.not_optimized,
    rates.rates,
    stability.rising,
    stability.spikes,
    weights.update_ratio,
    weights.weights_not_moving,
)
# Signs of single batches, which appear once; all others are states, which appear and end.
SINGLE_BATCH_SIGNS = frozenset({"spike", "non-finite", "learning-rate-jump", "telemetry-gap"})
# Signs whose findings name the samples of their first batch.
SIGNS_WITH_SAMPLES = frozenset({"spike", "non-finite"})
# A finding of the sign on the left follows from one on the right over the same batches, and is then left out.
_EXPLAINED_BY: Mapping[str, frozenset[str]] = {
    "head-dominating": frozenset({"backbone-not-learning"}),
    "spike": frozenset({"exploding"}),
    "rising": frozenset({"exploding"}),
}
_REASONS = frozenset().union(*_EXPLAINED_BY.values())
MAX_LISTED = 20


def listed_findings(run: Evidence, limits: Thresholds) -> list[Finding]:
    """The findings of all signs, at most 20 of one sign, column and severity; the last says how many more there are."""
    findings = all_findings(run, limits)
    total = Counter(map(_same, findings))
    num: Counter[tuple[str, str | None, str]] = Counter()
    listed = []
    for finding in findings:
        same = _same(finding)
        num[same] += 1
        if num[same] < MAX_LISTED or total[same] == MAX_LISTED:
            listed.append(finding)
        elif num[same] == MAX_LISTED:
            more = f"{finding.message} {total[same] - MAX_LISTED} more findings like this one are not listed."
            listed.append(replace(finding, message=more))
    return listed


def _same(finding: Finding) -> tuple[str, str | None, str]:
    return finding.id, finding.column, finding.severity


def all_findings(run: Evidence, limits: Thresholds) -> list[Finding]:
    """The findings of all signs, less those that follow from another one."""
    findings = [finding for sign in SIGNS for finding in sign(run, limits)]
    reasons = [finding for finding in findings if finding.id in _REASONS]
    return [finding for finding in findings if not any(_explains(reason, finding) for reason in reasons)]


def _explains(reason: Finding, finding: Finding) -> bool:
    overlaps = reason.batch_idx <= finding.batch_idx_end and finding.batch_idx <= reason.batch_idx_end
    return overlaps and reason.id in _EXPLAINED_BY.get(finding.id, ())
