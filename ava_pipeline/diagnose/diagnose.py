"""A run's findings: the signs over all of its rows."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

from pydantic import ValidationError

from ava_pipeline.contract.events import EVENTS, samples_in
from ava_pipeline.contract.finding import SEVERITY_RANK, Finding
from ava_pipeline.contract.manifest import Manifest, attempt_spans
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.read.run import Run, open_run
from ava_pipeline.read.table import read_table
from ava_pipeline.signs.evidence import NO_ROWS, Evidence, TableValues
from ava_pipeline.signs.gaps import gap_findings
from ava_pipeline.signs.healthy import healthy_signs, is_enough
from ava_pipeline.signs.registry import SIGNS_WITH_SAMPLES, findings_of
from ava_pipeline.signs.thresholds import Thresholds

Verdict = Literal["healthy", "not healthy", "too few rows to tell"]
_NAMES_SAMPLES = frozenset(sign.replace("-", "_") for sign in SIGNS_WITH_SAMPLES)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the numbers of a run say.

    Attributes:
        findings: what is worth a look, the most severe first, then by batch.
        healthy: what is as it should be, severity info.
        is_enough: whether gradients were measured in enough rows to say that all is well.
    """

    findings: tuple[Finding, ...]
    healthy: tuple[Finding, ...]
    is_enough: bool = True

    @property
    def verdict(self) -> Verdict:
        """The run in a word: not healthy where a warning or worse was found."""
        if any(finding.severity != "info" for finding in self.findings):
            return "not healthy"
        return "healthy" if self.is_enough else "too few rows to tell"

    @property
    def is_healthy(self) -> bool:
        """Whether there was enough to judge, and nothing to warn of."""
        return self.verdict == "healthy"

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, numbers and texts; a figure that is not finite is null."""
        return {
            "verdict": self.verdict,
            "is_healthy": self.is_healthy,
            "findings": [finding.to_json() for finding in self.findings],
            "healthy": [finding.to_json() for finding in self.healthy],
        }

    def to_text(self, run: str) -> str:
        """For a person: two lines a finding, a line a healthy sign, and one that sums up.

        Args:
            run: the directory, as it was given.
        """
        lines = [line for finding in self.findings for line in finding.lines()]
        lines += [f"healthy  {finding.message} [{finding.sign}]" for finding in self.healthy]
        num = Counter(finding.severity for finding in self.findings)
        told = ", ".join(f"{num[kind]} {kind}{'s' * (num[kind] != 1)}" for kind in SEVERITY_RANK if num[kind])
        return "\n".join([*lines, f"{run}: {self.verdict}{f' ({told})' if told else ''}."])


def diagnose_run(run: Run | str | PathLike[str]) -> Diagnosis:
    """Look for the signs in all rows of a run, which may be alive, crashed or finished.

    The thresholds are those that the run was written with.

    Args:
        run: an opened run, or its directory.

    Raises:
        NotARunError: there is no run, or it recorded no telemetry.
        DamagedFileError: a file of it cannot be read.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    limits = _limits(opened.manifest)
    evidence = _evidence(opened)
    events = read_table(opened.layout, RunTable.of(EVENTS)).to_pylist()
    found = (
        *findings_of(evidence, limits),
        *gap_findings(events, attempt_spans(opened.manifest), evidence.norms.batch_idx),
    )
    findings = [_with_samples(one, events) for one in found]
    return Diagnosis(
        findings=tuple(sorted(findings, key=_gravity)),
        healthy=tuple(healthy_signs(evidence, findings, limits, num_collected=_num_collected(opened.manifest))),
        is_enough=is_enough(evidence, limits),
    )


def _evidence(run: Run) -> Evidence:
    manifest = run.manifest
    declared = {name: entry.declaration for name, entry in manifest.tables.items()}
    norms, rates, steps = (_figures(run, declared.get(name)) for name in ("gradient_norms", "learning_rates", "steps"))
    return Evidence(norms=norms, rates=rates, steps=steps, groups=manifest.groups)


def _figures(run: Run, declaration: RunTable | None) -> TableValues:
    return TableValues(NO_ROWS if declaration is None else read_table(run.layout, declaration))


def _limits(manifest: Manifest) -> Thresholds:
    """The usual ones, but for what the latest attempt set."""
    if not manifest.attempts:
        return Thresholds()
    try:
        return Thresholds.model_validate(manifest.attempt.thresholds)
    except ValidationError as error:
        warnings.warn(f"the usual thresholds are taken, since the manifest's cannot be used: {error}", stacklevel=3)
        return Thresholds()


def _num_collected(manifest: Manifest) -> int | None:
    """As counted to the end of a run of one attempt; None where some count is not known, or of rows set aside."""
    if len(manifest.attempts) != 1 or manifest.attempt.status in {"running", "killed"}:
        return None
    return manifest.attempt.counters.collected


def _gravity(finding: Finding) -> tuple[int, int, str]:
    return -SEVERITY_RANK[finding.severity], finding.batch_idx, finding.sign


def _with_samples(finding: Finding, events: Sequence[Mapping[str, Any]]) -> Finding:
    """With the samples of its first batch, where an event names them."""
    for event in events if finding.sign in SIGNS_WITH_SAMPLES else ():
        if event["batch_idx"] == finding.batch_idx and event["event"] in _NAMES_SAMPLES:
            ids = samples_in(event["message"])
            if ids:
                return replace(finding, sample_ids=ids)
    return finding
