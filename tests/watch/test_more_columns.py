"""What `watch` shows of weights, held-out samples and other long tables."""

from pathlib import Path

import numpy as np
import pytest

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import utc_now
from ava_pipeline.read.run import open_run
from ava_pipeline.watch.columns import shown_columns
from ava_pipeline.watch.live_run import Columns, LiveRun
from tests.validate.building import Format, RunBuilder
from tests.validate.more_tables import layers, pairs, scores, weights
from tests.watch.test_watch import shown

BATCHES = tuple(range(10, 121, 10))
LOGITS = np.concatenate([np.zeros((6, 4, 2)), np.tile([0.0, 100.0], (6, 4, 1))])


def followed(root: Path) -> tuple[LiveRun, dict[str, Columns]]:
    """A run after an update, and its columns."""
    live_run = LiveRun(open_run(root))
    live_run.update(utc_now())
    assert not live_run.problem
    return live_run, shown_columns(live_run)


@pytest.mark.parametrize("formats", [("csv", "parquet"), ("parquet",)])
def test_the_update_ratio_and_the_held_out_samples_are_shown(tmp_path: Path, formats: tuple[Format, ...]) -> None:
    """In place of the tables that they come from; a table with a row per layer is not a line."""
    more = [*weights(BATCHES, backbone=0.04), pairs(BATCHES, LOGITS), layers(BATCHES, np.ones((12, 2)), ["a", "b"])]
    run = RunBuilder(root=tmp_path / "run", formats=formats, status="running", more=more).write()
    live_run, columns = followed(run)
    assert not {"weight_norms", "per_layer_stats"} & set(columns)
    assert set(columns["weight_deltas"]) == {"backbone_layer4", "mlp_head"}
    values, is_null = columns["weight_deltas"]["backbone_layer4"]
    assert (values[-1], is_null.tolist()) == (pytest.approx(0.01), [True, *[False] * 11])
    assert columns["holdout_predictions"]["accuracy"][0].tolist() == [0.0] * 6 + [1.0] * 6
    text = shown(live_run)
    assert "update ratio" in text
    assert "held-out samples" in text
    assert "confidence" in text


def test_rows_are_added_batch_by_batch(tmp_path: Path) -> None:
    """A batch of which rows are missing yet is shown once it is whole."""
    run = RunBuilder(root=tmp_path / "run", more=[pairs(BATCHES, LOGITS)]).write()
    path = RunLayout(run).csv("holdout_predictions")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))
    live_run, columns = followed(run)
    assert len(columns["holdout_predictions"]["accuracy"][0]) == 11
    with path.open("a") as file:
        file.writelines(lines[-2:])
    live_run.update(utc_now())
    assert len(shown_columns(live_run)["holdout_predictions"]["accuracy"][0]) == 12


def test_scores_have_an_error(tmp_path: Path) -> None:
    """Of the mean score."""
    run = RunBuilder(root=tmp_path / "run", more=[scores(BATCHES, np.full((12, 3), 4.5))]).write()
    _, columns = followed(run)
    assert columns["holdout_predictions"]["mae"][0].tolist() == [0.5] * 12


def test_a_run_without_these_tables_shows_none_of_them(tmp_path: Path) -> None:
    """Only what it has; nothing breaks without gradients either."""
    _, columns = followed(RunBuilder(root=tmp_path / "run").write())
    assert set(columns) == {"gradient_norms", "learning_rates", "steps", "metrics"}
    live_run, columns = followed(RunBuilder(root=tmp_path / "rest", without=["gradient_norms"]).write())
    assert set(columns) == {"learning_rates", "steps", "metrics"}
    assert "batch 120" in shown(live_run)
