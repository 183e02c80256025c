"""Gate: reading AVA's labels, strictly, costs at most three times what pandas takes to read the bare table.

pytest benchmarks/test_labels.py
AVA_BENCH_ROWS=2000 pytest benchmarks/test_labels.py    # a quick look that it runs, without the gate
"""

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from ava_pipeline.train.labels import read_ava_labels

AVA_ROWS = 255_530
NUM_ROWS = int(os.environ.get("AVA_BENCH_ROWS", AVA_ROWS))
MOST = 3.0
ROUNDS = 7


@pytest.fixture(scope="module")
def labels_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of AVA's size and shape."""
    rng = np.random.default_rng(0)
    index = np.arange(1, NUM_ROWS + 1)
    votes = rng.poisson([3, 6, 14, 35, 61, 48, 24, 12, 5, 3], size=(NUM_ROWS, 10))
    tags = rng.integers(0, 67, size=(NUM_ROWS, 2))
    rows = np.column_stack(
        [index, rng.permutation(NUM_ROWS * 4)[:NUM_ROWS], votes, tags, rng.integers(1, 1400, NUM_ROWS)]
    )
    path = tmp_path_factory.mktemp("labels") / "AVA.txt"
    pd.DataFrame(rows).to_csv(path, sep=" ", header=False, index=False)
    return path


def read_bare(path: Path) -> pd.DataFrame:
    """Read the table as pandas does, without any check."""
    return pd.read_csv(path, sep=r"\s+", header=None)


def timed(read: Callable[[Path], pd.DataFrame], path: Path, times_s: list[float]) -> pd.DataFrame:
    """Read and note how long it took."""
    start = perf_counter()
    frame = read(path)
    times_s.append(perf_counter() - start)
    return frame


def test_labels_cost_at_most_three_times_the_bare_table(benchmark: BenchmarkFixture, labels_file: Path) -> None:
    """Both are timed in turn in one run, and the quickest of each compared: another load on the machine hits both."""
    bare_s: list[float] = []
    strict_s: list[float] = []

    def time_bare() -> None:
        timed(read_bare, labels_file, bare_s)

    run: Any = benchmark  # pytest-benchmark annotates `pedantic` nowhere
    frame = run.pedantic(
        lambda: timed(read_ava_labels, labels_file, strict_s),
        setup=time_bare,
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    ratio = min(strict_s) / min(bare_s)
    run.extra_info |= {"num_rows": NUM_ROWS, "bare_s": min(bare_s), "times_bare": ratio}
    print(f"{NUM_ROWS} rows: {ratio:.2f} times pandas.read_csv ({min(bare_s):.3f} s)")
    assert len(frame) == NUM_ROWS
    assert NUM_ROWS < AVA_ROWS or ratio <= MOST
