"""metrics.csv: a row for each epoch, or for each batch after which a model was validated, and a column for each metric.

The file itself is the state. In memory are only its columns and its last row, so that a long run needs no more memory
than a short one.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ava_pipeline.contract.builtin_tables import METRICS, metrics_table
from ava_pipeline.contract.files import append_whole, written_aside
from ava_pipeline.contract.layout import Moment, RunLayout
from ava_pipeline.contract.tables import BATCH, RunTable
from ava_pipeline.contract.untrusted import check_csv_size, check_name
from ava_pipeline.errors import MisuseError

MetricValues: TypeAlias = Mapping[str, float | None]  # by metric; None is not measured


class MetricsFile:
    """Writes the rows of metrics.csv, in the order of their moments.

    Rows after the last one are appended in a single write. Whatever else changes the file, such as a value for an older
    row or a new column, is written to a new file that replaces it, so that a kill leaves the old file or the new one.
    With `fsync`, appended rows are synced too. Only one thread may use it at a time.
    """

    def __init__(self, layout: RunLayout, *, fsync: bool = False) -> None:
        self._layout = layout
        self.path = layout.metrics
        self._fsync = fsync
        self._end: _End | None = None  # None if the file has to be read first

    def write(self, rows: Mapping[Moment, MetricValues]) -> None:
        """Add rows, or add values to rows that exist already; either all of them or none.

        A value replaces an older value of its row; None does not. Lines that are not rows, such as half a row after a
        power failure, move to `superseded/` first.

        Raise MisuseError if a name cannot be that of a column, OSError if the disk refuses, and DamagedFileError if a
        link leads out of the run or the file is too large to be read.
        """
        check_name(self._layout, self.path)
        if self._append(rows):
            return
        older = self._read()
        if older is not None and not older.is_whole:
            self.supersede(lambda _: True)
            older = self._read()
        self._replace(older, rows)

    def replace(self, rows: Mapping[Moment, MetricValues]) -> None:
        """Write these rows in place of all older ones; raise as `write` does."""
        check_name(self._layout, self.path)
        self._replace(None, rows)

    def is_foreign(self, *, is_claimed: bool) -> bool:
        """Whether the content shows that another program wrote the file. Raise as `supersede` does.

        It does if the header is not that of a metrics.csv. If `is_claimed` does not say that metrics were logged here,
        it also does if there is a column `step`, as in files of Lightning's CSVLogger, or a line before the last that
        is not a row. A row that was torn by a kill can only be the last.
        """
        check_name(self._layout, self.path)
        if self._end is not None and self.path.exists() and _identity(self.path.stat()) == self._end.identity:
            return False
        found = self._read()
        if found is None or not found.header:
            return False
        has_only_rows = all(moment is not None for moment, _ in found.lines[:-1])
        return not found.is_ours or not (is_claimed or (has_only_rows and "step" not in found.table.column_names))

    def supersede(self, is_kept: Callable[[Moment], bool]) -> Path | None:
        """Keep some rows, and move all other lines to a new folder in `superseded/`.

        Return the file that holds them now, None if every row is kept. Raise OSError if the disk refuses: every row is
        still in one of the two files; and DamagedFileError as `write` does.
        """
        check_name(self._layout, self.path)
        found = self._read()
        if found is None:
            return None
        kept = [line for moment, line in found.lines if moment is not None and is_kept(moment)]
        moved = [line for moment, line in found.lines if moment is None or not is_kept(moment)]
        if kept and not moved:
            return None
        place = next_superseded(self._layout) / self.path.name
        check_name(self._layout, place)
        self._end = None
        if not kept:
            place.parent.mkdir(parents=True, exist_ok=True)
            return self.path.rename(place)
        for path, lines in ((place, moved), (self.path, kept)):
            with written_aside(path) as file:
                file.writelines([found.header, *lines])
        return place

    def _append(self, rows: Mapping[Moment, MetricValues]) -> bool:
        """Append rows if all of them come after the last one and have columns; return whether they were appended."""
        end = self._end
        if end is None or not end.can_take(rows):
            return False
        try:
            file = self.path.open("r+b", buffering=0)
        except FileNotFoundError:
            return False
        with file:
            if _identity(os.fstat(file.fileno())) != end.identity:
                return False  # another program changed it
            append_whole(file.fileno(), b"".join(_lines(end.table, rows)), os.fstat(file.fileno()).st_size)
            if self._fsync:
                os.fsync(file.fileno())
            self._end = _End(_identity(os.fstat(file.fileno())), end.table, _latest(rows))
        return True

    def _replace(self, older: "_Found | None", rows: Mapping[Moment, MetricValues]) -> None:
        merged = older.values() if older else {}
        for moment, values in rows.items():
            measured = {name: value for name, value in values.items() if value is not None}
            merged[moment] = {**merged.get(moment, {}), **measured}
        names = dict.fromkeys(older.table.run_column_names if older else ())
        names |= dict.fromkeys(name for values in rows.values() for name in values)
        has_batches = any(moment.batch_idx is not None for moment in merged)
        had_batches = older is not None and BATCH in older.table.column_names
        table = metrics_table(["epoch", *([BATCH] if has_batches or had_batches else []), *names])
        with written_aside(self.path) as file:
            file.write((",".join(table.column_names) + "\n").encode())
            file.writelines(_lines(table, merged))
            file.flush()
            identity = _identity(os.fstat(file.fileno()))
        self._end = _End(identity, table, _latest(merged))

    def _read(self) -> "_Found | None":
        """Read the file; None if it does not exist."""
        try:
            check_csv_size(self.path)
            header, *lines = BytesIO(self.path.read_bytes()).readlines() or [b""]
        except FileNotFoundError:
            return None
        table = _table_of(header)
        if table is None:
            return _Found(header, RunTable.of(METRICS), [(None, line) for line in lines], is_ours=False)
        known: set[Moment] = set()
        found: list[tuple[Moment | None, bytes]] = []
        for line in lines:
            moment = _moment_of(line, table)
            found.append((None if moment in known else moment, line))
            known |= set() if moment is None else {moment}
        return _Found(header, table, found)


@dataclass(frozen=True, slots=True)
class _Found:
    """The lines of a file, each with the moment of its row; None for a line that is not a row, or the row's second."""

    header: bytes
    table: RunTable
    lines: Sequence[tuple[Moment | None, bytes]]
    is_ours: bool = True  # whether the header is that of a metrics.csv

    @property
    def is_whole(self) -> bool:
        return self.is_ours and all(moment is not None for moment, _ in self.lines)

    def values(self) -> "dict[Moment, dict[str, float | str]]":
        """The fields of each row as they are in the file, by metric."""
        num_keys = len(self.table.table.columns)
        return {
            moment: {
                name: text
                for name, text in zip(self.table.run_column_names, _fields(line)[num_keys:], strict=True)
                if text
            }
            for moment, line in self.lines
            if moment is not None
        }


