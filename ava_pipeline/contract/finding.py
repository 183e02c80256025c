"""A finding: something in a run that a person should know, with its place, its severity and what to do about it.

Signs, broken rules of `ava-pipeline validate`, refused rows and damaged files are all findings, so that they are
printed, exported and listed in the same way.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]
SEVERITY_RANK: Mapping[Severity, int] = {"error": 2, "warning": 1, "info": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something found in a run. Its place is a range of batches, or a file and a row in it.

    Attributes:
        id: stable name of the sign or the rule, e.g. `backbone-not-learning` or `norms.head-sum`.
        severity: an error breaks a training or a file, a warning should be checked, an info needs no action.
        message: one sentence with the measured values: what was found, and for files what was expected.
        advice: what to do; empty if there is nothing to do.
        batch_idx: first batch concerned, 1-based; 0 if the finding is not about batches.
        batch_idx_end: last batch concerned.
        epoch: 0-based epoch of the first batch.
        file: path below the run directory, with forward slashes; None if the finding is not about a file.
        row: 1-based data row of that file, not counting the header; None if it concerns the whole file.
        line: 1-based line of a CSV file, as an editor counts it.
        column: the column concerned, if it is a single one.
        value: the number or the text found there.
        sample_ids: the samples of the first batch, if the run recorded them.
        where: the place in words, if the run's batches are not counted over the run; `batch_idx` then only orders them.

    Example:
        >>> print(Finding(id="rows.order", severity="error", message="3 follows 4.", file="steps.csv", line=5))
        steps.csv:5: error: 3 follows 4. [rows.order]
    """

    id: str
    severity: Severity
    message: str
    advice: str = ""
    batch_idx: int = 0
    batch_idx_end: int = 0
    epoch: int = 0
    file: str | None = None
    row: int | None = None
    line: int | None = None
    column: str | None = None
    value: float | str | None = None
    sample_ids: tuple[str, ...] = ()
    where: str = ""

    @property
    def sign(self) -> str:
        """The `id`, under the name that `on_finding` callbacks use."""
        return self.id

    @property
    def event(self) -> str:
        """The id in snake case, as `events.csv` writes it."""
        return self.id.replace("-", "_")

    @property
    def place(self) -> str:
        """Where it is: `telemetry/steps.csv:5 loss`, `batch 60 to 62`, or empty if it concerns the whole run."""
        if self.file is not None:
            number = self.line if self.line is not None else self.row
            where = self.file if number is None else f"{self.file}:{number}"
            return f"{where} {self.column}" if self.column else where
        if not self.batch_idx or self.where:
            return self.where
        end = f" to {self.batch_idx_end}" if self.batch_idx_end != self.batch_idx else ""
        return f"batch {self.batch_idx}{end}"

    def __str__(self) -> str:
        """`place: severity: message [id]`, on one line."""
        return ": ".join(filter(None, (self.place, self.severity, f"{self.message} [{self.id}]")))

    def lines(self) -> Iterator[str]:
        """The finding for a person: its line, then indented the samples and the advice."""
        yield str(self)
        if self.sample_ids:
            yield f"    samples: {', '.join(self.sample_ids)}"
        if self.advice:
            yield f"    {self.advice}"

    def to_json(self) -> dict[str, Any]:
        """Every attribute for a program; null for a number that is not finite, and for batches if it is about none."""
        values = asdict(self)
        if not values["where"]:
            del values["where"]
        unknown = ("batch_idx", "batch_idx_end") if self.where else ()
        batches = ("batch_idx", "batch_idx_end", "epoch") if not self.batch_idx else unknown
        return finite_or_null(values) | dict.fromkeys(batches)


def verdict_line(path: str, verdict: str, findings: Iterable[Finding]) -> str:
    """`path: verdict (1 error, 2 warnings).`, the last line that a command prints about a run."""
    num = Counter(finding.severity for finding in findings)
    counts = ", ".join(f"{num[kind]} {kind}{'s' * (num[kind] != 1)}" for kind in SEVERITY_RANK if num[kind])
    return f"{path}: {verdict}{f' ({counts})' if counts else ''}."


def finite_or_null(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None for each number that is not finite, because JSON has no nan and no inf."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
