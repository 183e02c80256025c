"""What a table is: the rules its rows keep, in every form that follows from one declaration."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from ava_pipeline.contract.columns import Column
from ava_pipeline.contract.tables import RunTable, Table, check_column_name
from ava_pipeline.errors import MisuseError

TABLE = Table(
    name="norms",
    description="Norms.",
    columns=(
        Column(name="batch_idx", dtype="int64", description="Batch.", not_below=1),
        Column(name="time_utc", dtype="timestamp", description="Time."),
        Column(name="kind", dtype="string", description="Kind.", one_of=("good", "bad")),
    ),
    run_columns=Column(name="<group>", dtype="float32", description="Norm.", nullable=True, not_below=0),
)
RUN_TABLE = RunTable.of(TABLE, ["overall", "head"])
NOW = datetime(2026, 1, 2, tzinfo=UTC)
GOOD = {"batch_idx": 1, "time_utc": NOW, "kind": "good", "overall": 1.5, "head": None}


def problems(**changes: Any) -> list[tuple[int, str]]:
    """Row and column of what is wrong with a changed row that stands between two good ones."""
    found = RUN_TABLE.problems([GOOD, GOOD | changes, GOOD])
    return [((problem.row or 0) - 1, str(problem.column)) for problem in found]


@pytest.mark.parametrize("value", [0.0, 1.5, 1e300, float("nan"), float("inf"), None, 3])
def test_a_norm_may_be(value: float | None) -> None:
    """Numbers, nan and inf that were measured, and null where nothing was."""
    assert problems(overall=value) == []


@pytest.mark.parametrize("value", [-1e-30, float("-inf"), "1.0", True, [1.0]])
def test_a_norm_may_not_be(value: object) -> None:
    """Below 0, or of another type: text is not turned into a number silently."""
    assert problems(overall=value) == [(1, "overall")]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("batch_idx", 0),
        ("batch_idx", None),
        ("batch_idx", 1.5),
        ("batch_idx", True),
        ("time_utc", "2026-01-02"),
        ("time_utc", None),
        ("kind", "ugly"),
        ("kind", None),
    ],
)
def test_a_broken_rule_names_row_and_column(column: str, value: object) -> None:
    """The worker fails that one row, and the event says where."""
    assert problems(**{column: value}) == [(1, column)]


def test_a_missing_column_is_a_problem() -> None:
    """Every fixed column is required."""
    row = {name: value for name, value in GOOD.items() if name != "kind"}
    assert [problem.column for problem in RUN_TABLE.problems([row])] == ["kind"]


def test_a_table_without_run_columns_accepts_no_others() -> None:
    """A typo in a column's name is no new column."""
    table = RunTable.of(Table(name="plain", description="Plain.", columns=TABLE.columns))
    row = {name: GOOD[name] for name in ("batch_idx", "time_utc", "kind")}
    assert table.problems([row]) == []
    assert [problem.column for problem in table.problems([row | {"typo": 1.0}])] == ["typo"]


def test_the_arrow_schema_follows() -> None:
    """Names, types and nullability in file order; the metadata names table and version."""
    schema = RUN_TABLE.arrow_schema
    assert [(field.name, field.type, field.nullable) for field in schema] == [
        ("batch_idx", pa.int64(), False),
        ("time_utc", pa.timestamp("us", tz="UTC"), False),
        ("kind", pa.string(), False),
        ("overall", pa.float32(), True),
        ("head", pa.float32(), True),
    ]
    assert schema.metadata == {b"ava_pipeline.table": b"norms", b"ava_pipeline.schema_version": b"1"}


def test_the_declaration_survives_json() -> None:
    """The manifest carries it, and readers learn the table from there."""
    again = RunTable.model_validate_json(RUN_TABLE.model_dump_json())
    assert again == RUN_TABLE
    assert again.arrow_schema.equals(RUN_TABLE.arrow_schema, check_metadata=True)


@pytest.mark.parametrize("names", [["head", "head"], ["batch_idx"]])
def test_a_column_is_declared_once(names: list[str]) -> None:
    """A CSV with two columns of one name cannot be read back."""
    with pytest.raises(MisuseError, match=f"{names[0]!r} twice"):
        RunTable.of(TABLE, names)


@pytest.mark.parametrize("name", ["backbone_layer4", "_x", "a.b-c/d", "A1"])
def test_a_good_column_name(name: str) -> None:
    """Module paths can name columns."""
    check_column_name(name)


@pytest.mark.parametrize("name", ["", "4th", "a,b", 'a"b', "a b", "a\n", "é", "-x"])
def test_a_bad_column_name_is_refused(name: str) -> None:
    """What would have to be quoted in CSV, or in a shell, is no column name."""
    with pytest.raises(MisuseError, match="letters, digits"):
        check_column_name(name)


FOREIGN: list[tuple[str, dict[str, object]]] = [
    ("not_below", {"name": "when", "dtype": "timestamp", "not_below": 1}),
    ("not_below", {"name": "word", "dtype": "string", "not_below": 1}),
    ("not_below", {"name": "norm", "dtype": "float32", "not_below": 10**400}),
    ("one_of", {"name": "norm", "dtype": "float32", "one_of": ["a"]}),
    ("one_of", {"name": "word", "dtype": "string", "one_of": []}),
    ("must be int64", {"name": "batch_idx", "dtype": "string"}),
    ("must be int64", {"name": "epoch", "dtype": "timestamp"}),
    ("letters, digits", {"name": "a\nb", "dtype": "float32"}),
    ("letters, digits", {"name": "=x", "dtype": "float32"}),
    ("pydantic models use", {"name": "model_config", "dtype": "float32"}),
]


@pytest.mark.parametrize(("reason", "column"), FOREIGN)
def test_a_declaration_that_no_row_can_keep_is_refused(reason: str, column: dict[str, object]) -> None:
    """It comes from a manifest that anyone may have written, and is followed only where it means something."""
    declared = {"name": "t", "description": "", "columns": [{"description": "", **column}]}
    with pytest.raises(ValidationError, match=reason):
        Table.model_validate(declared)


@pytest.mark.parametrize(
    ("reason", "name", "columns"), [("100 characters", "t" * 101, "a"), ("declared twice", "t", "aa")]
)
def test_a_table_that_no_file_can_hold_is_refused(reason: str, name: str, columns: str) -> None:
    """Its name is part of file names, and each of its columns has one place."""
    found = [Column(name=one, dtype="float32", description="") for one in columns]
    with pytest.raises(ValidationError, match=reason):
        Table(name=name, description="", columns=tuple(found))


def test_run_columns_stand_once_in_what_a_manifest_declares() -> None:
    """As where a table is made."""
    declared = RUN_TABLE.model_dump() | {"run_column_names": ["head", "head"]}
    with pytest.raises(ValidationError, match="twice"):
        RunTable.model_validate(declared)
