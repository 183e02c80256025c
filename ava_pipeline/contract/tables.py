"""Tables of a run: their columns, the row model and schemas that follow from them, and the check of new rows.

From one declaration follow the pydantic row model that explains what is wrong with a row, the Arrow schema that stores
rows and the JSON Schema that describes them to other programs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from ava_pipeline.contract.arrays import Bools, bool_array
from ava_pipeline.contract.columns import (
    DTYPE,
    NULL,
    Column,
    Declaration,
    Values,
    arrow_schema,
    columns_to_arrow,
    shown,
)
from ava_pipeline.contract.finding import Finding
from ava_pipeline.errors import DamagedFileError, MisuseError

SCHEMA_VERSION: Final = 1
TABLE_KEY = b"ava_pipeline.table"
ROW_KEY = b"ava_pipeline.row_key"  # only a long table has it
VERSION_KEY = b"ava_pipeline.schema_version"
BATCH = "batch_idx"
KEY_COLUMNS = (
    Column(name=BATCH, dtype="int64", description="1-based; counts every batch of the run.", not_below=1),
    Column(name="epoch", dtype="int64", description="0-based epoch.", not_below=0),
)

_TABLE_NAME = r"^[A-Za-z_][A-Za-z0-9_\-]*$"  # part of file names: nothing that leads to another folder
_MAX_TABLE_NAME = 100  # characters; a file name adds a suffix
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-/]*")
_COLUMNS = "files.columns"  # the rule of `ava-pipeline validate` for columns that the table does not have


def measured_columns(schema: pa.Schema) -> list[str]:
    """The names of the columns of numbers beside `KEY_COLUMNS`."""
    keys = {column.name for column in KEY_COLUMNS}
    is_number = {field.name: pa.types.is_floating(field.type) or pa.types.is_integer(field.type) for field in schema}
    return [name for name, is_one in is_number.items() if is_one and name not in keys]


def _as_column_name(name: str) -> str:
    check_column_name(name)
    return name


class Table(Declaration):
    """One table of a run.

    Attributes:
        name: the stem of its file names.
        description: one sentence for readers of the schema.
        columns: the columns that every run has.
        run_columns: describes the columns whose names the run decides (a group, an optimizer's group, a user's value);
            None if there are no such columns. Its own `name` is a placeholder in angle brackets.
        l2_of_groups: each run column is the L2 norm of one of the manifest's groups, so that squares add up if
            children partition their parent.
        row_key: of a long table, which has several rows per batch, the columns that tell them apart; else empty.
        in_csv: whether it is written as CSV unless the settings say otherwise. A table of very many rows is not.

    Example:
        >>> Table(
        ...     name="weight_norms",
        ...     description="L2 norm of every group's weights.",
        ...     columns=KEY_COLUMNS,
        ...     run_columns=Column(name="<group>", dtype="float32", description="Norm of the group.", not_below=0),
        ... )
    """

    name: Annotated[str, Field(pattern=_TABLE_NAME)]
    description: str
    columns: tuple[Column, ...]
    run_columns: Column | None = None
    l2_of_groups: bool = False
    row_key: tuple[str, ...] = ()
    in_csv: bool = True

    @property
    def is_long(self) -> bool:
        """Whether a batch has several rows, told apart by `row_key`."""
        return bool(self.row_key)

    @model_validator(mode="after")
    def _has_usable_names(self) -> Self:
        if len(self.name) > _MAX_TABLE_NAME:
            raise ValueError(f"a table name has at most {_MAX_TABLE_NAME} characters, got {len(self.name)}")
        names = [column.name for column in self.columns]
        for name in names:
            check_column_name(name)
            if hasattr(BaseModel, name):
                raise ValueError(f"{name!r} is a name that pydantic models use; give the column another name")
            if names.count(name) > 1:
                raise ValueError(f"column {name!r} is declared twice; rename one of them")
        for name in self.row_key:
            if name not in names or name in {column.name for column in KEY_COLUMNS}:
                raise ValueError(f"row_key names {name!r}, which is not a column beside batch_idx and epoch")
        return self

    @property
    def row_model(self) -> type[BaseModel]:
        """The pydantic model of a row: strict, its run columns of one type."""
        return _row_model(self)

    def json_schema(self) -> dict[str, Any]:
        """A row of this table as JSON Schema; null is "not measured", nan and inf have no JSON form."""
        schema = self.row_model.model_json_schema()
        schema["x-dtypes"] = {column.name: column.dtype for column in self.columns}
        if self.run_columns is not None:
            schema["x-run-columns"] = self.run_columns.model_dump(exclude_none=True)
        return schema


@lru_cache  # unlike `cached_property` before Python 3.12, without a lock that a fork could leave held
def _row_model(table: Table) -> type[BaseModel]:
    fields: dict[str, Any] = {
        column.name: (column.annotation, Field(description=column.description)) for column in table.columns
    }
    extra: dict[str, Any] = {}
    if table.run_columns is not None:
        extra["__pydantic_extra__"] = dict.__class_getitem__((str, table.run_columns.annotation))
    config = ConfigDict(strict=True, extra="allow" if extra else "forbid", title=table.name)
    base = type("Row", (BaseModel,), {"__module__": __name__, "__annotations__": extra, "model_config": config})
    return create_model(table.name, __base__=base, __doc__=table.description, **fields)


@lru_cache
def _rows_adapter(table: Table) -> TypeAdapter[Any]:
    return TypeAdapter(list[table.row_model])  # type: ignore[name-defined]  # a model made at run time


class CheckedRows(NamedTuple):
    """Rows that keep every rule, values that break one (`row` is 1-based among all rows), and every row.

    In `every`, a value that its dtype cannot hold is null.
    """

    kept: pa.RecordBatch
    findings: list[Finding]
    every: pa.RecordBatch


class RunTable(Declaration):
    """A table with the columns that one run gave it, as the manifest declares it and the files hold it."""

    table: Table
    run_column_names: tuple[Annotated[str, AfterValidator(_as_column_name)], ...] = ()
    _columns: tuple[Column, ...] = PrivateAttr()
    _arrow_schema: pa.Schema = PrivateAttr()

    @classmethod
    def of(cls, table: Table, run_column_names: Sequence[str] = ()) -> Self:
        """Give `table` its run columns; raise MisuseError if a name cannot name a column, or is given twice."""
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
            raise ValueError(f"table {self.table.name!r} declares a column twice")
        return self

    def model_post_init(self, _context: object) -> None:
        """Derive the columns and the Arrow schema, which every new row needs."""
        declared = self.table.run_columns
        self._columns = self.table.columns
        if declared is not None:
            self._columns += tuple(declared.model_copy(update={"name": name}) for name in self.run_column_names)
        metadata: dict[bytes | str, bytes | str] = {
            TABLE_KEY: self.table.name.encode(),
            VERSION_KEY: str(SCHEMA_VERSION).encode(),
        }
        if self.table.is_long:
            metadata[ROW_KEY] = ",".join(self.table.row_key).encode()
        self._arrow_schema = arrow_schema(self._columns, metadata)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Every column, in file order."""
        return self._columns

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of every column, in file order."""
        return tuple(column.name for column in self._columns)

    @property
    def arrow_schema(self) -> pa.Schema:
        """The table in Arrow; the metadata names table and schema version, and of a long table the row key."""
        return self._arrow_schema

    def check(self, values: Mapping[str, Values], num_rows: int) -> CheckedRows:
        """Make an Arrow batch of new rows, without those that break a rule.

        `values` holds by column `num_rows` values each, as `to_arrow` takes them; a column that is missing is null in
        every row, and names that are not the table's are ignored.
        """
        arrays, is_broken = columns_to_arrow(self._columns, values, num_rows)
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._arrow_schema)
        if is_broken is None:
            return CheckedRows(batch, [], batch)
        return CheckedRows(batch.filter(bool_array(~is_broken)), list(self._explained(values, is_broken)), batch)

    def problems(self, rows: Sequence[Mapping[str, object]]) -> list[Finding]:
        """Check rows against the pydantic model, all in one call.

        Each value that breaks a rule gives a finding with its 1-based `row`, its `column`, and its `value` as text.
        """
        try:
            _rows_adapter(self.table).validate_python(rows)
        except ValidationError as error:
            return [_finding(detail) for detail in error.errors(include_url=False, include_context=False)]
        return []

    def _explained(self, values: Mapping[str, Values], is_broken: Bools) -> Iterator[Finding]:
        """What is wrong with the rows that were refused, in the words of the row model."""
        for position in map(int, np.flatnonzero(is_broken)):
            row = {name: _value(values[name], position) if name in values else None for name in self.column_names}
            problems = self.problems([row]) or [_too_large(self.table.name, row)]
            yield from (replace(problem, row=position + 1) for problem in problems)


def _value(values: Values, position: int) -> object:
    value: Any = values[position]
    return value.as_py() if isinstance(values, pa.Array) else value


def _finding(detail: Any) -> Finding:
    position, *place = detail["loc"]
    rule = {"missing": NULL, "extra_forbidden": _COLUMNS}.get(detail["type"], detail["type"])
    return Finding(
        id=rule,
        severity="error",
        message=str(detail["msg"]),
        row=position + 1,
        column=str(place[0]) if place else None,
        value=shown(detail["input"]),
    )


def _too_large(table: str, row: Mapping[str, object]) -> Finding:
    message = f"expected rows of {table} that fit into one Arrow array, got more than 2 GiB of text."
    return Finding(id=DTYPE, severity="error", message=message, column=BATCH, value=shown(row.get(BATCH)))


def check_column_name(name: str) -> None:
    """Raise MisuseError for a name that would not survive CSV, a shell or a spreadsheet."""
    if not _COLUMN_NAME.fullmatch(name):
        raise MisuseError(
            f"{name!r} cannot name a column: use letters, digits and _ . - / beginning with a letter or _, "
            "such as 'backbone_layer4'."
        )


def check_has_batches(schema: pa.Schema) -> None:
    """Raise DamagedFileError if batch_idx is missing or not int64, or if two columns have one name."""
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DamagedFileError(f"it has more than one column {', '.join(map(repr, twice))}")
    if BATCH not in schema.names:
        raise DamagedFileError(f"it has no column {BATCH}, which every table has")
    if schema.field(BATCH).type != pa.int64():
        raise DamagedFileError(f"its column {BATCH} is {schema.field(BATCH).type}, not int64")


def check_batches(rows: pa.RecordBatch) -> None:
    """Raise DamagedFileError if batch_idx is null, or a column that the schema declares as never null."""
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if column.null_count and (field.name == BATCH or not field.nullable):
            raise DamagedFileError(f"{column.null_count} of its rows have no {field.name}")


def same_columns(one: pa.Schema, other: pa.Schema) -> bool:
    """Whether two schemas have the same columns and the same schema version."""
    versions = [(schema.metadata or {}).get(VERSION_KEY) for schema in (one, other)]
    return bool(one.equals(other)) and versions[0] == versions[1]
