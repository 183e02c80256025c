"""What validation knows of a run once its files were read: the manifest, and of every file its rows' batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.validate.batches import BatchNumbers, Spans
from ava_pipeline.validate.windows import Window


@dataclass(slots=True)
class CheckedFile:
    """One file that was read through.

    Attributes:
        file: path below the run directory; the rows of a journal count as its Parquet file's.
        num_rows: in it.
        has_keys: whether every row says which batch and epoch it is of.
        batches: of the rows, where it has keys.
    """

    file: str
    num_rows: int = 0
    has_keys: bool = True
    batches: BatchNumbers = field(default_factory=BatchNumbers)

    @property
    def name(self) -> str:
        """The file's own name, as the manifest counts it."""
        return self.file.rpartition("/")[2]

    def append(self, window: Window) -> None:
        """Go on by the rows that were read."""
        self.num_rows += window.rows.num_rows
        self.has_keys = self.has_keys and window.has_keys
        if self.has_keys:
            self.batches.append(window.batches)


@dataclass(frozen=True, slots=True)
class CheckedTable:
    """One table's readable files: its CSV, and its Parquet with the journal behind it.

    Attributes:
        is_same: whether both hold the same values, row by row.
    """

    declaration: RunTable
    csv: CheckedFile | None = None
    parquet: CheckedFile | None = None
    is_same: bool = False

    @property
    def parts(self) -> list[CheckedFile]:
        """Every readable file."""
        return [part for part in (self.csv, self.parquet) if part is not None]

    @property
    def distinct_parts(self) -> list[CheckedFile]:
        """The files whose rows are worth a look: one alone where the other holds the same."""
        return self.parts[:1] if self.is_same else self.parts


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """One run directory, read for validation.

    Attributes:
        manifest: None where there is none to be had.
        tables: measures' tables by name.
        events: the events' table.
        missing: batches whose rows may be missing, as events tell.
        now: the time that heartbeats are compared with.
    """

    layout: RunLayout
    manifest: Manifest | None
    tables: Mapping[str, CheckedTable]
    events: CheckedTable
    missing: Spans
    now: datetime

    @property
    def is_open(self) -> bool:
        """Whether rows may still come, or the process that wrote them was killed."""
        return is_open(self.manifest)

    def keyed_parts(self) -> Iterator[CheckedFile]:
        """The files worth a look whose rows all say which batch they are of."""
        return (part for table in self.tables.values() for part in table.distinct_parts if part.has_keys)


def is_open(manifest: Manifest | None) -> bool:
    """Whether rows may still come, or the process that wrote them was killed."""
    return manifest is not None and manifest.status == "running"
