"""JSON Schemas of every file format: `python -m ava_pipeline.schemas schemas/` writes one file for each.

They are generated from the pydantic models and table declarations. Other programs check files against them.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ava_pipeline.config.models import RunConfig
from ava_pipeline.contract.builtin_tables import (
    BUILT_IN_TABLES,
    HOLDOUT_SCORES,
    METRICS_BY_BATCH,
    PREDICTIONS,
    TRAIN_METRICS,
)
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.tables import SCHEMA_VERSION

Schema = dict[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_SUFFIX = ".schema.json"


def schemas() -> dict[str, Schema]:
    """The JSON Schema of every file format, by name."""
    tables = [EVENTS, *BUILT_IN_TABLES]
    by_name = {
        "config": RunConfig.model_json_schema(),
        "manifest": Manifest.model_json_schema(),
        "metrics": METRICS_BY_BATCH.json_schema() | {"required": ["epoch"]},  # batch_idx is there if a row has one
        "holdout_scores": HOLDOUT_SCORES.json_schema(),
        "train_metrics": TRAIN_METRICS.json_schema(),
        "predictions": _with_text_ids(PREDICTIONS.json_schema()),
        **{table.name: table.json_schema() for table in tables},
    }
    return {name: _with_identity(name, schema) for name, schema in sorted(by_name.items())}


def export(folder: Path) -> list[Path]:
    """Write every schema, remove files of formats that no longer exist, and return the paths, sorted by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{_SUFFIX}" for name in schemas()]
    for old in set(folder.glob(f"*{_SUFFIX}")) - set(paths):
        old.unlink()
    for path, schema in zip(paths, schemas().values(), strict=True):
        path.write_text(as_text(schema), encoding="utf-8")
    return paths


def as_text(schema: Mapping[str, Any]) -> str:
    """A schema as the text of its file; keys keep the order of the models, which is stable."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m ava_pipeline.schemas", description="Export every JSON Schema.")
    parser.add_argument("folder", type=Path, help="the folder to write to, e.g. schemas/")
    for path in export(parser.parse_args(arguments).folder):
        print(path)  # noqa: T201  # the output of a command


def _with_identity(name: str, schema: Schema) -> Schema:
    identity = {"$schema": _DRAFT, "$id": f"urn:ava_pipeline:{name}:v{SCHEMA_VERSION}", "title": name}
    return identity | {key: value for key, value in schema.items() if key not in identity}


def _with_text_ids(schema: Schema) -> Schema:
    """Allow image ids that are text: a file's ids are all integers or all text."""
    image_id = schema["properties"]["image_id"]
    return schema | {"properties": schema["properties"] | {"image_id": image_id | {"type": ["integer", "string"]}}}


if __name__ == "__main__":
    main()
