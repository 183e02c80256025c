"""The files that earlier attempts left: find them, repair them, and move superseded rows to superseded/.

Only the tables of the run are touched. Other files in the telemetry folder belong to the user.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pyarrow as pa

from ava_pipeline.contract.arrays import bool_array, numpy_values
from ava_pipeline.contract.builtin_tables import BUILT_IN_TABLES
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.files import free_place, keep_damaged, keep_damaged_copy, keep_damaged_end, written_aside
from ava_pipeline.contract.finding import Finding
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.contract.parquet import check_parquet, num_parquet_rows, parquet_rows, write_parquet
from ava_pipeline.contract.stored import store_journal
from ava_pipeline.contract.tables import BATCH, RunTable
from ava_pipeline.contract.untrusted import num_csv_rows, read_line, read_lines
from ava_pipeline.errors import DamagedFileError

_BUILT_IN = frozenset(table.name for table in BUILT_IN_TABLES)
_EVENTS_HEADER = (",".join(column.name for column in EVENTS.columns) + "\n").encode()


def table_names(layout: RunLayout, tables: Sequence[RunTable] = ()) -> frozenset[str]:
    """Names of the run's tables: those of every attempt so far, the events, and the new attempt's `tables`.

    If the manifest is lost, these are the built-in tables, and every table that has a journal.
    """
    return frozenset({EVENTS.name, *(one.table.name for one in tables), *_older_names(layout)})


def table_paths(layout: RunLayout, names: Collection[str], suffix: str) -> list[Path]:
    """The existing files of the named tables with a suffix (`csv`, `parquet` or `journal`), sorted by name."""
    return [path for path in sorted(layout.telemetry.glob(f"*.{suffix}")) if path.stem in names]


def _older_names(layout: RunLayout) -> Collection[str]:
    try:
        manifest = read_manifest(layout.manifest)
    except (FileNotFoundError, DamagedFileError):  # callers that need the manifest itself report it
        return _BUILT_IN.union(path.stem for path in layout.telemetry.glob("*.journal"))
    return {*manifest.tables, *(name for attempt in manifest.attempts for name in attempt.columns)}


def repair_files(layout: RunLayout, names: Collection[str]) -> list[Finding]:
    """Remove torn and damaged CSV lines and turn journals into Parquet, so that every file holds whole rows.

    Return the losses: of severity info for the end of a file that a killed process was writing, else error.
    """
    damage: list[Finding] = []
    schemas = declared_schemas(layout)
    for path in table_paths(layout, names, "parquet"):
        _, unreadable = inspect_parquet(path)
        if unreadable:
            keep_damaged(path)  # else the new rows could not be written
        damage += unreadable
    for path in table_paths(layout, names, "csv"):
        damage += repair_csv(path)
    for path in table_paths(layout, names, "journal"):
        place = free_place(path)
        found = store_journal(layout.parquet(path.stem), path, schemas.get(path.stem))
        damage += [with_place(finding, place) for finding in found]
    return damage


def declared_schemas(layout: RunLayout) -> dict[str, pa.Schema]:
    """The schema of each table in the manifest, for journals whose own schema was damaged."""
    try:
        tables = read_manifest(layout.manifest).tables
    except (FileNotFoundError, DamagedFileError):
        return {}  # callers that need the manifest report it; most journals do not need it
    return {name: entry.declaration.arrow_schema for name, entry in tables.items()}


def inspect_parquet(path: Path) -> tuple[int, list[Finding]]:
    """Count the rows of a Parquet file; a file that cannot be read has none, and is a finding."""
    try:
        return check_parquet(path), []
    except DamagedFileError as error:
        message = str(error).removeprefix(str(path)).strip()
        return 0, [with_place(_file_error("files.unreadable", path, message), free_place(path))]


def inspect_csv(path: Path) -> tuple[int, list[Finding]]:
    """Count the rows that `repair_csv` keeps, and find damaged lines and an incomplete last line."""
    num_rows, damage, _ = _read_csv(path)
    return num_rows, damage


def repair_csv(path: Path) -> list[Finding]:
    """Keep a copy of a damaged file in `damaged/`, and leave only the lines that are rows; return the damage.

    Raise OSError if the disk refuses; the file is then as it was.
    """
    _, damage, end = _read_csv(path)
    ids = {finding.id for finding in damage}
    if "files.columns" in ids or "files.unreadable" in ids:
        keep_damaged(path)
        return damage
    if "files.line" in ids:
        keep_damaged_copy(path)
        with path.open("rb") as older, written_aside(path) as file:
            file.write(older.readline())
            file.writelines(line for line in older if not line.endswith(b"\n") or _is_row(line))
    if end:
        keep_damaged_end(path, end)
        os.truncate(path, path.stat().st_size - len(end))
    return damage


def _read_csv(path: Path) -> tuple[int, list[Finding], bytes]:
    """The number of rows, the damage, and the incomplete last line, after those rows of its batch that are whole."""
    num_rows, bad_lines = 0, []
    of_last: list[bytes] = []
    try:
        with path.open("rb") as file:
            end = header = read_line(file)
            if header.endswith(b"\n") and not _is_header(path, header):
                message = f"expected a header that begins with {_expected_header(path)!r}, got {header[:80]!r}."
                return 0, [with_place(_file_error("files.columns", path, message, line=1), free_place(path))], b""
            for number, end in enumerate(read_lines(file), start=2):
                if not end.endswith(b"\n"):
                    break
                is_row = _is_row(end)
                num_rows += is_row
                if not is_row:
                    bad_lines.append((number, end[:40]))
                elif of_last and _batch_of(of_last[0]) == _batch_of(end):
                    of_last.append(end)
                else:
                    of_last = [end]
    except DamagedFileError as error:
        return 0, [with_place(_file_error("files.unreadable", path, f"{error}."), free_place(path))], b""
    damage = []
    if bad_lines:
        number, text = bad_lines[0]
        verb = "line does" if len(bad_lines) == 1 else "lines do"
        message = f"{len(bad_lines)} {verb} not begin with a batch; the first is {text!r}."
        damage.append(with_place(_file_error("files.line", path, message, line=number), free_place(path)))
    end = b"" if end.endswith(b"\n") else end
    if end:
        message = f"the last line is incomplete: its {len(end)} bytes do not end with a line feed."
        if not bad_lines and path.stem != EVENTS.name and _is_of_batch(end, of_last):
            message += f" It cuts off a batch, so the {len(of_last)} rows of the batch before it go with it."
            num_rows -= len(of_last)
            end = b"".join([*of_last, end])
        torn = replace(_file_error("files.torn-line", path, message), severity="info")
        place = free_place(path if bad_lines else path.with_name(f"{path.name}.end"))
        damage.append(with_place(torn, place))
    return num_rows, damage, end


def _expected_header(path: Path) -> str:
    return _EVENTS_HEADER.decode().strip() if path.stem == EVENTS.name else f"{BATCH},"


def _is_header(path: Path, header: bytes) -> bool:
    return header == _EVENTS_HEADER if path.stem == EVENTS.name else header.startswith(b"batch_idx,")


def _is_row(line: bytes) -> bool:
    try:
        return _batch_of(line) >= 0
    except ValueError:
        return False


def _is_of_batch(end: bytes, lines: Sequence[bytes]) -> bool:
    """Whether an incomplete line belongs to the batch of these lines, as only a table with several rows a batch has."""
    return b"," in end and _is_row(end) and bool(lines) and _batch_of(end) == _batch_of(lines[0])


def _batch_of(line: bytes) -> int:
    return int(line.split(b",", 1)[0])


def _file_error(rule: str, path: Path, message: str, *, line: int | None = None) -> Finding:
    return Finding(id=rule, severity="error", message=message, file=f"{path.parent.name}/{path.name}", line=line)


def with_place(finding: Finding, place: Path) -> Finding:
    """Say where the damaged original is kept."""
    kept = place.relative_to(place.parents[2]).as_posix()
    return replace(finding, advice=f"The original is kept as {kept}.")


def count_rows(layout: RunLayout, names: Collection[str]) -> dict[str, int]:
    """Rows in each file of the named tables, by file name; the files were repaired before."""
    counts = {path.name: num_parquet_rows(path) for path in table_paths(layout, names, "parquet")}
    return counts | {path.name: num_csv_rows(path) for path in table_paths(layout, names, "csv")}


def supersede_rows(layout: RunLayout, names: Collection[str], *, after_batch: int, attempt: int) -> bool:
    """Move the named tables' rows after `after_batch` to the attempt's folder under `superseded/`, if there are any.

    Return whether a row was moved. Raise OSError if the disk refuses: every row is still in one of the two places; and
    DamagedFileError if a file cannot be read, which `repair_files` prevents.
    """
    folder = layout.superseded(attempt)
    paths = [layout.telemetry / name for name, rows in sorted(count_rows(layout, names).items()) if rows]
    if after_batch == 0:
        for path in paths:
            supersede_file(path, folder)
        return bool(paths)
    splits = [(_split_csv if path.suffix == ".csv" else _split_parquet)(path, folder, after_batch) for path in paths]
    return any(splits)


def supersede_table(layout: RunLayout, table: RunTable, *, attempt: int) -> None:
    """Move a table's files to the attempt's folder under `superseded/`, so that new files can be created."""
    name = table.table.name
    for path in (layout.csv(name), layout.parquet(name)):
        if path.exists():
            supersede_file(path, layout.superseded(attempt))


def supersede_file(path: Path, folder: Path) -> None:
    """Move a file to an attempt's folder under `superseded/`, under a free name."""
    folder.mkdir(parents=True, exist_ok=True)
    path.rename(_free_name(folder / path.name))


