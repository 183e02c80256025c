"""Each writer alone, and both after the channel with every row checked."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ava_pipeline.bench.writing import GROWTH_MB, STEPS_PER_S, TABLES, write_rows_in_subprocess
from ava_pipeline.write.writers import CsvWriter, ParquetWriter, Writer
from benchmarks.judging import Bench, Sizes
from tests.write.memory_writer import MemoryWriter

_SCHEMA = TABLES[0].arrow_schema
_ROWS_PER_BATCH = 128
_NUM_BATCHES = 50

Make = Callable[[Path], Writer]
WRITERS: dict[str, Make] = {
    "csv": lambda path: CsvWriter(path / "t.csv", _SCHEMA),
    "parquet": lambda path: ParquetWriter(path / "t.parquet", _SCHEMA),
}


def batch() -> pa.RecordBatch:
    """As many rows as the worker writes at once."""
    numbers = np.random.default_rng(0).random((len(_SCHEMA), _ROWS_PER_BATCH))
    columns = [pa.array(one).cast(field.type, safe=False) for one, field in zip(numbers, _SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


@pytest.mark.informational
@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_over_keeping_in_memory(bench: Bench, kind: str, tmp_path: Path) -> None:
    """From opening a file to finishing it."""
    rows, folders = batch(), count()

    def write(make: Make) -> None:
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        writer = make(folder)
        for _ in range(_NUM_BATCHES):
            writer.write(rows)
        writer.close()

    bench.judge(bench.ratio(lambda: write(WRITERS[kind]), lambda: write(lambda _: MemoryWriter())))


@pytest.mark.gate
def test_csv_and_parquet_validated(bench: Bench, sizes: Sizes, tmp_path: Path) -> None:
    """One row per step in each of three tables, through the channel, without growing memory."""
    found = bench.show(lambda: write_rows_in_subprocess(tmp_path, sizes.num_rows))
    bench.judge(float(np.median(found.steps_per_s)), STEPS_PER_S, name="steps_per_s")
    bench.judge(found.growth_bytes / 1e6, GROWTH_MB, name="growth_mb")
