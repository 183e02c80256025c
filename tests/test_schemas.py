"""The exported JSON Schemas equal the models, and the files of a run conform to them."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator

from ava_pipeline import schemas
from ava_pipeline.config.models import RunConfig
from ava_pipeline.contract.builtin_tables import TRAIN_METRICS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.metrics import Metrics
from ava_pipeline.read.csv import read_csv
from tests.validate.building import RunBuilder, prediction_rows
from tests.validate.real_run import record

SCHEMAS = Path(__file__).parents[1] / "schemas"


def validator(name: str) -> Draft202012Validator:
    """A validator with the schema file in the repository."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def as_json(rows: pa.Table) -> list[dict[str, Any]]:
    """Rows as other programs read them, with times as text."""
    return [
        {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items()}
        for row in rows.to_pylist()
    ]


def test_the_files_are_what_the_models_say() -> None:
    """A changed model changes a contract: `make schemas` writes it, and the diff shows it to reviewers."""
    found = {path.name: path.read_text() for path in SCHEMAS.glob("*.json")}
    expected = {f"{name}.schema.json": schemas.as_text(schema) for name, schema in schemas.schemas().items()}
    assert found == expected


def test_export_writes_every_file_and_removes_old_ones(tmp_path: Path) -> None:
    """Schemas under earlier names are removed."""
    (tmp_path / "gone.schema.json").touch()
    (tmp_path / "README.md").touch()
    schemas.main([str(tmp_path)])
    names = {f"{name}.schema.json" for name in schemas.schemas()}
    assert {path.name for path in tmp_path.iterdir()} == names | {"README.md"}


@pytest.mark.parametrize("name", sorted(path.name.partition(".")[0] for path in SCHEMAS.glob("*.json")))
def test_each_schema_is_one_and_says_whose(name: str) -> None:
    """Programs find a schema by its `$id`, which contains the version."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"urn:ava_pipeline:{name}:v1"
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == name


def test_a_real_run_keeps_every_schema(tmp_path: Path) -> None:
    """Manifest, tables and predictions that the collector wrote conform row by row."""
    root = record(tmp_path / "run")
    validator("manifest").validate(json.loads((root / "telemetry/manifest.json").read_text()))
    for table in ("gradient_norms", "learning_rates", "steps"):
        rows = as_json(pq.read_table(root / f"telemetry/{table}.parquet"))
        assert len(rows) == 12
        for row in rows:
            validator(table).validate(row)
    for row in as_json(pq.read_table(root / "predictions/val_epoch_002.parquet")):
        validator("predictions").validate(row)


def test_metrics_and_text_ids_keep_their_schemas(tmp_path: Path) -> None:
    """metrics.csv has a schema too, and image ids may be strings."""
    root = RunBuilder(root=tmp_path / "run").write()
    for row in as_json(read_csv(root / "metrics.csv", RunTable.of(TRAIN_METRICS))):
        validator("train_metrics").validate(row)
        validator("metrics").validate(row)
    for row in as_json(prediction_rows(["a", "b"], seed=0)):
        validator("predictions").validate(row)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gradient_norms", {"batch_idx": 10, "epoch": 0, "overall": -1.0}),
        ("gradient_norms", {"batch_idx": 0, "epoch": 0, "overall": 1.0}),
        ("gradient_norms", {"batch_idx": 10, "epoch": 0, "overall": "1.0"}),
        ("learning_rates", {"batch_idx": 10}),
        ("steps", {"batch_idx": 10, "epoch": 0, "time_utc": None, "loss_scale": None}),
        ("metrics", {"srcc": 0.5}),
        ("metrics", {"epoch": 0, "srcc": "0.5"}),
        ("train_metrics", {"epoch": 0}),
        ("manifest", {"schema_version": 2}),
    ],
)
def test_a_schema_refuses_what_breaks_it(name: str, row: dict[str, Any]) -> None:
    """A schema that accepts every value would not be a contract."""
    assert not validator(name).is_valid(row)


def test_events_are_a_closed_set() -> None:
    """A program that reads events can list every name."""
    event = dict.fromkeys(RunTable.of(EVENTS).column_names, None) | {
        "batch_idx": 1,
        "batch_idx_end": 1,
        "epoch": 0,
        "time_utc": "2026-01-01T00:00:00Z",
        "severity": "info",
        "message": "rows are missing",
    }
    assert validator("events").is_valid(event | {"event": "gap"})
    assert not validator("events").is_valid(event | {"event": "surprise"})


def test_configs_keep_the_config_schema() -> None:
    """Editors check run configs with it."""
    minimal = {"output_dir": "outputs/ava/x", "data": {"labels": "AVA.txt", "images": "images"}}
    assert validator("config").is_valid(RunConfig.model_validate(minimal).model_dump(mode="json"))
    assert not validator("config").is_valid({**minimal, "telemetry": {"collect_every_m": 10}})


def test_the_columns_of_metrics_csv_are_the_metrics() -> None:
    """The columns declared are the metrics computed, in the same order."""
    names = ("epoch", "train_loss", *(field.name for field in fields(Metrics)))
    assert RunTable.of(TRAIN_METRICS).column_names == names
