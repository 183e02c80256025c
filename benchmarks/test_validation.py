"""Validating a run of millions of rows, relative to reading its table with pyarrow."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from ava_pipeline.bench.results import Target
from ava_pipeline.validate.validate import validate_run
from benchmarks.judging import Bench, Sizes
from benchmarks.long_run import TABLE, Formats, write_long_run

_ROUNDS = 3
_OVER_READING = {"csv": Target(3.0), "parquet": Target(10.0)}
_PEAK_MIB = Target(1024.0)


def read(root: Path, formats: Formats) -> None:
    """Read the columns into memory, which every reader must do."""
    for kind in formats:
        path = root / "telemetry" / f"{TABLE.table.name}.{kind}"
        csv.read_csv(path) if kind == "csv" else pq.read_table(path)


def peak_of_validating(root: Path) -> int:
    """The peak memory of a process that validated a run and found nothing."""
    script = (
        "import sys\n"
        "from ava_pipeline.validate.validate import validate_run\n"
        "assert validate_run(sys.argv[1]) == []\n"
        "from ava_pipeline.bench.timing import peak_bytes\n"
        "print(peak_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True)  # noqa: S603  # our own code
    return int(done.stdout)


@pytest.mark.gate
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("formats", [("csv",), ("parquet",), ("csv", "parquet")], ids="+".join)
def test_validating_over_reading(bench: Bench, sizes: Sizes, formats: Formats, tmp_path: Path) -> None:
    """Every rule on every row, relative to pyarrow reading the same files; and the memory of a new process."""
    root = write_long_run(tmp_path, sizes.num_validated_rows, formats)
    target = _OVER_READING[formats[0]] if len(formats) == 1 else None
    ratio = bench.ratio(lambda: list(validate_run(root)), lambda: read(root, formats), _ROUNDS)
    peak = peak_of_validating(root)
    print(f"\n  {sizes.num_validated_rows:,} rows")
    bench.judge(peak / 2**20, _PEAK_MIB, name="peak_mib")
    bench.judge(ratio, target, name="over_reading")
