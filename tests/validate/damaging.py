"""Ways to damage one place of a run directory."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Json = Any


def edit_lines(path: Path, edit: Callable[[list[str]], Sequence[str]]) -> None:
    """Change the lines of a text file; the first line is the header."""
    lines = edit(path.read_text().splitlines())
    path.write_text("\n".join(lines) + "\n")


def set_field(path: Path, row: int, column: str, value: str) -> None:
    """Change one field of a CSV file, by 1-based data row."""

    def edit(lines: list[str]) -> list[str]:
        fields = lines[row].split(",")
        fields[lines[0].split(",").index(column)] = value
        return [*lines[:row], ",".join(fields), *lines[row + 1 :]]

    edit_lines(path, edit)


def delete_line(path: Path, row: int) -> None:
    """Delete one data row of a CSV file."""
    edit_lines(path, lambda lines: lines[:row] + lines[row + 1 :])


def set_cell(path: Path, row: int, column: str, value: object) -> None:
    """Change one value of a Parquet file, by 1-based data row."""
    rows = pq.read_table(path)
    values = rows.column(column).to_pylist()
    values[row - 1] = value
    index = rows.column_names.index(column)
    field = rows.schema.field(column).with_nullable(nullable=True)
    pq.write_table(rows.set_column(index, field, pa.array(values, field.type)), path)


def edit_parquet(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Change a Parquet file."""
    pq.write_table(edit(pq.read_table(path)), path)


def cut(path: Path, num_bytes: int) -> None:
    """Cut bytes off the end of a file."""
    path.write_bytes(path.read_bytes()[:-num_bytes])


def edit_manifest(root: Path, edit: Callable[[Json], object]) -> None:
    """Change the JSON of the manifest in place."""
    path = root / "telemetry" / "manifest.json"
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))