def _free_name(path: Path) -> Path:
    """The path, or the next free name: rows that an interrupted opening moved there are not overwritten."""
    if not path.exists():
        return path
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(name for name in names if not name.exists())


def _split_csv(path: Path, folder: Path, after_batch: int) -> bool:
    """Move the lines after `after_batch` to `folder`: first copy them, then remove them."""
    is_past = any(_matching_lines(path, lambda batch: batch > after_batch))
    if is_past:
        _copy_lines(path, _free_name(folder / path.name), lambda batch: batch > after_batch)
        _copy_lines(path, path, lambda batch: batch <= after_batch)
    return is_past


def _copy_lines(path: Path, target: Path, condition: Callable[[int], bool]) -> None:
    with path.open("rb") as older, written_aside(target) as file:
        file.write(older.readline())
        file.writelines(_matching_lines(path, condition))


def _matching_lines(path: Path, condition: Callable[[int], bool]) -> Iterator[bytes]:
    """The lines below the header whose batch meets a condition, one at a time."""
    with path.open("rb") as file:
        file.readline()
        for line in file:
            if condition(_batch_of(line)):
                yield line


def _split_parquet(path: Path, folder: Path, after_batch: int) -> bool:
    rows = parquet_rows(path)
    past = rows.matching(lambda batch: bool_array(numpy_values(batch.column(BATCH)) > after_batch))
    is_past = any(batch.num_rows for batch in past.read())
    if is_past:
        write_parquet(_free_name(folder / path.name), past)
        write_parquet(path, rows.matching(lambda batch: bool_array(numpy_values(batch.column(BATCH)) <= after_batch)))
    return is_past
