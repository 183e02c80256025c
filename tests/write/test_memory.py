"""Finishing the files of a long run takes no more memory than for a short one."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)

MAX_GROWTH_MB = 3.0

# In a process of its own: the peak of a process never falls.
FINISHING = """
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from ava_pipeline.bench.timing import peak_bytes
from ava_pipeline.contract.journal import JournalWriter
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.write.older_rows import supersede_rows
from ava_pipeline.write.recover import recover_run
from ava_pipeline.write.resumed_tables import add_columns
from ava_pipeline.write.writers import CsvWriter
from tests.write.feeding import NORMS

TABLE, WIDER = RunTable.of(NORMS, "abcdef"), RunTable.of(NORMS, "abcdefgh")
RNG = np.random.default_rng(0)

def journal(layout, batches):
    writer = JournalWriter(layout.journal("norms"), TABLE.arrow_schema, rows_before=batches.start - 1)
    lines = CsvWriter(layout.csv("norms"), TABLE.arrow_schema)
    for start in batches:
        count = np.arange(start, start + batches.step)
        norms = [pa.array(RNG.random(batches.step, dtype=np.float32)) for _ in "abcdef"]
        rows = pa.RecordBatch.from_arrays([pa.array(count), pa.array(count * 0), *norms], schema=TABLE.arrow_schema)
        writer.write(rows)
        lines.write(rows)
    writer.close()
    lines.close()

def finish(layout, num_rows):
    layout.telemetry.mkdir(parents=True)
    journal(layout, range(1, num_rows, 5000))
    before = peak_bytes()
    recover_run(layout.root)                                          # a killed run
    journal(layout, range(num_rows + 1, num_rows + 5001, 5000))
    recover_run(layout.root)                                          # older Parquet rows before new ones
    assert supersede_rows(layout, {"norms"}, after_batch=num_rows // 2, attempt=2)    # a resume
    assert add_columns(layout, WIDER)                                       # with other columns
    return (peak_bytes() - before) / 1e6

finish(RunLayout(Path(sys.argv[1]) / "short"), 40_000)
print(finish(RunLayout(Path(sys.argv[1]) / "long"), 300_000))
"""


def test_finishing_a_long_run_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """300,000 rows, 10 MB: recovery, resume, superseding rows and adding columns work block by block."""
    ended = subprocess.run(
        [sys.executable, "-c", FINISHING, str(tmp_path)],
        check=False,
        timeout=100,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < MAX_GROWTH_MB
