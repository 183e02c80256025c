"""The diagnosis of a run: its warning signs and healthy signs, over all of its rows."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

from pydantic import ValidationError

from ava_pipeline.contract.events import samples_in
from ava_pipeline.contract.finding import SEVERITY_RANK, Finding, verdict_line
from ava_pipeline.contract.manifest import Manifest, attempt_spans
from ava_pipeline.read.run import Run, open_run
from ava_pipeline.signs.evidence import NO_ROWS, Evidence, TableValues
from ava_pipeline.signs.gaps import gap_findings
from ava_pipeline.signs.healthy import healthy_signs, is_enough
from ava_pipeline.signs.recorded import recorded_findings
from ava_pipeline.signs.registry import SIGNS_WITH_SAMPLES, listed_findings
from ava_pipeline.signs.thresholds import Thresholds

Verdict = Literal["healthy", "not healthy", "too few rows to tell", "gradients not measured"]
_TABLES = ("gradient_norms", "learning_rates", "steps", "batch_stats", "weight_norms", "weight_deltas")
_EVENTS_WITH_SAMPLES = frozenset(sign.replace("-", "_") for sign in SIGNS_WITH_SAMPLES)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The warning signs and healthy signs of a run.

    Attributes:
        findings: the most severe first, then by batch.
        healthy: findings of severity info about what is as it should be.
        is_enough: whether gradients were measured in enough rows to call the run healthy.
        is_measured: False if the run recorded no gradients at all, though it has enough rows.

    Example:
        >>> Diagnosis(findings=(), healthy=()).verdict
        'healthy'
    """

    findings: tuple[Finding, ...]
    healthy: tuple[Finding, ...]
    is_enough: bool = True
    is_measured: bool = True

    @property
    def verdict(self) -> Verdict:
        """`not healthy` after a warning or an error; `healthy` only if gradients were measured in enough rows."""
        if any(finding.severity != "info" for finding in self.findings):
            return "not healthy"
        if not self.is_measured:
            return "gradients not measured"
        return "healthy" if self.is_enough else "too few rows to tell"

    @property
    def is_healthy(self) -> bool:
        """Whether the verdict is `healthy`."""
        return self.verdict == "healthy"

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, numbers and texts, as `ava-pipeline diagnose --json` prints them."""
        return {
            "verdict": self.verdict,
            "is_healthy": self.is_healthy,
            "findings": [finding.to_json() for finding in self.findings],
            "healthy": [finding.to_json() for finding in self.healthy],
        }

    def to_text(self, run: str) -> str:
        """The lines that `ava-pipeline diagnose` prints: findings, healthy signs and the verdict.

        Args:
            run: the run directory, as the last line names it.
        """
        lines = [line for finding in self.findings for line in finding.lines()]
        lines += [f"healthy: {finding.message} [{finding.id}]" for finding in self.healthy]
        return "\n".join([*lines, verdict_line(run, self.verdict, self.findings)])


def diagnose_run(run: Run | str | PathLike[str]) -> Diagnosis:
    """Find the signs in all rows of a run that is running, crashed or finished.

    Uses the thresholds that the run was written with.

    Args:
        run: an opened run, or its directory.

    Raises:
        NotARunError: the directory is not a run, or the run recorded no telemetry.
        DamagedFileError: a file of the run cannot be read.

    Example:
        >>> diagnose_run("outputs/ava/my_run").verdict  # doctest: +SKIP
        'healthy'
    """
    opened = run if isinstance(run, Run) else open_run(run)
    manifest = opened.manifest
    limits = _thresholds(manifest)
    norms, rates, steps, labels, weight_norms, weight_deltas = (
        TableValues(opened.ordered(name) if name in manifest.tables else NO_ROWS) for name in _TABLES
    )
    evidence = Evidence(
        norms=norms,
        rates=rates,
        steps=steps,
        groups=manifest.groups,
        labels=labels,
        weight_norms=weight_norms,
        weight_deltas=weight_deltas,
    )
    # To make a Python object of a timestamp, pyarrow loads pandas.
    events = opened.arrow_events().drop_columns(["time_utc"]).to_pylist()
    findings = [
        *(_with_samples(finding, events) for finding in listed_findings(evidence, limits)),
        *gap_findings(events, attempt_spans(manifest), (norms if norms.values else steps).batch_idx),
        *recorded_findings(events),
    ]
    findings.sort(key=lambda finding: (-SEVERITY_RANK[finding.severity], finding.batch_idx, finding.id))
    healthy = healthy_signs(evidence, findings, limits, num_collected=_num_collected(manifest))
    if not manifest.attempts:  # how many steps were collected is not known
        healthy = (sign for sign in healthy if sign.id != "rows-complete")
    return Diagnosis(
        findings=(*opened.placed(findings), *opened.notes()),
        healthy=tuple(opened.placed(list(healthy))),
        is_enough=is_enough(evidence, limits),
        is_measured=bool(norms.values) or steps.num_rows < limits.least_rows,
    )


def _thresholds(manifest: Manifest) -> Thresholds:
    """The thresholds of the latest attempt; the defaults if the manifest has none that are valid."""
    if not manifest.attempts:
        return Thresholds()
    try:
        return Thresholds.model_validate(manifest.attempt.thresholds)
    except ValidationError as error:
        warnings.warn(
            f"diagnose uses the default thresholds: those in manifest.json are invalid: {error}", stacklevel=3
        )
        return Thresholds()


def _with_samples(finding: Finding, events: Sequence[Mapping[str, Any]]) -> Finding:
    """The finding with the samples of its first batch, if an event names them."""
    for event in events if finding.id in SIGNS_WITH_SAMPLES else ():
        if event["batch_idx"] == finding.batch_idx and event["event"] in _EVENTS_WITH_SAMPLES:
            sample_ids = samples_in(event["message"])
            if sample_ids:
                return replace(finding, sample_ids=sample_ids)
    return finding


def _num_collected(manifest: Manifest) -> int | None:
    """The collected steps of a run of one finished attempt; None for others, whose counts are not final or overlap."""
    if len(manifest.attempts) != 1 or manifest.attempt.status in {"running", "killed"}:
        return None
    return manifest.attempt.counters.collected
