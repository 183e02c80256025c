"""CSV and Parquet hold the same rows, to the bit."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ava_pipeline.read.arrays import differing, text
from ava_pipeline.read.inspected import Inspected, Part
from ava_pipeline.read.violations import Breach, Cell, Rule

SAME = Rule("files.csv-parquet", "CSV and Parquet hold the same rows: floats bit for bit, nan and null kept apart.")

RULES = (SAME,)


def check(run: Inspected) -> Iterator[Breach]:
    """Every table that is written in both formats; its rows are matched by batch_idx."""
    for name, table in run.tables.items():
        csv, parquet = table.csv, table.parquet
        if len(run.distinct[name]) == 2 and csv and parquet and csv.has_keys and parquet.has_keys:  # noqa: PLR2004  # both.
            yield from _other_values(csv, parquet)
            yield from _only_in(run, csv, parquet)
            yield from _only_in(run, parquet, csv)


def _other_values(csv: Part, parquet: Part) -> Iterator[Breach]:
    _, here, there = np.intersect1d(csv.batches, parquet.batches, return_indices=True)
    rows, others = csv.rows.take(here), parquet.rows.take(there)
    for name in csv.declaration.column_names:
        broken = np.flatnonzero(differing(rows.column(name), others.column(name)))
        if len(broken):
            yield SAME.at(csv.file, here[broken], _Other(name, csv, parquet))


@dataclass(frozen=True, slots=True)
class _Other:
    """What a value is in the other file."""

    column: str
    csv: Part
    parquet: Part

    def __call__(self, row: int) -> Cell:
        there = int(np.flatnonzero(self.parquet.batches == self.csv.batches[row])[0])
        value = text(self.csv.rows, self.column, row)
        other = text(self.parquet.rows, self.column, there)
        return Cell(f"{value} here, {other} in row {there + 1} of {self.parquet.name}.", self.column, value)


def _only_in(run: Inspected, part: Part, other: Part) -> Iterator[Breach]:
    """Rows that only one file has and no event explains; while rows come, the other file may lag behind."""
    lost = part.batches[~np.isin(part.batches, other.batches)]
    lost = lost[~run.missing.overlap(lost, lost)]
    if run.is_open:
        lost = lost[lost <= other.batches.max(initial=0)]
    positions = np.flatnonzero(np.isin(part.batches, lost))

    def explain(row: int) -> Cell:
        batch = str(part.batches[row])
        return Cell(f"the row of batch {batch} is not in {other.name}, and no event explains it.", "batch_idx", batch)

    if len(positions):
        yield SAME.at(part.file, positions, explain)
