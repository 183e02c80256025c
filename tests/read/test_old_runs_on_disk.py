"""The old runs that users have: every command reads them, and every figure is that of the run's own files."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from ava_pipeline.cli import app
from ava_pipeline.many_runs.datasets import runs
from ava_pipeline.read.run import open_run
from ava_pipeline.validate.validate import validate_file, validate_run
from tests.read.old_runs import NAMES, OLD_RUNS, needs_old_runs

pytestmark = needs_old_runs
PER_EPOCH = {"ava_dist": 16, "siamese_a": 12}
FLOAT32 = {"gradient_norms", "per_layer_stats", "holdout_predictions"}


def raw_tables() -> list[tuple[str, str]]:
    """Run and table of every CSV file."""
    return [(name, path.stem) for name in NAMES for path in sorted((OLD_RUNS / name / "telemetry").glob("*.csv"))]


def raw(name: str, table: str) -> pd.DataFrame:
    """A file as Python reads it: whole numbers, booleans, floats to their last digit, texts."""
    texts = pd.read_csv(OLD_RUNS / name / "telemetry" / f"{table}.csv", dtype=str, keep_default_na=False)
    return texts.apply(lambda column: pd.Series(parsed(column.tolist())))


def parsed(texts: list[str]) -> list[object]:
    """The values of a column."""
    if set(texts) <= {"True", "False"}:
        return [text == "True" for text in texts]
    for kind in (int, float):
        with suppress(ValueError):
            return [kind(text) for text in texts]
    return list(texts)


@pytest.mark.parametrize(("name", "table"), raw_tables() if OLD_RUNS.is_dir() else [])
def test_every_value_is_that_of_the_file(name: str, table: str) -> None:
    """Bit for bit in the column's type, except what the collector wrote for nothing."""
    expected, found = raw(name, table), open_run(OLD_RUNS / name).table(table)
    assert found["batch_idx"].tolist() == (expected["batch_idx"] + expected["epoch"] * PER_EPOCH[name]).tolist()
    for column in expected.columns.drop("batch_idx"):
        values = expected[column].to_numpy()
        if column == "backbone_layer4":
            assert (values == 0).all()
            assert found[column].isna().all()
            continue
        is_first_delta = table == "weight_deltas" and column != "epoch"
        start = 1 if is_first_delta else 0
        if values.dtype == np.float64 and table in FLOAT32:
            values = values.astype(np.float32)
        assert found[column].isna().tolist() == [True] * start + [False] * (len(values) - start)
        np.testing.assert_array_equal(found[column].to_numpy()[start:].astype(values.dtype), values[start:])
    assert set(found.columns) - set(expected.columns) <= {"grad_norm", "num_batches"}


@pytest.mark.parametrize("name", NAMES)
def test_validation_gives_one_warning(name: str) -> None:
    """No manifest, and nothing else; every single file is clean."""
    assert [(finding.id, finding.severity) for finding in validate_run(OLD_RUNS / name)] == [
        ("run.no-manifest", "warning")
    ]
    for path in [*(OLD_RUNS / name).glob("telemetry/*"), *(OLD_RUNS / name).glob("predictions/*")]:
        assert validate_file(path) == [], path


def test_every_command_reads_them(tmp_path: Path) -> None:
    """Each exits with success, and says that the run has no manifest."""
    for name in NAMES:
        run = str(OLD_RUNS / name)
        for command in (
            ["diagnose", run],
            ["runs", run],
            ["watch", run],
            ["evaluate", run, "--resamples", "0"],
            ["validate", run],
            ["report", run, "-o", str(tmp_path / f"{name}.html")],
            ["plot", run, "-o", str(tmp_path / f"{name}.png")],
        ):
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 0, (command, result.output)
            if command[0] in {"diagnose", "runs", "watch", "validate"}:
                assert "no manifest" in result.output or "no-manifest" in result.output
        assert "no manifest" in (tmp_path / f"{name}.html").read_text(encoding="utf-8")


