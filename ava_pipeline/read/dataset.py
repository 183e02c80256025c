"""Rows that lie in no Parquet file yet, as files that Arrow can scan: they exist only while they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.parquet import read_parquet
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import FROM_ARROW, UNUSABLE, check_declared_size, text_columns
from ava_pipeline.errors import DamagedFileError, MisuseError
from ava_pipeline.read.csv import num_rows
from ava_pipeline.read.table import read_table

ReadRows = Callable[[], pa.Table]


def _refuse(*_: Any) -> Any:
    raise PermissionError("rows are only read here")


_READ_ONLY: Any = _refuse


class InMemoryFileSystem(fs.FileSystemHandler):
    """A file system that holds Arrow IPC files by name, each one made when it is opened; nothing reaches the disk.

    Source: https://arrow.apache.org/docs/python/filesystems.html, "Using fsspec-compatible filesystems" and
    `pyarrow.fs.FileSystemHandler`.

    Args:
        files: name -> what reads the rows; an error of it reaches whoever scans.
    """

    def __init__(self, files: Mapping[str, ReadRows]) -> None:
        self._files = files

    def get_type_name(self) -> str:
        """How Arrow calls this file system."""
        return "virtual"

    def normalize_path(self, path: str) -> str:
        """Names are what they are."""
        return path

    def get_file_info(self, paths: str | list[str]) -> list[fs.FileInfo]:
        """Each name is a file, or there is none."""
        paths = [paths] if isinstance(paths, str) else paths
        kinds = (fs.FileType.File if path in self._files else fs.FileType.NotFound for path in paths)
        return [fs.FileInfo(path, kind) for path, kind in zip(paths, kinds, strict=True)]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """There are no folders."""
        raise _no_folders(selector.base_dir)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Read the rows, and give them as an Arrow IPC file."""
        rows = self._files[path]()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, rows.schema) as file:
            file.write_table(rows)
        return pa.BufferReader(sink.getvalue())

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """The same, for readers that do not jump."""
        return self.open_input_file(path)

    create_dir = delete_dir = delete_file = move = copy_file = _READ_ONLY
    delete_dir_contents = open_output_stream = open_append_stream = _READ_ONLY

    def delete_root_dir_contents(self) -> None:
        """Nothing is deleted."""
        _refuse()


def _no_folders(path: str) -> NotADirectoryError:
    return NotADirectoryError(f"{path}: there are only files here")


_KEY_TYPES = {str: pa.string(), int: pa.int64()}
_NO_KEYS: Mapping[str, str | int] = {}
_LOCAL = fs.LocalFileSystem()
_PARQUET = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_IPC = ds.IpcFileFormat()


@dataclass(frozen=True, slots=True)
class DatasetPart:
    """Rows of a dataset that lie together.

    Attributes:
        source: a complete Parquet file, of which only the columns and row groups asked for are read; or what reads
            all rows when they are asked for.
        schema: of the rows.
        keys: columns that the source has not: their names, and the value that all its rows share.
    """

    source: Path | ReadRows
    schema: pa.Schema
    keys: Mapping[str, str | int] = field(default_factory=dict)


