"""The manifest's counters agree with each other and with the rows."""

from collections.abc import Iterator

from ava_pipeline.contract.manifest import Attempt, Manifest
from ava_pipeline.read.inspected import Inspected, Part
from ava_pipeline.read.violations import Breach, Cell, Rule

MANIFEST = "telemetry/manifest.json"

SUM = Rule("counters.sum", "collected = written + dropped + failed + pending, in each attempt.")
PENDING = Rule("counters.pending", "An attempt that ended well has nothing pending.")
ROWS = Rule("counters.rows", "A file holds the rows that its attempts wrote, less those set aside.")
WRITTEN = Rule("counters.written", "Every file took a row of each step that counts as written.")

RULES = (SUM, PENDING, ROWS, WRITTEN)


def check(run: Inspected) -> Iterator[Breach]:
    """Each attempt by itself, then each file against all of them."""
    if run.manifest is None:
        return
    for index, attempt in enumerate(run.manifest.attempts):
        yield from _of_attempt(attempt, f"attempts.{index}")
    for table in [*run.tables.values(), run.events]:
        for part in table.parts:
            yield from _of_file(run, run.manifest, part)


def _of_attempt(attempt: Attempt, place: str) -> Iterator[Breach]:
    counters = attempt.counters
    settled = counters.written + counters.dropped + counters.failed + counters.pending
    if counters.collected != settled:
        message = f"collected is {counters.collected}; written, dropped, failed and pending add up to {settled}."
        yield SUM.found(MANIFEST, Cell(message, f"{place}.counters.collected", str(counters.collected)))
    if counters.pending and attempt.status == "finished":
        message = "rows still wait, though the attempt is finished."
        yield PENDING.found(MANIFEST, Cell(message, f"{place}.counters.pending", str(counters.pending)))
    for name, count in attempt.rows.items():
        if name != "events.csv" and count < counters.written and attempt.status != "running":
            message = f"{count} rows, though {counters.written} steps count as written."
            yield WRITTEN.found(MANIFEST, Cell(message, f"{place}.rows.{name}", str(count)))


def _of_file(run: Inspected, manifest: Manifest, part: Part) -> Iterator[Breach]:
    """While the run is open, the files are ahead of the counters."""
    attempts = manifest.attempts
    counted = [attempt.rows[part.name] for attempt in attempts if part.name in attempt.rows]
    expected = sum(counted) - sum(attempt.set_aside.get(part.name, 0) for attempt in attempts)
    is_other = part.num_rows < expected if run.is_open else part.num_rows != expected
    if counted and is_other:
        message = f"{part.num_rows} rows; by the manifest's counters there are {expected}."
        yield ROWS.found(part.file, Cell(message, value=str(part.num_rows)))
