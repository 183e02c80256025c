"""Which files of the telemetry folder are the run's tables. What else lies there is somebody's, and is left alone."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ava_pipeline.contract.builtin_tables import GRADIENT_NORMS, LEARNING_RATES, STEPS
from ava_pipeline.contract.events import EVENTS
from ava_pipeline.contract.files import keep_damaged, keep_damaged_copy, keep_damaged_end, written_aside
from ava_pipeline.contract.journal import TORN
from ava_pipeline.contract.layout import RunLayout
from ava_pipeline.contract.manifest import read_manifest
from ava_pipeline.contract.parquet import check_parquet, num_parquet_rows, parquet_rows, write_parquet
from ava_pipeline.contract.stored import store_journal
from ava_pipeline.contract.tables import RunTable
from ava_pipeline.contract.untrusted import read_line, read_lines
from ava_pipeline.errors import DamagedFileError
from ava_pipeline.write.writers import cut_torn_line, torn_line

_BUILT_IN = frozenset(table.name for table in (GRADIENT_NORMS, LEARNING_RATES, STEPS))


def own_tables(layout: RunLayout, tables: Sequence[RunTable] = ()) -> frozenset[str]:
    """Names of the run's tables: those of any attempt so far, the events, and those of the attempt that begins.

    Where the manifest is lost, the tables that come with the package, and those of which a journal is left.

    Args:
        layout: of the run.
        tables: of the attempt that begins.
    """
    return frozenset({EVENTS.name, *(one.table.name for one in tables), *_older(layout)})


def files_of(layout: RunLayout, names: Collection[str], kind: str) -> list[Path]:
    """The tables' files of one kind (`csv`, `parquet` or `journal`) that are there, in the order of their names."""
    return [path for path in sorted(layout.telemetry.glob(f"*.{kind}")) if path.stem in names]


def _older(layout: RunLayout) -> Collection[str]:
    try:
        manifest = read_manifest(layout.manifest)
    except (FileNotFoundError, DamagedFileError):  # whoever needs the manifest itself says so
        return _BUILT_IN.union(path.stem for path in layout.telemetry.glob("*.journal"))
    return {*manifest.tables, *(name for one in manifest.attempts for name in one.columns)}


_EVENTS_HEADER = (",".join(column.name for column in EVENTS.columns) + "\n").encode()


class CsvDamage(NamedTuple):
    """What of a file's whole lines is no row of its table.

    Attributes:
        num_lines: how many of the lines below the header; None is the whole file, whose header is not ours, or one of
            whose lines is longer than any.
    """

    message: str
    num_lines: int | None


def csv_damage(path: Path) -> CsvDamage | None:
    """Look for lines that are no rows; None where there are none. A last line that was never finished is none yet."""
    try:
        return _find_damage(path)
    except DamagedFileError as error:
        return CsvDamage(str(error), None)


def _find_damage(path: Path) -> CsvDamage | None:
    with path.open("rb") as file:
        header = read_line(file)
        if header.endswith(b"\n") and not _is_header(path, header):
            return CsvDamage(f"its header is {header[:80]!r}, which was not written here", None)
        bad = ((number, line) for number, line in enumerate(read_lines(file), start=2) if _is_damaged(line))
        first = next(bad, None)
        if first is None:
            return None
        num_lines = 1 + sum(1 for _ in bad)
    return CsvDamage(f"{num_lines} lines begin with no batch, at first line {first[0]}: {first[1][:40]!r}", num_lines)


def mend_csv(path: Path) -> CsvDamage | None:
    """Keep a damaged file in `damaged/`, and leave in its place the lines that are rows.

    Returns:
        What was found; None where all is well.

    Raises:
        OSError: the disk refused; the file still stands as it was.
    """
    damage = csv_damage(path)
    if damage is not None and damage.num_lines is None:
        keep_damaged(path)
    elif damage is not None:
        keep_damaged_copy(path)
        with path.open("rb") as older, written_aside(path) as file:
            file.write(older.readline())
            file.writelines(line for line in older if not _is_damaged(line))
    return damage


def batch_of(line: bytes) -> int:
    """The batch that a line begins with.

    Raises:
        ValueError: with none.
    """
    return int(line.split(b",", 1)[0])


def _is_header(path: Path, header: bytes) -> bool:
    return header == _EVENTS_HEADER if path.stem == EVENTS.name else header.startswith(b"batch_idx,")


