"""What the page says in words and numbers: findings, tables, facts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.manifest import Attempt, Manifest, utc_now
from ava_pipeline.diagnose.diagnose import Verdict
from ava_pipeline.read.arrays import Floats
from ava_pipeline.read.status import StatusNow, status_now
from ava_pipeline.report.annotations import MAX_FINDINGS, place_of, shown_findings
from ava_pipeline.report.figure import TextTable, number
from ava_pipeline.report.run_data import RunData
from ava_pipeline.report.series import Series

_MAX_ROWS = 20
_NUM_FIRST = 5
_MAX_TEXT = 200


def by_epoch(series: Sequence[Series]) -> TextTable:
    """Median, lowest and highest value of each series in each epoch, or in some epochs together where they are many."""
    columns = list(dict.fromkeys(one.column for one in series))
    runs = list(dict.fromkeys(one.run for one in series))
    rows = [row for run in runs for row in _rows_of([one for one in series if one.run == run], columns)]
    header = ["epochs", "batches", *(f"{column}: median (lowest to highest)" for column in columns)]
    return TextTable(["run", *header], rows) if len(runs) > 1 else TextTable(header, [row[1:] for row in rows])


def _rows_of(series: Sequence[Series], columns: Sequence[str]) -> list[list[str]]:
    """Rows of one run, whose series have the same batches in the same table."""
    found = {one.column: one for one in series}
    any_of_them = series[0]
    rows = []
    for part in _parts(any_of_them):
        epochs, batches = any_of_them.epochs[part], any_of_them.batches[part]
        told = [_median_text(found[column].values[part]) if column in found else "" for column in columns]
        rows.append([any_of_them.run, _range(epochs[0], epochs[-1]), _range(batches[0], batches[-1]), *told])
    return rows


def _parts(series: Series) -> list[slice]:
    """Rows of an epoch each; of several where there would be too many."""
    starts = np.flatnonzero(np.diff(series.epochs, prepend=-1))
    starts = starts[:: -(-len(starts) // _MAX_ROWS)]
    ends = [*starts[1:], len(series.epochs)]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def _median_text(values: Floats) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "–"  # noqa: RUF001  # a dash, on purpose
    return f"{number(np.median(finite))} ({number(finite.min())} to {number(finite.max())})"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def first_rows(seen: RunData) -> dict[str, TextTable]:
    """The first rows of each table, as its files have them, and of the predictions; null is empty."""
    found = {name: _first(rows) for name, rows in seen.tables.items()}
    if seen.predictions is not None:
        file, predicted = seen.predictions
        columns = {"image_id": predicted.image_ids, "pred_mean": predicted.pred_mean, "gt_mean": predicted.gt_mean}
        given: dict[str, Any] = {name: values for name, values in columns.items() if values is not None}
        found[file.path.name] = _first(pa.table(given))
    return found


def _first(rows: pa.Table) -> TextTable:
    columns = [[_text(value) for value in column.to_pylist()] for column in rows.slice(0, _NUM_FIRST).columns]
    return TextTable(rows.column_names, list(map(list, zip(*columns, strict=True))))


def _text(value: object) -> str:
    if value is None:
        return ""
    text = number(value) if isinstance(value, float) else str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


Facts: TypeAlias = Sequence[tuple[str, str]]

_MAX_FACT, _MAX_ATTEMPTS = 1000, 20


def facts_of(seen: RunData) -> Facts:
    """Name and value each, in words; of many attempts the latest."""
    told = [("directory", str(seen.layout.root)), *(_of_manifest(seen.manifest) if seen.manifest else ())]
    return [(name, value if len(value) <= _MAX_FACT else f"{value[: _MAX_FACT - 1]}…") for name, value in told]


def _of_manifest(manifest: Manifest) -> Iterator[tuple[str, str]]:
    status = status_now(manifest, utc_now())
    yield "status", status
    yield "last sign of life", time_told(manifest.heartbeat_utc)
    for name, value in manifest.run_info.items():
        yield name, str(value)
    for attempt in manifest.attempts[-_MAX_ATTEMPTS:]:
        is_last = attempt is manifest.attempts[-1]
        told = _of_attempt(attempt, status if is_last else attempt.status)
        yield from ((f"attempt {attempt.number}: {name}", value) for name, value in told if value)


def _of_attempt(attempt: Attempt, status: StatusNow) -> Iterator[tuple[str, str]]:
    counters = attempt.counters
    yield "status", f"{status}, {attempt.error}" if attempt.error else status
    yield "began", time_told(attempt.started_utc)
    yield "ended", time_told(attempt.ended_utc) if attempt.ended_utc else ""
    yield "resumed behind batch", str(attempt.resumed_from or "")
    yield "collected every", f"{attempt.collect_every_n} batches" if attempt.collect_every_n > 1 else "batch"
    yield (
        "steps",
        (
            f"{counters.collected} collected, {counters.written} written, {counters.dropped} dropped, "
            f"{counters.failed} failed, {counters.pending} pending"
        ),
    )
    yield "command", " ".join(attempt.argv)
    yield "commit", attempt.git_commit or ""
    yield "on", ", ".join(part for part in (attempt.host, attempt.device) if part)
    yield "versions", ", ".join(f"{name} {version}" for name, version in attempt.versions.items())


def time_told(time: datetime) -> str:
    """To the second."""
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


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
class FindingsList:
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


def findings_list(seen: RunData) -> FindingsList:
    """List a run's findings."""
    findings = shown_findings(seen)
    return FindingsList(
        name=seen.name,
        status=status_now(seen.manifest, utc_now()) if seen.manifest else "no manifest",
        is_generated=seen.is_generated,
        findings=_once_per_sign(seen, findings),
        num_findings=len(seen.diagnosis.findings) if seen.diagnosis else 0,
        num_more=max(0, len(seen.diagnosis.findings) - MAX_FINDINGS) if seen.diagnosis else 0,
        healthy=seen.diagnosis.healthy if seen.diagnosis else (),
        verdict=seen.diagnosis.verdict if seen.diagnosis else None,
        troubles=seen.troubles,
    )


def _once_per_sign(seen: RunData, findings: Sequence[Finding]) -> list[ListedFinding]:
    """The first of each sign in a column, with its severity, and the others behind it."""
    alike: dict[tuple[str, str | None, str], list[ListedFinding]] = {}
    for finding in findings:
        key = (finding.sign, finding.column, finding.severity)
        alike.setdefault(key, []).append(ListedFinding(finding, place_of(seen, finding)))
    return [replace(first, again=again) for first, *again in alike.values()]
