"""The manifest of a running attempt: its counters and its heartbeat."""

import time
from collections.abc import Mapping
from pathlib import Path

from ava_pipeline.contract.manifest import Attempt, Manifest, Status, StepCounters, utc_now, write_manifest
from ava_pipeline.write.channel import TelemetryStats
from ava_pipeline.write.event_log import EventLog

HEARTBEAT_S = 10.0


class KeptManifest:
    """Rewrites the manifest every `HEARTBEAT_S` and at the end, never more often: each time is a sync of the disk.

    Args:
        path: of the manifest.
        manifest: its last attempt is the running one.
        log: where to tell of trouble.
        before: steps that this process settled in attempts before this one.

    Raises:
        OSError: it cannot be written. Rows without it would belong to no attempt.
    """

    def __init__(self, path: Path, manifest: Manifest, log: EventLog, *, before: TelemetryStats) -> None:
        self._path = path
        self._manifest = manifest
        self._log = log
        self._before = before
        self._write()

    @property
    def attempt(self) -> Attempt:
        """The running attempt."""
        return self._manifest.attempt

    def is_due(self) -> bool:
        """Whether it is time for a heartbeat."""
        return time.monotonic() >= self._due

    def beat(self, stats: TelemetryStats, rows: Mapping[str, int]) -> None:
        """Say that the run lives, and how much was written."""
        self._count(stats, rows)
        self._try_to_write()

    def end(self, stats: TelemetryStats, rows: Mapping[str, int], status: Status, error: str | None) -> None:
        """Say how the attempt ended."""
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
        except Exception as error:  # noqa: BLE001  # whatever it is, it costs this heartbeat and no row
            self._log.fail(error, "manifest.json could not be written")

    def _write(self) -> None:
        self._due = time.monotonic() + HEARTBEAT_S
        write_manifest(self._path, self._manifest)
