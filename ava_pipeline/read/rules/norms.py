"""L2 norms of groups: squares add up where children partition their parent."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ava_pipeline.contract.manifest import Group, Manifest, partitions
from ava_pipeline.read.arrays import Bools, floats, nulls
from ava_pipeline.read.inspected import Inspected, Part
from ava_pipeline.read.stretches import stretches
from ava_pipeline.read.violations import Breach, Cell, Rule

RELATIVE = 1e-5
# Below the least normal float32, its digits run out.
_LEAST_SQUARE = float(np.finfo(np.float32).tiny) ** 2

HEAD_SUM = Rule("norms.head-sum", "The head's squared norm is the sum of its layers' squares, to 1e-5.")
PARTITION = Rule("norms.partition", "A group's squared norm is the sum of its children's squares, to 1e-5.")
OVERALL = Rule("norms.overall", "No group's norm is above the overall norm, by more than 1e-5 of it.")

RULES = (HEAD_SUM, PARTITION, OVERALL)

Norms = NDArray[np.float64]


def check(run: Inspected) -> Iterator[Breach]:
    """Every table whose run columns are norms of the manifest's groups."""
    if run.manifest is None:
        return
    for name, parts in run.distinct.items():
        if run.tables[name].declaration.table.l2_of_groups:
            for part in parts:
                yield from _sums(part, run.manifest, name)
                yield from _above_overall(part, run.manifest.groups)


def _sums(part: Part, manifest: Manifest, table: str) -> Iterator[Breach]:
    groups = manifest.groups
    present = set(part.declaration.run_column_names)
    for parent, children in partitions(groups).items():
        if not {parent, *children} <= present:
            continue
        norm = floats(part.rows, parent)
        total = _combined(part, children)
        with np.errstate(invalid="ignore"):  # an infinite norm is measured, and compared with nothing
            broken = np.abs(norm**2 - total**2) > RELATIVE * np.maximum(norm**2, total**2) + _LEAST_SQUARE
        broken &= _measured(part, manifest, table, {parent, *children})
        rule = HEAD_SUM if groups[parent].role == "head" else PARTITION
        if broken.any():
            yield rule.at(part.file, np.flatnonzero(broken), _Sum(parent, children, norm, total))


def _measured(part: Part, manifest: Manifest, table: str, columns: set[str]) -> Bools:
    """Rows of attempts that measured all of these columns; a resumed run may have others than before."""
    is_measured = np.ones(part.rows.num_rows, dtype=np.bool_)
    batches = floats(part.rows, "batch_idx")
    for stretch in stretches(manifest):
        if table in stretch.attempt.columns and not columns <= set(stretch.attempt.columns[table]):
            is_measured &= (batches <= stretch.begin) | (batches > stretch.end)
    return is_measured


def _combined(part: Part, children: tuple[str, ...]) -> Norms:
    """Root of the sum of squares [rows]; a child not measured had no gradients to add, one not finite makes nan."""
    squares = np.zeros(part.rows.num_rows)
    for child in children:
        squares += np.where(nulls(part.rows.column(child)), 0.0, floats(part.rows, child)) ** 2
    squares[~np.isfinite(squares)] = np.nan
    return np.sqrt(squares)


@dataclass(frozen=True, slots=True)
class _Sum:
    """What a parent's norm should have been."""

    parent: str
    children: tuple[str, ...]
    norm: Norms
    total: Norms

    def __call__(self, row: int) -> Cell:
        what = f"{self.norm[row]:.9g}, but the root of the squares of {' and '.join(self.children)} added up"
        return Cell(f"{what} is {self.total[row]:.9g}.", self.parent, f"{self.norm[row]:.9g}")


def _above_overall(part: Part, groups: Mapping[str, Group]) -> Iterator[Breach]:
    names = part.declaration.run_column_names
    for overall in (name for name in names if name in groups and groups[name].role == "overall"):
        whole = floats(part.rows, overall)
        for name in names:
            norm = floats(part.rows, name)
            broken = np.isfinite(whole) & np.isfinite(norm) & (norm > whole * (1 + RELATIVE))
            if broken.any():
                yield OVERALL.at(part.file, np.flatnonzero(broken), _Above(name, overall, norm, whole))


@dataclass(frozen=True, slots=True)
class _Above:
    """Which norm is larger than the whole."""

    name: str
    overall: str
    norm: Norms
    whole: Norms

    def __call__(self, row: int) -> Cell:
        message = f"{self.norm[row]:.9g} is above {self.overall}, which is {self.whole[row]:.9g}."
        return Cell(message, self.name, f"{self.norm[row]:.9g}")
