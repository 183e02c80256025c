"""A finished run with one long table that breaks no rule, with new random values in every row."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from ava_pipeline.contract.builtin_tables import GRADIENT_NORMS
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Attempt, Group, Manifest, StepCounters, TableEntry, utc_now, write_manifest
from ava_pipeline.contract.parquet import RowStream, write_parquet
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.write.writers import CsvWriter

Formats = tuple[Literal["csv", "parquet"], ...]

GROUPS = {
    "overall": Group(role="overall", parameters=("a", "b", "c", "d")),
    "backbone_layer4": Group(role="backbone_last", parent="overall", parameters=("b",)),
    "mlp_head": Group(role="head", parent="overall", parameters=("c", "d")),
    "mlp_layer_0": Group(role="head_layer", parent="mlp_head", parameters=("c",)),
    "mlp_layer_3": Group(role="head_layer", parent="mlp_head", parameters=("d",)),
}
TABLE = RunTable.of(GRADIENT_NORMS, tuple(GROUPS))
_ROWS_PER_BATCH = 2**16
_BATCHES_PER_EPOCH = 4_000


def write_long_run(root: Path, num_rows: int, formats: Formats) -> Path:
    """Write the run with its table in the given formats and return its directory."""
    layout = RunLayout(root)
    layout.telemetry.mkdir(parents=True)
    if "csv" in formats:
        with ExitStack() as stack:
            writer = CsvWriter(layout.csv(TABLE.table.name), TABLE.arrow_schema)
            stack.callback(writer.close)
            for batch in _batches(num_rows):
                writer.write(batch)
    if "parquet" in formats:
        rows = RowStream(TABLE.arrow_schema, lambda: _batches(num_rows))
        write_parquet(layout.parquet(TABLE.table.name), rows)
    write_manifest(layout.manifest, _manifest(num_rows, formats))
    return root


def _batches(num_rows: int) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng(0)
    for start in range(1, num_rows + 1, _ROWS_PER_BATCH):
        batches = np.arange(start, min(start + _ROWS_PER_BATCH, num_rows + 1))
        first, last, backbone, other = rng.lognormal(size=(4, len(batches)))
        head = np.hypot(first, last)
        overall = np.sqrt(head**2 + backbone**2 + other**2)
        columns = [batches, batches // _BATCHES_PER_EPOCH, overall, backbone, head, first, last]
        arrays = [
            pa.array(one).cast(field.type, safe=False) for one, field in zip(columns, TABLE.arrow_schema, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=TABLE.arrow_schema)


def _manifest(num_rows: int, formats: Formats) -> Manifest:
    attempt = Attempt(
        number=1,
        status="finished",
        started_utc=utc_now(),
        collect_every_n=1,
        counters=StepCounters(collected=num_rows, written=num_rows),
        rows={f"{TABLE.table.name}.{kind}": num_rows for kind in formats},
    )
    return Manifest(
        status="finished",
        heartbeat_utc=utc_now(),
        tables={TABLE.table.name: TableEntry(declaration=TABLE, formats=formats)},
        groups=GROUPS,
        attempts=[attempt],
    )
