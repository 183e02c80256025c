"""What the terminal shows of a run, brought up to date at each look."""

from dataclasses import dataclass, field
from datetime import datetime

from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import RunError
from ava_pipeline.read.pulse import StatusNow, status_now
from ava_pipeline.read.run import Run
from ava_pipeline.read.watch.recent import Recent
from ava_pipeline.read.watch.tail import CsvTail, StoredTail, Tail

EVENTS_TABLE = EVENTS.name


@dataclass(slots=True)
class Watched:
    """A run, as far as it was seen.

    Attributes:
        run: which one.
        manifest: as of the last look; None before there is one.
        status: of the run; None before there is a manifest.
        tables: the latest rows of each, by name, the events among them.
        trouble: what could not be read at the last look.
    """

    run: Run
    manifest: Manifest | None = None
    status: StatusNow | None = None
    tables: dict[str, Recent] = field(default_factory=dict)
    trouble: str = ""
    _tails: dict[str, Tail] = field(default_factory=dict)

    def look(self, now: datetime) -> None:
        """Read what is new. What cannot be read just now, as while a resumed run moves its rows, is tried again."""
        try:
            self._look(self.run.manifest, now)
            self.trouble = ""
        except (RunError, OSError) as error:
            self.trouble = str(error)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end, and all of it was seen."""
        return self.status == "finished" and not self.trouble

    def _look(self, manifest: Manifest, now: datetime) -> None:
        if self.manifest is None or _shape(manifest) != _shape(self.manifest):
            self._begin(manifest)
        # The status first: rows that were written before the end are there when the end is.
        self.manifest, self.status = manifest, status_now(manifest, now)
        for name, tail in self._tails.items():
            self.tables[name].add(tail.look())

    def _begin(self, manifest: Manifest) -> None:
        """A new attempt may have set rows aside, or measure other columns: begin with the rows that count now."""
        self._tails = {EVENTS_TABLE: CsvTail(self.run, RunTable.of(EVENTS))}
        for name, entry in manifest.tables.items():
            kind = CsvTail if "csv" in entry.formats else StoredTail
            self._tails[name] = kind(self.run, entry.declaration)
        self.tables = {name: Recent() for name in self._tails}


def _shape(manifest: Manifest) -> tuple[object, ...]:
    return len(manifest.attempts), tuple((name, entry.declaration) for name, entry in manifest.tables.items())
