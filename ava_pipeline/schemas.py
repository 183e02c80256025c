"""JSON Schemas of every contract: `python -m ava_pipeline.schemas schemas/` writes a file each.

Other programs check what they read against these; the models are where they come from.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ava_pipeline.collect.measures.measure import find_measures
from ava_pipeline.config.models import RunConfig
from ava_pipeline.contract.builtin_tables import EPOCH_METRICS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.predictions import PREDICTIONS
from ava_pipeline.contract.tables import SCHEMA_VERSION, Table

Schema = dict[str, Any]

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_SUFFIX = ".schema.json"


def schemas() -> dict[str, Schema]:
    """Every contract's JSON Schema, by its name."""
    found = {
        "config": RunConfig.model_json_schema(),
        "manifest": Manifest.model_json_schema(),
        "predictions": _with_text_ids(PREDICTIONS.json_schema()),
        **_of_tables([EVENTS, EPOCH_METRICS, *(measure.table for measure in find_measures())]),
    }
    return {name: _headed(name, schema) for name, schema in sorted(found.items())}


def export(folder: Path) -> list[Path]:
    """Write every schema, and remove those of contracts that are no more.

    Returns:
        The files, by name.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{_SUFFIX}" for name in schemas()]
    for old in set(folder.glob(f"*{_SUFFIX}")) - set(paths):
        old.unlink()
    for path, schema in zip(paths, schemas().values(), strict=True):
        path.write_text(as_text(schema), encoding="utf-8")
    return paths


def as_text(schema: Mapping[str, Any]) -> str:
    """A schema as its file holds it: keys in the models' order, which is stable."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ava_pipeline.schemas", description="Export every JSON Schema.")
    parser.add_argument("folder", type=Path, help="where the files go, e.g. schemas/")
    for path in export(parser.parse_args(arguments).folder):
        print(path)  # noqa: T201  # what a program that exports files says


def _of_tables(tables: Iterable[Table]) -> dict[str, Schema]:
    return {table.name: table.json_schema() for table in tables}


def _headed(name: str, schema: Schema) -> Schema:
    identity = {"$schema": _DRAFT, "$id": f"urn:ava_pipeline:{name}:v{SCHEMA_VERSION}", "title": name}
    return identity | {key: value for key, value in schema.items() if key not in identity}


def _with_text_ids(schema: Schema) -> Schema:
    """Images may be named by text: then the whole file's ids are."""
    image_id = schema["properties"]["image_id"]
    return schema | {"properties": schema["properties"] | {"image_id": image_id | {"type": ["integer", "string"]}}}


if __name__ == "__main__":
    main()
