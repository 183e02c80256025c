"""Runs of other programs: one warning, and errors only for what is wrong in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ava_pipeline.evaluation.evaluate import evaluate
from ava_pipeline.validate.validate import validate_file, validate_run
from tests.read.old_runs import NORMS, norms_of, old_run, write_json, write_rows
from tests.validate.building import RunBuilder, prediction_rows


def found_in(root: Path) -> list[tuple[str, int | None, str | None]]:
    """Rule, line and column of each finding but the warning."""
    findings = [finding for finding in validate_run(root) if finding.id != "run.no-manifest"]
    return [(finding.id, finding.line, finding.column) for finding in findings]


def test_a_healthy_old_run_has_one_warning(tmp_path: Path) -> None:
    """CRLF, columns of its own, batches that start again and a foreign config.yaml are no findings."""
    root = old_run(tmp_path / "run")
    write_rows(root / "telemetry" / "own.csv", ("batch_idx", "epoch", "x"), [(1, 0, 0.5)])
    (root / "config.yaml").write_text("training: {max_epochs: 3}\n")
    assert [(finding.id, finding.severity) for finding in validate_run(root)] == [("run.no-manifest", "warning")]


def test_values_order_and_sums_are_checked(tmp_path: Path) -> None:
    """A negative norm, a head that is not the root of its layers' squares, and a batch that comes twice in an epoch."""
    root = tmp_path / "run"
    rows = norms_of(0, (2, 4, 4, 6), backbone=2.0)
    rows[0] = (2, 0, 15.0, -2.0, 5.0, 3.0, 4.0)
    rows[3] = (6, 0, 19.0, 2.0, 5.5, 3.0, 4.0)
    write_rows(root / "telemetry" / "gradient_norms.csv", NORMS, rows)
    assert found_in(root) == [
        ("norms.head-sum", 5, "mlp_head"),
        ("rows.order", 4, "batch_idx"),
        ("values.range", 2, "backbone_layer4"),
    ]
    single = validate_file(root / "telemetry" / "gradient_norms.csv")
    assert [finding.id for finding in single] == ["norms.head-sum", "rows.order", "values.range"]


def test_groups_add_up_where_their_parameters_are_known(tmp_path: Path) -> None:
    """per_layer_stats lists the parameters: backbone and head are all of them, so that their squares add up."""
    root = tmp_path / "run"
    layers = ("batch_idx", "epoch", "layer_name", "mean", "std", "min", "max", "l2_norm", "num_params")
    rows = [(2, 0, name, 0, 1, -1, 1, 2, 4) for name in ("backbone.0.weight", "mlp.0.weight")]
    write_rows(root / "telemetry" / "per_layer_stats.csv", layers, rows)
    norms = ("batch_idx", "epoch", "overall", "backbone", "head")
    path = write_rows(root / "telemetry" / "gradient_norms.csv", norms, [(2, 0, 5.0, 4.0, 3.0), (4, 0, 6.0, 4.0, 3.0)])
    assert found_in(root) == [("norms.partition", 3, "overall")]
    (root / "telemetry" / "per_layer_stats.csv").unlink()
    assert found_in(root) == []
    assert path.exists()


def test_a_second_training_and_repeated_samples_are_named(tmp_path: Path) -> None:
    """Collectors that append to the files of an earlier training, and a sample with two rows in a batch."""
    root = old_run(tmp_path / "run", epochs=2)
    write_rows(root / "telemetry" / "gradient_norms.csv", NORMS, norms_of(0, (2,)))
    samples = [(1, 0, "a", 0.5), (1, 0, "b", 0.5), (1, 0, "b", 0.5)]
    write_rows(root / "telemetry" / "samples.csv", ("batch_idx", "epoch", "image", "loss"), samples)
    assert found_in(root) == [("rows.epoch", 8, "epoch"), ("rows.key", 4, "image")]


