"""Every sign, and what they find in some rows."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

from ava_pipeline.contract.finding import Finding
from ava_pipeline.signs import (
    gaps,
    gradients,
    rates,
    stability,
    values,
)
from ava_pipeline.signs.evidence import Evidence
from ava_pipeline.signs.thresholds import Thresholds

Sign = Callable[[Evidence, Thresholds], Iterator[Finding]]

SIGNS: tuple[Sign, ...] = (
    gradients.backbone_not_learning,
    rates.clipping,
    gradients.dead_layer,
    values.non_finite,
    gradients.frozen,
    gradients.head_dominating,
    values.loss,
    gradients.magnitude,
    gradients.not_measured,
    gradients.not_optimized,
    rates.rates,
    stability.rising,
    stability.spikes,
)
# Signs of single batches, which come without ever going; the others are states that appear and go.
SINGLE_BATCH_SIGNS = frozenset({stability.SPIKE, values.NON_FINITE, rates.RATE_JUMP, gaps.TELEMETRY_GAP})
# Those that name what their first batch consisted of.
SIGNS_WITH_SAMPLES = frozenset({stability.SPIKE, values.NON_FINITE})
# A sign that follows from another one over the same batches is not told beside it.
_EXPLAINED_BY: Mapping[str, tuple[str, ...]] = {
    gradients.HEAD_DOMINATING: (gradients.BACKBONE_NOT_LEARNING,),
    stability.SPIKE: (gradients.EXPLODING,),
    stability.RISING: (gradients.EXPLODING,),
}
_REASONS = frozenset(chain.from_iterable(_EXPLAINED_BY.values()))
MAX_LISTED = 20


def findings_of(run: Evidence, limits: Thresholds) -> list[Finding]:
    """What all rules find, at most 20 of a sign and column."""
    return _limited(all_findings_of(run, limits))


def all_findings_of(run: Evidence, limits: Thresholds) -> list[Finding]:
    """What all rules find, however much; what follows from another finding is left out."""
    found = [finding for rule in SIGNS for finding in rule(run, limits)]
    reasons = [finding for finding in found if finding.sign in _REASONS]
    return [one for one in found if not any(_explains(reason, one) for reason in reasons)]


def _explains(reason: Finding, one: Finding) -> bool:
    overlaps = reason.batch_idx <= one.batch_idx_end and one.batch_idx <= reason.batch_idx_end
    return overlaps and reason.sign in _EXPLAINED_BY.get(one.sign, ())


def _limited(found: list[Finding]) -> list[Finding]:
    """The last of each kind that is listed says how many are not."""
    total = Counter((one.sign, one.column, one.severity) for one in found)
    seen: Counter[tuple[str, str | None, str]] = Counter()
    listed = []
    for one in found:
        kind = (one.sign, one.column, one.severity)
        seen[kind] += 1
        if seen[kind] < MAX_LISTED or total[kind] == MAX_LISTED:
            listed.append(one)
        elif seen[kind] == MAX_LISTED:
            more = f"{one.message} And {total[kind] - MAX_LISTED} more of these are not listed."
            listed.append(replace(one, message=more))
    return listed
