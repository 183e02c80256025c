"""Tables of runs as one Arrow dataset, which reads files when it is scanned.

A complete Parquet file is scanned in place. Rows in a journal or a CSV file are files of an in-memory file system,
each made when it is opened, so that a query also finds the latest rows of a live run and nothing is written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from ava_pipeline.contract.manifest import Manifest
from ava_pipeline.contract.parquet import parquet_schema
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.read.run import Run, has_complete_parquet

ReadRows = Callable[[], pa.Table]

_KEY_TYPES = {str: pa.string(), int: pa.int64()}
_NO_KEYS: Mapping[str, str | int] = {}
_LOCAL = fs.LocalFileSystem()
_PARQUET = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_IPC = ds.IpcFileFormat()


@dataclass(frozen=True, slots=True)
class DatasetPart:
    """Rows of a dataset that come from one source."""

    source: Path | ReadRows  # a complete Parquet file, or a function that reads all rows when a query needs them
    schema: pa.Schema
    keys: Mapping[str, str | int] = field(default_factory=dict)  # columns that the source lacks, with one value each


def table_part(run: Run, manifest: Manifest, name: str, keys: Mapping[str, str | int] = _NO_KEYS) -> DatasetPart:
    """A table of one run: its Parquet file if that holds every row, else the rows that `Run.arrow` reads."""
    if run.old is None and has_complete_parquet(run.layout, manifest, name):
        return parquet_part(run.layout.parquet(name), keys)
    return DatasetPart(partial(run.arrow, name), manifest.tables[name].declaration.arrow_schema, keys)


def parquet_part(path: Path, keys: Mapping[str, str | int]) -> DatasetPart:
    """A Parquet file.

    Raise DamagedFileError if it cannot be read, or would take more memory than a file of its size can need.
    """
    return DatasetPart(path, parquet_schema(path), keys)


def dataset_of(parts: Sequence[DatasetPart], keys: Sequence[str] = ()) -> ds.Dataset:
    """Put parts together to one dataset, in their order; a column or key that a part lacks is null in its rows.

    Types that differ are widened. The parts' `keys` become the first columns. Raise DamagedFileError if the types of a
    column contradict each other, or if a column has the name of a key.
    """
    schema = _unified_schema(parts, keys)
    files = {str(number): part.source for number, part in enumerate(parts) if not isinstance(part.source, Path)}
    in_memory = fs.PyFileSystem(InMemoryFileSystem(files))
    children = [_child(part, str(number), schema, in_memory) for number, part in enumerate(parts)]
    return ds.dataset(children) if children else ds.FileSystemDataset([], schema, _PARQUET, _LOCAL)


def _unified_schema(parts: Sequence[DatasetPart], keys: Sequence[str]) -> pa.Schema:
    values = {key: next((part.keys[key] for part in parts if key in part.keys), "") for key in keys}
    schema = pa.schema([pa.field(key, _KEY_TYPES[type(value)]) for key, value in values.items()])
    for part in parts:
        try:
            schema = pa.unify_schemas([schema, _nullable(part, keys)], promote_options="permissive")
        except pa.ArrowException as error:
            raise DamagedFileError(
                f"{_part_name(part)}: its types differ from those of earlier tables: {error}."
            ) from error
    return schema


def _nullable(part: DatasetPart, keys: Sequence[str]) -> pa.Schema:
    taken = set(keys) & set(part.schema.names)
    if taken:
        raise DamagedFileError(
            f"{_part_name(part)} already has a column {', '.join(sorted(taken))}. Read it separately, with open_run()."
        )
    return pa.schema([column.with_nullable(True) for column in part.schema])  # noqa: FBT003  # Arrow's own order


def _part_name(part: DatasetPart) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in part.keys.items()) or "the table"


def _child(part: DatasetPart, name: str, schema: pa.Schema, in_memory: fs.FileSystem) -> ds.Dataset:
    is_file = isinstance(part.source, Path)
    file_format: ds.FileFormat = _PARQUET if is_file else _IPC
    where, path = (_LOCAL, str(part.source)) if is_file else (in_memory, name)
    keys = ds.scalar(True)  # noqa: FBT003  # Arrow's own order
    for key, value in part.keys.items():
        keys &= ds.field(key) == value
    return ds.FileSystemDataset([file_format.make_fragment(path, where, keys)], schema, file_format, where)


def _refuse(*_: Any) -> Any:
    raise PermissionError("this file system is read-only")


_READ_ONLY: Any = _refuse


class InMemoryFileSystem(fs.FileSystemHandler):
    """A read-only file system of Arrow IPC files, each made in memory when it is opened.

    An error of the function that reads a file's rows reaches the query that opens the file. Source:
    https://arrow.apache.org/docs/python/filesystems.html, "Using fsspec-compatible filesystems" and
    `pyarrow.fs.FileSystemHandler`.
    """

    def __init__(self, files: Mapping[str, ReadRows]) -> None:
        self._files = files

    def get_type_name(self) -> str:
        """The name of the file system in Arrow's messages."""
        return "in-memory"

    def normalize_path(self, path: str) -> str:
        """Paths are plain names."""
        return path

    def get_file_info(self, paths: str | list[str]) -> list[fs.FileInfo]:
        """Which names are files."""
        paths = [paths] if isinstance(paths, str) else paths
        types = (fs.FileType.File if path in self._files else fs.FileType.NotFound for path in paths)
        return [fs.FileInfo(path, file_type) for path, file_type in zip(paths, types, strict=True)]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        """Raise: the file system has no folders."""
        raise NotADirectoryError(f"{selector.base_dir}: this file system has no folders")

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Read the rows into an Arrow IPC file."""
        rows = self._files[path]()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, rows.schema) as file:
            file.write_table(rows)
        return pa.BufferReader(sink.getvalue())

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """As `open_input_file`."""
        return self.open_input_file(path)

    create_dir = delete_dir = delete_file = move = copy_file = _READ_ONLY
    delete_dir_contents = open_output_stream = open_append_stream = _READ_ONLY

    def delete_root_dir_contents(self) -> None:
        """Raise: the file system is read-only."""
        _refuse()
