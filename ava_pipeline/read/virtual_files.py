"""Rows that lie in no Parquet file yet, as files that Arrow can scan: they exist only while they are read."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
from pyarrow import fs

Rows = Callable[[], pa.Table]


def _refuse(*_: Any) -> Any:
    raise PermissionError("rows are only read here")


_READ_ONLY: Any = _refuse


class VirtualFiles(fs.FileSystemHandler):
    """A file system that holds Arrow IPC files by name, each one made when it is opened; nothing reaches the disk.

    Source: https://arrow.apache.org/docs/python/filesystems.html, "Using fsspec-compatible filesystems" and
    `pyarrow.fs.FileSystemHandler`.

    Args:
        files: name -> what reads the rows; an error of it reaches whoever scans.
    """

    def __init__(self, files: Mapping[str, Rows]) -> None:
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
