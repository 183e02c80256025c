"""Reading AVA's labels strictly, relative to reading the bare table with pandas."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ava_pipeline.bench.results import Target
from ava_pipeline.train.data.labels import read_ava_labels
from benchmarks.judging import Bench, Sizes

OF_BARE_TABLE = Target(3.0)
_ROUNDS = 7


@pytest.fixture(scope="module")
def labels_file(tmp_path_factory: pytest.TempPathFactory, sizes: Sizes) -> Path:
    """Write a file with AVA's format, and at full size with its number of rows."""
    rng, num_rows = np.random.default_rng(0), sizes.num_labels
    votes = rng.poisson([3, 6, 14, 35, 61, 48, 24, 12, 5, 3], size=(num_rows, 10))
    ids = rng.permutation(num_rows * 4)[:num_rows]
    tags = rng.integers(0, 67, size=(num_rows, 2))
    rows = np.column_stack([np.arange(1, num_rows + 1), ids, votes, tags, rng.integers(1, 1400, num_rows)])
    path = tmp_path_factory.mktemp("labels") / "AVA.txt"
    pd.DataFrame(rows).to_csv(path, sep=" ", header=False, index=False)
    return path


@pytest.mark.gate
def test_labels_over_the_bare_table(bench: Bench, labels_file: Path, sizes: Sizes) -> None:
    """Every value of every row is checked."""
    assert len(read_ava_labels(labels_file)) == sizes.num_labels

    def read_bare() -> pd.DataFrame:
        return pd.read_csv(labels_file, sep=r"\s+", header=None)

    bench.judge(bench.ratio(lambda: read_ava_labels(labels_file), read_bare, _ROUNDS), OF_BARE_TABLE)
