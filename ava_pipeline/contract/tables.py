"""What a table is: its name, columns, dtypes and rules.

From one declaration follow the pydantic row model that checks rows, the Arrow schema that stores them and the JSON
Schema that tells others about them.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import pyarrow as pa
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from ava_pipeline.contract.lockless_cached_property import lockless_cached_property
from ava_pipeline.errors import DamagedFileError, MisuseError

SCHEMA_VERSION: Final = 1
TABLE_KEY = b"ava_pipeline.table"
VERSION_KEY = b"ava_pipeline.schema_version"

Number = TypeVar("Number", int, float)
Dtype = Literal["int64", "float32", "float64", "string", "timestamp"]

_ARROW_TYPES: Mapping[Dtype, pa.DataType] = {
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
STORED_TYPES: Final = frozenset(_ARROW_TYPES.values())
_PYTHON_TYPES: Mapping[Dtype, type] = {
    "int64": int,
    "float32": float,
    "float64": float,
    "string": str,
    "timestamp": datetime,
}
_TABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_\-]*$"  # part of file names: nothing that leads to another folder
_MAX_TABLE_NAME = 100  # with what stands behind it in a file's name
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-/]*")
_KEYS = frozenset({"batch_idx", "batch_idx_end", "epoch"})
_MOST_NOT_BELOW = 2**53  # a float tells it from its neighbours


class _Declaration(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(lockless_cached_property,))


class Column(_Declaration):
    """One column: its dtype and the rules its values keep."""

    name: str
    dtype: Dtype
    description: str
    nullable: bool = False
    not_below: int | None = None
    one_of: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _has_rules_of_its_dtype(self) -> Self:
        if self.name in _KEYS and self.dtype != "int64":
            raise ValueError(f"column {self.name!r} is {self.dtype}; it counts, as int64")
        is_number = self.dtype in {"int64", "float32", "float64"}
        if self.not_below is not None and not (is_number and abs(self.not_below) <= _MOST_NOT_BELOW):
            raise ValueError(f"column {self.name!r} of {self.dtype}: not_below is for numbers, at most 2**53 in size")
        if self.one_of is not None and not (self.dtype == "string" and self.one_of):
            raise ValueError(f"column {self.name!r} of {self.dtype}: one_of is for texts, one at least")
        return self

    @property
    def arrow_field(self) -> "pa.Field[Any]":
        """The column in an Arrow schema."""
        return pa.field(self.name, _ARROW_TYPES[self.dtype], nullable=self.nullable)

    @property
    def annotation(self) -> Any:
        """The column's values as pydantic checks them."""
        kind: Any = Literal[self.one_of] if self.one_of else _PYTHON_TYPES[self.dtype]
        if self.not_below is not None:
            # Not `ge`: nan is measured and not finite, not a broken rule.
            rule = AfterValidator(_NotBelow(self.not_below))
            kind = Annotated[kind, rule, Field(json_schema_extra={"minimum": self.not_below})]
        return kind | None if self.nullable else kind


class _NotBelow:
    """A rule that nan keeps."""

    def __init__(self, least: int) -> None:
        self._least = least

    def __call__(self, value: Number) -> Number:
        if value < self._least:
            raise ValueError(f"must not be below {self._least}")
        return value


def _as_column_name(name: str) -> str:
    check_column_name(name)
    return name


class RowProblem(_Declaration):
    """One value of one row that breaks a rule."""

    row: int
    column: str
    value: str
    message: str


class Table(_Declaration):
    """One table of a run.

    Attributes:
        name: the stem of its file names.
        columns: those that every run has.
        run_columns: what the columns are whose names the run decides (a group, an optimizer's group, a user's value);
            None where there are none. Its `name` describes them, in angle brackets.
        l2_of_groups: each run column is the L2 norm of one of the manifest's groups, so that squares add up where
            children partition their parent.
    """

    name: Annotated[str, Field(pattern=_TABLE_NAME)]
    description: str
    columns: tuple[Column, ...]
    run_columns: Column | None = None
    l2_of_groups: bool = False

    @model_validator(mode="after")
    def _has_names_that_can_be_used(self) -> Self:
        if len(self.name) > _MAX_TABLE_NAME:
            raise ValueError(f"a table's name has {_MAX_TABLE_NAME} characters at most, not {len(self.name)}")
        names = [column.name for column in self.columns]
        for name in names:
            check_column_name(name)
            if hasattr(BaseModel, name):
                raise ValueError(f"{name!r} means something else to the model of a row; name the column otherwise")
            if names.count(name) > 1:
                raise ValueError(f"column {name!r} stands twice; rename one of them")
        return self

    @lockless_cached_property
    def row_model(self) -> type[BaseModel]:
        """The pydantic model of a row: strict, its run columns of one type."""
        fields: dict[str, Any] = {
            column.name: (column.annotation, Field(description=column.description)) for column in self.columns
        }
        extra: dict[str, Any] = {}
        if self.run_columns is not None:
            extra["__pydantic_extra__"] = dict.__class_getitem__((str, self.run_columns.annotation))
        config = ConfigDict(strict=True, extra="allow" if extra else "forbid", title=self.name)
        base = type("Row", (BaseModel,), {"__module__": __name__, "__annotations__": extra, "model_config": config})
        return create_model(self.name, __base__=base, __doc__=self.description, **fields)

    def json_schema(self) -> dict[str, Any]:
        """A row of this table as JSON Schema; null is "not measured", nan and inf have no JSON form."""
        schema = self.row_model.model_json_schema()
        schema["x-dtypes"] = {column.name: column.dtype for column in self.columns}
        if self.run_columns is not None:
            schema["x-run-columns"] = self.run_columns.model_dump(exclude_none=True)
        return schema


