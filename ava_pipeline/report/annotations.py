"""What is marked in plots over batches: where epochs begin, and where findings lie."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ava_pipeline.contract.finding import Finding, Severity
from ava_pipeline.report.run_data import RunData
from ava_pipeline.report.series import NORMS, RATES, STEPS, ratio_columns

MAX_FINDINGS = 200
SEVERITY_COLORS: Mapping[Severity, str] = {"error": "#d6336c", "warning": "#e8890c", "info": "#4c8dd6"}

_MAX_LINES = 60
_MAX_NAMES = 6
_FIGURES = {NORMS: "norms", RATES: "rates", STEPS: "values"}
_BARELY = "2e"  # opacity, in hexadecimal

Shape = dict[str, Any]


def place_of(seen: RunData, finding: Finding) -> str | None:
    """The figure in which a finding lies: that of its column's table; None where it is of no batch."""
    if not finding.batch_idx:
        return None
    tables = ((table, seen.table(table)) for table in _FIGURES)
    having = (table for table, rows in tables if rows is not None and finding.column in rows.column_names)
    return _FIGURES[next(having, NORMS)]


def findings_in(seen: RunData, figure: str) -> list[Finding]:
    """The findings of a run to mark in a figure; those of backbone and head show in their ratio, too."""
    if figure == "ratio":
        return [finding for finding in findings_in(seen, "norms") if finding.column in ratio_columns(seen)]
    return [finding for finding in shown_findings(seen) if place_of(seen, finding) == figure]


def shown_findings(seen: RunData) -> Sequence[Finding]:
    """The findings that the page lists; the most severe ones where there are too many."""
    return seen.diagnosis.findings[:MAX_FINDINGS] if seen.diagnosis else ()


def bands(findings: Iterable[Finding], axis_of: Mapping[str, str], run: str, border: str | None) -> Iterator[Shape]:
    """A band over each finding's batches.

    Args:
        findings: of one figure.
        axis_of: column -> the y axis of its part of the figure; one that has none goes through the whole figure.
        run: whose findings they are; its button hides them, too.
        border: the colour of the run whose findings they are; None where there is just one.
    """
    for finding in findings:
        axis = axis_of.get(finding.column or "")
        color = SEVERITY_COLORS[finding.severity]
        yield {
            "type": "rect",
            "name": run,
            "xref": "x",
            "x0": finding.batch_idx,
            "x1": finding.batch_idx_end,
            "yref": f"{axis} domain" if axis else "paper",
            "y0": 0,
            "y1": 1,
            "fillcolor": f"{color}{_BARELY}",
            "layer": "below",
            "line": {"width": 2, "color": border or color},  # so that one of a single batch can be seen
        }


def epoch_lines(starts: Mapping[int, int]) -> Iterator[Shape]:
    """A line where an epoch begins; not each where there are many."""
    for start in list(starts.values())[:: _step(starts, _MAX_LINES)]:
        line = {"width": 1, "dash": "dot", "color": "#8c8c8c"}
        yield {
            "type": "line",
            "xref": "x",
            "x0": start,
            "x1": start,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": line,
            "layer": "below",
        }


def epoch_names(starts: Mapping[int, int], *, shift: int) -> Iterator[dict[str, Any]]:
    """The name of an epoch above its line, so many pixels higher; not each where there are many."""
    for epoch, start in list(starts.items())[:: _step(starts, _MAX_NAMES)]:
        yield {
            "xref": "x",
            "x": start,
            "yref": "paper",
            "y": 1,
            "yanchor": "bottom",
            "xanchor": "left",
            "showarrow": False,
            "yshift": shift,
            "text": f"epoch {epoch}",
        }


def _step(starts: Mapping[int, int], most: int) -> int:
    return max(1, -(-len(starts) // most))