class _End(NamedTuple):
    """What must be known of a file to append to it."""

    identity: tuple[int, int, int]
    table: RunTable
    last: Moment

    def can_take(self, rows: Mapping[Moment, MetricValues]) -> bool:
        has_batches = BATCH in self.table.column_names
        return all(
            moment.order > self.last.order
            and (has_batches or moment.batch_idx is None)
            and set(values) <= set(self.table.run_column_names)
            for moment, values in rows.items()
        )


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """The file itself, and its size: it differs once another program has replaced the file or added to it."""
    return status.st_dev, status.st_ino, status.st_size


def _latest(moments: Iterable[Moment]) -> Moment:
    return max(moments, key=lambda moment: moment.order)


def _lines(table: RunTable, rows: "Mapping[Moment, Mapping[str, float | str | None]]") -> Iterable[bytes]:
    """Rows as lines, in the order of time: a float in the shortest form that reads back to the same bits."""
    num_keys = len(table.table.columns)
    for moment in sorted(rows, key=lambda moment: moment.order):
        keys = ["" if key is None else str(key) for key in moment[:num_keys]]
        fields = (_field(rows[moment].get(name)) for name in table.run_column_names)
        yield (",".join([*keys, *fields]) + "\n").encode()


def _field(value: float | str | None) -> str:
    """A number as text, or the text of a field that was read."""
    if value is None:
        return ""
    return value if isinstance(value, str) else repr(float(value))


def _table_of(header: bytes) -> RunTable | None:
    """The table with these columns; None if they are not those of a metrics.csv, or the line is not whole."""
    try:
        return metrics_table(_fields(header)) if header.endswith(b"\n") else None
    except MisuseError:
        return None


def _fields(line: bytes) -> list[str]:
    return line.decode(errors="replace").rstrip("\r\n").split(",")


def _moment_of(line: bytes, table: RunTable) -> Moment | None:
    """The moment of a line's row; None if the line is not a whole row of the table."""
    fields = _fields(line)
    if not line.endswith(b"\n") or len(fields) != len(table.columns):
        return None
    has_batches = BATCH in table.column_names
    try:
        moment = Moment(int(fields[0]), int(fields[1]) if has_batches and fields[1] else None)
        for text in fields[len(table.table.columns) :]:
            float(text or "nan")
    except ValueError:
        return None
    return moment if moment.epoch >= 0 and (moment.batch_idx is None or moment.batch_idx >= 1) else None


def next_superseded(layout: RunLayout) -> Path:
    """The first free folder for files of an earlier attempt: `superseded/attempt-N` in the run directory."""
    folders = (layout.root / "superseded" / f"attempt-{number}" for number in count(1))
    return next(folder for folder in folders if not folder.exists())