class RunTable(_Declaration):
    """A table with the columns that one run gave it: what the manifest says and the files hold."""

    table: Table
    run_column_names: tuple[Annotated[str, AfterValidator(_as_column_name)], ...] = ()

    @classmethod
    def of(cls, table: Table, run_column_names: Sequence[str] = ()) -> Self:
        """Give `table` its run columns.

        Raises:
            MisuseError: a name is no column name, or stands twice.
        """
        fixed = [column.name for column in table.columns]
        for name in run_column_names:
            check_column_name(name)
            if [*fixed, *run_column_names].count(name) > 1:
                raise MisuseError(f"Table {table.name!r} was given column {name!r} twice: rename one of them.")
        return cls(table=table, run_column_names=tuple(run_column_names))

    @model_validator(mode="after")
    def _names_each_column_once(self) -> Self:
        names = [*(column.name for column in self.table.columns), *self.run_column_names]
        if len(set(names)) < len(names):
            raise ValueError(f"table {self.table.name!r} has a column twice")
        return self

    @lockless_cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every column, in file order."""
        if self.table.run_columns is None:
            return self.table.columns
        kind = self.table.run_columns
        return self.table.columns + tuple(kind.model_copy(update={"name": name}) for name in self.run_column_names)

    @lockless_cached_property
    def column_names(self) -> tuple[str, ...]:
        """The names of every column, in file order."""
        return tuple(column.name for column in self.columns)

    @lockless_cached_property
    def arrow_schema(self) -> pa.Schema:
        """The table in Arrow; the metadata names table and schema version."""
        metadata: dict[bytes | str, bytes | str] = {
            TABLE_KEY: self.table.name.encode(),
            VERSION_KEY: str(SCHEMA_VERSION).encode(),
        }
        return pa.schema([column.arrow_field for column in self.columns], metadata=metadata)

    @lockless_cached_property
    def _rows_adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(list[self.table.row_model])  # type: ignore[name-defined]  # a model made at run time

    def problems(self, rows: Sequence[Mapping[str, object]]) -> list[RowProblem]:
        """Check rows against the model, all in one call; an empty list means that all are good."""
        try:
            self._rows_adapter.validate_python(rows)
        except ValidationError as error:
            return [_row_problem(detail) for detail in error.errors(include_url=False, include_context=False)]
        return []


def check_column_name(name: str) -> None:
    """Refuse a name that would not survive CSV, a shell or a spreadsheet.

    Raises:
        MisuseError: the name is not letters, digits, `_ . - /`, beginning with a letter or `_`.
    """
    if not _COLUMN_NAME.fullmatch(name):
        raise MisuseError(
            f"{name!r} cannot name a column: use letters, digits and _ . - / beginning with a letter or _, "
            "such as 'backbone_layer4'."
        )


def _row_problem(detail: Any) -> RowProblem:
    row, *place = detail["loc"]
    message = str(detail["msg"]).removeprefix("Value error, ")  # pydantic's own words in front of a rule's
    return RowProblem(row=row, column=str(place[0]) if place else "", value=repr(detail["input"]), message=message)


KEY_COLUMNS = (
    Column(name="batch_idx", dtype="int64", description="1-based; counts every batch of the run.", not_below=1),
    Column(name="epoch", dtype="int64", description="0-based epoch.", not_below=0),
)
BATCH = "batch_idx"


def check_has_batches(schema: pa.Schema) -> None:
    """Refuse columns that tell of no row which batch it is of.

    Raises:
        DamagedFileError: there is no column batch_idx of integers, or a name stands twice.
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DamagedFileError(f"it has more than one column {', '.join(map(repr, twice))}")
    if BATCH not in schema.names:
        raise DamagedFileError(f"it has no column {BATCH}, which every table has")
    if schema.field(BATCH).type != pa.int64():
        raise DamagedFileError(f"its column {BATCH} is {schema.field(BATCH).type}, not int64")


def check_batches(rows: pa.RecordBatch) -> None:
    """Refuse rows that lack a value which every row has.

    Raises:
        DamagedFileError: batch_idx is null, or a column that the schema says is never null.
    """
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if column.null_count and (field.name == BATCH or not field.nullable):
            raise DamagedFileError(f"{column.null_count} of its rows have no {field.name}")


def same_columns(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether two schemas are the same columns of the same schema version."""
    versions = [(schema.metadata or {}).get(VERSION_KEY) for schema in (one, other)]
    return bool(one.equals(other)) and versions[0] == versions[1]
