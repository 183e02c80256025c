"""What the rows of neighbouring steps measure: the measures that read them, and the groups of the model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from ava_pipeline.contract.columns import Values
from ava_pipeline.contract.events import Event
from ava_pipeline.contract.manifest import Group
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.write.channel import Numbers


class RowSource(Protocol):
    """The background half of a measure: makes a table's columns of the numbers that were read."""

    @property
    def run_table(self) -> RunTable:
        """The table with the columns of this run."""

    def columns(self, numbers: Sequence[Numbers], layout: object) -> Mapping[str, Values]:
        """Make every column beside `batch_idx` and `epoch`, as `to_arrow` takes them: one value per row.

        There is one row per step; in a long table, as many for each step, one step's after those of the step before.
        `numbers` has one entry per step, all of them read under `layout`, which the measure returned with them.
        """

    def events(self, rows: pa.RecordBatch) -> Iterable[Event]:
        """Report what neighbouring rows of the table show; rows are given once, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What is measured from one step on, until a step with another setup.

    Attributes:
        sources: the measures, one per table; their numbers have the same order in every step.
        groups: column of the norms -> the parameters that it measures.
        rate_names: column of `learning_rates` -> the name that the optimizer gave the parameter group.
        holdout_ids: of each held-out sample its ids, in the order of their rows; empty without a holdout.
    """

    sources: Sequence[RowSource]
    groups: Mapping[str, Group]
    rate_names: Mapping[str, str] = field(default_factory=dict)
    holdout_ids: Sequence[tuple[int | str, ...]] = ()

    def records_the_same(self, other: "Setup") -> bool:
        """Whether rows of both have the same columns, for the same groups and parameter groups."""
        tables = [[one.run_table for one in setup.sources] for setup in (self, other)]
        return tables[0] == tables[1] and self.groups == other.groups and self.rate_names == other.rate_names
