"""The annotations of plots over batches: the first batch of each epoch, and bands over the batches of findings."""

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
_SIGNS_OF_WEIGHTS, _SIGNS_OF_LABELS = {"weights-not-moving", "update-ratio"}, {"label-bias", "labels-alike"}
_BAND_OPACITY = "2e"  # in hexadecimal

Shape = dict[str, Any]


def shown_findings(run: RunData) -> Sequence[Finding]:
    """The findings that the page lists; the most severe if there are too many."""
    return run.diagnosis.findings[:MAX_FINDINGS] if run.diagnosis else ()


def figure_of(run: RunData, finding: Finding) -> str | None:
    """The id of the figure that shows a finding: that of its sign, or else of its column's table.

    None if it is not about batches, or if there is no such figure.
    """
    if not finding.batch_idx:
        return None
    if finding.id in _SIGNS_OF_WEIGHTS:
        return "updates"
    if finding.id in _SIGNS_OF_LABELS:
        return "labels" if str(finding.column).endswith("_pct") else "label-scores"
    tables = ((table, run.table(table)) for table in _FIGURES)
    with_column = (table for table, rows in tables if rows is not None and finding.column in rows.column_names)
    table = next(with_column, NORMS)
    return _FIGURES[table] if run.table(table) is not None else None


def findings_in(run: RunData, figure: str) -> list[Finding]:
    """The findings to mark in a figure; the ratio shows those of the backbone and the head."""
    if figure == "ratio":
        return [finding for finding in findings_in(run, "norms") if finding.column in ratio_columns(run)]
    return [finding for finding in shown_findings(run) if figure_of(run, finding) == figure]


def finding_bands(
    findings: Iterable[Finding], axis_of: Mapping[str, str], run: str, border: str | None
) -> Iterator[Shape]:
    """A band over the batches of each finding of one figure, named after the run, whose button hides the bands too.

    `axis_of` maps a column to the y axis of its subplot; the band of any other column spans the whole figure. `border`
    is the colour of the run, or None if the page shows one run.
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
            "fillcolor": f"{color}{_BAND_OPACITY}",
            "layer": "below",
            "line": {"width": 2, "color": border or color},  # keeps a band of a single batch visible
        }


def epoch_lines(starts: Mapping[int, int]) -> Iterator[Shape]:
    """A line at the first batch of each epoch; of many epochs, evenly chosen ones."""
    for start in list(starts.values())[:: step_for(len(starts), _MAX_LINES)]:
        line = {"width": 1, "dash": "dot", "color": "#8c8c8c"}
        x, y = {"xref": "x", "x0": start, "x1": start}, {"yref": "paper", "y0": 0, "y1": 1}
        yield {"type": "line", **x, **y, "line": line, "layer": "below"}


def epoch_names(starts: Mapping[int, int], *, shift_px: int) -> Iterator[dict[str, Any]]:
    """The names of epochs above their lines, raised by `shift_px`; of many epochs, evenly chosen ones."""
    for epoch, start in list(starts.items())[:: step_for(len(starts), _MAX_NAMES)]:
        yield {
            "xref": "x",
            "x": start,
            "yref": "paper",
            "y": 1,
            "yanchor": "bottom",
            "xanchor": "left",
            "showarrow": False,
            "yshift": shift_px,
            "text": f"epoch {epoch}",
        }


def step_for(count: int, most: int) -> int:
    """The step at which at most `most` of `count` items are left."""
    return max(1, -(-count // most))