def test_files_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    """A torn table and a history that is no JSON."""
    root = old_run(tmp_path / "run")
    path = root / "telemetry" / "gradient_norms.csv"
    path.write_bytes(path.read_bytes() + b"8,2,1.0\r\n")
    write_rows(root / "telemetry" / "learning_rates.csv", ("batch_idx", "epoch", "lr_group_0"), [(2, 0, 0.1)])
    (root / "training_history.json").write_text("{")
    found = [(finding.id, finding.file) for finding in validate_run(root) if finding.severity == "error"]
    assert found == [
        ("files.unreadable", "telemetry/gradient_norms.csv"),
        ("files.unreadable", "training_history.json"),
    ]


def old_predictions(path: Path, *, zeros: bool) -> Path:
    """Predictions whose columns are interleaved and whose ids are strings; with zeros for every predicted share."""
    rows = prediction_rows([str(number) for number in range(1, 9)], seed=0)
    columns: dict[str, Any] = {"image_id": pa.array([str(number) for number in range(1, 9)])}
    columns |= {name: rows[name] for name in ("pred_mean", "gt_mean")}
    for score in range(1, 11):
        share = rows[f"pred_dist_{score}"]
        columns[f"pred_dist_{score}"] = pa.array(np.zeros(8)) if zeros else share
        columns[f"gt_dist_{score}"] = rows[f"gt_dist_{score}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def test_predictions_of_a_mean_alone_have_no_distribution(tmp_path: Path) -> None:
    """Zeros in every predicted share are no distribution: no EMD, and no finding; what the means give is there."""
    root = old_run(tmp_path / "run")
    path = old_predictions(root / "predictions" / "val_epoch_000.parquet", zeros=True)
    found = evaluate(path, num_resamples=20)
    assert found.to_json()["emd_r1"] is None
    assert found.to_json()["emd_r2"] is None
    assert found.interval is not None
    assert found.interval.to_json()["low"]["emd_r1"] is None
    assert found.metrics.mae >= 0
    assert np.isfinite(found.metrics.mae)
    assert found_in(root) == []


def test_a_distribution_that_does_not_add_up_is_found(tmp_path: Path) -> None:
    """Whatever the order of the columns."""
    root = old_run(tmp_path / "run")
    path = old_predictions(root / "predictions" / "val_epoch_000.parquet", zeros=False)
    assert found_in(root) == []
    rows = pq.read_table(path)
    wrong = pa.array(rows["pred_dist_3"].to_numpy() + 0.25)
    pq.write_table(rows.set_column(rows.schema.get_field_index("pred_dist_3"), "pred_dist_3", wrong), path)
    assert {rule for rule, _, _ in found_in(root)} == {"predictions.sum"}


def test_a_run_of_ours_without_its_manifest_stays_an_error(tmp_path: Path) -> None:
    """The manifest was lost, and that is no old run."""
    root = RunBuilder(root=tmp_path / "run").write()
    (root / "telemetry" / "manifest.json").unlink()
    assert "manifest.missing" in {finding.id for finding in validate_run(root)}


def test_config_and_metrics_of_another_loop_are_its_own(tmp_path: Path) -> None:
    """Beside a collector, config.yaml and a metrics.csv in a form of its own are facts, whatever is in them."""
    root = RunBuilder(root=tmp_path / "run").write()
    before = {finding.id for finding in validate_run(root)}
    (root / "config.yaml").write_text("training: {max_epochs: 3}\nmodel_type: siamese_cnn\n")
    (root / "metrics.csv").write_text("step,loss\n1,0.5\n")
    assert {finding.id for finding in validate_run(root)} == before
    (root / "config.yaml").unlink()
    (root / "split.csv").write_text("image,set\na.jpg,train\n")
    assert {finding.id for finding in validate_run(root)} == before


def test_a_history_is_read_where_it_is_valid(tmp_path: Path) -> None:
    """Nothing is found in a history of lists."""
    root = old_run(tmp_path / "run")
    write_json(root / "training_history.json", {"train_loss": [0.5, 0.25]})
    assert found_in(root) == []
