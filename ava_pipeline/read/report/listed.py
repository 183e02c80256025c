"""The findings of a run, as the page lists them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.read.diagnose import Verdict
from ava_pipeline.read.pulse import status_now
from ava_pipeline.read.report.marks import MAX_FINDINGS, place_of, shown_findings
from ava_pipeline.read.report.seen import Seen
from ava_pipeline.signs.finding import Finding

_MAX_IDS = 20


@dataclass(frozen=True, slots=True)
class ListedFinding:
    """A finding in words.

    Attributes:
        finding: itself.
        place: the figure in which it lies; None where it is of no batch.
        again: where else the same sign shows in the same column.
    """

    finding: Finding
    place: str | None
    again: Sequence["ListedFinding"] = ()

    @property
    def where(self) -> str:
        """Its batches."""
        first, last = self.finding.batch_idx, self.finding.batch_idx_end
        return f"batch {first}" if first == last else f"batches {first} to {last}"

    @property
    def samples(self) -> str:
        """What its first batch consisted of."""
        ids = self.finding.sample_ids
        more = f" and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else ""
        return ", ".join(ids[:_MAX_IDS]) + more


@dataclass(frozen=True, slots=True)
class Listed:
    """What the numbers of a run say.

    Attributes:
        name: of the run.
        status: of the run, in words.
        is_generated: it was trained on generated data.
        findings: those shown, a sign in a column once.
        num_findings: how many there are.
        num_more: how many more there are.
        healthy: what is as it should be.
        verdict: what `diagnose` says in a word; None where the run could not be diagnosed.
        troubles: what could not be read.
    """

    name: str
    status: str
    is_generated: bool
    findings: Sequence[ListedFinding]
    num_findings: int
    num_more: int
    healthy: Sequence[Finding]
    verdict: Verdict | None
    troubles: Sequence[str]


def listed(seen: Seen) -> Listed:
    """List a run's findings."""
    findings = shown_findings(seen)
    return Listed(
        name=seen.name,
        status=status_now(seen.manifest, utc_now()) if seen.manifest else "no manifest",
        is_generated=seen.is_generated,
        findings=_listed_once(seen, findings),
        num_findings=len(seen.diagnosis.findings) if seen.diagnosis else 0,
        num_more=max(0, len(seen.diagnosis.findings) - MAX_FINDINGS) if seen.diagnosis else 0,
        healthy=seen.diagnosis.healthy if seen.diagnosis else (),
        verdict=seen.diagnosis.verdict if seen.diagnosis else None,
        troubles=seen.troubles,
    )


def _listed_once(seen: Seen, findings: Sequence[Finding]) -> list[ListedFinding]:
    """The first of each sign in a column, with its severity, and the others behind it."""
    alike: dict[tuple[str, str | None, str], list[ListedFinding]] = {}
    for finding in findings:
        key = (finding.sign, finding.column, finding.severity)
        alike.setdefault(key, []).append(ListedFinding(finding, place_of(seen, finding)))
    return [replace(first, again=again) for first, *again in alike.values()]
