"""`ava-pipeline runs` and datasets of runs that record long tables."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest
from typer.testing import CliRunner

from ava_pipeline import cli, runs
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.many_runs.selection import ordered, where
from ava_pipeline.many_runs.summary import summary_of
from tests.validate.building import Format, RunBuilder
from tests.validate.more_tables import layers, pairs, scores

BATCHES = tuple(range(10, 121, 10))


def with_pairs(root: Path, num_correct: int, formats: tuple[Format, ...] = ("csv", "parquet")) -> Path:
    """A run in which so many of four held-out pairs are right at the last step, and none before."""
    logits = np.tile([1.0, 0.0], (12, 4, 1))
    logits[-1, :num_correct, 1] = 2.0
    more = [pairs(BATCHES, logits), layers(BATCHES, np.arange(24.0).reshape(12, 2), ["a", "b"])]
    return RunBuilder(root=root, formats=formats, more=more).write()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs with pairs, one with scores, and one with neither."""
    with_pairs(tmp_path / "good", 3)
    with_pairs(tmp_path / "bad", 1, ("parquet",))
    predicted = np.full((12, 3), 5.0)
    predicted[-1] = 4.5
    RunBuilder(root=tmp_path / "scores", more=[scores(BATCHES, predicted)]).write()
    RunBuilder(root=tmp_path / "plain").write()
    return tmp_path


def test_the_last_held_out_accuracy_is_a_column(folder: Path) -> None:
    """In the table and as JSON; absent if no run has one."""
    found = {path.name: summary_of(path.name, RunLayout(path)) for path in folder.iterdir()}
    assert {name: dict(run.holdout) for name, run in found.items()} == {
        "good": {"holdout_accuracy": 0.75},
        "bad": {"holdout_accuracy": 0.25},
        "scores": {"holdout_mae": 0.5},
        "plain": {},
    }
    assert all(run.problem is None for run in found.values())
    listed = CliRunner().invoke(cli.app, ["runs", str(folder / "*")]).output
    assert "last holdout acc." in listed
    assert "75.0%" in listed
    assert "holdout" not in CliRunner().invoke(cli.app, ["runs", str(folder / "plain")]).output
    printed = json.loads(CliRunner().invoke(cli.app, ["runs", str(folder / "good"), "--json"]).output)
    assert printed["runs"][0]["holdout"] == {"holdout_accuracy": 0.75}


def test_runs_are_sorted_and_selected_by_it(folder: Path) -> None:
    """The most accurate first."""
    found = [summary_of(name, RunLayout(folder / name), findings=False) for name in ("bad", "good", "plain")]
    assert [run.name for run in ordered(found, "holdout_accuracy")] == ["good", "bad", "plain"]
    assert [run.name for run in where(found, "holdout_accuracy>0.5")] == ["good"]


def test_the_last_row_is_that_of_a_table_with_a_row_per_batch(tmp_path: Path) -> None:
    """Without gradients too, whatever the names of other tables."""
    more = [layers(BATCHES[:3], np.ones((3, 1)), ["a"])]
    run = RunBuilder(root=tmp_path, without=["gradient_norms", "learning_rates"], more=more).write()
    assert summary_of("run", RunLayout(run), findings=False).last_batch == 120


def test_long_tables_of_many_runs_are_one_dataset(folder: Path) -> None:
    """With the run's name; a run without the table has no rows in it."""
    stats = runs(folder / "*").table("per_layer_stats")
    found = stats.to_table()
    assert found.num_rows == 48
    assert set(found.column("run").to_pylist()) == {"good", "bad"}
    query = "SELECT run, layer_name, max(grad_norm) FROM stats GROUP BY ALL ORDER BY ALL"
    answer = duckdb.sql(query)
    assert answer is not None
    assert answer.fetchall() == [
        ("bad", "a", 22.0),
        ("bad", "b", 23.0),
        ("good", "a", 22.0),
        ("good", "b", 23.0),
    ]