def _is_damaged(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return batch_of(line) < 0
    except ValueError:
        return True


class Mended(NamedTuple):
    """Something of an older file that could not be kept.

    Attributes:
        is_tail: what a process was writing when it was killed, behind everything it had flushed.
    """

    file: str
    message: str
    is_tail: bool


def make_whole(layout: RunLayout, names: Collection[str]) -> list[Mended]:
    """Cut torn and damaged CSV lines and turn journals into Parquet, so that every file holds whole rows.

    Args:
        layout: of the run.
        names: of its tables.

    Returns:
        What had to be cut, for events.

    Raises:
        OSError: the disk refused.
    """
    mended = [*_set_damaged_aside(layout, names)]
    schemas = declared_schemas(layout)
    for path in files_of(layout, names, "csv"):
        changed = mend_csv(path)
        if changed is not None:
            mended.append(Mended(path.name, f"{changed.message}; the file is kept in damaged/", is_tail=False))
        torn = torn_line(path) if path.exists() else b""
        if torn:
            keep_damaged_end(path, torn)
            cut_torn_line(path)
            message = f"a last line of {len(torn)} bytes that was never finished was cut"
            mended.append(Mended(path.name, message, is_tail=True))
    for journal in files_of(layout, names, "journal"):
        size = journal.stat().st_size
        for damage in store_journal(layout.parquet(journal.stem), journal, schemas.get(journal.stem)):
            message = f"{damage.num_bytes} bytes at {damage.offset} are lost: {damage.reason}"
            is_tail = damage.reason in TORN and damage.offset + damage.num_bytes == size
            mended.append(Mended(journal.name, message, is_tail))
    return mended


def declared_schemas(layout: RunLayout) -> dict[str, pa.Schema]:
    """Each table's schema as the manifest has it, for journals whose own was damaged."""
    try:
        tables = read_manifest(layout.manifest).tables
    except (FileNotFoundError, DamagedFileError):
        return {}  # whoever needs the manifest says so; most journals need none
    return {name: entry.declaration.arrow_schema for name, entry in tables.items()}


def _set_damaged_aside(layout: RunLayout, names: Collection[str]) -> Iterator[Mended]:
    """Parquet files that cannot be read go to `damaged/`, so that the new rows can be written."""
    for path in files_of(layout, names, "parquet"):
        try:
            check_parquet(path)
        except DamagedFileError as error:
            keep_damaged(path)
            yield Mended(path.name, f"{error} It is kept in {path.parent / 'damaged'}", is_tail=False)


def count_rows(layout: RunLayout, names: Collection[str]) -> dict[str, int]:
    """Rows in each file of the named tables that were made whole, by file name."""
    counts = {path.name: num_parquet_rows(path) for path in files_of(layout, names, "parquet")}
    for path in files_of(layout, names, "csv"):
        with path.open("rb") as file:
            counts[path.name] = max(0, sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(2**20), b"")) - 1)
    return counts


def set_aside(layout: RunLayout, names: Collection[str], *, after_batch: int, attempt: int) -> bool:
    """Move the named tables' rows behind `after_batch` to the attempt's folder under `superseded/`.

    Returns:
        Whether there were any.

    Raises:
        OSError: the disk refused; every row is still in one of the two places.
        DamagedFileError: a file cannot be read; those that were made whole can.
    """
    folder = layout.superseded(attempt)
    paths = [layout.telemetry / name for name, rows in sorted(count_rows(layout, names).items()) if rows]
    if after_batch == 0:
        for path in paths:
            _move(path, folder)
        return bool(paths)
    splits = [(_split_csv if path.suffix == ".csv" else _split_parquet)(path, folder, after_batch) for path in paths]
    return any(splits)


def set_table_aside(layout: RunLayout, table: RunTable, *, attempt: int) -> bool:
    """Move a table's files to the attempt's folder under `superseded/`, so that new ones can be begun.

    Returns:
        Whether there were any.
    """
    name = table.table.name
    paths = [path for path in (layout.csv(name), layout.parquet(name)) if path.exists()]
    for path in paths:
        _move(path, layout.superseded(attempt))
    return bool(paths)


def _move(path: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path.rename(_free(folder / path.name))


def _free(path: Path) -> Path:
    """The path, or the next that is free: what an opening that was cut short set aside is not written over."""
    if not path.exists():
        return path
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return next(name for name in names if not name.exists())


def _split_csv(path: Path, folder: Path, after_batch: int) -> bool:
    """Lines behind `after_batch` to `folder`, the others stay; first the copy, then the cut."""
    is_past = any(_picked_lines(path, lambda batch: batch > after_batch))
    if is_past:
        _copy_lines(path, _free(folder / path.name), lambda batch: batch > after_batch)
        _copy_lines(path, path, lambda batch: batch <= after_batch)
    return is_past


def _copy_lines(path: Path, place: Path, rule: Callable[[int], bool]) -> None:
    with path.open("rb") as older, written_aside(place) as file:
        file.write(older.readline())
        file.writelines(_picked_lines(path, rule))


def _picked_lines(path: Path, rule: Callable[[int], bool]) -> Iterator[bytes]:
    """The lines below the header whose batch the rule picks, one in memory at a time."""
    with path.open("rb") as file:
        file.readline()
        for line in file:
            if rule(batch_of(line)):
                yield line


def _split_parquet(path: Path, folder: Path, after_batch: int) -> bool:
    rows, last = parquet_rows(path), pa.scalar(after_batch)
    past = rows.matching(lambda batch: pc.greater(batch.column("batch_idx"), last))
    is_past = any(batch.num_rows for batch in past.read())
    if is_past:
        write_parquet(_free(folder / path.name), past)
        write_parquet(path, rows.matching(lambda batch: pc.less_equal(batch.column("batch_idx"), last)))
    return is_past
