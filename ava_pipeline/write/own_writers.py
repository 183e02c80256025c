"""The user's own writers: what `TelemetryCollector(..., writers=[...])` takes, and the writers that it makes."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import pyarrow as pa

from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.errors import MisuseError, WriteError, in_words
from ava_pipeline.write.event_log import EventLog
from ava_pipeline.write.older_rows import supersede_file
from ava_pipeline.write.writers import Writer

_SUFFIX = re.compile(r"[A-Za-z0-9_]+")
_TAKEN_SUFFIXES = frozenset({"csv", "parquet", "journal", "json", "lock", "partial"})  # of files in telemetry/


class WriterMaker(Protocol):
    """An object that makes the writer of a table when it is called, as a subclass of `Writer` does.

    If it has an attribute `takes_events` that is true, it makes a writer of the table `events` too.
    """

    @property
    def suffix(self) -> str:
        """The last part of the writers' file names, without the dot; also of those that write no file."""

    def __call__(self, path: Path, schema: pa.Schema, /) -> Writer | None:
        """Make the writer of a table, whose name is `path.stem`; None if the table is not to be written."""


OwnWriter: TypeAlias = type[Writer] | WriterMaker


def check_writers(writers: Sequence[OwnWriter]) -> tuple[OwnWriter, ...]:
    """Raise MisuseError unless each is a concrete subclass of `Writer`, or makes writers, and has a usable suffix."""
    if not isinstance(writers, list | tuple):
        raise MisuseError(f"writers: expected a list of subclasses of Writer, got {writers!r}.")
    taken = set(_TAKEN_SUFFIXES)
    for writer in writers:
        name = _checked_name(writer)
        suffix = getattr(writer, "suffix", None)
        if not (isinstance(suffix, str) and _SUFFIX.fullmatch(suffix)):
            raise MisuseError(f"writers: expected {name}.suffix to be letters and digits, got {suffix!r}.")
        if suffix.lower() in taken:
            raise MisuseError(f"writers: the suffix {suffix!r} of {name} is taken: choose another one.")
        taken.add(suffix.lower())
    return tuple(writers)


def _checked_name(writer: object) -> str:
    if isinstance(writer, type):
        if not issubclass(writer, Writer):
            raise MisuseError(f"writers: expected subclasses of Writer, got {writer!r}: give an object of it.")
        missing = sorted(getattr(writer, "__abstractmethods__", ()))
        if missing:
            raise MisuseError(f"writers: {writer.__name__} does not define {', '.join(missing)}.")
        return writer.__name__
    if isinstance(writer, Writer) or not callable(writer):
        raise MisuseError(
            "writers: expected subclasses of Writer, or objects that make one when they are called with a path and a "
            f"schema, got {writer!r}: give the class, not an object of it."
        )
    return type(writer).__name__


def open_own_writers(
    makers: Sequence[OwnWriter], layout: RunLayout, table: RunTable, log: EventLog, *, attempt: int
) -> Iterator[Writer]:
    """Make the writers of a table, each with a new file; one that cannot be made costs the rows of its file only."""
    for maker in makers:
        path = layout.telemetry / f"{table.table.name}.{maker.suffix}"
        try:
            if os.path.lexists(path):
                supersede_file(path, layout.superseded(attempt))
            writer = maker(path, table.arrow_schema)
            if writer is not None and writer.file_name != path.name:
                raise ValueError(f"expected the file name {path.name}, got {writer.file_name}")  # noqa: TRY301  # as any failure
        except Exception as error:  # noqa: BLE001  # user code: whatever it raises costs its own file only
            log.fail(error, f"{path.name} could not be opened")
            writer = _UnopenedWriter(path, table.arrow_schema, reason=in_words(error))
        if writer is not None:
            yield writer


class _UnopenedWriter(Writer):
    """Takes the place of a user's writer that could not be opened, and refuses every batch for that reason."""

    suffix = ""

    def __init__(self, path: Path, schema: pa.Schema, *, reason: str) -> None:
        super().__init__(path, schema)
        self._reason = reason

    def write(self, batch: pa.RecordBatch) -> None:  # noqa: ARG002  # none is taken
        raise WriteError(self._reason)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass
