"""What validation looks at: the manifest and every table's files, each read once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.read.arrays import differing, integers
from ava_pipeline.read.spans import Batches, Spans


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file, with the columns and types of its declaration.

    Attributes:
        file: path below the run directory; the rows of a journal count as its Parquet file's.
        declaration: of the table.
        rows: in file order.
    """

    file: str
    declaration: RunTable
    rows: pa.Table

    @property
    def name(self) -> str:
        """The file's own name, as the manifest counts it."""
        return self.file.rpartition("/")[2]

    @property
    def has_keys(self) -> bool:
        """Whether every row says which batch and epoch it is of."""
        return not any(self.rows.column(key).null_count for key in ("batch_idx", "epoch"))

    @property
    def batches(self) -> Batches:
        """The `batch_idx` of every row."""
        return integers(self.rows, "batch_idx")

    def has_rows_of(self, other: "Part") -> bool:
        """Whether both files hold the same values."""
        if self.rows.num_rows != other.rows.num_rows:
            return False
        names = self.declaration.column_names
        return not any(np.any(differing(self.rows.column(name), other.rows.column(name))) for name in names)


@dataclass(frozen=True, slots=True)
class TableParts:
    """One table's readable files: its CSV, and its Parquet with the journal behind it."""

    declaration: RunTable
    csv: Part | None = None
    parquet: Part | None = None

    @property
    def parts(self) -> list[Part]:
        """Every readable file."""
        return [part for part in (self.csv, self.parquet) if part is not None]

    @property
    def distinct_parts(self) -> list[Part]:
        """The files whose rows are worth a look: the CSV alone where the Parquet holds the same."""
        if self.csv and self.parquet and self.csv.has_rows_of(self.parquet):
            return [self.csv]
        return self.parts


@dataclass(frozen=True, slots=True)
class Inspected:
    """One run directory, read for validation.

    Attributes:
        manifest: None where there is none to be had.
        tables: measures' tables by name.
        events: the events' table.
        missing: batches whose rows may be missing, as events tell.
        distinct: of every table, the files whose rows are worth a look.
    """

    layout: RunLayout
    manifest: Manifest | None
    tables: Mapping[str, TableParts]
    events: TableParts
    missing: Spans
    distinct: Mapping[str, list[Part]] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: RunLayout, manifest: Manifest | None, tables: dict[str, TableParts], missing: Spans) -> Self:
        """Compare each table's files once."""
        events = tables.pop("events")
        distinct = {name: table.distinct_parts for name, table in tables.items()}
        return cls(layout, manifest, tables, events, missing, distinct)

    @property
    def is_open(self) -> bool:
        """Whether rows may still come, or the process that wrote them was killed."""
        return self.manifest is not None and self.manifest.status == "running"

    def keyed_parts(self) -> Iterator[Part]:
        """The files worth a look whose rows all say which batch they are of."""
        return (part for parts in self.distinct.values() for part in parts if part.has_keys)
