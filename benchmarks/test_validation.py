"""Validating a run directory, beside only reading its tables."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from ava_pipeline.bench.rows import TABLES, WrittenRun
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.read.validate import validate_run
from benchmarks.judging import Bench, Sizes

_ROUNDS = 7


@pytest.mark.informational
def test_validating_over_reading(bench: Bench, sizes: Sizes, tmp_path: Path) -> None:
    """Every rule on every row, over pyarrow reading CSV and Parquet."""
    with WrittenRun(tmp_path) as run:
        run.offer(range(1, sizes.num_rows + 1))
    layout = RunLayout(tmp_path)

    def read() -> None:
        for table in TABLES:
            csv.read_csv(layout.csv(table.table.name))
            pq.read_table(layout.parquet(table.table.name))

    bench.judge(bench.ratio(lambda: list(validate_run(tmp_path)), read, _ROUNDS))
