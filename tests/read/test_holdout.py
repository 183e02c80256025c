"""The means over held-out samples against NumPy in float64, in parts of any size, and long tables as streams."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.holdout import holdout_by_batch, holdout_columns
from ava_pipeline.read.run import open_run
from ava_pipeline.read.stream import stream_rows
from tests.validate.building import Format, RunBuilder
from tests.validate.damaging import cut
from tests.validate.more_tables import layers, pairs, scores

BATCHES = list(range(10, 210, 10))
LOGITS = np.random.default_rng(0).normal(size=(20, 7, 2))


def wanted(table: RunTable, rows: pa.Table) -> pa.Table:
    """The columns that the means need."""
    return rows.select(holdout_columns(table.column_names))


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_accuracy_and_confidence_are_those_of_the_logits(size: int) -> None:
    """Whatever parts the rows come in."""
    rows = wanted(*pairs(BATCHES, LOGITS))
    found = holdout_by_batch(rows.slice(start, size) for start in range(0, rows.num_rows, size))
    assert found is not None
    assert (found.batch_idx.tolist(), set(found.num_samples.tolist())) == (BATCHES, {7})
    shares = np.exp(LOGITS.astype(np.float32).astype(np.float64))
    shares /= shares.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(found.values["confidence"], shares.max(axis=2).mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.values["accuracy"], (LOGITS.argmax(axis=2) == 1).mean(axis=1), rtol=1e-12)


def test_large_logits_are_no_overflow() -> None:
    """A confidence of 1, and of a half where two are equal."""
    logits = np.array([[[1e30, -1e30], [3e38, 3e38]]])
    found = holdout_by_batch([wanted(*pairs([5], logits))])
    assert found is not None
    assert found.values["confidence"].tolist() == [0.75]


def test_a_sample_without_a_prediction_makes_the_means_unknown() -> None:
    """The accuracy of the others would not be that of the held-out samples."""
    logits = LOGITS.copy()
    logits[4, 2, 0] = np.nan
    found = holdout_by_batch([wanted(*pairs(BATCHES, logits))])
    assert found is not None
    for values in found.values.values():
        assert np.flatnonzero(np.isnan(values)).tolist() == [4]


def test_scores_have_an_error_and_a_mean() -> None:
    """In score points."""
    predicted = np.array([[4.0, 7.0], [5.0, 5.5]])
    found = holdout_by_batch([wanted(*scores([1, 2], predicted))])
    assert found is not None
    assert {name: values.tolist() for name, values in found.values.items()} == {
        "mae": [1.5, 0.25],
        "pred_mean": [5.5, 5.25],
    }


def test_a_batch_of_which_rows_are_missing_is_left_out() -> None:
    """At both ends of what was read; no batch, no means."""
    rows = wanted(*pairs(BATCHES, LOGITS))
    found = holdout_by_batch([rows.slice(3, rows.num_rows - 5)])
    assert found is not None
    assert found.batch_idx.tolist() == BATCHES[1:-1]
    assert holdout_by_batch([rows.slice(0, 0)]) is None
    assert holdout_columns(["batch_idx", "epoch", "number"]) == []


@pytest.mark.parametrize("formats", [("csv",), ("parquet",), ("csv", "parquet")])
@pytest.mark.parametrize("status", ["running", "finished"])
def test_a_stream_has_the_rows_of_every_file(tmp_path: Path, formats: tuple[Format, ...], status: str) -> None:
    """Of Parquet, of a journal that is still there, and of CSV alone; of the columns that are asked for."""
    table, rows = pairs(BATCHES, LOGITS)
    build = RunBuilder(root=tmp_path / "run", formats=formats, status=status, more=[(table, rows)])  # type: ignore[arg-type]
    run = open_run(build.write())
    columns = ["batch_idx", "image2", "logit_1"]
    found = pa.Table.from_batches(stream_rows(run, "holdout_predictions", columns))
    assert found.to_pydict() == rows.select(columns).to_pydict()


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    """While it is read."""
    more = [layers(BATCHES, np.ones((20, 3)), ["a", "b", "c"])]
    run = RunBuilder(root=tmp_path / "run", more=more).write()
    cut(RunLayout(run).parquet("per_layer_stats"), 20)
    with pytest.raises(DamagedFileError, match="per_layer_stats"):
        list(stream_rows(open_run(run), "per_layer_stats", ["batch_idx", "grad_norm"]))
