"""The findings, tables and facts of a run that `page/contents.html` shows beside the plots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.arrays import Floats
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Attempt, Manifest, Status, status_now, utc_now
from ava_pipeline.diagnose.diagnose import Verdict
from ava_pipeline.report.annotations import MAX_FINDINGS, figure_of, shown_findings, step_for
from ava_pipeline.report.figure import TextTable, number_text
from ava_pipeline.report.run_data import NUM_FIRST_ROWS, RunData
from ava_pipeline.report.series import Series

_MAX_IDS = 20
_MAX_TABLE_ROWS = 20
_MAX_CELL, _MAX_FACT = 200, 1000  # characters
_MAX_ATTEMPTS = 20

Facts: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ListedFinding:
    """A finding on the page."""

    finding: Finding
    figure: str | None  # the id of the figure that shows it; None if it is not about batches
    repeats: Sequence["ListedFinding"] = ()  # later findings of the same sign in the same column

    @property
    def samples(self) -> str:
        """The samples of its first batch."""
        ids = self.finding.sample_ids
        more = f" and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else ""
        return ", ".join(ids[:_MAX_IDS]) + more


@dataclass(frozen=True, slots=True)
class FindingsList:
    """The findings of a run on the page."""

    name: str
    status: str
    origin: str  # `no manifest` if another program wrote the run
    is_generated: bool
    findings: Sequence[ListedFinding]  # grouped by sign and column
    num_findings: int  # including those that are not listed
    num_more: int  # not listed
    healthy: Sequence[Finding]
    verdict: Verdict | None  # None if the run could not be diagnosed
    problems: Sequence[str]  # a sentence for each file that cannot be read


def findings_list(run: RunData) -> FindingsList:
    """List the findings of a run."""
    num_findings = len(run.diagnosis.findings) if run.diagnosis else 0
    return FindingsList(
        name=run.name,
        status=status_now(run.manifest, utc_now()) if run.manifest else "no manifest",
        origin=run.origin,
        is_generated=run.is_generated,
        findings=_grouped(run, shown_findings(run)),
        num_findings=num_findings,
        num_more=max(0, num_findings - MAX_FINDINGS),
        healthy=run.diagnosis.healthy if run.diagnosis else (),
        verdict=run.diagnosis.verdict if run.diagnosis else None,
        problems=run.problems,
    )


def _grouped(run: RunData, findings: Sequence[Finding]) -> list[ListedFinding]:
    """The first finding of each sign, column and severity, with the later ones as its repeats."""
    groups: dict[tuple[str, str | None, str], list[ListedFinding]] = {}
    for finding in findings:
        key = (finding.id, finding.column, finding.severity)
        groups.setdefault(key, []).append(ListedFinding(finding, figure_of(run, finding)))
    return [replace(first, repeats=repeats) for first, *repeats in groups.values()]


def by_epoch(series: Sequence[Series]) -> TextTable:
    """Median, lowest and highest value of each series in each epoch; of many epochs, in several at once."""
    columns = list(dict.fromkeys(column.column for column in series))
    runs = list(dict.fromkeys(column.run for column in series))
    rows = [row for run in runs for row in _epoch_rows([column for column in series if column.run == run], columns)]
    header = ["epochs", "batches", *(f"{column}: median (lowest to highest)" for column in columns)]
    return TextTable(["run", *header], rows) if len(runs) > 1 else TextTable(header, [row[1:] for row in rows])


def _epoch_rows(series: Sequence[Series], columns: Sequence[str]) -> Iterator[list[str]]:
    """The rows of one run, whose series are columns of one table and so have the same batches."""
    values_of = {column.column: column.values for column in series}
    run, epochs, batches = series[0].run, series[0].epochs, series[0].batches
    for rows in _epoch_slices(epochs):
        medians = [_median_text(values_of[column][rows]) if column in values_of else "" for column in columns]
        yield [run, _range(epochs[rows][0], epochs[rows][-1]), _range(batches[rows][0], batches[rows][-1]), *medians]


def _epoch_slices(epochs: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Iterator[slice]:
    """The rows of each epoch; of several epochs at once if there are many."""
    starts = np.flatnonzero(np.diff(epochs, prepend=-1))
    starts = starts[:: step_for(len(starts), _MAX_TABLE_ROWS)]
    return map(slice, starts, [*starts[1:], len(epochs)])


def _median_text(values: Floats) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return number_text(None)
    return f"{number_text(np.median(finite))} ({number_text(finite.min())} to {number_text(finite.max())})"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def first_rows(run: RunData) -> dict[str, TextTable]:
    """The first rows of each table and of the predictions; null is an empty cell."""
    tables = {name: _first_rows(rows) for name, rows in (run.tables | run.long_tables).items()}
    if run.predictions is not None:
        file, predicted = run.predictions
        columns = {"image_id": predicted.image_ids, "pred_mean": predicted.pred_mean, "gt_mean": predicted.gt_mean}
        given: dict[str, Any] = {name: values for name, values in columns.items() if values is not None}
        tables[file.path.name] = _first_rows(pa.table(given))
    return tables


def _first_rows(rows: pa.Table) -> TextTable:
    columns = [[_cell(value) for value in column.to_pylist()] for column in rows.slice(0, NUM_FIRST_ROWS).columns]
    return TextTable(rows.column_names, list(map(list, zip(*columns, strict=True))))


def _cell(value: object) -> str:
    if value is None:
        return ""
    return _shortened(number_text(value) if isinstance(value, float) else str(value), _MAX_CELL)


def _shortened(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def facts_of(run: RunData) -> Facts:
    """Names and values of the facts about a run; of many attempts, the latest."""
    facts = [("directory", str(run.layout.root)), *(_manifest_facts(run.manifest) if run.manifest else ())]
    return [(name, _shortened(value, _MAX_FACT)) for name, value in facts]


def _manifest_facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    status = status_now(manifest, utc_now())
    yield "status", status
    yield "last sign of life", time_text(manifest.heartbeat_utc)
    for name, value in manifest.run_info.items():
        yield name, str(value)
    for attempt in manifest.attempts[-_MAX_ATTEMPTS:]:
        is_last = attempt is manifest.attempts[-1]
        facts = _attempt_facts(attempt, status if is_last else attempt.status)
        yield from ((f"attempt {attempt.number}: {name}", value) for name, value in facts if value)


def _attempt_facts(attempt: Attempt, status: Status) -> Iterator[tuple[str, str]]:
    counters = attempt.counters
    yield "status", f"{status}, {attempt.error}" if attempt.error else status
    yield "started", time_text(attempt.started_utc)
    yield "ended", time_text(attempt.ended_utc) if attempt.ended_utc else ""
    yield "resumed after batch", str(attempt.resumed_from or "")
    yield "collected every", f"{attempt.collect_every_n} batches" if attempt.collect_every_n > 1 else "batch"
    names = ("collected", "written", "dropped", "failed", "pending")
    yield "steps", ", ".join(f"{getattr(counters, name)} {name}" for name in names)
    yield "command", " ".join(attempt.argv)
    yield "commit", attempt.git_commit or ""
    yield "machine", ", ".join(part for part in (attempt.host, attempt.device) if part)
    yield "versions", ", ".join(f"{name} {version}" for name, version in attempt.versions.items())


def time_text(time: datetime) -> str:
    """A time to the second."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