def test_runs_lists_status_metrics_and_settings() -> None:
    """The best epoch by the run's own history, and by its predictions; settings are the foreign config's."""
    listed = json.loads(CliRunner().invoke(app, ["runs", str(OLD_RUNS / "*"), "--json"]).output)["runs"]
    ava, siamese = listed
    history = json.loads((OLD_RUNS / "ava_dist" / "training_history.json").read_text())
    assert [run["status"] for run in listed] == ["finished", "finished"]
    assert ava["best"]["srcc"]["value"] == pytest.approx(max(history["val_spearman"]), abs=1e-12)
    assert ava["best"]["val_loss"] == {"value": min(history["val_loss"]), "epoch": 2}
    assert (ava["last_batch"], ava["finding"]) == (48, None)
    assert siamese["best"]["accuracy"] == {"value": 2 / 3, "epoch": 0}
    assert siamese["settings"]["training.learning_rate"] == 1e-5


def test_metrics_of_score_predictions_are_those_of_the_files() -> None:
    """Interleaved columns and string ids: EMD and SRCC by pandas and NumPy."""
    result = CliRunner().invoke(app, ["evaluate", str(OLD_RUNS / "ava_dist"), "--resamples", "0", "--json"])
    for file in json.loads(result.output)["files"]:
        rows = pd.read_parquet(file["file"])
        pred, truth = (rows[[f"{side}_dist_{score}" for score in range(1, 11)]].to_numpy() for side in ("pred", "gt"))
        emd = np.abs(np.cumsum(pred.astype(np.float64) - truth, axis=1)).mean()
        assert file["emd_r1"] == pytest.approx(emd, rel=1e-9)
        assert file["srcc"] == pytest.approx(rows["pred_mean"].corr(rows["gt_mean"], method="spearman"), rel=1e-9)


def test_metrics_of_pairs_are_those_of_the_dumps() -> None:
    """Accuracy and log-loss of each set, beside two baselines, from the logits in the files."""
    result = CliRunner().invoke(app, ["evaluate", str(OLD_RUNS / "siamese_a"), "--json"])
    found = json.loads(result.output)["pairs"]
    assert [(file["set"], file["epoch"], file["num_pairs"]) for file in found] == [
        ("test", 0, 11),
        ("val", 0, 3),
        ("val", 1, 3),
    ]
    for file in found:
        rows = pd.read_csv(file["file"])
        summary = json.loads(Path(file["file"]).with_name("eval_summary.json").read_text())
        shares = np.where(rows["winner"] == 0, rows["p0"], rows["p1"])
        assert file["accuracy"] == pytest.approx(summary["acc"], abs=1e-12)
        assert file["log_loss"] == pytest.approx(-np.log(shares).mean(), rel=1e-5)
        assert file["baselines"]["always_first"] == pytest.approx((rows["winner"] == 0).mean())


def test_predictions_of_pairs_have_our_names() -> None:
    """Columns of ours, values of the file."""
    found = open_run(OLD_RUNS / "siamese_a").val_predictions(0, name="test")
    expected = pd.read_csv(OLD_RUNS / "siamese_a" / "epoch_000" / "test" / "metrics" / "eval_dump.csv")
    assert list(found.columns) == [
        *("image1", "image2", "series_id", "label", "prediction", "logit_0", "logit_1", "correct")
    ]
    assert found["label"].tolist() == expected["winner"].tolist()
    assert found["correct"].tolist() == (expected["winner"] == expected["pred"]).tolist()


def test_many_old_runs_are_one_dataset() -> None:
    """A row for each run and collected step, columns that a run lacks null."""
    norms = runs(str(OLD_RUNS / "*")).gradient_norms().to_table().to_pandas()
    assert norms["run"].value_counts().to_dict() == {"ava_dist": 24, "siamese_a": 12}
    metrics = runs(str(OLD_RUNS / "*")).metrics().to_table().to_pandas()
    assert len(metrics) == 5
