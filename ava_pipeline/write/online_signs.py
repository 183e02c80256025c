"""The warning signs on line: the rules over the last rows, and what they newly say."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pyarrow as pa
import scipy.ndimage  # with the collector: loaded by the first rule that needs them, they would hold training up
import scipy.stats  # noqa: F401  # the same

from ava_pipeline.contract.events import Event, EventName
from ava_pipeline.contract.finding import SEVERITY_RANK, Finding, Severity
from ava_pipeline.contract.manifest import Group
from ava_pipeline.signs import values
from ava_pipeline.signs.evidence import NO_ROWS, NUM_FIRST, Evidence, TableValues, is_loss
from ava_pipeline.signs.registry import SIGNS_WITH_SAMPLES, SINGLE_BATCH_SIGNS, all_findings_of
from ava_pipeline.signs.thresholds import Thresholds
from ava_pipeline.write.event_log import EventLog, id_list, with_samples
from ava_pipeline.write.pending import PendingStep

_log = logging.getLogger("ava_pipeline")

WINDOW_ROWS = 1024
MAX_NEW_ROWS = 4096
# The rules may take this share of the time, except where rows come so fast that some would leave the window unseen.
_SHARE = 1 / 25
# A sign that comes and goes all the time is logged this often, and in events.csv for ever.
_MAX_LOGGED = 10

Kind = tuple[str, str | None]
_TABLES = ("gradient_norms", "learning_rates", "steps")


class OnlineSigns:
    """Looks at a run's last rows while they are written: 1,024, and those that came since the last look.

    A state such as `vanishing` is told when it appears and when it is gone; a moment such as `spike` is told once.
    Whatever goes wrong here costs the watching and no row.

    Args:
        groups: column of norms -> its role.
        limits: when a sign counts as seen.
        log: takes the events.
        tell: is given every finding that is a warning or worse.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        limits: Thresholds,
        log: EventLog,
        tell: Callable[[Finding], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._groups = groups
        self._limits = limits
        self._log = log
        self._tell = tell
        self._clock = clock
        self._rows: dict[str, list[pa.RecordBatch]] = {name: [] for name in _TABLES}
        self._first: pa.Table | None = None
        self._steps: dict[int, PendingStep] = {}
        self._num_new = 0
        self._highest_rates: dict[str, float] = {}
        self._judged_up_to = 0
        # Of what is not finite in the window: how grave it was at the last look.
        self._severities: dict[tuple[str | None, int], Severity] = {}
        self._active: dict[Kind, Finding] = {}
        self._num_told: Counter[Kind] = Counter()
        self._rests_until = 0.0
        self._is_broken = False

    def take(self, table: str, rows: pa.RecordBatch) -> None:
        """Take rows of a table; called before the `remember` of their steps."""
        if table in self._rows and rows.num_rows and not self._is_broken:
            self._rows[table].append(rows)

    def remember(self, steps: Sequence[PendingStep]) -> None:
        """Count steps, and keep what their batches consisted of until the next look."""
        if self._is_broken:
            return
        self._num_new += len(steps)
        self._steps.update((step.batch_idx, step) for step in steps if step.sample_ids is not None)
        if self._num_new >= MAX_NEW_ROWS:
            self.look()

    def look(self, *, is_last: bool = False) -> None:
        """Judge what is new, unless it is too early for that."""
        is_due = is_last or self._num_new >= MAX_NEW_ROWS or self._clock() >= self._rests_until
        if self._is_broken or not self._num_new or not is_due:
            return
        begin = self._clock()
        try:
            self._judge()
        except Exception:  # noqa: BLE001  # whatever a rule does, rows are what counts: it is logged, and ends here
            self._is_broken = True
            self._rows = {name: [] for name in _TABLES}
            _log.exception("a rule failed: no more signs are looked for while training; rows are written as before")
        self._num_new = 0
        self._steps.clear()
        now = self._clock()
        self._rests_until = now + (now - begin) / _SHARE

    def _judge(self) -> None:
        rows = {name: pa.Table.from_batches(batches) if batches else NO_ROWS for name, batches in self._rows.items()}
        norms, rates, steps = (TableValues(rows[name]) for name in _TABLES)
        if self._first is None and len(norms) >= NUM_FIRST:
            self._first = norms.rows.slice(0, NUM_FIRST).combine_chunks()
        first = None if self._first is None else TableValues(self._first)
        run = Evidence(
            norms=norms,
            rates=rates,
            steps=steps,
            groups=self._groups,
            first=first,
            highest_rates=self._highest_rates,
        )
        found = all_findings_of(run, self._limits)
        if len(norms):
            self._tell_new(found, norms, is_scaled=run.is_scaled)
            self._judged_up_to = int(norms.batch_idx[-1])
        self._remember_rates(rates)
        for name, table in rows.items():
            last = table.slice(max(0, table.num_rows - WINDOW_ROWS))
            self._rows[name] = last.combine_chunks().to_batches()

    def _remember_rates(self, rates: TableValues) -> None:
        """Keep the highest of those that leave the window: a warm restart goes back to it."""
        for name in rates.names:
            leaving = rates.values(name)[:-WINDOW_ROWS]
            if len(leaving):
                highest = float(np.fmax.reduce(leaving))
                self._highest_rates[name] = float(np.fmax(highest, self._highest_rates.get(name, 0.0)))

    def _tell_new(self, found: Sequence[Finding], norms: TableValues, *, is_scaled: bool) -> None:
        new = [one for one in found if one.sign in SINGLE_BATCH_SIGNS and self._is_new(one)]
        self._severities = {_begin(one): one.severity for one in found if one.sign == values.NON_FINITE}
        found, moments = ([one for one in some if one.severity != "info"] for some in (found, new))
        recently = int(norms.batch_idx[-min(len(norms), self._limits.least_rows)])
        states = {
            _kind(one): one for one in found if one.sign not in SINGLE_BATCH_SIGNS and one.batch_idx_end >= recently
        }
        for finding in (*moments, *(one for kind, one in states.items() if kind not in self._active)):
            self._appear(finding, is_scaled=is_scaled)
        for kind in self._active.keys() - states.keys():
            self._go(self._active[kind], norms)
        self._active = states

    def _is_new(self, moment: Finding) -> bool:
        """Whether it was not judged before; what is not finite is told again where it is graver by now."""
        if moment.batch_idx > self._judged_up_to:
            return True
        before = self._severities.get(_begin(moment))
        is_grown = moment.sign == values.NON_FINITE and moment.batch_idx_end > self._judged_up_to
        return is_grown and before is not None and SEVERITY_RANK[moment.severity] > SEVERITY_RANK[before]

    def _appear(self, finding: Finding, *, is_scaled: bool) -> None:
        self._num_told[_kind(finding)] += 1
        steps = self._steps if finding.sign in SIGNS_WITH_SAMPLES else {}
        step = steps.get(finding.batch_idx)
        # The measures tell by themselves what is not finite, row by row; under a GradScaler as information.
        if finding.sign != values.NON_FINITE or (is_scaled and not is_loss(str(finding.column))):
            self._log.add(with_samples(_event(finding), steps))
        if step is not None:
            finding = replace(finding, sample_ids=tuple(map(str, id_list(step.sample_ids))))
        self._tell(finding)

    def _go(self, finding: Finding, norms: TableValues) -> None:
        event = replace(
            _event(finding),
            severity="info",
            message=f"gone, after {finding.message}",
            batch_idx=int(norms.batch_idx[-1]),
            batch_idx_end=int(norms.batch_idx[-1]),
            epoch=int(norms.epoch[-1]),
            value=None,
        )
        if self._num_told[_kind(finding)] < _MAX_LOGGED:
            self._log.resolve(event)
        else:
            self._log.add(event)


def _kind(finding: Finding) -> Kind:
    return finding.sign, finding.column


def _begin(finding: Finding) -> tuple[str | None, int]:
    return finding.column, finding.batch_idx


def _event(finding: Finding) -> Event:
    return Event(
        event=cast("EventName", finding.event),
        severity="warning",  # an error among the events says that rows were lost
        column=finding.column,
        batch_idx=finding.batch_idx,
        batch_idx_end=finding.batch_idx_end,
        epoch=finding.epoch,
        value=finding.value if isinstance(finding.value, float) else None,
        message=f"{finding.message} {finding.advice}",
    )
