"""Run facts: who ran what, where, and how much of it was recorded."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TypeAlias

from ava_pipeline.contract.manifest import Attempt, Manifest, utc_now
from ava_pipeline.read.pulse import StatusNow, status_now
from ava_pipeline.read.report.seen import Seen

Facts: TypeAlias = Sequence[tuple[str, str]]

_MAX_TEXT, _MAX_ATTEMPTS = 1000, 20


def facts_of(seen: Seen) -> Facts:
    """Name and value each, in words; of many attempts the latest."""
    told = [("directory", str(seen.layout.root)), *(_of_manifest(seen.manifest) if seen.manifest else ())]
    return [(name, value if len(value) <= _MAX_TEXT else f"{value[: _MAX_TEXT - 1]}…") for name, value in told]


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
