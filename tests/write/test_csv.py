"""CSV files: their text, and files that already exist."""

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyarrow import csv

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.tables import RunTable, Table
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.write.writers import CsvWriter
from tests.write.feeding import batch_of

_BATCH = Column(name="batch_idx", dtype="int64", description="Batch.")
_VALUE = Column(name="value", dtype="float64", description="A float64.", nullable=True)
_NORM = Column(name="overall", dtype="float32", description="A float32.", nullable=True)
_AT = Column(name="at", dtype="timestamp", description="When.")
_TEXT = Column(name="message", dtype="string", description="A text.", nullable=True)
SCHEMA = RunTable.of(Table(name="norms", description="Norms.", columns=(_BATCH, _NORM, _VALUE))).arrow_schema
NOTES = RunTable.of(Table(name="notes", description="Notes.", columns=(_AT, _VALUE, _TEXT))).arrow_schema


def write(path: Path, *rows: tuple[object, ...]) -> None:
    """Open the file, append rows and close it."""
    writer = CsvWriter(path, SCHEMA)
    writer.write(batch_of(SCHEMA, [dict(zip(SCHEMA.names, row, strict=True)) for row in rows]))
    writer.close()


def test_the_text_is_plain(tmp_path: Path) -> None:
    """Values are quoted only if needed, lines end in LF, floats have their shortest form, null is an empty field."""
    path = tmp_path / "norms.csv"
    write(path, (10, 0.1, 0.1), (20, math.nan, math.inf), (30, None, -math.inf))
    assert path.read_bytes() == b"batch_idx,overall,value\n10,0.1,0.1\n20,nan,inf\n30,,-inf\n"


def test_texts_are_quoted_only_where_they_must_be(tmp_path: Path) -> None:
    """A comma, a quote or a line end in a text shifts no field, and an empty text differs from a missing one."""
    schema = NOTES
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    texts = ["plain text", 'a, "b"', "two\nlines", "", None]
    writer = CsvWriter(tmp_path / "events.csv", schema)
    writer.write(batch_of(schema, [{"at": at, "value": None, "message": text} for text in texts]))
    writer.close()
    stamp = "2026-01-02 03:04:05.000000Z"
    fields = ["plain text", '"a, ""b"""', '"two\nlines"', '""', ""]
    assert (tmp_path / "events.csv").read_text() == "at,value,message\n" + "".join(
        f"{stamp},,{one}\n" for one in fields
    )
    options = csv.ParseOptions(newlines_in_values=True)
    strings = csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    found = csv.read_csv(tmp_path / "events.csv", parse_options=options, convert_options=strings)
    assert found.column("message").to_pylist() == texts


def test_an_existing_file_is_continued(tmp_path: Path) -> None:
    """The header is written once."""
    path = tmp_path / "norms.csv"
    write(path, (1, 1.0, 1.0))
    write(path, (2, 2.0, 2.0))
    assert path.read_text() == "batch_idx,overall,value\n1,1,1\n2,2,2\n"


def test_a_file_with_other_columns_is_refused_and_untouched(tmp_path: Path) -> None:
    """Rows never end up under another table's header."""
    path = tmp_path / "norms.csv"
    path.write_text("batch_idx,other\n1,2\n")
    with pytest.raises(DamagedFileError, match="Move the file away"):
        CsvWriter(path, SCHEMA)
    assert path.read_text() == "batch_idx,other\n1,2\n"


def test_whole_lines_are_in_the_file_before_the_file_is_closed(tmp_path: Path) -> None:
    """`tail -f` and pandas can follow a run."""
    path = tmp_path / "norms.csv"
    writer = CsvWriter(path, SCHEMA)
    assert path.read_text() == "batch_idx,overall,value\n"
    writer.write(batch_of(SCHEMA, [{"batch_idx": 1, "overall": 0.5, "value": 0.5}]))
    assert path.read_text().endswith("\n1,0.5,0.5\n")
    writer.close()