def table_part(
    layout: RunLayout, manifest: Manifest, name: str, keys: Mapping[str, str | int] = _NO_KEYS
) -> DatasetPart:
    """A measure's table of one run: its Parquet file where that holds every row, else whatever holds most.

    Args:
        layout: of the run.
        manifest: of the run.
        name: one of the manifest's tables.
        keys: see `Part`.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    declaration = manifest.tables[name].declaration
    path = layout.parquet(name)
    if path.exists() and not layout.journal(name).exists():
        part, num_stored = _parquet_part(path, keys)
        if _is_settled(manifest, name) or not _csv_holds_more(layout.csv(name), num_stored):
            return part
    return read_part(layout, declaration, keys)


def read_part(layout: RunLayout, declaration: RunTable, keys: Mapping[str, str | int]) -> DatasetPart:
    """A table that is read from whichever of its files holds most, once it is asked for."""
    return DatasetPart(partial(read_table, layout, declaration), declaration.arrow_schema, keys)


def parquet_part(path: Path, keys: Mapping[str, str | int]) -> DatasetPart:
    """A Parquet file that lies by itself.

    Raises:
        DamagedFileError: it cannot be read, or declares more memory than such a file can need.
    """
    return _parquet_part(path, keys)[0]


def dataset_of(parts: Sequence[DatasetPart], keys: Sequence[str] = ()) -> ds.Dataset:
    """Parts as one dataset, in their order; a column that a part has not is null in its rows.

    Args:
        parts: their columns may differ; types that differ are widened.
        keys: the names of the parts' keys, which become the first columns.

    Raises:
        DamagedFileError: a column's types contradict each other, or a column has a key's name.
    """
    schema = _joined_schema(parts, keys)
    files = {str(number): part.source for number, part in enumerate(parts) if not isinstance(part.source, Path)}
    virtual = fs.PyFileSystem(InMemoryFileSystem(files))
    children = [_child(part, str(number), schema, virtual) for number, part in enumerate(parts)]
    return ds.dataset(children) if children else ds.FileSystemDataset([], schema, _PARQUET, _LOCAL)


def read_selected(
    dataset: ds.Dataset, columns: Sequence[str] | None, batches: tuple[int, int | None] | None
) -> pa.Table:
    """Read some columns of some batches; see `Run.arrow`.

    Raises:
        MisuseError: there is no such column.
        DamagedFileError: a file cannot be read.
    """
    unknown = [name for name in columns or () if name not in dataset.schema.names]
    if unknown:
        raise MisuseError(f"There is no column {', '.join(unknown)}; the columns: {', '.join(dataset.schema.names)}.")
    first, last = batches or (0, None)
    wanted = ds.field("batch_idx") >= first
    if last is not None:
        wanted &= ds.field("batch_idx") <= last
    try:
        return dataset.to_table(columns=None if columns is None else list(columns), filter=wanted if batches else None)
    except FROM_ARROW as error:
        reason = str(error).partition("\n")[0].removesuffix(".")
        raise DamagedFileError(f"A table cannot be read: {reason}. `ava-pipeline validate` says more.") from error


def _child(part: DatasetPart, name: str, schema: pa.Schema, virtual: fs.FileSystem) -> ds.Dataset:
    is_file = isinstance(part.source, Path)
    kind: ds.FileFormat = _PARQUET if is_file else _IPC
    where, path = (_LOCAL, str(part.source)) if is_file else (virtual, name)
    shared = ds.scalar(True)  # noqa: FBT003  # Arrow's own order
    for key, value in part.keys.items():
        shared &= ds.field(key) == value
    return ds.FileSystemDataset([kind.make_fragment(path, where, shared)], schema, kind, where)


def _joined_schema(parts: Sequence[DatasetPart], keys: Sequence[str]) -> pa.Schema:
    values = {key: next((part.keys[key] for part in parts), "") for key in keys}
    schema = pa.schema([pa.field(key, _KEY_TYPES[type(value)]) for key, value in values.items()])
    for part in parts:
        try:
            schema = pa.unify_schemas([schema, _nullable(part, keys)], promote_options="permissive")
        except pa.ArrowException as error:
            raise DamagedFileError(f"{_part_name(part)} has other types than the tables before it: {error}.") from error
    return schema


def _nullable(part: DatasetPart, keys: Sequence[str]) -> pa.Schema:
    taken = set(keys) & set(part.schema.names)
    if taken:
        raise DamagedFileError(
            f"{_part_name(part)} has columns {', '.join(sorted(taken))} of its own; read it by itself."
        )
    return pa.schema([column.with_nullable(True) for column in part.schema])  # noqa: FBT003  # Arrow's own order


def _part_name(part: DatasetPart) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in part.keys.items()) or "the table"


def _parquet_part(path: Path, keys: Mapping[str, str | int]) -> tuple[DatasetPart, int]:
    try:
        metadata = pq.read_metadata(path)
        check_declared_size(metadata, path.stat().st_size)
        schema = metadata.schema.to_arrow_schema()
        # A dataset would unpack text whatever it takes.
        return DatasetPart(
            partial(read_parquet, path) if text_columns(schema) else path, schema, keys
        ), metadata.num_rows
    except UNUSABLE as error:
        reason = str(error).partition("\n")[0].removesuffix(".")
        raise DamagedFileError(
            f"{path} cannot be read as Parquet: {reason}. Restore it from a backup, or move it away."
        ) from error


def _is_settled(manifest: Manifest, name: str) -> bool:
    """Whether the writers ended and CSV took no more rows than Parquet, so that its lines need not be counted."""
    files = (f"{name}.csv", f"{name}.parquet")
    taken = [[attempt.rows.get(file, 0) for file in files] for attempt in manifest.attempts]
    return manifest.status != "running" and all(csv <= parquet for csv, parquet in taken)


def _csv_holds_more(csv: Path, num_stored: int) -> bool:
    return csv.exists() and num_rows(csv) > num_stored
