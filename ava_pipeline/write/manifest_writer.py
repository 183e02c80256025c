"""The manifest of a run while it is written."""

import time
from collections.abc import Mapping
from pathlib import Path

from ava_pipeline.contract.manifest import (
    Group,
    Manifest,
    Status,
    StepCounters,
    changed_groups,
    utc_now,
    write_manifest,
)
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.write.attempts import RunFacts
from ava_pipeline.write.channel import TelemetryStats
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.setup import Setup

HEARTBEAT_S = 10.0


class ManifestWriter:
    """Rewrites the manifest every `HEARTBEAT_S` and at the end, not more often: each time it syncs the disk.

    Its last attempt is the running one; `before` counts the steps that this process settled in earlier attempts. Raise
    OSError if it cannot be written at first: without a manifest the rows would belong to no attempt.
    """

    def __init__(self, path: Path, manifest: Manifest, log: EventLog, facts: RunFacts, before: TelemetryStats) -> None:
        self._path = path
        self._manifest = manifest
        self.attempt = manifest.attempt
        self._log = log
        self._facts = facts
        self._before = before
        self._write()

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is written next."""
        return self._manifest

    def can_adopt(self, setup: Setup) -> bool:
        """Whether older rows can be empty in every column that their tables get."""
        return not any(
            table.table.run_columns is not None and not table.table.run_columns.nullable
            for table in self._wider(setup).values()
        )

    def adopt(self, setup: Setup, batch_idx: int) -> dict[str, RunTable]:
        """Declare what is measured from a batch on; return the tables that have further columns.

        Raise OSError if the disk refuses the manifest: it declares columns before a file has them, so that a process
        killed in between leaves files to which the next start adds them.
        """
        wider = self._wider(setup)
        for source in setup.sources:
            table = source.run_table
            measured = self.attempt.columns.get(table.table.name, ())
            self.attempt.columns[table.table.name] = tuple(dict.fromkeys((*measured, *table.run_column_names)))
        for name, table in wider.items():
            self._manifest.tables[name] = self._manifest.tables[name].model_copy(update={"declaration": table})
        self._manifest.groups = changed_groups(self._manifest.groups, setup.groups, batch_idx)
        self._manifest.rate_names = {**self._manifest.rate_names, **setup.rate_names}
        self._manifest.holdout_ids = tuple(setup.holdout_ids) or self._manifest.holdout_ids
        self._write()
        return wider

    def _wider(self, setup: Setup) -> dict[str, RunTable]:
        """The tables for which a setup has further columns, with those that they have already."""
        wider: dict[str, RunTable] = {}
        for table in (source.run_table for source in setup.sources):
            older = self._manifest.tables.get(table.table.name)
            if older is None:  # a table that the run did not have before
                continue
            names = older.declaration.run_column_names
            if added := [name for name in table.run_column_names if name not in names]:
                wider[table.table.name] = RunTable.of(table.table, [*names, *added])
        return wider

    @property
    def groups(self) -> Mapping[str, Group]:
        """Every group that the run had, with its spans."""
        return self._manifest.groups

    def is_due(self) -> bool:
        """Whether it is time for a heartbeat."""
        return time.monotonic() >= self._due

    def beat(self, stats: TelemetryStats, rows: Mapping[str, int]) -> None:
        """Renew the heartbeat and the counters."""
        self._count(stats, rows)
        self._try_to_write()

    def end(self, stats: TelemetryStats, rows: Mapping[str, int], status: Status, error: str | None) -> None:
        """Record how the attempt ended."""
        self._count(stats, rows)
        self.attempt.status, self.attempt.error, self.attempt.ended_utc = status, error, utc_now()
        self._manifest.status = status
        self._try_to_write()

    def _count(self, stats: TelemetryStats, rows: Mapping[str, int]) -> None:
        self.attempt.counters = StepCounters(
            collected=stats.collected - self._before.collected,
            written=stats.written - self._before.written,
            dropped=stats.dropped - self._before.dropped,
            failed=stats.failed - self._before.failed,
            pending=stats.pending - self._before.pending,
        )
        self.attempt.rows = dict(rows)
        self._manifest.heartbeat_utc = utc_now()

    def _try_to_write(self) -> None:
        try:
            self._write()
        except Exception as error:  # noqa: BLE001  # it costs this heartbeat and no row
            self._log.fail(error, "manifest.json could not be written")

    def _write(self) -> None:
        self._due = time.monotonic() + HEARTBEAT_S
        self.attempt.device = ", ".join(self._facts.devices()) or None
        self.attempt.weight_reference_bytes = self._facts.weight_reference_bytes()
        write_manifest(self._path, self._manifest)
