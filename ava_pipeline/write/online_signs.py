"""The warning signs while training, over the latest rows: reported when they appear and when they end."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.contract.finding import SEVERITY_RANK, Finding, Severity
from ava_pipeline.contract.manifest import Group
from ava_pipeline.logs import logger
from ava_pipeline.signs.evidence import NO_ROWS, NUM_FIRST_ROWS, Evidence, TableValues, is_loss
from ava_pipeline.signs.registry import SIGNS_WITH_SAMPLES, SINGLE_BATCH_SIGNS, all_findings
from ava_pipeline.signs.thresholds import Thresholds
from ava_pipeline.write.channel import PendingStep
from ava_pipeline.write.event_log import EventLog, id_list, with_samples

WINDOW_ROWS = 1024
MAX_NEW_ROWS = 4096
# The signs may take this share of the time, unless rows come so fast that some would leave the window unchecked.
_MAX_SHARE = 1 / 25
# The log shows only the first appearances of a state that comes and goes; events.csv gets every one.
_MAX_LOGGED = 10
_TABLES = ("gradient_norms", "learning_rates", "steps", "batch_stats", "weight_norms", "weight_deltas")

# A sign and a column.
State = tuple[str, str | None]


class OnlineSigns:
    """Checks a run's latest rows for signs while they are written: the last 1,024, and all that are new.

    A state such as `vanishing` is reported when it appears and when it ends, a sign of single batches such as `spike`
    once: as an event in the log. What appears also goes to `report`, as a finding of severity warning or error. An
    error in here ends the checks and is logged; it costs no row. The clock gives seconds that only rise.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        limits: Thresholds,
        log: EventLog,
        report: Callable[[Finding], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.groups = groups
        self._limits = limits
        self._log = log
        self._report = report
        self._clock = clock
        self._rows: dict[str, list[pa.RecordBatch]] = {name: [] for name in _TABLES}
        self._first_norms: TableValues | None = None
        self._highest_rates: dict[str, float] = {}
        self._new_samples: dict[int, PendingStep] = {}
        self._num_new = 0
        self._next_check_s = 0.0
        self._checked_up_to = 0
        # Of each range of values that are not finite, by column and first batch: its severity at the last check.
        self._severities: dict[tuple[str | None, int], Severity] = {}
        self._states: dict[State, Finding] = {}
        self._num_appearances: Counter[State] = Counter()
        self._is_broken = False

    def add_rows(self, table: str, rows: pa.RecordBatch) -> None:
        """Add rows of a table, before their steps are added; tables without signs are ignored."""
        if table not in self._rows or not rows.num_rows or self._is_broken:
            return
        older = self._rows[table]
        if older and older[-1].schema != rows.schema:  # a column was added
            no_rows = pa.Table.from_batches([], schema=rows.schema)
            older = pa.concat_tables([no_rows, pa.Table.from_batches(older)], promote_options="default").to_batches()
            self._rows[table] = older
        older.append(rows)

    def add_steps(self, steps: Sequence[PendingStep]) -> None:
        """Count new steps, and keep their sample ids until the next check."""
        if self._is_broken:
            return
        self._num_new += len(steps)
        self._new_samples.update((step.batch_idx, step) for step in steps if step.sample_ids is not None)
        if self._num_new >= MAX_NEW_ROWS:
            self.check()

    def check(self, *, is_last: bool = False) -> None:
        """Check the new rows for signs, unless the last check was too recent."""
        is_due = is_last or self._num_new >= MAX_NEW_ROWS or self._clock() >= self._next_check_s
        if self._is_broken or not self._num_new or not is_due:
            return
        begin_s = self._clock()
        try:
            self._check_rows()
        except Exception:  # noqa: BLE001  # an error in a sign must cost no row: it is logged, and ends the checks
            self._is_broken = True
            self._rows = {name: [] for name in _TABLES}
            logger.exception("a sign failed: no more signs are checked while training; rows are written as before")
        self._num_new = 0
        self._new_samples.clear()
        end_s = self._clock()
        self._next_check_s = end_s + (end_s - begin_s) / _MAX_SHARE

    def _check_rows(self) -> None:
        rows = {name: pa.Table.from_batches(batches) if batches else NO_ROWS for name, batches in self._rows.items()}
        norms, rates, steps, labels, weight_norms, weight_deltas = (TableValues(rows[name]) for name in _TABLES)
        if self._first_norms is None and norms.num_rows >= NUM_FIRST_ROWS:
            self._first_norms = TableValues(norms.rows.slice(0, NUM_FIRST_ROWS).combine_chunks())
        run = Evidence(
            norms=norms,
            rates=rates,
            steps=steps,
            groups=self.groups,
            first_norms=self._first_norms,
            highest_rates=self._highest_rates,
            labels=labels,
            weight_norms=weight_norms,
            weight_deltas=weight_deltas,
        )
        findings = all_findings(run, self._limits)
        collected = norms if norms.num_rows else steps  # without norms if gradients are not tracked
        if collected.num_rows:
            self._report_single_batches(findings, is_scaled=run.is_scaled)
            self._report_states(findings, collected, is_scaled=run.is_scaled)
            self._checked_up_to = int(collected.batch_idx[-1])
        # A warm restart returns to the highest rate before, which may have left the window by then.
        for name, values in rates.values.items():
            if rates.num_rows > WINDOW_ROWS:
                highest = np.fmax(np.fmax.reduce(values[:-WINDOW_ROWS]), self._highest_rates.get(name, 0.0))
                self._highest_rates[name] = float(highest)
        for name, table in rows.items():
            window = table.slice(max(0, table.num_rows - WINDOW_ROWS))
            self._rows[name] = window.combine_chunks().to_batches()

    def _report_single_batches(self, findings: Sequence[Finding], *, is_scaled: bool) -> None:
        for finding in findings:
            if finding.id in SINGLE_BATCH_SIGNS and finding.severity != "info" and self._is_new(finding):
                self._appear(finding, is_scaled=is_scaled)
        self._severities = {
            (finding.column, finding.batch_idx): finding.severity for finding in findings if finding.id == "non-finite"
        }

    def _is_new(self, finding: Finding) -> bool:
        """Whether no earlier check found it; values that are not finite are new again if they are more severe."""
        if finding.batch_idx > self._checked_up_to:
            return True
        before = self._severities.get((finding.column, finding.batch_idx))
        has_grown = finding.id == "non-finite" and finding.batch_idx_end > self._checked_up_to
        return has_grown and before is not None and SEVERITY_RANK[finding.severity] > SEVERITY_RANK[before]

    def _report_states(self, findings: Sequence[Finding], rows: TableValues, *, is_scaled: bool) -> None:
        recent_batch_idx = int(rows.batch_idx[-min(rows.num_rows, self._limits.least_rows)])
        states = {
            (finding.id, finding.column): finding
            for finding in findings
            if finding.id not in SINGLE_BATCH_SIGNS
            and finding.severity != "info"
            and finding.batch_idx_end >= recent_batch_idx
        }
        for state, finding in states.items():
            if state not in self._states:
                self._appear(finding, is_scaled=is_scaled)
        for state in self._states.keys() - states.keys():
            self._end(self._states[state], rows)
        self._states = states

    def _appear(self, finding: Finding, *, is_scaled: bool) -> None:
        self._num_appearances[finding.id, finding.column] += 1
        steps = self._new_samples if finding.id in SIGNS_WITH_SAMPLES else {}
        # The measures write an event for each value that is not finite; under a GradScaler it is only information.
        if finding.id != "non-finite" or (is_scaled and not is_loss(str(finding.column))):
            self._log.add(with_samples(_event(finding), steps))
        if finding.batch_idx in steps:
            finding = replace(finding, sample_ids=tuple(map(str, id_list(steps[finding.batch_idx].sample_ids))))
        self._report(finding)

    def _end(self, finding: Finding, rows: TableValues) -> None:
        event = replace(
            _event(finding),
            severity="info",
            message=f"ended, after {finding.message}",
            batch_idx=int(rows.batch_idx[-1]),
            batch_idx_end=int(rows.batch_idx[-1]),
            epoch=int(rows.epoch[-1]),
            value=None,
        )
        if self._num_appearances[finding.id, finding.column] < _MAX_LOGGED:
            self._log.resolve(event)
        else:
            self._log.add(event)


def _event(finding: Finding) -> Event:
    return Event(
        event=cast("EventName", finding.event),
        severity="warning",  # an event of severity error says that rows were lost
        column=finding.column,
        batch_idx=finding.batch_idx,
        batch_idx_end=finding.batch_idx_end,
        epoch=finding.epoch,
        value=finding.value if isinstance(finding.value, float) else None,
        message=f"{finding.message} {finding.advice}",
    )
